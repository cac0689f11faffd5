"""An item's tensors from the wire to the partition and from the partition to the wire. Pure."""

from __future__ import annotations

import logging
import time
from typing import Any

from node_agent.codecs.base import Array, byte_view
from node_agent.dtypes import STRING, wire_name
from node_agent.errors import AgentError, code_of, said
from node_agent.frames import pack_tensor, unpack_tensor
from node_agent.messages import Item, TensorHeader
from node_agent.work import LoadedRoute, Work

log = logging.getLogger(__name__)


def admit(work: Work, device: str) -> bool:
    """Sorts an item's tensors into those to decode and those that go on; False where it failed.

    Returns:
        Whether the item can be decoded.
    """
    assert isinstance(work.item, Item)
    loaded, tensors = work.loaded, work.item.tensors
    # The same model sends the same headers over and over: what they mean is worked out once.
    if tensors != loaded.seen:
        try:
            loaded.admitted = loaded.route.admit(tensors)
        except Exception as error:
            _fail(work, error, device)
            return False
        loaded.seen = tensors
        loaded.coded = any(tensors[index].codec != "raw" for index in loaded.admitted[0])
    work.decode, work.forward = loaded.admitted
    return True


def decode(work: Work, device: str) -> None:
    """Makes the partition's inputs; raw ones lie on the received frames. A damaged frame fails the item."""
    assert isinstance(work.item, Item)
    tensors, frames = work.item.tensors, work.frames
    begun = time.monotonic_ns()
    try:
        work.inputs = {
            tensors[index].name: unpack_tensor(tensors[index], frames[index]) for index in work.decode
        }
    except Exception as error:
        _fail(work, error, device)
    ended = time.monotonic_ns()
    work.loaded.counters.decode_ns += ended - begun
    if work.marks is not None:
        work.marks.decode = (begun, ended)


def encode(work: Work, device: str) -> None:
    """Makes the headers and frames to send; raw ones lie on the engine's outputs. What cannot travel fails the item."""
    begun = time.monotonic_ns()
    try:
        work.encoded = _encoded(work)
    except Exception as error:
        _fail(work, error, device)
    work.outputs = None
    ended = time.monotonic_ns()
    work.loaded.counters.encode_ns += ended - begun
    if work.marks is not None:
        work.marks.encode = (begun, ended)


def _fail(work: Work, error: Exception, device: str) -> None:
    """One item ends by what a codec raised, whatever that is: the thread has others to serve."""
    if isinstance(error, AgentError):
        work.fail(code_of(error), said(error), device)
    else:
        log.error("An item could not be decoded or encoded.", exc_info=error)
        work.fail(code_of(error), f"{type(error).__name__}: {error}", device)


def _encoded(work: Work) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    assert isinstance(work.item, Item)
    tensors, route = work.item.tensors, work.loaded.route
    if work.outputs is None:
        return tensors, work.frames
    headers: list[TensorHeader] = []
    frames: list[Any] = []
    codec = route.spec.codec
    carried = {tensors[index].name: index for index in work.forward}
    for name in route.spec.send:
        if name in carried:
            index = carried[name]
            header, frame = tensors[index], work.frames[index]
            if header.codec not in (codec, "raw") or (header.codec == "raw" != codec):
                header, frame = pack_tensor(name, unpack_tensor(header, frame), codec, header.dtype)
        else:
            header, frame = _packed(work.loaded, name, work.outputs[name])
        headers.append(header)
        frames.append(frame)
    return tuple(headers), frames


def _packed(loaded: LoadedRoute, name: str, array: Array) -> tuple[TensorHeader, Any]:
    route = loaded.route
    codec = route.spec.codec
    if codec == "raw":
        # As in `admit`: outputs mostly have the shape that they had before, and raw needs no more than a view.
        known = loaded.sent.get(name)
        if known is not None and known.shape == array.shape and known.dtype == wire_name(array):
            return known, byte_view(array)
    header, frame = pack_tensor(name, array, codec, route.bits.get(name))
    if codec == "raw" and header.dtype != STRING:  # whose length does not follow from its shape
        loaded.sent[name] = header
    return header, frame
