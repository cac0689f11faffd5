"""One contract for every codec: round trip, bounds, and no harm from damaged frames."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from node_agent.codecs import CODECS, codec_named
from node_agent.dtypes import STORAGE
from node_agent.errors import CodecError

EVERY_CODEC = pytest.mark.parametrize("name", list(CODECS))
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9)


@EVERY_CODEC
@given(data=st.data(), dtype=st.sampled_from(list(STORAGE)), shape=SHAPES)
def test_round_trip_of_every_type_and_shape(
    name: str, data: st.DataObject, dtype: str, shape: tuple[int, ...]
) -> None:
    """NaN and infinities included: the bits come back."""
    held = STORAGE[dtype]
    count = int(np.prod(shape, dtype=np.int64)) * held.itemsize
    raw = data.draw(st.binary(min_size=count, max_size=count))
    array = np.frombuffer(raw, held).reshape(shape) if count else np.empty(shape, held)
    codec = CODECS[name]
    frame = codec.encode(array)
    back = codec.decode(bytes(frame), dtype, shape)
    assert back.shape == shape
    assert back.dtype == held
    assert back.tobytes() == array.tobytes()
    assert len(memoryview(frame)) == memoryview(frame).nbytes


@EVERY_CODEC
def test_arrays_that_are_not_contiguous(name: str) -> None:
    base = np.arange(10_000, dtype=np.int32).reshape(100, 100)
    for array in (
        base[::2, ::3],
        base.T,
        np.asfortranarray(base),
        base[::-1],
        np.broadcast_to(base[0], (50, 100)),
    ):
        back = CODECS[name].decode(CODECS[name].encode(array), "int32", array.shape)
        np.testing.assert_array_equal(back, array)


@EVERY_CODEC
def test_big_endian_arrays_travel_little_endian(name: str) -> None:
    array = np.arange(300, dtype=">i4")
    np.testing.assert_array_equal(CODECS[name].decode(CODECS[name].encode(array), "int32", (300,)), array)


@EVERY_CODEC
@given(frame=st.binary(max_size=200), dtype=st.sampled_from(["float32", "uint8"]), shape=SHAPES)
def test_hostile_frames_decode_or_are_refused(
    name: str, frame: bytes, dtype: str, shape: tuple[int, ...]
) -> None:
    try:
        back = CODECS[name].decode(frame, dtype, shape)
    except CodecError:
        return
    assert back.shape == shape
    assert back.dtype == STORAGE[dtype]


@EVERY_CODEC
@given(data=st.data())
def test_truncated_and_flipped_frames(name: str, data: st.DataObject) -> None:
    array = np.repeat(np.arange(64, dtype=np.float32), 8)
    frame = bytearray(CODECS[name].encode(array))
    if data.draw(st.booleans()):
        del frame[data.draw(st.integers(0, len(frame) - 1)) :]
        with pytest.raises(CodecError):
            CODECS[name].decode(bytes(frame), "float32", array.shape)
    else:
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            assert CODECS[name].decode(bytes(frame), "float32", array.shape).shape == array.shape
        except CodecError:
            return


@EVERY_CODEC
def test_a_bomb_takes_no_memory(name: str) -> None:
    tracemalloc.start()
    with pytest.raises(CodecError):
        CODECS[name].decode(b"\x1f\x00\x01\x00" * 10, "uint8", (1 << 34,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(CodecError) as caught:
        codec_named("zip")
    assert "raw, lz4" in caught.value.hint
