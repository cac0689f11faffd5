"""Every decoder in this process under mutated messages: what comes out is an honest value or one clear error."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchmarks.hostile.corpus import PORTS
from benchmarks.hostile.mutate import Message, mutated
from defer import api
from defer.errors import ProtocolMismatch
from node_agent import frames
from node_agent.codecs import CODECS
from node_agent.dtypes import STORAGE, storage
from node_agent.errors import CodecError, FrameError
from node_agent.limits import Limits
from node_agent.messages import TensorHeader

TIGHT = Limits(tensor_bytes=1 << 16, item_bytes=1 << 16)
DTYPES = tuple(STORAGE)
SHAPES = ((64,), (2, 32), (1, 4, 16), (8, 8), (0,), (), (63,), (4096,))
LONGEST_S = 1.0
"""One message that takes longer is a hang."""


class BrokenError(Exception):
    """A decoder gave what it must not."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one decoder's messages.

    Attributes:
        decoder: Which.
        messages: How many.
        accepted: Of those, what was believed: mutation leaves some as they were.
        slowest_s: Of one message.
        seconds: Of all.
    """

    decoder: str
    messages: int
    accepted: int
    slowest_s: float
    seconds: float


def take_data(message: Message) -> bool:
    """As a data socket does: header, lengths, then the tensors; whether it was believed."""
    header, *rest = message or [b""]
    try:
        decoded = frames.decode_header(header, TIGHT)
        tensors = getattr(decoded, "tensors", ())
        frames.check_lengths(tensors, rest)
    except FrameError:
        return False
    return all(
        take_frame(tensor.codec, frame, tensor.dtype, tensor.shape)
        for tensor, frame in zip(tensors, rest, strict=True)
    )


def take_frame(codec: str, frame: bytes, dtype: str, shape: tuple[int, ...]) -> bool:
    """One tensor's frame; whether it was believed.

    Raises:
        BrokenError: What was decoded has another shape or type than was promised.
    """
    try:
        array = frames.unpack_tensor(TensorHeader("x", dtype, shape, codec, len(frame)), frame)
    except CodecError:
        return False
    if array.shape != tuple(shape) or array.dtype != storage(dtype):
        raise BrokenError(f"{codec}: {array.dtype} {array.shape} in place of {dtype} {shape}")
    return True


def take_control(message: Message) -> bool:
    """A control message."""
    try:
        for data in message[:1]:
            frames.decode_control(data)
    except FrameError:
        return False
    return True


def take_api(message: Message) -> bool:
    """A message to the dispatcher's api."""
    try:
        for data in message[:1]:
            api.decode(data)
    except ProtocolMismatch:
        return False
    return True


def honest_frame(codec: str) -> bytes:
    """What a codec makes of 64 numbers."""
    array = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    if codec == "bit":  # takes tensors of two values
        array = np.where(array > 0, np.float32(1), np.float32(0))
    return bytes(CODECS[codec].encode(array))


def decoders(seed: int) -> dict[str, Iterator[Callable[[], bool]]]:
    """By name, endlessly: the next mutated message to be taken."""
    made: dict[str, Iterator[Callable[[], bool]]] = {
        "control messages": _messages(seed, PORTS["agent control"], take_control),
        "api messages": _messages(seed, PORTS["dispatcher api"], take_api),
        "data messages": _messages(seed, PORTS["agent data"], take_data),
    }
    return made | {f"frames of {codec}": _frames(seed, codec) for codec in sorted(CODECS)}


def _messages(
    seed: int, corpus: Sequence[Message], take: Callable[[Message], bool]
) -> Iterator[Callable[[], bool]]:
    draw = random.Random(seed)
    while True:
        message = mutated(draw, draw.choice(corpus), corpus)
        yield lambda message=message: take(message)  # type: ignore[misc]


def _frames(seed: int, codec: str) -> Iterator[Callable[[], bool]]:
    draw = random.Random(f"{seed} {codec}")
    golden = [honest_frame(codec)]
    while True:
        frame = mutated(draw, golden, [golden])[0]
        dtype = draw.choice(("float32", "float32", draw.choice(DTYPES)))
        shape = draw.choice(SHAPES)
        yield lambda frame=frame, dtype=dtype, shape=shape: take_frame(codec, frame, dtype, shape)  # type: ignore[misc]


def take(name: str, source: Iterator[Callable[[], bool]], count: int) -> Taken:
    """Have a decoder take the next messages.

    Raises:
        BrokenError: It believed what nobody should.
        Exception: Whatever else it raises, which it must not.
    """
    accepted, slowest = 0, 0.0
    first = begin = time.perf_counter()
    for message in islice(source, count):
        accepted += message()
        now = time.perf_counter()
        slowest, begin = max(slowest, now - begin), now
    return Taken(name, count, accepted, slowest, begin - first)
