"""Tensors between two processes of one machine: lent in shared memory instead of copied through the kernel.

Whoever dials a data socket and sends items over it makes a memory of its own, without a name in any file system
(`memfd_create`), and offers it in its greeting. The peer opens it through `/proc`, which only works on the same machine
and for the same user, and says in its answer that it did. From then on a frame of `COPY_BELOW` bytes or more is written
into that memory, and a frame of `REFERENCE_BYTES` travels in its place. The receiver reads the tensor where it lies,
and sets the frame's cell to zero when nobody holds it any more; then its place is used again. Everything else, and what
finds no place, travels as before.

A memory belongs to one greeting: the next one brings a new one, so that nothing that is lost on the way needs to be
found again. It ends with the two processes, however they end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import select
import struct
import weakref
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from node_agent.errors import FrameError
from node_agent.limits import CONNECTIONS, COPY_BELOW, MIB
from node_agent.messages import Greeting, Offered, TensorHeader

SWITCH = "DEFER_SHARED_MEMORY"
"""`off` in this variable of the environment: nothing is lent, and nothing borrowed."""

LENT_BYTES = 128 * MIB
"""Of one memory. Pages that were never written to take none: usually a few times what is under way."""

CELLS = 1024
"""Frames lent at a time."""

REFERENCE_BYTES = 16
"""Of what travels in a lent frame's place: cell, zero, offset. No tensor frame so long is lent."""

ENDED = 16
"""Memories borrowed, above which those that have ended are let go of whatever is left in them."""

_REFERENCE = struct.Struct("<IIQ")
_NONCE_BYTES = 16
_NAME = "defer-lent"
_PAGE = 4096
_FIRST = 2 * _PAGE
"""Before it: the number that proves which memory this is, and the cells."""


def network() -> str:
    """Names this process's network. Emulated devices on one machine have one each, and are to use their links."""
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return ""


def possible() -> bool:
    """Whether this process may lend and borrow at all."""
    return (
        hasattr(os, "memfd_create")
        and hasattr(os, "pidfd_open")
        and os.environ.get(SWITCH, "").lower() not in ("off", "0", "no")
        and bool(network())
    )


