"""The wire's bytes, committed: whoever changes them sees it here, and thinks of the other version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from node_agent import frames
from node_agent import messages as m

GOLDEN = Path(__file__).with_name("wire_golden.json")

TENSOR = m.TensorHeader("x", "float32", (1, 3), "lz4", 9)
SPEC = m.TensorSpec("x", "float32", ("n", 3))
IN_BLOCKS = m.TensorSpec("x", "float32", ("n", 32, 7, 7), 16)
FILE = m.FileRef("ab" * 32, 10, ".onnx")
OFFER = m.Offer((m.EngineInfo("e", "1", "p", "no"),), 4096, 1.5, 2, "f", 7701, 7702, {"numpy": "2"})
HOP = m.HopSpec(
    1, m.PeerRef("a"), m.PeerRef("b", "tcp://b:1"), FILE, (FILE,), (SPEC,), (SPEC,), ("x",), "lz4", (SPEC,)
)

MESSAGES: list[Any] = [
    m.Greeting(1, 2, "edge", m.Offered(700, 5, 1 << 27, b"0123456789abcdef", "net:[4026531840]"), True),
    m.Item(1, 2, 3, 4, (TENSOR,), "00-trace"),
    m.Item(1, 2**40, 3, m.NO_DEADLINE, ()),
    m.Failure(1, 2, 3, "run-failed", "No.", "edge"),
    m.Credit(4, 65536),
    m.Probe(1, 2),
    m.ProbeEcho(1),
    m.Refusal("bad-frame", "No."),
    m.Infer(b"0123456789abcdef", "model", 5, (TENSOR,), ("y",), "t"),
    m.Result(b"0123456789abcdef", (TENSOR,), 0.5),
    m.Rejection(b"0123456789abcdef", "overload", "No."),
    m.Hello(1, 1, 1, "edge", "agent", OFFER, "boot"),
    m.Welcome(1, 1, "edge", "boot", OFFER),
    m.Fault(1, "disk-full", "Full.", "Free some."),
    m.Want(1, (FILE,)),
    m.Have(1, (5,)),
    m.Chunk(1, FILE, 5),
    m.Taken(1, 10),
    m.Load(1, 2, "model", (HOP,), "auto", {"optimization": "all"}),
    m.Progress(1, "loading", 0.5),
    m.Loaded(1, 2, 0.5, 100, "e"),
    m.Unload(1, 2),
    m.Done(1),
    m.Measure(1, "s", FILE, (FILE,), (SPEC,), ("x",), 3, 0.5, "auto"),
    m.Measured(1, (0.5,), 0.25, 9, (m.TensorStats("x", "float32", (1,), 4, {"raw": (4, 0.5, 0.25)}),)),
    m.MeasureLink(1, m.PeerRef("b", "tcp://b:1"), 1024, 0.5),
    m.LinkMeasured(1, 1e6, 0.001),
    m.StatusRequest(1),
    m.AgentStatus(1, "edge", "boot", "serving", 0.5, 1, 2, 3, (m.HopStatus(1, 2, "model", "run"),), 4),
    m.Drain(1),
    m.Heartbeat("boot", 1, 0.5, 2, "serving", 3, (1,)),
    m.TraceRequest(1, ("00-trace",)),
    m.TraceReport(
        1, 10, (m.HopTrace("00-trace", 1, 2, 3, 4, 9, (5, 6), (6, 7), (7, 8), 10, 11, "run-failed"),)
    ),
    m.Recall(b"0123456789abcdef"),
    m.Accepted(b"0123456789abcdef"),
    m.Cancel(1, 2, 3),
    m.GiveUp(b"0123456789abcdef"),
    m.Item(1, 2, 3, 4, (m.TensorHeader("x", "uint8", (2,), "raw", 2),), inline=(b"\x07\x08",)),
    m.Hello(1, 1, 1, "edge", "agent", msgspec.structs.replace(OFFER, channel_block=16), "boot"),
    m.Load(1, 2, "model", (msgspec.structs.replace(HOP, inputs=(IN_BLOCKS,)),), "auto"),
]


def label(message: Any) -> str:
    return f"{type(message).__name__} {MESSAGES.index(message)}"


def test_every_message_is_in_the_fixture() -> None:
    every = {*m.DataHeader.__args__, *m.ControlMessage.__args__}
    assert {type(message) for message in MESSAGES} == every
    assert list(json.loads(GOLDEN.read_text())) == [label(message) for message in MESSAGES]


@pytest.mark.parametrize("message", MESSAGES, ids=label)
def test_bytes_are_those_of_the_fixture(message: Any) -> None:
    data = type(message) in m.DataHeader.__args__
    encode, decode = (
        (frames.encode_header, frames.decode_header)
        if data
        else (frames.encode_control, frames.decode_control)
    )
    golden = bytes.fromhex(json.loads(GOLDEN.read_text())[label(message)])
    assert encode(message) == golden
    assert decode(golden) == message


def test_what_a_peer_without_the_newest_fields_says_is_understood() -> None:
    item = frames.encode_header(m.Item(1, 2, 3, 4, (TENSOR,), "00-trace"))
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(item)[:-1])
    assert frames.decode_header(older) == m.Item(1, 2, 3, 4, (TENSOR,), "00-trace")
    assert frames.decode_header(msgspec.msgpack.encode(["greet", 1, 1, "old"])) == m.Greeting(1, 1, "old")
