"""A call as the client path takes it, and its result as plain buffers: checks, codecs, ids."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from defer import api
from defer.client_arrays import check_outputs
from defer.client_events import Submit
from defer.client_room import new_id
from defer.errors import WrongInput
from defer.gateway.backend import raw_of
from defer.gateway.calls import Call, Tensor
from defer.signature import input_problem
from node_agent.codecs import CODECS
from node_agent.dtypes import storage
from node_agent.errors import AgentError
from node_agent.frames import check_headers, pack_tensor, unpack_tensor
from node_agent.messages import LOWEST_PRIORITY, TensorHeader

ENCODE_BESIDE = 64 << 10
"""Tensors of at least so many bytes are encoded and decoded beside the event loop, where their codec takes time."""


async def made(info: api.ModelInfo, call: Call, deadline: float) -> Submit:
    """The request as the client path takes it: checked, and encoded as the model's plan wants inputs to come.

    Args:
        info: The model.
        call: What is asked.
        deadline: When it must be answered, on the monotonic clock.

    Raises:
        WrongInput: It does not fit the model.
    """
    problem = input_problem(info.inputs, call.inputs)
    if problem is not None:
        raise WrongInput(f"model {info.name!r}: {problem}")
    wanted = check_outputs(call.outputs, info)
    codec = info.codec if info.codec in CODECS else "raw"
    try:
        if codec == "raw":
            headers = tuple(TensorHeader(t.name, t.dtype, t.shape, "raw", t.nbytes) for t in call.inputs)
            frames: list[Any] = [tensor.data for tensor in call.inputs]
        elif sum(tensor.nbytes for tensor in call.inputs) < ENCODE_BESIDE:
            headers, frames = _encoded(call.inputs, codec)
        else:
            headers, frames = await asyncio.to_thread(_encoded, call.inputs, codec)
        check_headers(headers)
    except AgentError as error:
        raise WrongInput(str(error), hint=error.hint) from error
    limit = deadline if deadline - time.monotonic() < 1e9 else math.inf
    return Submit(
        new_id(),
        info.name,
        wanted,
        headers,
        frames,
        limit,
        trace=call.trace,
        priority=min(call.priority, LOWEST_PRIORITY),
    )


def _encoded(tensors: Sequence[Tensor], codec: str) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    pairs = [
        pack_tensor(t.name, np.frombuffer(t.data, storage(t.dtype)).reshape(t.shape), codec, t.dtype)
        for t in tensors
    ]
    return tuple(header for header, _ in pairs), [frame for _, frame in pairs]


async def plain(
    headers: tuple[TensorHeader, ...], frames: Sequence[Any]
) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    """A result's tensors in raw form: plain buffers."""
    buffers: list[Any] = []
    told: list[TensorHeader] = []
    for header, frame in zip(headers, frames, strict=True):
        if header.codec == "raw":
            told.append(header)
            buffers.append(getattr(frame, "buffer", frame))
            continue
        if header.nbytes < ENCODE_BESIDE:
            array = unpack_tensor(header, frame)
        else:
            array = await asyncio.to_thread(unpack_tensor, header, frame)
        data = raw_of(array)
        told.append(TensorHeader(header.name, header.dtype, header.shape, "raw", len(data)))
        buffers.append(data)
    return tuple(told), buffers
