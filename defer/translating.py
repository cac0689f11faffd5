"""What errors of the rooms and of libraries mean to a user: the only place where one becomes one of `defer.errors`.

Rooms (`partitioner`, `router`, `node_agent`, `models`) are recognised by the `code` that their errors carry, so that
none is imported for it.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Final

import msgspec

from defer.errors import (
    AgentFault,
    AgentUnreachable,
    Cancelled,
    DeadlineExceeded,
    DeferError,
    DiskFull,
    FileMissing,
    FileProblem,
    Internal,
    InvalidDocument,
    InvalidModel,
    MissingExtra,
    NoRoute,
    OutOfMemory,
    PermissionDenied,
    PortInUse,
    UnknownModel,
    UsageError,
    kind_of,
)

EXTRAS: Final[dict[str, str]] = {
    "onnx": "planner",
    "onnx_ir": "planner",
    "networkx": "planner",
    "scipy": "planner",
    "onnxruntime": "cpu",
    "tensorrt": "tensorrt",
    "zfpy": "zfp",
    "resvg_py": "png",
    "anyio": "gateway",
    "starlette": "gateway",
    "uvicorn": "gateway",
    "grpc": "gateway",
    "google.protobuf": "gateway",
    "zeroconf": "discovery",
    "opentelemetry.sdk": "otel",
    "opentelemetry.exporter.otlp.proto.http": "otel",
}
"""Which extra installs a top-level module."""

_ROOMS: Final[dict[str, type[DeferError]]] = {
    "partitioner": InvalidModel,
    "router": NoRoute,
    "node_agent": AgentFault,
    "models": UnknownModel,
}
"""What an error of a room means when its code has no row in the table."""


def translate(exc: BaseException) -> DeferError:
    """The `DeferError` that says what a foreign error means to a user.

    Args:
        exc: Any exception. A `DeferError` is returned as it is.

    Returns:
        An error ready to be raised `from exc`; `Internal` when nothing better is known.
    """
    if isinstance(exc, DeferError):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return translate(exc.exceptions[0])
    if (known := _of_room(exc)) is not None:
        return known(_sentence(exc), hint=str(getattr(exc, "hint", "") or "") or known.usual_hint)
    if isinstance(exc, KeyboardInterrupt | asyncio.CancelledError):
        return Cancelled("interrupted")
    if isinstance(exc, msgspec.MsgspecError):
        return InvalidDocument(_sentence(exc))
    if isinstance(exc, ImportError):
        return _missing_module(exc)
    if isinstance(exc, MemoryError):
        return OutOfMemory("not enough memory", hint="free some, or use a machine with more")
    if isinstance(exc, TimeoutError) and exc.errno is None:
        return DeadlineExceeded(_sentence(exc) if exc.args else "it took too long")
    if isinstance(exc, RecursionError):
        return InvalidModel("the input is nested too deeply")
    number = getattr(exc, "errno", None)
    if isinstance(number, int) and (isinstance(exc, OSError) or type(exc).__module__.startswith("zmq")):
        return _system_error(exc, number)
    return Internal(
        f"{type(exc).__name__}: {_sentence(exc)}",
        hint="this is a fault of defer; DEFER_DEBUG=1 shows where it happened, please report it",
    )


def _of_room(exc: BaseException) -> type[DeferError] | None:
    """What an error of a room is here: its own code, else the nearest base class's, else the room's."""
    room = type(exc).__module__.partition(".")[0]
    if room not in _ROOMS or not isinstance(getattr(exc, "code", None), str):
        return None
    for kind in type(exc).__mro__:
        code = getattr(kind, "code", "")
        if (found := kind_of(code)) is not None:
            break
    else:
        found = _ROOMS[room]
    cause = exc.__cause__
    if found is FileProblem and isinstance(cause, OSError) and cause.errno in _SYSTEM:
        why = _SYSTEM[cause.errno][0]  # a room says that writing failed, its cause says why
        return found if why is FileMissing else why  # but no file is missing where one was to be written
    return found


def _sentence(exc: BaseException) -> str:
    """The first line of an error's text; libraries append pages."""
    lines = str(exc).strip().splitlines()
    return lines[0].strip() if lines else type(exc).__name__


def _missing_module(exc: ImportError) -> DeferError:
    name = exc.name or ""
    for module, extra in EXTRAS.items():
        if isinstance(exc, ModuleNotFoundError) and (name == module or name.startswith(f"{module}.")):
            return MissingExtra.of(module, extra)
    return Internal(
        f"cannot import {name or 'a module'}: {_sentence(exc)}",
        hint="`defer doctor` shows where each package comes from",
    )


_SYSTEM: Final[dict[int, tuple[type[DeferError], str, str]]] = {
    errno.ENOSPC: (DiskFull, "no space left on the disk", "free some space, or write elsewhere"),
    errno.EDQUOT: (DiskFull, "the disk quota is used up", "free some space, or write elsewhere"),
    errno.EADDRINUSE: (PortInUse, "another process listens there", "stop it, or choose another port"),
    errno.EADDRNOTAVAIL: (
        UsageError,
        "this machine has no such address",
        "listen on one of its own, or 0.0.0.0",
    ),
    errno.EACCES: (
        PermissionDenied,
        "permission denied",
        "check the owner and mode, or choose another place",
    ),
    errno.EPERM: (PermissionDenied, "the operation is not permitted", "check who may do this"),
    errno.EROFS: (PermissionDenied, "the file system is read-only", "choose another place"),
    errno.ENOENT: (FileMissing, "no such file or directory", "check the path"),
    errno.EISDIR: (FileProblem, "this is a directory", "name a file"),
    errno.EEXIST: (FileProblem, "something else is there already", "choose another place"),
    errno.ENOTDIR: (FileProblem, "a part of the path is not a directory", "check the path"),
    errno.ENOMEM: (OutOfMemory, "not enough memory", "free some, or use a machine with more"),
    errno.EMFILE: (FileProblem, "too many open files", "raise the limit (`ulimit -n`)"),
    errno.ECONNREFUSED: (AgentUnreachable, "nobody listens there", "is it started, and is the port right?"),
    errno.EHOSTUNREACH: (AgentUnreachable, "the host cannot be reached", "check the address and the network"),
    errno.ENETUNREACH: (
        AgentUnreachable,
        "the network cannot be reached",
        "check the address and the network",
    ),
    errno.ETIMEDOUT: (AgentUnreachable, "no answer in time", "check the address and the network"),
}


def _system_error(exc: BaseException, number: int) -> DeferError:
    filename = getattr(exc, "filename", None)
    where = str(filename) if filename else ""
    if number in _SYSTEM:
        kind, message, hint = _SYSTEM[number]
        return kind(message, hint=hint, where=where)
    return FileProblem(str(getattr(exc, "strerror", None) or exc), where=where)
