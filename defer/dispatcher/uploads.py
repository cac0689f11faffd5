"""Models that clients bring: files by content, and a folder of links in which they stand as the model names them.

A file is asked for (`want`), comes in pieces, and is linked into a model's folder (`assemble`) when that is deployed. It
goes with the last folder that has it, unless somebody has asked for it since, who will deploy it as well.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from defer import api
from defer.errors import InvalidModel
from node_agent.content import PART
from node_agent.messages import Chunk, FileRef, Have, Taken, Want
from node_agent.store import FileStore

RECENT_S = 3600.0
"""A file that came longer ago, and is no model's, waits for no deployment any more."""

MOST_WANTED = 4096
"""Files that somebody has asked for and nobody has deployed or given up: beyond, the oldest are forgotten."""

SHA256_DIGITS = 64

FOLDER = "models"
"""Of a state directory, where models are put together."""


class Uploads:
    """The models of one dispatcher; one thread takes files, and one puts models together.

    Args:
        store: Files by content.
        folders: Where models are put together.
    """

    def __init__(self, store: FileStore, folders: Path) -> None:
        self._store = store
        self._folders = folders
        self._lock = threading.Lock()
        self._wanted: Counter[str] = Counter()
        self._wanted_at: dict[str, float] = {}

    @classmethod
    def open(cls, state: Path) -> Uploads:
        """Use two folders of a dispatcher's state directory."""
        folders = state.resolve() / FOLDER  # as it is kept of models: whoever compares finds the same
        folders.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (state / "files").glob(f"*{PART}"):  # before the store remembers how far they came
            if path.stat().st_mtime < time.time() - RECENT_S:
                path.unlink(missing_ok=True)
        # The dispatcher's lock on its state covers this folder.
        return cls(FileStore.open(state / "files", guarded=True), folders)

    def want(self, want: Want) -> Have:
        """Per file, how many bytes of it are held; they are there until `taken` is told of them, or for an hour."""
        with self._lock:
            offsets = self.offsets(want.files)
            for file in want.files:
                name = _name(file)
                self._wanted[name] += 1
                self._wanted_at.pop(name, None)  # the newest stand last
                self._wanted_at[name] = time.monotonic()
            for name in list(self._wanted_at)[:-MOST_WANTED]:
                del self._wanted[name], self._wanted_at[name]
            return Have(want.id, offsets)

    def taken(self, files: Iterable[api.ModelFile]) -> None:
        """Whoever has asked for these files has them deployed, or has given that up."""
        with self._lock:
            for name in {_name(file.file) for file in files}:
                self._wanted[name] -= 1
                self._forget_unwanted(name)

    def _forget_unwanted(self, name: str) -> None:
        if self._wanted[name] <= 0 or self._wanted_at[name] < time.monotonic() - RECENT_S:
            del self._wanted[name]
            self._wanted_at.pop(name, None)

    def offsets(self, files: Iterable[FileRef]) -> tuple[int, ...]:
        """How many bytes of each file are held."""
        return tuple(self._store.offset(file) for file in files)

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        """Take a piece of a file."""
        return Taken(chunk.id, self._store.write(chunk.file, chunk.offset, piece))

    def assemble(self, files: tuple[api.ModelFile, ...]) -> Path:
        """The ONNX file of a model whose files are all held, with its external data where it looks for it.

        Raises:
            InvalidModel: No files, or a path that leaves the model's folder.
            AgentError: A file is not held.
        """
        if not files:
            raise InvalidModel("a model has at least one file")
        paths = [api.check_model_path(file.path) for file in files]
        content = "\n".join(f"{path} {file.file.sha256}" for path, file in zip(paths, files, strict=True))
        folder = self._folders / hashlib.sha256(content.encode()).hexdigest()[:32]
        if not folder.exists():
            partial = folder.with_suffix(f".{os.getpid()}.part")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(mode=0o700)
            for path, file in zip(paths, files, strict=True):
                target = partial / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                _link(self._store.require(file.file), target)
            partial.replace(folder)
        return folder / paths[0]

    def find(self, path: str) -> str:
        """Where a file that `assemble` gave lies now; the state may have been moved, or named otherwise, since.

        Args:
            path: As it was noted; what lies elsewhere, or nowhere, stays as it is.
        """
        parts = Path(path).parts
        for at, part in enumerate(parts):
            # Folders here are named by content, so what is found is the same file.
            here = self._folders.joinpath(*parts[at + 1 :])
            if part == FOLDER and len(parts) > at + 2 and here.is_file():
                return str(here)
        return path

    def tidy(self, used: Iterable[Path]) -> None:
        """Remove models that nothing uses, and files that no model has and nobody has sent lately.

        Args:
            used: What `assemble` gave for models that are still needed. None may be under way to its deployment.
        """
        kept = {
            path.relative_to(self._folders).parts[0] for path in used if path.is_relative_to(self._folders)
        }
        freed: set[int] = set()
        for folder in self._folders.iterdir():
            if folder.name not in kept:
                freed |= {path.stat().st_ino for path in folder.rglob("*") if path.is_file()}
                shutil.rmtree(folder, ignore_errors=True)
        recent = time.time() - RECENT_S
        with self._lock:
            for name in tuple(self._wanted):
                self._forget_unwanted(name)
            for path in self._store.root.iterdir():
                # What has several names is a model's. What arrives is the store's own, by the offset that it remembers.
                if len(path.stem) != SHA256_DIGITS or path.suffix == PART or path.name in self._wanted:
                    continue
                status = path.stat()
                if status.st_nlink == 1 and (status.st_ino in freed or status.st_mtime < recent):
                    path.unlink(missing_ok=True)


def _name(file: FileRef) -> str:
    return f"{file.sha256}{file.suffix}"


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        target.chmod(0o600)
