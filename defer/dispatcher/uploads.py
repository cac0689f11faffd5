"""Models that clients bring: files by content, and a folder of links in which they stand as the model names them."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from defer import api
from defer.errors import InvalidModel
from node_agent.messages import Chunk, Have, Taken, Want
from node_agent.store import FileStore


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
        folders.mkdir(parents=True, exist_ok=True)
        # The dispatcher's lock on its state covers this folder.
        return cls(FileStore.open(state / "files", guarded=True), folders)

    def want(self, want: Want) -> Have:
        """Per file, how many bytes of it are held."""
        return Have(want.id, tuple(self._store.offset(file) for file in want.files))

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
            for path, file in zip(paths, files, strict=True):
                target = partial / path
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(self._store.require(file.file), target)
            partial.replace(folder)
        return folder / paths[0]


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)
