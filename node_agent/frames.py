"""Messages to bytes and back, and every check that comes before bytes are believed. Pure.

A data message is `[header][tensor frame]*`; a control message is one msgpack map, `Chunk` alone with a frame
after it. What a header promises is checked against `Limits` before anything is allocated, the frames against
the header before anything is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union, get_args

import msgspec

from node_agent.codecs import CODECS, Array, codec_named
from node_agent.dtypes import ITEM_BYTES, RAW_BITS, STRING, storage, wire_name
from node_agent.errors import CodecError, FrameError
from node_agent.limits import CONTROL_BYTES, DEFAULT, Limits
from node_agent.messages import ControlMessage, DataHeader, Infer, Item, Result, TensorHeader

_ENCODER = msgspec.msgpack.Encoder()
_CONTROLS: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)

WORTH_ENCODING = 64
"""Tensors of fewer bytes travel raw whatever the codec: nothing is to be gained."""

encode_header = _ENCODER.encode
"""A data header as bytes."""

INLINE_BYTES, INLINE_FRAMES = 16 << 10, 64
"""Items of no more bring their frames in the header: a frame less to hand over, at each end of each hop."""


def inlined(frames: Sequence[Any]) -> tuple[bytes, ...]:
    """The frames of an item where they are short enough to travel in its header; else none."""
    if len(frames) > INLINE_FRAMES or sum(map(len, frames)) > INLINE_BYTES:
        return ()
    return tuple([frame if type(frame) is bytes else bytes(memoryview(frame)) for frame in frames])


encode_control = _ENCODER.encode
"""A control message as bytes."""


def decode_header(data: Any, limits: Limits = DEFAULT) -> DataHeader:
    """The data header in `data`, checked against `limits`.

    Raises:
        FrameError: Not a header, or one that promises more than the limits allow.
    """
    if len(data) > limits.header_bytes:
        raise FrameError(f"A header of {len(data)} bytes is over the limit of {limits.header_bytes}.")
    try:
        header = _HEADERS.decode(data)
        kind = type(header)
        if kind not in _WITH_TENSORS:
            return header  # type: ignore[no-any-return]
        tensors = _TENSORS.get(bytes(header.tensors)) if limits is DEFAULT else None
        if tensors is None:
            tensors = _told(header.tensors, limits)
        if kind is _Item:
            return Item(
                header.epoch,
                header.request,
                header.hop,
                header.remaining_ns,
                tensors,
                header.trace,
                header.priority,
                header.inline,
            )
        if kind is _Result:
            return Result(header.request, tensors, header.seconds)
        return Infer(
            header.request,
            header.model,
            header.remaining_ns,
            tensors,
            header.outputs,
            header.trace,
            header.durable,
            header.priority,
        )
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"Not a data header: {error}.") from None


class _Item(msgspec.Struct, frozen=True, array_like=True, tag="item"):
    """`Item`, its tensor headers as they came: those of one model are the same bytes over and over."""

    epoch: int
    request: int
    hop: int
    remaining_ns: int
    tensors: msgspec.Raw
    trace: str = ""
    priority: int = 0
    inline: tuple[bytes, ...] = ()


class _Infer(msgspec.Struct, frozen=True, array_like=True, tag="infer"):
    """`Infer` likewise."""

    request: bytes
    model: str
    remaining_ns: int
    tensors: msgspec.Raw
    outputs: tuple[str, ...] = ()
    trace: str = ""
    durable: bool = False
    priority: int = 0


class _Result(msgspec.Struct, frozen=True, array_like=True, tag="result"):
    """`Result` likewise."""

    request: bytes
    tensors: msgspec.Raw
    seconds: float = 0.0


_RAW: dict[Any, Any] = {Item: _Item, Infer: _Infer, Result: _Result}
_WITH_TENSORS = frozenset(_RAW.values())

_HEADERS: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    Union[tuple(_RAW.get(kind, kind) for kind in get_args(DataHeader))]  # noqa: UP007 (made at run time)
)
_TENSOR_HEADERS = msgspec.msgpack.Decoder(tuple[TensorHeader, ...])

_TENSORS: dict[bytes, tuple[TensorHeader, ...]] = {}
"""Tensor headers that passed `check_headers`, by their bytes: the same ones are the same object each time."""

_REMEMBERED, _REMEMBERED_BYTES = 256, 4096
"""How many of them, and of how long headers."""


def _told(raw: msgspec.Raw, limits: Limits) -> tuple[TensorHeader, ...]:
    tensors = _TENSOR_HEADERS.decode(raw)
    check_headers(tensors, limits)
    if limits is DEFAULT and len(raw) <= _REMEMBERED_BYTES:
        if len(_TENSORS) >= _REMEMBERED:
            _TENSORS.clear()
        _TENSORS[bytes(raw)] = tensors
    return tensors


def decode_control(data: Any, limit: int = CONTROL_BYTES) -> ControlMessage:
    """The control message in `data`.

    Raises:
        FrameError: Not a control message, or one above `limit` bytes.
    """
    if len(data) > limit:
        raise FrameError(f"A control message of {len(data)} bytes is over the limit of {limit}.")
    try:
        return _CONTROLS.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"Not a control message: {error}.") from None


def check_headers(headers: Sequence[TensorHeader], limits: Limits = DEFAULT) -> None:
    """Checks what tensor headers promise, before any of it is received or allocated.

    Raises:
        FrameError: Too many tensors, a name twice, an unknown type or codec, a size over the limits, or an
            encoded length that such a tensor cannot have.
    """
    if len(headers) > limits.tensors:
        raise FrameError(f"An item of {len(headers)} tensors is over the limit of {limits.tensors}.")
    total = 0
    for header in headers:
        size = _decoded_bytes(header, limits)
        total += size
        codec = CODECS.get(header.codec)
        if codec is None:
            raise FrameError(f"Tensor {header.name!r} has codec {header.codec!r}, which is unknown here.")
        if header.nbytes < 0 or header.nbytes > limits.frame_bytes:
            raise FrameError(f"Tensor {header.name!r} states {header.nbytes} encoded bytes.")
        if header.dtype == STRING:
            if header.codec != "raw" or header.nbytes < size:
                raise FrameError(
                    f"Tensor {header.name!r}, {header.dtype}{list(header.shape)}, states {header.nbytes} "
                    f"{header.codec} bytes; text travels raw, and takes at least {size}."
                )
            total += header.nbytes - size
        elif header.codec == "raw" and header.nbytes != size:
            raise FrameError(
                f"Tensor {header.name!r}, {header.dtype}{list(header.shape)}, takes {size} bytes, "
                f"not {header.nbytes}."
            )
        if size > codec.most_expansion * header.nbytes:
            raise FrameError(
                f"Tensor {header.name!r} states that {header.nbytes} {header.codec} bytes hold {size} bytes."
            )
    if total > limits.item_bytes:
        raise FrameError(f"An item of {total} bytes is over the limit of {limits.item_bytes}.")
    if len(headers) > 1 and len({header.name for header in headers}) != len(headers):
        raise FrameError("An item names a tensor twice.")


def _decoded_bytes(header: TensorHeader, limits: Limits) -> int:
    if len(header.name) > limits.name_chars:
        raise FrameError(
            f"A tensor's name has {len(header.name)} characters; {limits.name_chars} are allowed."
        )
    if len(header.shape) > limits.rank:
        raise FrameError(
            f"Tensor {header.name!r} has {len(header.shape)} dimensions; {limits.rank} are allowed."
        )
    width = ITEM_BYTES.get(header.dtype)
    if width is None:
        raise FrameError(f"Tensor {header.name!r} has type {header.dtype!r}, which does not travel.")
    if any(dimension < 0 for dimension in header.shape):
        raise FrameError(f"Tensor {header.name!r} has a negative dimension: {list(header.shape)}.")
    size = width * math.prod(header.shape)
    # A dimension of zero must not hide absurd other ones: NumPy refuses such shapes when it builds the array.
    if size > limits.tensor_bytes or any(dimension > limits.tensor_bytes for dimension in header.shape):
        raise FrameError(
            f"Tensor {header.name!r}, {header.dtype}{list(header.shape)}, is over the limit of "
            f"{limits.tensor_bytes} bytes."
        )
    return size


def check_lengths(headers: Sequence[TensorHeader], frames: Sequence[Any]) -> None:
    """Checks that there is one frame per header, each as long as its header says.

    Raises:
        FrameError: It is not so.
    """
    if len(headers) != len(frames):
        raise FrameError(f"An item of {len(headers)} tensors came with {len(frames)} frames.")
    for header, frame in zip(headers, frames, strict=True):
        if len(frame) != header.nbytes:
            raise FrameError(
                f"Tensor {header.name!r} came with {len(frame)} bytes; its header says {header.nbytes}."
            )


def pack_tensor(
    name: str, array: Array, codec: str = "raw", dtype: str | None = None
) -> tuple[TensorHeader, Any]:
    """One tensor as header and frame; raw where the codec does not take it or does not make it smaller.

    Args:
        name: The tensor's name.
        array: Its value; the frame may share its memory, so leave it alone until the frame is sent.
        codec: Name of the codec.
        dtype: Wire type of an array that holds raw bits (`bfloat16` in a uint16 array); its own type by
            default.

    Raises:
        CodecError: Unknown codec, or a type that does not travel.
    """
    chosen = codec_named(codec)
    kind = wire_name(array) if dtype is None else dtype
    if dtype is not None and storage(dtype).itemsize != array.dtype.itemsize:
        raise CodecError(f"Tensor {name!r} is said to be {dtype} but holds {array.dtype.name}.")
    if codec != "raw" and kind != STRING and array.nbytes >= WORTH_ENCODING:
        try:
            frame = chosen.encode(array)
        except CodecError:
            # A NaN in one request must not fail it, nor may it be spoiled: that tensor goes as it is.
            frame = None
        if frame is not None and len(frame) < array.nbytes:
            return TensorHeader(name, kind, array.shape, codec, len(frame)), frame
    frame = CODECS["raw"].encode(array)
    return TensorHeader(name, kind, array.shape, "raw", len(frame)), frame


def pack_item(
    arrays: Mapping[str, Array], codec: str = "raw", dtypes: Mapping[str, str] | None = None
) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    """The tensors of an item as headers and frames, in the mapping's order.

    Args:
        arrays: Values by name.
        codec: Name of the codec for all of them; what it does not make smaller goes raw.
        dtypes: Wire types of those that hold raw bits.

    Raises:
        CodecError: Unknown codec, or a type that does not travel.
    """
    headers: list[TensorHeader] = []
    frames: list[Any] = []
    for name, array in arrays.items():
        bits = dtypes.get(name) if dtypes else None
        header, frame = pack_tensor(name, array, codec, bits if bits in RAW_BITS else None)
        headers.append(header)
        frames.append(frame)
    return tuple(headers), frames


def unpack_tensor(header: TensorHeader, frame: Any) -> Array:
    """The value of one tensor; shares the frame's memory where the codec is raw.

    Raises:
        CodecError: The frame does not decode to what the header says.
    """
    return codec_named(header.codec).decode(frame, header.dtype, header.shape)


def unpack(headers: Iterable[TensorHeader], frames: Iterable[Any]) -> dict[str, Array]:
    """The tensors of an item by name, whose headers and frames were checked.

    Raises:
        CodecError: A frame does not decode to what its header says.
    """
    return {header.name: unpack_tensor(header, frame) for header, frame in zip(headers, frames, strict=True)}
