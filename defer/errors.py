"""Every way in which defer can fail.

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
    ├── StateInUse               another dispatcher keeps its state where this one should
    ├── OutOfMemory
    ├── MissingExtra             an optional part is not installed; names the extra
    └── Internal                 a fault of defer itself

What each means outside of Python is in `defer.outcomes`; what errors of the rooms and of libraries become, in
`defer.translating`.
"""

# ruff: noqa: N818 - the names say what happened; the base class says that it is an error.

from __future__ import annotations

from typing import Any, ClassVar, Final

from defer.outcomes import OUTCOMES


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
    usual_hint = "try again in a moment, or have fewer requests under way; `map` tries again by itself"


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
    usual_hint = (
        "use a key whose role may; `defer keys list` where the other side runs shows what this one is there"
    )


class InvalidKey(DeferError):
    """A file or folder of keys cannot be used."""

    code = "invalid-key"


class PortInUse(DeferError):
    """Another process listens on the port."""

    code = "port-in-use"


class StateInUse(DeferError):
    """Another dispatcher keeps its state where this one should; it may be about to end."""

    code = "state-in-use"


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


def _classes(root: type[DeferError]) -> dict[str, type[DeferError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _classes(child)
    return found


_BY_CODE: Final[dict[str, type[DeferError]]] = _classes(DeferError) | {"internal": Internal}


def kind_of(code: str) -> type[DeferError] | None:
    """The class for a code, of ours or of a room; None for one that is not known."""
    return _BY_CODE.get(_ALIASES.get(code, code))


def from_code(code: str, message: str, hint: str = "", where: str = "") -> DeferError:
    """The error for a code that came over the wire; an unknown code is an `AgentFault` that shows it."""
    known = kind_of(code)
    if known is None:
        return AgentFault(f"{message} ({code})", hint=hint, where=where)
    return known(message, hint=hint or known.usual_hint, where=where)
