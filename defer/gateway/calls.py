"""One inference as both protocols ask for it, and what its parameters mean. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defer.errors import WrongInput
from node_agent.messages import TensorHeader

MICROSECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in raw form.

    Attributes:
        name: Its name in the model.
        dtype: The wire's name of its element type.
        shape: Its dimensions.
        data: Its bytes: a view into the request's body where the protocol allows it, so that nothing is copied.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Any

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for.

    Attributes:
        name: Its name.
        binary: Whether HTTP returns it as binary data.
        classes: Return the indices of so many highest values instead; 0 for the tensor itself.
    """

    name: str
    binary: bool = False
    classes: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A request for one inference.

    Attributes:
        model: The model's name.
        version: Its version; empty for the server's choice.
        id: The caller's own id, given back with the answer.
        inputs: The inputs.
        wanted: The outputs to return; empty for all.
        binary: Whether HTTP returns outputs that say nothing else as binary data.
        timeout_s: Seconds that it may take; None for the server's default.
        priority: 0 for the default, 1 for the highest, larger numbers for lower ones.
        trace: W3C trace context; empty where there is none.
    """

    model: str
    version: str = ""
    id: str = ""
    inputs: tuple[Tensor, ...] = ()
    wanted: tuple[Wanted, ...] = ()
    binary: bool = False
    timeout_s: float | None = None
    priority: int = 0
    trace: str = ""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are asked for; empty for all."""
        return tuple(wanted.name for wanted in self.wanted)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call.

    Attributes:
        model: Name of the model that ran.
        version: Its version.
        headers: The outputs' names, types and shapes, in the order asked for; every codec is `raw`.
        frames: Their bytes.
    """

    model: str
    version: str
    headers: tuple[TensorHeader, ...]
    frames: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Parameters:
    """The request's parameters that mean something here."""

    timeout_s: float | None = None
    priority: int = 0
    binary: bool = False


def parameters_of(given: Mapping[str, Any]) -> Parameters:
    """What a request's parameters mean; those that mean nothing here are ignored, as the protocol says.

    Raises:
        WrongInput: One has another type, or asks for what this server cannot do.
    """
    if not given:
        return _NONE
    if given.get("sequence_id") not in (None, 0, ""):
        raise WrongInput(
            "requests of a sequence (`sequence_id`) are not served: no model here keeps state between requests"
        )
    timeout = _integer(given, "timeout")
    return Parameters(
        timeout_s=timeout * MICROSECONDS if timeout else None,
        priority=_integer(given, "priority"),
        binary=_boolean(given, "binary_data_output"),
    )


_NONE = Parameters()


def _integer(given: Mapping[str, Any], key: str) -> int:
    value = given.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WrongInput(f"parameter {key!r} is {value!r}, not an integer of at least 0")
    return value


def _boolean(given: Mapping[str, Any], key: str) -> bool:
    value = given.get(key, False)
    if not isinstance(value, bool):
        raise WrongInput(f"parameter {key!r} is {value!r}, neither true nor false")
    return value


_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def trace_of(header: str) -> str:
    """The W3C trace context of a request that its caller wants traced; empty for all others (traceparent, level 1)."""
    return header if _TRACE.fullmatch(header) and int(header[-2:], 16) & 1 else ""


def refuse_shared_memory(kind: str, name: str, given: Mapping[str, Any]) -> None:
    """Refuse a tensor that lies in memory which this server does not share.

    Raises:
        WrongInput: It does.
    """
    if "shared_memory_region" in given:
        raise WrongInput(
            f"{kind} {name!r} is in shared memory, which this server does not read",
            hint="send it as binary data",
        )


def classes_of(name: str, given: Mapping[str, Any]) -> int:
    """How many classes of an output are asked for; 0 for the output itself.

    Raises:
        WrongInput: The parameter `classification` is not a positive integer.
    """
    value = given.get("classification", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise WrongInput(f"output {name!r}: `classification` is {value!r}, not an integer of at least 0")
    return value
