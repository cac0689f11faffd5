"""Models that clients bring: files by content, and a folder of links in which they stand as the model names them."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from defer import api
from defer.errors import InvalidModel
from node_agent.content import PART
from node_agent.messages import Chunk, FileRef, Have, Taken, Want
from node_agent.store import FileStore

RECENT_S = 3600.0
"""A file that came longer ago, and is no model's, waits for no deployment any more."""

SHA256_DIGITS = 64


class Uploads:
    """The models of one dispatcher; used by one thread at a time.

    Args:
        store: Files by content.
        folders: Where models are put together.
    """

    def __init__(self, store: FileStore, folders: Path) -> None:
        self._store = store
        self._folders = folders

    @classmethod
    def open(cls, state: Path) -> Uploads:
        """Use two folders of a dispatcher's state directory."""
        folders = state / "models"
        folders.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (state / "files").glob(f"*{PART}"):  # before the store remembers how far they came
            if path.stat().st_mtime < time.time() - RECENT_S:
                path.unlink(missing_ok=True)
        # The dispatcher's lock on its state covers this folder.
        return cls(FileStore.open(state / "files", guarded=True), folders)

    def want(self, want: Want) -> Have:
        """Per file, how many bytes of it are held."""
        return Have(want.id, self.offsets(want.files))

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

    def tidy(self, used: Iterable[Path]) -> None:
        """Remove models that nothing uses, and files that no model has and nobody has sent lately.

        Args:
            used: What `assemble` gave for models that are still needed. None may be under way to its deployment.
        """
        kept = {
            path.relative_to(self._folders).parts[0] for path in used if path.is_relative_to(self._folders)
        }
        for folder in self._folders.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        recent = time.time() - RECENT_S
        for path in self._store.root.iterdir():
            # What has several names is a model's. What is arriving is the store's own, by the offset that it remembers.
            if len(path.stem) == SHA256_DIGITS and path.suffix != PART:
                status = path.stat()
                if status.st_nlink == 1 and status.st_mtime < recent:
                    path.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
        target.chmod(0o600)
