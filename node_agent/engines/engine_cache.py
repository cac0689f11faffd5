"""Compiled engines on disk: named by everything that they depend on, whole or absent, the least used dropped first."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from node_agent.engines.profiles import Profile

LIMIT_BYTES = 8 * 1024**3
"""How large the cache may grow unless told otherwise."""

_MAGIC = b"DEFERENG"
_HEADER = struct.Struct("<8s32sI")
_SUFFIX = ".engine"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that a compiled engine depends on; a change of any field is another engine.

    Attributes:
        partition: Sha256 of the partition's graph, which names its weights by content; numeric precision is part
            of the graph.
        shapes: Least, usual and greatest shape by input.
        runtime: The compiler's version.
        device: The device's name.
        capability: Its compute capability.
        driver: The driver's CUDA version.
        flags: Build options that change the result.
    """

    partition: str
    shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
    runtime: str
    device: str
    capability: tuple[int, int]
    driver: tuple[int, int]
    flags: tuple[str, ...] = ()

    def digest(self) -> str:
        """The name under which the engine is kept."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        """The key as JSON, the same for equal keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


def shapes_of(profile: Profile) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """A profile as the key holds it."""
    return {name: (each.least, each.usual, each.greatest) for name, each in profile.items()}


class EngineCache:
    """A folder of compiled engines. Several processes may share it."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit = limit_bytes

    def path(self, key: EngineKey) -> Path:
        """Where the engine of this key lies, if it is there."""
        return self._folder / f"{key.digest()}{_SUFFIX}"

    def get(self, key: EngineKey) -> bytes | None:
        """The engine of this key; None if it is absent. A damaged one is removed and counts as absent."""
        path = self.path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        engine = _unpack(data, key)
        if engine is None:
            path.unlink(missing_ok=True)
            return None
        os.utime(path)  # the least recently used is dropped first
        return engine

    def put(self, key: EngineKey, engine: bytes) -> Path:
        """Keep an engine, and drop others until the limit holds.

        Raises:
            OSError: The file cannot be written; what was there before still is.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self.path(key)
        write_whole(path, _pack(key, engine))
        self._shrink(path)
        return path

    def drop(self, key: EngineKey) -> None:
        """Forget the engine of this key."""
        self.path(key).unlink(missing_ok=True)

    def _entries(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                state = path.stat()
            except OSError:
                continue  # another process dropped it
            found.append((state.st_mtime, state.st_size, path))
        return sorted(found)

    def _shrink(self, keep: Path) -> None:
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self._limit:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


def write_whole(path: Path, data: bytes) -> None:
    """A file that appears complete or not at all.

    Raises:
        OSError: As the system gives it.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".partial-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _pack(key: EngineKey, engine: bytes) -> bytes:
    text = key.text().encode()
    digest = hashlib.sha256(text + engine).digest()
    return _HEADER.pack(_MAGIC, digest, len(text)) + text + engine


def _unpack(data: bytes, key: EngineKey) -> bytes | None:
    if len(data) < _HEADER.size:
        return None
    magic, digest, length = _HEADER.unpack_from(data)
    body = memoryview(data)[_HEADER.size :]
    if magic != _MAGIC or hashlib.sha256(body).digest() != digest:
        return None
    if bytes(body[:length]) != key.text().encode():
        return None
    return bytes(body[length:])
