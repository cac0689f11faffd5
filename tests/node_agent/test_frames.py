"""Headers and frames: what is honest passes, everything else is one clear error before memory is taken."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent import frames
from node_agent import messages as m
from node_agent.codecs import CODECS
from node_agent.dtypes import STORAGE
from node_agent.errors import AgentError, CodecError, FrameError
from node_agent.limits import Limits

SMALL = Limits(
    header_bytes=2000, tensors=3, rank=4, name_chars=10, tensor_bytes=1000, item_bytes=1500, frame_bytes=900
)


def item(*tensors: m.TensorHeader) -> bytes:
    return frames.encode_header(m.Item(1, 2, 3, m.NO_DEADLINE, tensors))


def tensor(
    name: str = "x",
    dtype: str = "float32",
    shape: tuple[int, ...] = (2,),
    codec: str = "raw",
    nbytes: int = 8,
) -> m.TensorHeader:
    return m.TensorHeader(name, dtype, shape, codec, nbytes)


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (tensor(shape=(1 << 40,), nbytes=8), "over the limit"),
        (tensor(shape=(1 << 40, 0), nbytes=0), "over the limit"),
        (tensor(shape=(-1,), nbytes=4), "negative dimension"),
        (tensor(shape=(-2, -1), nbytes=8), "negative dimension"),
        (tensor(shape=(1,) * 5, nbytes=4), "5 dimensions"),
        (tensor(nbytes=7), "takes 8 bytes, not 7"),
        (tensor(nbytes=-8), "states -8"),
        (tensor(dtype="object"), "does not travel"),
        (tensor(dtype="float33"), "does not travel"),
        (tensor(codec="zip"), "unknown here"),
        (tensor(name="x" * 11), "11 characters"),
        (tensor(codec="lz4", nbytes=901), "states 901"),
        (tensor(shape=(200,), codec="lz4", nbytes=3), "hold 800 bytes"),
    ],
)
def test_a_header_that_promises_too_much_is_refused(header: m.TensorHeader, complaint: str) -> None:
    with pytest.raises(FrameError, match=complaint):
        frames.decode_header(item(header), SMALL)


def test_whole_item_limits() -> None:
    with pytest.raises(FrameError, match="4 tensors"):
        frames.decode_header(item(*(tensor(str(n)) for n in range(4))), SMALL)
    with pytest.raises(FrameError, match="twice"):
        frames.decode_header(item(tensor(), tensor()), SMALL)
    two = [tensor(name, shape=(200,), nbytes=800) for name in "ab"]
    with pytest.raises(FrameError, match="1600 bytes is over"):
        frames.decode_header(item(*two), SMALL)
    with pytest.raises(FrameError, match="header of 2001 bytes"):
        frames.decode_header(b"\x00" * 2001, SMALL)
    assert frames.decode_header(item(tensor()), SMALL).tensors == (tensor(),)


def test_frames_must_be_what_the_header_says() -> None:
    headers = (tensor(), tensor("y"))
    frames.check_lengths(headers, [b"12345678", b"12345678"])
    with pytest.raises(FrameError, match="1 frames"):
        frames.check_lengths(headers, [b"12345678"])
    with pytest.raises(FrameError, match=r"'y' came with 4 bytes; its header says 8"):
        frames.check_lengths(headers, [b"12345678", b"1234"])


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_a_message_or_one_error(data: bytes) -> None:
    for decode in (frames.decode_header, frames.decode_control):
        try:
            decode(data)
        except FrameError:
            continue


@given(data=st.data())
def test_a_mutated_item_is_decoded_or_refused(data: st.DataObject) -> None:
    """Whatever is flipped in a real message, unpacking it gives arrays of the stated shape or one clear error."""
    array = np.arange(60, dtype=np.float32).reshape(3, 20)
    headers, buffers = frames.pack_item({"a": array, "b": array.astype(np.int8)}, "lz4")
    message = [bytearray(item(*headers)), *(bytearray(buffer) for buffer in buffers)]
    for _ in range(data.draw(st.integers(1, 4))):
        part = message[data.draw(st.integers(0, 2))]
        if part:
            part[data.draw(st.integers(0, len(part) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = frames.decode_header(bytes(message[0]))
        tensors = getattr(header, "tensors", ())
        frames.check_lengths(tensors, message[1:])
        got = frames.unpack(tensors, message[1:])
    except AgentError:
        return
    for stated in tensors:
        assert got[stated.name].shape == stated.shape
        assert got[stated.name].dtype == STORAGE[stated.dtype]


def test_a_peer_one_version_newer_is_understood() -> None:
    """Fields at the end that this build does not know are left, in data headers and in control messages."""
    for message in (m.Greeting(1, 2, "new"), m.Credit(1, 2), m.Item(1, 2, 3, 4, (tensor(),)), m.Probe(1, 0)):
        newer = [*msgspec.to_builtins(message), {"later": 1}, 7]
        assert frames.decode_header(msgspec.msgpack.encode(newer)) == message
    for control in (m.Hello(1, 1, 2, "new", "dispatcher"), m.Unload(1, 2), m.Want(1, (m.FileRef("a", 1),))):
        newer_map = {**msgspec.to_builtins(control), "later": [1, 2], "more": None}
        assert frames.decode_control(msgspec.msgpack.encode(newer_map)) == control


def test_packing_keeps_raw_bits_and_never_grows() -> None:
    bits = np.arange(100, dtype=np.uint16)
    noise = np.random.default_rng(0).bytes(4000)
    headers, buffers = frames.pack_item(
        {"b": bits, "n": np.frombuffer(noise, np.float64), "z": np.zeros(1000), "s": np.float32(3)[...]},
        "lz4",
        {"b": "bfloat16"},
    )
    assert [header.codec for header in headers] == ["raw", "raw", "lz4", "raw"] or headers[0].codec == "lz4"
    assert headers[0].dtype == "bfloat16"
    assert all(header.nbytes == len(buffer) for header, buffer in zip(headers, buffers, strict=True))
    got = frames.unpack(headers, buffers)
    np.testing.assert_array_equal(got["b"], bits)
    assert got["s"].shape == ()
    with pytest.raises(CodecError, match="said to be bfloat16"):
        frames.pack_tensor("b", np.zeros(3), "raw", "bfloat16")
    with pytest.raises(CodecError, match="cannot be sent"):
        frames.pack_item({"t": np.array(["2026-01-01"], "datetime64[D]")})
    with pytest.raises(CodecError, match="unknown here"):
        frames.pack_item({"t": np.zeros(3)}, "zip")


def test_text_travels_behind_its_lengths() -> None:
    for array in (
        np.array([["a", ""], ["b\0c", "ü" * 500]], object),
        np.array([["a", ""], ["b\0c", "ü" * 500]]),
        np.array([], object).reshape(0, 2),
    ):
        headers, buffers = frames.pack_item({"t": array}, "lz4")
        (header,) = headers
        assert (header.dtype, header.codec, header.nbytes) == ("string", "raw", len(buffers[0]))
        frames.check_lengths(headers, buffers)
        got = frames.unpack(headers, buffers)["t"]
        assert got.shape == array.shape
        assert got.tolist() == array.tolist()
    binary = frames.pack_tensor("t", np.array([b"raw"]))[1]
    assert bytes(binary) == b"\3\0\0\0raw"


@pytest.mark.parametrize(
    "frame",
    [b"", b"\1\0\0", b"\2\0\0\0a", b"\1\0\0\0ab", b"\1\0\0\0\xff", b"\0\0\0\0" * 2, b"\xff" * 8],
    ids=range(7),
)
def test_a_frame_that_is_no_text_is_refused(frame: bytes) -> None:
    with pytest.raises(CodecError):
        frames.unpack([m.TensorHeader("t", "string", (1,), "raw", len(frame))], [frame])


def test_text_states_at_least_its_lengths_and_is_never_encoded() -> None:
    for header in (
        m.TensorHeader("t", "string", (10,), "raw", 39),
        m.TensorHeader("t", "string", (1,), "lz4", 40),
        m.TensorHeader("t", "string", (1 << 40,), "raw", 40),
    ):
        with pytest.raises(FrameError):
            frames.check_headers([header])


def test_large_raw_tensors_share_memory() -> None:
    array = np.random.default_rng(0).standard_normal((300, 300))
    headers, buffers = frames.pack_item({"a": array})
    assert np.shares_memory(np.frombuffer(buffers[0], np.float64), array)
    assert np.shares_memory(frames.unpack(headers, buffers)["a"], array)


def test_every_codec_is_registered_under_its_name() -> None:
    assert {name: codec.name for name, codec in CODECS.items()} == {name: name for name in CODECS}


def test_headers_with_tensors_are_read_in_two_steps_with_every_field() -> None:
    tensors = (tensor(),)
    for brief, full in (
        (m.Item(1, 2, 3, 4, tensors), m.Item(1, 2, 3, 4, tensors, "trace")),
        (
            m.Infer(b"r" * 16, "m", 5, tensors),
            m.Infer(b"r" * 16, "m", 5, tensors, ("y",), "trace", True, 7),
        ),
        (m.Result(b"r" * 16, tensors), m.Result(b"r" * 16, tensors, 0.5)),
    ):
        twin = frames._RAW[type(full)]
        assert twin.__struct_fields__ == type(full).__struct_fields__
        assert twin.__struct_defaults__ == type(full).__struct_defaults__
        for header in (brief, full):
            first, second = (frames.decode_header(frames.encode_header(header)) for _ in range(2))
            assert first == second == header
            assert first.tensors is second.tensors  # type: ignore[union-attr]
