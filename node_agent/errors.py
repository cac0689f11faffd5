"""Everything that can go wrong in an agent as one tree, and the exit code that each kind ends a command with.

    AgentError
    ├── WireError                 what came over the network cannot be accepted
    │   ├── FrameError            bad-frame             a header or frame is malformed or over a limit
    │   │   └── NotAllowedError   not-allowed           the sender's key does not allow what it asks
    │   ├── CodecError            bad-encoding          a frame does not decode to what its header says
    │   ├── FlowError             flow-violation        a peer sent more than it was given credit for
    │   ├── VersionError          incompatible-version  no protocol version that both sides speak
    │   └── WrongInputError       wrong-input           tensors that the partition does not take
    ├── UnauthorisedError         unauthorised          the other side refused our key, or its key is not known here
    ├── KeyFileError              invalid-key           a file or folder of keys cannot be used
    ├── RequestError              a control request that cannot be carried out; has its own code
    ├── StoreError                the file store
    │   ├── InvalidFileError      invalid-file          not a content address
    │   ├── MissingFileError      missing-file          a partition's file has not been shipped
    │   ├── WrongOffsetError      wrong-offset          a chunk that does not continue what is held
    │   ├── CorruptFileError      corrupt-file          content differs from its sha256
    │   ├── DiskFullError         disk-full             the file system takes no more
    │   ├── StoreFullError        store-full            --store-limit takes no more
    │   └── StoreUnusableError    store-unusable        the directory cannot be a store
    ├── EngineError
    │   ├── EngineMissingError    engine-missing        not installed; names the extra that brings it
    │   ├── LoadFailedError       load-failed           the engine refuses the partition
    │   ├── RunFailedError        run-failed            the engine failed on one request
    │   └── OutOfMemoryError      out-of-memory         the partition does not fit into the agent's limit
    └── StartError                the process cannot start
        ├── AddressInUseError     address-in-use
        ├── AddressInvalidError   address-invalid
        ├── InsecureListenError   insecure-listen
        └── PackageMissingError   missing-package       an optional package is not installed; names the extra

The exit codes are those of BSD's sysexits.h, so that scripts and service managers can tell them apart.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_UNEXPECTED = 1
EXIT_USAGE = 2
EXIT_INVALID_INPUT = 65
EXIT_UNAVAILABLE = 69
EXIT_INTERNAL = 70
EXIT_CANNOT_CREATE = 73
EXIT_IO = 74
EXIT_TEMPORARY = 75
EXIT_PROTOCOL = 76
EXIT_PERMISSION = 77
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130

DEADLINE_EXCEEDED = "deadline-exceeded"
"""Code of the `Failure` of a request whose time ran out."""


class AgentError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
        code: Kebab-case name that travels in `Fault` and `Failure`.
        hint: What to do about it; may be empty.
        exit_code: What a command ends with when this error ends it.
    """

    code: ClassVar[str] = "agent-error"
    exit_code: ClassVar[int] = EXIT_UNEXPECTED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class WireError(AgentError):
    """Something that came over the network cannot be accepted."""

    code = "bad-message"
    exit_code = EXIT_PROTOCOL


class FrameError(WireError):
    """A header or frame is malformed, or larger than the limits allow."""

    code = "bad-frame"


class NotAllowedError(FrameError):
    """The sender's key does not allow what it asks; a message like one that is malformed: it is not looked at."""

    code = "not-allowed"
    exit_code = EXIT_PERMISSION


class CodecError(WireError):
    """A frame does not decode to what its header says, or a tensor cannot be encoded."""

    code = "bad-encoding"


class FlowError(WireError):
    """A peer sent more than it was given credit for."""

    code = "flow-violation"


class VersionError(WireError):
    """No protocol version is spoken by both sides."""

    code = "incompatible-version"


class WrongInputError(WireError):
    """An item's tensors are not those that the partition takes."""

    code = "wrong-input"
    exit_code = EXIT_INVALID_INPUT


