"""Bytes to and from files; a reader never sees half a document."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from defer.errors import DeferError, FileMissing, FileProblem
from defer.translating import translate

STDOUT = "-"
"""Names standard input or output in place of a file."""


def name_of(path: str | Path) -> str:
    """What messages call a file that is read."""
    return "standard input" if str(path) == STDOUT else str(path)


def check_file(path: Path, hint: str = "check the path") -> None:
    """Check that there is a file to read.

    Raises:
        FileMissing: There is none, or it is a folder or a device.
    """
    if path.is_file():
        return
    what = "no such file"
    if path.exists():
        what = "this is a folder, not a file" if path.is_dir() else "this is no regular file"
    raise FileMissing(what, where=str(path), hint=hint)


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, or of standard input for `-`.

    Raises:
        FileMissing, PermissionDenied, FileProblem: With the path.
    """
    try:
        if str(path) == STDOUT:
            return sys.stdin.buffer.read()
        return Path(path).read_bytes()
    except OSError as exc:
        raise _located(exc, path) from exc


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a whole file or nothing: to a temporary file beside it, synced, then renamed over it.

    A path that exists and is no regular file (`/dev/stdout`, a pipe) is written to directly; `-` is standard
    output.

    Raises:
        DiskFull, PermissionDenied, FileProblem: With the path; no temporary file is left.
    """
    try:
        if str(path) == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        target = Path(path)
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(data)
            return
        _replace(target, data)
    except FileNotFoundError as exc:
        raise FileProblem(
            "its directory does not exist", where=str(path), hint="create it, or write elsewhere"
        ) from exc
    except OSError as exc:
        raise _located(exc, path) from exc


def _replace(target: Path, data: bytes) -> None:
    target = target.resolve()  # through a link: the link stays, the file that it names is replaced
    if target.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(target))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _located(exc: OSError, path: str | Path) -> DeferError:
    error = translate(exc)
    error.where = "standard output" if str(path) == STDOUT else str(path)
    return error
