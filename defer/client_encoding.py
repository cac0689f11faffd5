"""A caller's inputs as a request: checked against the model's signature, encoded as its plan wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from defer.api import ModelInfo
from defer.client_arrays import Array, Inputs, as_arrays, check_outputs
from defer.client_events import Submit
from defer.client_room import new_id
from defer.errors import UsageError, WrongInput
from node_agent.codecs import CODECS, byte_view
from node_agent.errors import AgentError
from node_agent.frames import check_headers, pack_item
from node_agent.limits import COPY_BELOW
from node_agent.messages import TensorHeader

AUTO = "auto"
"""Codec of a client that does as the model's plan wants."""

REMEMBERED = 64
"""Combinations of inputs' types and shapes that a client knows to fit."""

LOOKED_AT = frozenset("OUS")
"""Kinds of element whose bytes on the wire differ from one array to the next of its shape: objects, text."""


class Encoder:
    """Makes requests of inputs; remembers which inputs need no second look.

    Args:
        codec: How inputs are encoded on the wire; `auto` does as the model's plan wants.

    Raises:
        UsageError: There is no such codec.
    """

    def __init__(self, codec: str) -> None:
        if codec != AUTO and codec not in CODECS:
            raise UsageError(f"codec {codec!r} is unknown", hint=f"known: {AUTO}, {', '.join(CODECS)}")
        self._wanted = codec
        self._seen: dict[tuple[Any, ...], tuple[ModelInfo, tuple[TensorHeader, ...]]] = {}

    def encode(
        self,
        info: ModelInfo,
        inputs: Inputs,
        outputs: Sequence[str],
        deadline: float,
        *,
        copy: bool,
        patient: bool,
        timeout: float = math.inf,
    ) -> Submit:
        """Check a request against a signature and encode it; asks nobody.

        Args:
            info: The model's signature.
            inputs: The caller's arrays.
            outputs: Wanted outputs; empty for all.
            deadline: When it must have ended, on the monotonic clock, s; infinity for never.
            copy: Whether the caller may change its arrays before the answer.
            patient: Try again where the dispatcher is overloaded.
            timeout: What the caller gave it, s.

        Raises:
            WrongInput: They do not fit, or there is no such output.
        """
        if not outputs:
            given = plain(inputs, info)
            told = None if given is None else self._seen.get(kind_of(info, given))
            if given is not None and told is not None:
                frames = [_frame_of(array, copy=copy) for array in given]
                return Submit(new_id(), info.name, (), told[1], frames, deadline, patient, timeout=timeout)
        arrays, wanted = as_arrays(inputs, info), check_outputs(outputs, info)
        if copy:
            arrays = {name: array.copy() for name, array in arrays.items()}
        dtypes = {spec.name: spec.dtype for spec in info.inputs}
        codec = self._codec(info)
        try:
            headers, frames = pack_item(arrays, codec, dtypes)
            check_headers(headers)
        except AgentError as error:
            raise WrongInput(str(error), hint=error.hint) from error
        if not outputs and codec == "raw":
            self._remember(info, inputs, headers)
        return Submit(new_id(), info.name, wanted, headers, frames, deadline, patient, timeout=timeout)

    def _codec(self, info: ModelInfo) -> str:
        if self._wanted != AUTO:
            return self._wanted
        # A newer dispatcher may name a codec that this client does not have; raw is always understood.
        return info.codec if info.codec in CODECS else "raw"

    def _remember(self, info: ModelInfo, inputs: Inputs, headers: tuple[TensorHeader, ...]) -> None:
        """Inputs of these types and shapes fit, and travel under these headers."""
        given = plain(inputs, info)
        if given is None:
            return
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        # The signature is held, so that nothing else gets its identity.
        self._seen[kind_of(info, given)] = (info, headers)


def plain(inputs: Inputs, info: ModelInfo) -> list[Array] | None:
    """The inputs in the model's order where each is an array as it is sent; None where something must be looked at."""
    specs = info.inputs
    if type(inputs) is np.ndarray:
        given: list[Any] = [inputs] if len(specs) == 1 else []
    elif type(inputs) is dict and len(inputs) == len(specs):
        given = [inputs.get(spec.name) for spec in specs]
    else:
        return None
    for array in given:
        if type(array) is not np.ndarray or not array.flags.c_contiguous or array.dtype.kind in LOOKED_AT:
            return None
    return given or None


def _frame_of(array: Array, *, copy: bool) -> Any:
    """The bytes of an array, its own or a copy of them."""
    if not copy:
        return byte_view(array)
    # Short ones at once as what is sent: NumPy's copy lets other threads run, which may then take their time.
    return byte_view(array).tobytes() if array.nbytes < COPY_BELOW else byte_view(array.copy())


def kind_of(info: ModelInfo, given: list[Array]) -> tuple[Any, ...]:
    """By what inputs are known to fit a signature."""
    if len(given) == 1:
        return id(info), given[0].dtype, given[0].shape
    return id(info), *[(array.dtype, array.shape) for array in given]
