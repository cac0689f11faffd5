"""Every decoder takes any bytes: what it says is an honest value or one clear error, in memory that the limits allow."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile.corpus import PORTS
from benchmarks.hostile.decoders import DTYPES, BrokenError, decoders, take, take_data, take_frame
from benchmarks.hostile.mutate import stream
from defer import api
from defer.errors import ProtocolMismatch
from node_agent import frames
from node_agent.codecs import CODECS
from node_agent.errors import FrameError

GOLDEN = json.loads((Path(__file__).parents[1] / "node_agent" / "codec_frames.json").read_text())
MUTANTS = 4000


@pytest.mark.parametrize("port", [port for port in PORTS if port.endswith("data")])
def test_mutated_data_messages(port: str) -> None:
    for message in stream(1, PORTS[port], 3 * MUTANTS):
        take_data(message)


def test_mutated_control_messages() -> None:
    for message in stream(2, PORTS["agent control"], 3 * MUTANTS):
        for data in message:
            with suppress(FrameError):
                frames.decode_control(data)


def test_mutated_api_messages() -> None:
    for message in stream(3, PORTS["dispatcher api"], 3 * MUTANTS):
        for data in message:
            with suppress(ProtocolMismatch):
                api.decode(data)


@pytest.mark.parametrize("codec", [name for name in GOLDEN if name in CODECS])
def test_mutated_frames(codec: str) -> None:
    golden = [bytes.fromhex(GOLDEN[codec])]
    draw = random.Random(codec)
    for frame, *_ in stream(4, [golden], 600):
        shape = draw.choice(((64,), (2, 32), (1, 4, 16), (8, 8), (0,), (), (63,), (4096,)))
        take_frame(codec, frame, draw.choice(("float32", "float32", draw.choice(DTYPES))), shape)


@given(st.binary(max_size=400), st.lists(st.binary(max_size=100), max_size=3))
@settings(max_examples=300)
def test_any_bytes(header: bytes, rest: list[bytes]) -> None:
    take_data([header, *rest])
    for decode, error in ((frames.decode_control, FrameError), (api.decode, ProtocolMismatch)):
        with suppress(error):
            decode(header)


@given(
    st.sampled_from(sorted(CODECS)),
    st.binary(max_size=600),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 20), max_size=4),
)
@settings(max_examples=500)
def test_any_frame(codec: str, frame: bytes, dtype: str, shape: list[int]) -> None:
    take_frame(codec, frame, dtype, tuple(shape))


@given(st.sampled_from(sorted(CODECS)), st.integers(0, 2**31), st.data())
@settings(max_examples=300)
def test_honest_frames_with_a_change(codec: str, seed: int, data: st.DataObject) -> None:
    draw = np.random.default_rng(seed)
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    array = draw.standard_normal(shape).astype(np.float32)
    if codec == "bit":  # takes tensors of two values
        array = np.where(array > 0, np.float32(1), np.float32(0))
    frame = bytes(CODECS[codec].encode(array))
    at = data.draw(st.integers(0, max(0, len(frame) - 1)))
    changed = frame[:at] + bytes([data.draw(st.integers(0, 255))]) + frame[at + 1 :]
    take_frame(codec, changed, "float32", shape)
    take_frame(codec, changed[:at], "float32", shape)


def test_every_decoder_is_among_those_that_the_benchmark_floods() -> None:
    sources = decoders(5)
    assert {name.removeprefix("frames of ") for name in sources} >= set(CODECS)
    for name, source in sources.items():
        taken = take(name, source, 200)
        assert 0 < taken.accepted < 200, name  # some are as they were, some are not


def test_what_decodes_to_another_shape_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "unpack_tensor", lambda *_: np.zeros((3,), np.float32))
    with pytest.raises(BrokenError):
        take_frame("raw", bytes(8), "float32", (2,))
