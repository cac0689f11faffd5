"""Every way in which defer can fail, and what each means to a shell and to an HTTP client.

    DeferError
    ├── UsageError               the command line or the call asks for something that does not exist
    ├── InvalidModel             not ONNX, truncated, an op that cannot be cut
    │   └── UnsupportedOp
    ├── InvalidDocument          blocks.json, profile.json or plan.json is not what it should be
    │   └── InvalidCluster       cluster.toml is not what it should be
    ├── WrongInput               a tensor of another name, shape or element type than the model's
    │   └── TooLarge             more bytes than the server takes
    ├── UnknownCoding            compressed in a way that the server does not know
    ├── UnknownDevice            a name that the cluster does not have
    ├── UnknownModel             a name that is neither deployed nor in the zoo
    ├── NoRoute                  no plan can exist; the message names the limit
    ├── AgentUnreachable         nobody answers at an agent's address
    ├── AgentFault               an agent answered that it failed
    ├── DispatcherUnreachable    nobody answers at the dispatcher's address
    ├── ProtocolMismatch         the other side speaks another version, or not our protocol
    ├── RequestFailed            an accepted request ended without a result
    │   ├── DeadlineExceeded
    │   ├── AgentLost            a device of its route is dead or out of reach
    │   └── Cancelled
    ├── Overloaded               refused before it was accepted; try again later
    ├── NotReady                 the deployment is still loading, or there is none
    │   └── Standby              this dispatcher stands by; another one leads
    ├── FileProblem              reading or writing failed
    │   ├── FileMissing
    │   ├── OutputExists         refuses to overwrite what defer did not write
    │   ├── PermissionDenied
    │   ├── DiskFull
    │   └── CorruptFile          content does not match its checksum or its format
    ├── Unauthorised             the other side refused our key, or its key is not known here
    ├── NotAllowed               our key does not allow what we ask
    ├── InvalidKey               a file or folder of keys cannot be used
    ├── PortInUse
    ├── OutOfMemory
    ├── MissingExtra             an optional part is not installed; names the extra
    └── Internal                 a fault of defer itself

Errors of the rooms (`partitioner`, `router`, `node_agent`, `models`) and of libraries become one of these in
`translate`, and only there. Rooms are recognised by the `code` they carry, so that none is imported for it.

Longer than other modules: the tree, its table and the translation are one thing, and change together.
"""

# ruff: noqa: N818 - the names say what happened; the base class says that it is an error.

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import msgspec


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an error means outside of Python.

    Attributes:
        exit_code: Exit code of the command line, after BSD's sysexits.h; 2 for usage as click has it.
        http_status: Status of the gateway's answer.
    """

    exit_code: int
    http_status: int


OUTCOMES: Final[dict[str, Outcome]] = {
    "usage": Outcome(2, 400),
    "invalid-model": Outcome(65, 422),
    "unsupported-op": Outcome(65, 422),
    "invalid-document": Outcome(65, 422),
    "invalid-cluster": Outcome(78, 422),
    "wrong-input": Outcome(65, 400),
    "too-large": Outcome(65, 413),
    "unknown-coding": Outcome(65, 415),
    "unknown-device": Outcome(78, 404),
    "unknown-model": Outcome(65, 404),
    "no-route": Outcome(69, 409),
    "agent-unreachable": Outcome(69, 503),
    "agent-fault": Outcome(69, 502),
    "dispatcher-unreachable": Outcome(69, 503),
    "protocol-mismatch": Outcome(76, 502),
    "request-failed": Outcome(69, 502),
    "deadline-exceeded": Outcome(75, 504),
    "agent-lost": Outcome(75, 503),
    "cancelled": Outcome(130, 499),
    "overloaded": Outcome(75, 429),
    "not-ready": Outcome(75, 503),
    "standby": Outcome(75, 503),
    "file-problem": Outcome(74, 500),
    "file-missing": Outcome(66, 404),
    "output-exists": Outcome(73, 409),
    "permission-denied": Outcome(77, 403),
    "disk-full": Outcome(74, 507),
    "corrupt-file": Outcome(65, 422),
    "unauthorised": Outcome(77, 401),
    "not-allowed": Outcome(77, 403),
    "invalid-key": Outcome(78, 500),
    "port-in-use": Outcome(69, 503),
    "out-of-memory": Outcome(69, 507),
    "missing-extra": Outcome(69, 501),
    "internal": Outcome(70, 500),
}
"""The one table from code to exit code and HTTP status."""


class DeferError(Exception):
    """Base of all errors that defer raises on purpose.

    Args:
        message: One sentence: what is wrong.
        hint: What to do about it, when that is known.
        where: The file, key, device or op that it is about, when the message does not say it.
    """

    code: ClassVar[str] = "internal"
    usual_hint: ClassVar[str] = ""
    """What to do about one that came over the wire, or from a room, without a hint."""

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this error."""
        return OUTCOMES[self.code].exit_code

    @property
    def http_status(self) -> int:
        """Status of an HTTP answer that reports this error."""
        return OUTCOMES[self.code].http_status

    def to_dict(self) -> dict[str, str]:
        """The error as plain data, as `--json` and the dispatcher's API report it."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "where": self.where}

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return from_code, (self.code, self.message, self.hint, self.where)


class UsageError(DeferError):
    """The command line or the call asks for something that does not exist."""

    code = "usage"


class InvalidModel(DeferError):
    """Not an ONNX model, or one that is broken."""

    code = "invalid-model"
    usual_hint = "is it the file that was meant? `onnx.checker.check_model` says more of one that is broken"


class UnsupportedOp(InvalidModel):
    """An op that cannot be costed, cut or run."""

    code = "unsupported-op"
    usual_hint = ""  # the message names the op; the file is the one that was meant


class InvalidDocument(DeferError):
    """A document that cannot be read as what it should be."""

    code = "invalid-document"


class InvalidCluster(InvalidDocument):
    """A cluster file that cannot be read, or that contradicts itself."""

    code = "invalid-cluster"


class WrongInput(DeferError):
    """A tensor of another name, shape or element type than the model's."""

    code = "wrong-input"


