"""Files by content: what has been shipped once is never shipped again, and nothing else is ever served.

One flat directory. A complete file is `<sha256><suffix>`; one that is still arriving is the same name with
`.part` after it, so that an interrupted transfer goes on where it stopped, after a restart too. A file gets
its name only when its content has the right sha256 and is on disk. Everything runs on one thread of the
caller's choice, and a directory belongs to one process at a time: the hash of a part covers what this process
received, so a second writer's bytes under it would pass as verified.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node_agent.content import PART, SCRATCH, check_ref
from node_agent.errors import (
    CorruptFileError,
    DiskFullError,
    MissingFileError,
    StoreError,
    StoreFullError,
    StoreUnusableError,
    WrongOffsetError,
)
from node_agent.messages import FileRef
from node_agent.quantities import show_size
from node_agent.store_disk import lock, sha256_of

MARKER = "defer-store-1"
"""Empty file that says whose directory this is: nothing is ever removed from one that lacks it.

Its lock says which process uses it.
"""

ARRIVING_S = 300.0
"""A part that nobody asked for or added to for this long was interrupted, and gives way to files that are shipped."""

_NAME = re.compile(r"[0-9a-f]{64}\.[a-z0-9_]{1,16}(\.part)?")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(slots=True)
class _Arriving:
    """A file of `nbytes` of which the first `offset` are held.

    Attributes:
        digest: The hash of what is held.
        used: Monotonic time when it was last asked for or added to.
        promised: Whether room has been made for the rest of it.
    """

    nbytes: int
    offset: int
    digest: Any
    used: float
    promised: bool = False


class FileStore:
    """A directory of content-addressed files.

    Args:
        root: The directory; `open` makes and checks it.
        limit_bytes: Most bytes to hold; None for no limit of our own.
    """

    def __init__(self, root: Path, limit_bytes: int | None = None) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self._arriving: dict[str, _Arriving] = {}
        self._verified: set[str] = set()
        self._pinned: dict[str, int] = {}
        self._unlock: Callable[[], object] | None = None

    @classmethod
    def open(cls, root: Path | str, limit_bytes: int | None = None, *, guarded: bool = False) -> FileStore:
        """Makes the directory if need be, takes it for this process and drops what cannot be part of a store.

        Args:
            root: The directory.
            limit_bytes: Most bytes to hold; None for no limit of our own.
            guarded: The caller sees to it by itself that no other process uses the directory.

        Raises:
            StoreUnusableError: It cannot be made or written, holds files of somebody else, or another process
                uses it.
        """
        store = cls(Path(root).expanduser().absolute(), limit_bytes)
        try:
            store._prepare(guarded)
        except OSError as error:
            raise StoreUnusableError(
                f"{store.root} cannot be used as a file store: {error.strerror or error}.",
                hint="Give a directory that this user may write with --store DIR.",
            ) from None
        return store

    def _prepare(self, guarded: bool) -> None:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        marker = self.root / MARKER
        if not marker.exists():
            if any(self.root.iterdir()):
                raise StoreUnusableError(
                    f"{self.root} holds files that are not a store's.",
                    hint="Give --store a directory of its own.",
                )
            marker.touch(mode=0o600)
        if not guarded:
            self._unlock = weakref.finalize(self, os.close, lock(marker))
        self.root.chmod(0o700)
        for path in self.root.iterdir():
            if path.name.startswith(SCRATCH):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            # An empty file is what a crash between creating and writing leaves.
            elif _NAME.fullmatch(path.name) and path.stat().st_size == 0 and path.name.endswith(PART):
                path.unlink()

    def close(self) -> None:
        """Lets another process use the directory; nothing may be called afterwards."""
        if self._unlock is not None:
            self._unlock()

    def path(self, ref: FileRef) -> Path:
        """Where `ref` lies once complete.

        Raises:
            InvalidFileError: `ref` is not a content address.
        """
        check_ref(ref)
        return self.root / (ref.sha256 + ref.suffix)

    def require(self, ref: FileRef) -> Path:
        """The path of a complete file.

        Raises:
            MissingFileError: It has not been shipped, or not completely.
        """
        path = self.path(ref)
        if self.offset(ref) != ref.nbytes or not path.exists():
            raise MissingFileError(
                f"File {path.name} has not been shipped to this agent.", hint="Ship the files again."
            )
        return path

    def offset(self, ref: FileRef) -> int:
        """How many bytes of `ref` are held: its size when it is complete and verified.

        A file from an earlier start of the process is read and verified once; what does not verify is
        removed.

        Raises:
            StoreError: The directory cannot be read.
        """
        path = self.path(ref)
        with self._translated(ref):
            if self._complete(ref, path):
                # Whoever asks counts on it: what nobody asks for goes first when room is needed.
                with contextlib.suppress(OSError):
                    os.utime(path)
                return ref.nbytes
            return self._resume(ref, path).offset

    def _complete(self, ref: FileRef, path: Path) -> bool:
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return False
        if size == ref.nbytes and path.name in self._verified:
            return True
        if size == ref.nbytes and sha256_of(path, ref.nbytes).hexdigest() == ref.sha256:
            self._verified.add(path.name)
            return True
        self._verified.discard(path.name)
        path.unlink()
        return False

    def _resume(self, ref: FileRef, path: Path) -> _Arriving:
        now = time.monotonic()
        known = self._arriving.get(path.name)
        if known is not None:
            known.promised = known.promised and self._arrives(known, now)
            known.used = now
            return known
        part = _part(path)
        held = part.stat().st_size if part.exists() else 0
        if held > ref.nbytes:
            part.unlink()
            held = 0
        state = _Arriving(ref.nbytes, held, sha256_of(part, held) if held else hashlib.sha256(), now)
        if held:
            self._arriving[path.name] = state
        return state

    @staticmethod
    def _arrives(state: _Arriving, now: float) -> bool:
        return now - state.used < ARRIVING_S

    def write(self, ref: FileRef, offset: int, data: Any) -> int:
        """Takes a piece of `ref`; the piece that completes it is verified and makes the file visible.

        Args:
            ref: The file.
            offset: Where `data` belongs; bytes that are held already are not written again.
            data: The bytes.

        Returns:
            How many bytes are held now.

        Raises:
            WrongOffsetError: The piece leaves a gap, or goes beyond the end.
            CorruptFileError: The complete content has another sha256; what was held is removed.
            DiskFullError, StoreFullError: No room; what was held is removed.
            StoreError: The directory cannot be written.
        """
        path = self.path(ref)
        with self._translated(ref):
            if self._complete(ref, path):
                return ref.nbytes
            state = self._resume(ref, path)
            size = len(data)
            if offset > state.offset or offset < 0:
                raise WrongOffsetError(
                    f"A piece of {path.name} starts at byte {offset}; {state.offset} bytes are held.",
                    hint="Ask with Want where to go on.",
                )
            if offset + size > ref.nbytes:
                raise WrongOffsetError(
                    f"A piece of {path.name} ends at byte {offset + size}; the file has {ref.nbytes}."
                )
            fresh = memoryview(data)[state.offset - offset :]
            if len(fresh):
                if not state.promised:
                    self._make_room(ref, state)
                self._arriving[path.name] = state
                self._append(path, state, fresh)
            if state.offset == ref.nbytes:
                self._finish(ref, path, state)
            return state.offset

    def _append(self, path: Path, state: _Arriving, data: memoryview) -> None:
        part = _part(path)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # A piece that was cut short by a crash is overwritten, never appended to.
            os.ftruncate(descriptor, state.offset)
            done = 0
            while done < len(data):
                done += _pwrite(descriptor, data[done:], state.offset + done)
        except OSError as error:
            if error.errno in _FULL:
                self._drop(path)
            raise
        finally:
            os.close(descriptor)
        state.digest.update(data)
        state.offset += len(data)

    def _finish(self, ref: FileRef, path: Path, state: _Arriving) -> None:
        part = _part(path)
        if state.digest.hexdigest() != ref.sha256:
            self._drop(path)
            raise CorruptFileError(
                f"File {path.name} arrived damaged: its content has sha256 {state.digest.hexdigest()}.",
                hint="Ship it again; if it happens again, the source is damaged.",
            )
        if ref.nbytes == 0:
            part.touch(mode=0o600)
        try:
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
        except OSError as error:
            if error.errno in _FULL:
                self._drop(path)
            raise
        part.rename(path)
        directory = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self._arriving.pop(path.name, None)
        self._verified.add(path.name)

    def _drop(self, path: Path) -> None:
        self._arriving.pop(path.name, None)
        with contextlib.suppress(OSError):
            _part(path).unlink()

    def pin(self, refs: Iterable[FileRef]) -> None:
        """Keeps these files while a partition uses them; pins add up."""
        for ref in refs:
            name = self.path(ref).name
            self._pinned[name] = self._pinned.get(name, 0) + 1
            with contextlib.suppress(OSError):
                os.utime(self.root / name)

    def unpin(self, refs: Iterable[FileRef]) -> None:
        """Takes back one pin of each."""
        for ref in refs:
            name = self.path(ref).name
            left = self._pinned.get(name, 0) - 1
            if left > 0:
                self._pinned[name] = left
            else:
                self._pinned.pop(name, None)

    def nbytes(self) -> int:
        """Bytes that the store's files take, incomplete ones included."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.root.iterdir():
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        return found

    def _make_room(self, ref: FileRef, state: _Arriving) -> None:
        """Removes the files that were used longest ago, as far as the limit demands for all of `ref`."""
        state.promised = True
        if self.limit_bytes is None:
            return
        files = sorted(self._files())
        now = time.monotonic()
        arriving = {name: other for name, other in self._arriving.items() if self._arrives(other, now)}
        to_come = sum(o.nbytes - o.offset for o in arriving.values() if o.promised and o is not state)
        to_come += ref.nbytes - state.offset
        excess = sum(size for _, size, _ in files) + to_come - self.limit_bytes
        victims = []
        for _, size, path in files:
            if excess <= 0:
                break
            if path.name in self._pinned or path.name.removesuffix(PART) in arriving:
                continue
            victims.append(path)
            excess -= size
        if excess > 0:
            self._drop(self.path(ref))
            raise StoreFullError(
                f"File {ref.sha256[:12]}… of {show_size(ref.nbytes)} does not fit: the store may hold "
                f"{show_size(self.limit_bytes or 0)}, and the files in use leave {show_size(excess)} too few.",
                hint="Start the agent with a larger --store-limit.",
            )
        for path in victims:
            self._verified.discard(path.name)
            self._arriving.pop(path.name.removesuffix(PART), None)
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _translated(self, ref: FileRef) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise DiskFullError(
                    f"The disk of {self.root} is full: file {ref.sha256[:12]}… of {show_size(ref.nbytes)} does not fit.",
                    hint="Free space there, or give another directory with --store DIR.",
                ) from None
            raise StoreError(
                f"File {ref.sha256[:12]}… in {self.root}: {error.strerror or error}.",
                hint="Check the directory given with --store DIR.",
            ) from None


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _pwrite(descriptor: int, data: memoryview, offset: int) -> int:
    """The one place that writes content: tests put a full disk here."""
    return os.pwrite(descriptor, data, offset)