class Lender:
    """What one sending connection lends; used in the thread that owns its socket.

    Attributes:
        active: Whether the peer has opened the memory of the last offer.
    """

    def __init__(self, nbytes: int = LENT_BYTES) -> None:
        self.active = False
        self._nbytes = nbytes
        self._offered: Offered | None = None
        self._memory: mmap.mmap | None = None
        self._fd = -1
        self._lent: list[tuple[int, int, int]] = []  # offset, end, cell; by offset
        self._last: list[int] = []  # cells of the last message
        self._free: list[int] = []

    def __del__(self) -> None:
        self.end()

    def offer(self) -> Offered | None:
        """A new memory for the greeting that is about to be said; None where there can be none."""
        self.end()
        if not possible():
            return None
        try:
            self._fd = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, self._nbytes)
            _seal(self._fd)
            self._memory = mmap.mmap(self._fd, self._nbytes)
        except OSError:
            self.end()
            return None
        nonce = secrets.token_bytes(_NONCE_BYTES)
        self._memory[:_NONCE_BYTES] = nonce
        self._free = list(range(CELLS - 1, -1, -1))
        self._offered = Offered(os.getpid(), self._fd, self._nbytes, nonce, network())
        return self._offered

    def answered(self, greeting: Greeting) -> None:
        """The peer greeted: it has opened the memory, or never will."""
        offered = self._offered
        self.active = offered is not None and greeting.lends == offered
        if not self.active:
            self.end()

    def lend(self, frame: Any) -> bytes | None:
        """Writes a frame into the memory and returns what travels in its place; None if there is no room.

        Args:
            frame: A buffer of `COPY_BELOW` bytes or more.
        """
        memory = self._memory
        if memory is None:
            return None
        # Each time: what was used last is in the caches, and takes no new pages.
        self._collect()
        data = memoryview(getattr(frame, "buffer", frame)).cast("B")
        size = len(data)
        offset = self._room(size)
        if offset is None or not self._free:
            return None
        cell = self._free.pop()
        memory[offset : offset + size] = data
        memory[_PAGE + cell] = 1
        self._last.append(cell)
        insort(self._lent, (offset, offset + size, cell))
        return _REFERENCE.pack(cell, 0, offset)

    def lent(self, frames: Sequence[Any]) -> list[Any]:
        """A message's frames, references in place of those that are lent."""
        self._last = []
        out = list(frames)
        for index, frame in enumerate(frames):
            if len(frame) >= COPY_BELOW:
                reference = self.lend(frame)
                if reference is not None:
                    out[index] = reference
        return out

    def take_back(self) -> None:
        """The last message was not sent."""
        if self._memory is not None:
            for cell in self._last:
                self._memory[_PAGE + cell] = 0
        self._last = []

    def _room(self, size: int) -> int | None:
        """The lowest place that is long enough."""
        at = _FIRST
        for offset, end, _ in self._lent:
            if offset - at >= size:
                return at
            at = -(-end // 64) * 64
        return at if at + size <= self._nbytes else None

    def _collect(self) -> None:
        """Takes back what nobody holds any more."""
        memory = self._memory
        assert memory is not None
        kept = [lent for lent in self._lent if memory[_PAGE + lent[2]]]
        if len(kept) < len(self._lent):
            held = {cell for _, _, cell in kept}
            self._free.extend(cell for _, _, cell in self._lent if cell not in held)
            self._lent = kept

    def end(self) -> None:
        """Gives the memory back. What the peer still holds of it stays readable there."""
        self.active = False
        self._offered = None
        memory, self._memory = self._memory, None
        if memory is not None:
            self._memory = memory
            self._collect()
            self._memory = None
            memory[_PAGE - 1] = 1
            if not self._lent:
                # The peer may keep it open for a while; its pages need not stay for that.
                with contextlib.suppress(OSError, ValueError):
                    memory.madvise(mmap.MADV_REMOVE, _FIRST, self._nbytes - _FIRST)
            memory.close()
        self._lent, self._last = [], []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _readable(fd: int) -> bool:
    asked = select.poll()
    asked.register(fd, select.POLLIN)
    return bool(asked.poll(0))


def _seal(fd: int) -> None:
    """Fixes the memory's size for good: a peer that reads it cannot be killed by a page that is gone."""
    import fcntl

    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def unlent(greeting: Greeting) -> Greeting:
    """A greeting without its offer."""
    if greeting.lends is None:
        return greeting
    return Greeting(greeting.minimum, greeting.version, greeting.name)


class Borrowed:
    """A memory that a peer lends.

    Args:
        offered: As the peer's greeting says.

    Raises:
        OSError: It is not on this machine, of this user, of this network, and what it is said to be.
    """

    def __init__(self, offered: Offered) -> None:
        import fcntl

        if not possible() or offered.network != network():
            raise OSError("of another network")
        if len(offered.nonce) != _NONCE_BYTES or not _FIRST < offered.nbytes <= 16 * LENT_BYTES:
            raise OSError("no such memory")
        path = Path(f"/proc/{offered.pid:d}/fd/{offered.fd:d}")
        # Before it is opened: opening another kind of file may do something.
        if str(path.readlink()) != f"/memfd:{_NAME} (deleted)":
            raise OSError("another file")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            about = os.fstat(fd)
            if about.st_uid not in (os.geteuid(), 0) or about.st_size != offered.nbytes:
                raise OSError("another owner or size")
            if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
                raise OSError("not sealed")
            self._data = mmap.mmap(fd, offered.nbytes, prot=mmap.PROT_READ)
            if not secrets.compare_digest(self._data[:_NONCE_BYTES], offered.nonce):
                raise OSError("another memory")
            self._cells = mmap.mmap(fd, _FIRST)
        finally:
            os.close(fd)
        self._held: dict[int, weakref.ref[Any]] = {}
        self.on_idle: Callable[[], object] | None = None
        """Called, by any thread, when nothing that was lent is held or under way any more."""

    @property
    def ended(self) -> bool:
        """Whether the lender has given it up."""
        return self._data[_PAGE - 1] != 0

    @property
    def idle(self) -> bool:
        """Whether nothing that was lent is held here or under way."""
        return not any(self._cells[_PAGE : _PAGE + CELLS])

    def frame(self, reference: bytes, nbytes: int) -> memoryview:
        """The frame that a reference stands for; read-only, and lent until nothing refers to it.

        Raises:
            FrameError: It is not in the memory.
        """
        cell, zero, offset = _REFERENCE.unpack(reference)
        if zero or cell >= CELLS or offset < _FIRST or offset + nbytes > len(self._data):
            raise FrameError("A frame is said to lie outside of the memory that its sender lends.")
        array = np.frombuffer(self._data, np.uint8, nbytes, offset)
        self._held[cell] = weakref.ref(array, partial(self._release, cell))
        return array.data

    def _release(self, cell: int, _: object) -> None:
        # Whatever thread let go of it has read all that it wanted to. One byte: it is written as a whole.
        self._held.pop(cell, None)
        self._cells[_PAGE + cell] = 0
        if self.on_idle is not None and self.idle:
            self.on_idle()


@dataclass(slots=True)
class _Open:
    memory: Borrowed
    pidfd: int
    """Of its owner; −1 once that has ended."""


class Borrowing:
    """What the peers of one bound socket lend, by their routing ids; used in the thread that owns it.

    Args:
        watch: Calls back when a descriptor can be read.
        unwatch: Ends that.
    """

    def __init__(
        self, watch: Callable[[int, Callable[[], None]], None], unwatch: Callable[[int], None]
    ) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._open: OrderedDict[bytes, _Open] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def greeted(self, identity: bytes, greeting: Greeting) -> Greeting:
        """Opens what a peer offers; the greeting, without the offer where that failed."""
        offered = greeting.lends
        self.drop(identity)
        for other, opened in list(self._open.items()):
            # What its last items lie in stays until they are read; a peer that lost some must not fill memory.
            if (opened.memory.ended or opened.pidfd < 0) and (opened.memory.idle or len(self._open) > ENDED):
                self.drop(other)
        if offered is None:
            return greeting
        try:
            pidfd = os.pidfd_open(offered.pid)
        except (OSError, ValueError, OverflowError, AttributeError):
            return unlent(greeting)
        try:
            memory = Borrowed(offered)
        except (OSError, ValueError, OverflowError):
            os.close(pidfd)
            return unlent(greeting)
        if len(self._open) >= CONNECTIONS:
            self.drop(next(iter(self._open)))
        self._open[identity] = _Open(memory, pidfd)
        # A ROUTER does not tell who is gone; the end of its process does.
        self._watch(pidfd, partial(self._gone, identity))
        return greeting

    def _gone(self, identity: bytes) -> None:
        """A lender's process has ended; its last items may still be on their way through this one's queues."""
        opened = self._open[identity]
        if not _readable(opened.pidfd):
            return  # the event was of a descriptor that had this number before
        self._unwatch(opened.pidfd)
        os.close(opened.pidfd)
        opened.pidfd = -1
        opened.memory.on_idle = partial(self._open.pop, identity, None)
        if opened.memory.idle:
            opened.memory.on_idle()

    def drop(self, identity: bytes) -> None:
        """Borrows from a peer no longer; frames that are held stay readable."""
        opened = self._open.pop(identity, None)
        if opened is not None and opened.pidfd >= 0:
            self._unwatch(opened.pidfd)
            os.close(opened.pidfd)

    def close(self) -> None:
        """Borrows from nobody any more."""
        for identity in list(self._open):
            self.drop(identity)

    def resolve(self, identity: bytes, tensors: Sequence[TensorHeader], frames: list[Any]) -> None:
        """Puts lent frames in their references' places.

        Raises:
            FrameError: A reference leads nowhere.
        """
        opened: _Open | None = None
        for index, header in enumerate(tensors):
            if header.nbytes >= COPY_BELOW and index < len(frames) and len(frames[index]) == REFERENCE_BYTES:
                opened = opened or self._open.get(identity)
                if opened is None:
                    raise FrameError("A frame is said to lie in a memory that is not lent here.")
                frames[index] = opened.memory.frame(bytes(frames[index]), header.nbytes)