class UnauthorisedError(AgentError):
    """The other side refused our key, or this side knows no key of it."""

    code = "unauthorised"
    exit_code = EXIT_PERMISSION


class KeyFileError(AgentError):
    """A file or folder of keys cannot be used."""

    code = "invalid-key"
    exit_code = EXIT_CONFIG


class RequestError(AgentError):
    """A control request that cannot be carried out.

    Attributes:
        reason: The code of this instance, because the class stands for several.
    """

    exit_code = EXIT_UNAVAILABLE

    def __init__(self, reason: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.reason = reason


class StaleLeaderError(AgentError):
    """A dispatcher gives orders, and another one of those that share its state leads by now."""

    code = "stale-leader"
    exit_code = EXIT_UNAVAILABLE


class StoreError(AgentError):
    """The file store cannot do what was asked."""

    code = "store-error"
    exit_code = EXIT_IO


class InvalidFileError(StoreError):
    """A name that is not a content address, or a size that makes no sense."""

    code = "invalid-file"
    exit_code = EXIT_INVALID_INPUT


class MissingFileError(StoreError):
    """A file that has not been shipped, or not completely."""

    code = "missing-file"


class WrongOffsetError(StoreError):
    """A chunk that does not continue what is held."""

    code = "wrong-offset"


class CorruptFileError(StoreError):
    """The content differs from its sha256."""

    code = "corrupt-file"
    exit_code = EXIT_INVALID_INPUT


class DiskFullError(StoreError):
    """The file system takes no more."""

    code = "disk-full"


class StoreFullError(StoreError):
    """The operator's limit on the store takes no more."""

    code = "store-full"


class StoreUnusableError(StoreError):
    """The directory cannot be used as a store."""

    code = "store-unusable"
    exit_code = EXIT_CANNOT_CREATE


class EngineError(AgentError):
    """The engine cannot do what was asked."""

    code = "engine-error"
    exit_code = EXIT_UNAVAILABLE


class EngineMissingError(EngineError):
    """The engine is unknown, or its package is not installed here."""

    code = "engine-missing"


class LoadFailedError(EngineError):
    """The engine refuses the partition."""

    code = "load-failed"
    exit_code = EXIT_INVALID_INPUT


class RunFailedError(EngineError):
    """The engine failed on one request."""

    code = "run-failed"


class OutOfMemoryError(EngineError):
    """A partition does not fit into the memory that this agent may use."""

    code = "out-of-memory"


class StartError(AgentError):
    """The agent's process cannot start."""

    code = "cannot-start"
    exit_code = EXIT_CONFIG


class AddressInUseError(StartError):
    """Another process listens on the port."""

    code = "address-in-use"
    exit_code = EXIT_UNAVAILABLE


class AddressInvalidError(StartError):
    """An address that this machine cannot listen on or reach."""

    code = "address-invalid"
    exit_code = EXIT_CONFIG


class InsecureListenError(StartError):
    """Listening beyond this machine was not asked for in so many words."""

    code = "insecure-listen"
    exit_code = EXIT_PERMISSION


class PackageMissingError(StartError):
    """What was asked for needs an optional package that is not installed here."""

    code = "missing-package"
    exit_code = EXIT_UNAVAILABLE


def said(error: AgentError) -> str:
    """An error and what to do about it in one line of the log, as sentences."""
    return sentences(str(error), error.hint)


def sentences(message: str, hint: str) -> str:
    """What was wrong and what to do about it, the one not running into the other."""
    between = "; " if hint[:1].islower() else ". "
    return f"{message.rstrip('.')}{between}{hint}" if hint else message


def code_of(error: BaseException) -> str:
    """The code that names `error` to another process; `internal` for one that is not ours."""
    if isinstance(error, RequestError):
        return error.reason
    return error.code if isinstance(error, AgentError) else "internal"