class TooLarge(WrongInput):
    """More bytes than the server takes."""

    code = "too-large"
    usual_hint = "split the batch"


class UnknownCoding(DeferError):
    """A body is compressed in a way that the server does not know."""

    code = "unknown-coding"


class UnknownDevice(DeferError):
    """A device name that the cluster does not have."""

    code = "unknown-device"


class UnknownModel(DeferError):
    """A model name that is neither deployed nor in the zoo."""

    code = "unknown-model"


class NoRoute(DeferError):
    """No plan can exist; the message names the limit that forbids it."""

    code = "no-route"


class AgentUnreachable(DeferError):
    """Nobody answers at an agent's address."""

    code = "agent-unreachable"


class AgentFault(DeferError):
    """An agent answered that it failed."""

    code = "agent-fault"


class DispatcherUnreachable(DeferError):
    """Nobody answers at the dispatcher's address."""

    code = "dispatcher-unreachable"


class ProtocolMismatch(DeferError):
    """The other side speaks another protocol version, or not our protocol."""

    code = "protocol-mismatch"


class RequestFailed(DeferError):
    """An accepted request ended without a result."""

    code = "request-failed"


class DeadlineExceeded(RequestFailed):
    """The request's time was over before its result was there."""

    code = "deadline-exceeded"
    usual_hint = "give the request longer; `defer trace` shows where its time goes"


class AgentLost(RequestFailed):
    """A device of the request's route died or went out of reach while it was in flight."""

    code = "agent-lost"


class Cancelled(RequestFailed):
    """The caller gave up."""

    code = "cancelled"


class Overloaded(DeferError):
    """Refused before it was accepted, because the pipeline is full; try again later."""

    code = "overloaded"


class NotReady(DeferError):
    """Nothing is deployed yet, or it is still loading."""

    code = "not-ready"


class Standby(NotReady):
    """This dispatcher stands by; another one leads."""

    code = "standby"


class FileProblem(DeferError):
    """Reading or writing a file failed."""

    code = "file-problem"


class FileMissing(FileProblem):
    """A file that should be read does not exist."""

    code = "file-missing"
    usual_hint = "check the path"


class OutputExists(FileProblem):
    """The output would overwrite something that defer did not write."""

    code = "output-exists"


class PermissionDenied(FileProblem):
    """The operating system does not allow it."""

    code = "permission-denied"


class DiskFull(FileProblem):
    """No space is left where the output should go."""

    code = "disk-full"


class CorruptFile(FileProblem):
    """A file's content does not match its checksum or its format."""

    code = "corrupt-file"


class Unauthorised(DeferError):
    """The other side refused our key, or this side knows no key of it."""

    code = "unauthorised"


class NotAllowed(DeferError):
    """Our key does not allow what we ask."""

    code = "not-allowed"


class InvalidKey(DeferError):
    """A file or folder of keys cannot be used."""

    code = "invalid-key"


class PortInUse(DeferError):
    """Another process listens on the port."""

    code = "port-in-use"


class OutOfMemory(DeferError):
    """The machine, the accelerator or the limit set for this process has no more memory."""

    code = "out-of-memory"


class MissingExtra(DeferError):
    """An optional part of defer is not installed."""

    code = "missing-extra"

    @classmethod
    def of(cls, module: str, extra: str) -> MissingExtra:
        """The error for a `module` that comes with an `extra`; the hint is the command that installs it."""
        return cls(f"this needs {module}, which is not installed", hint=f'pip install "defer-edge[{extra}]"')


class Internal(DeferError):
    """A fault of defer itself."""

    code = "internal"


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

_ALIASES: Final[dict[str, str]] = {
    "model-not-found": "file-missing",
    "invalid-cut": "usage",
    "unsupported-precision": "unsupported-op",
    "invalid-problem": "usage",
    "output": "file-problem",
    "unwritable-path": "file-problem",
    "wrong-argument": "usage",
    "missing-package": "missing-extra",
    "address-in-use": "port-in-use",
    "address-invalid": "invalid-cluster",
    "insecure-listen": "permission-denied",
    "load-failed": "unsupported-op",
    "incompatible-version": "protocol-mismatch",
    "engine-missing": "missing-extra",
    "store-error": "file-problem",
    "store-full": "disk-full",
    "invalid-file": "corrupt-file",
}
"""Codes of rooms that are ours under another name; finer ones are found by their base class."""

_ROOMS: Final[dict[str, type[DeferError]]] = {
    "partitioner": InvalidModel,
    "router": NoRoute,
    "node_agent": AgentFault,
    "models": UnknownModel,
}
"""What an error of a room means when its code has no row in the table."""


def _classes(root: type[DeferError]) -> dict[str, type[DeferError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


_BY_CODE: Final[dict[str, type[DeferError]]] = _classes(DeferError) | {"internal": Internal}


def from_code(code: str, message: str, hint: str = "", where: str = "") -> DeferError:
    """The error for a code that came over the wire; an unknown code is an `AgentFault` that shows it."""
    known = _BY_CODE.get(_ALIASES.get(code, code))
    if known is None:
        return AgentFault(f"{message} ({code})", hint=hint, where=where)
    return known(message, hint=hint or known.usual_hint, where=where)


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
        if (code := _ALIASES.get(code, code)) in _BY_CODE:
            found = _BY_CODE[code]
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
