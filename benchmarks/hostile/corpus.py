"""Honest messages of every kind, by the port that takes them: what mutation starts from."""

from __future__ import annotations

from benchmarks.hostile.mutate import Message
from defer import api
from node_agent import messages as m
from node_agent.frames import encode_control, encode_header

TENSOR = m.TensorHeader("t0", "float32", (1, 16), "raw", 64)
PACKED = m.TensorHeader("t0", "float32", (1, 1024), "lz4", 32)
SPEC = m.TensorSpec("t0", "float32", ("n", 16))
FILE = m.FileRef("ab" * 32, 40, ".onnx")
OFFER = m.Offer((m.EngineInfo("onnxruntime-cpu", "1"),), 1 << 30, 2.0, 2, "f", 7701, 7702, {"numpy": "2"})
NOBODY = m.PeerRef("nobody", "tcp://127.0.0.1:9")
HOP = m.HopSpec(1, m.PeerRef("a"), NOBODY, FILE, (FILE,), (SPEC,), (SPEC,), ("t0",), "lz4", (SPEC,))
REQUEST = b"0123456789abcdef"

_DATA: list[Message] = [
    [encode_header(m.Greeting(1, 1, "stranger"))],
    [encode_header(m.Item(1, 2, 0, 10**9, (TENSOR,))), bytes(64)],
    [encode_header(m.Item(1, 2, 0, m.NO_DEADLINE, (PACKED,))), bytes(32)],
    [encode_header(m.Item(1, 2**40, 3, m.NO_DEADLINE, ()))],
    [encode_header(m.Item(1, 2, 0, 10**9, (TENSOR,), inline=(bytes(64),)))],
    [encode_header(m.Failure(1, 2, 1, "run-failed", "No.", "stranger"))],
    [encode_header(m.Credit(4, 65536))],
    [encode_header(m.Probe(1, 16)), bytes(16)],
    [encode_header(m.ProbeEcho(1))],
    [encode_header(m.Refusal("bad-frame", "No."))],
    [encode_header(m.Infer(REQUEST, "", 10**8, (TENSOR,), ("t1",))), bytes(64)],
    [encode_header(m.Result(REQUEST, (TENSOR,), 0.5)), bytes(64)],
    [encode_header(m.Rejection(REQUEST, "overloaded", "No."))],
]

_CONTROL: list[Message] = [
    [encode_control(m.Hello(1, 1, 1, "stranger", "dispatcher"))],
    [encode_control(m.Welcome(1, 1, "stranger", "boot", OFFER))],
    [encode_control(m.Fault(1, "disk-full", "Full.", "Free some."))],
    [encode_control(m.Want(1, (FILE,)))],
    [encode_control(m.Have(1, (5,)))],
    [encode_control(m.Chunk(1, FILE, 0)), bytes(20)],
    [encode_control(m.Taken(1, 10))],
    [encode_control(m.Load(1, 2, "model", (HOP,), "auto", {"optimization": "all"}))],
    [encode_control(m.Progress(1, "loading", 0.5))],
    [encode_control(m.Loaded(1, 2, 0.5, 100, "e"))],
    [encode_control(m.Unload(1, 2))],
    [encode_control(m.Done(1))],
    [encode_control(m.Measure(1, "s", FILE, (FILE,), (SPEC,), ("t0",), 3, 0.01, "auto"))],
    [encode_control(m.StatusRequest(1))],
    [encode_control(m.Heartbeat("boot", 1, 0.5, 2, "serving", 3, (1,)))],
    [encode_control(m.TraceRequest(1, ("00-trace",)))],
]
"""Without `Drain` and `MeasureLink`: unchanged they are orders, and who drains or measures does as it should."""

_API: list[Message] = [
    [api.encode(m.Hello(1, 1, 1, "stranger", "admin"))],
    [api.encode(m.Hello(1, 1, 1, "stranger", "agent", OFFER, "boot"))],
    [api.encode(m.Want(1, (FILE,)))],
    [api.encode(m.Chunk(1, FILE, 0)), bytes(20)],
    [api.encode(api.GetStatus(1))],
    [api.encode(api.ListModels(1))],
    [api.encode(api.Deploy(1, "other", (api.ModelFile("m.onnx", FILE),), objective="latency"))],
    [api.encode(api.Undeploy(1, "other", 0.0))],
    [api.encode(api.GetEvents(1, 0, 4))],
    [api.encode(api.GetTraces(1, ("00-trace",), 1))],
    [encode_control(m.Heartbeat("boot", 1, 0.5, 2, "serving", 3, (1,)))],
    [encode_control(m.Loaded(1, 2, 0.5, 100, "e"))],
]

PORTS: dict[str, list[Message]] = {
    "agent control": _CONTROL,
    "agent data": _DATA,
    "agent fetch": _DATA,
    "dispatcher api": _API,
    "dispatcher data": _DATA,
    "dispatcher fetch": _DATA,
}
"""What each port is sent."""
