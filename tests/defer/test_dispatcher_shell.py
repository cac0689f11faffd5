"""The data thread against raw sockets: peers that break the rules, ports that are taken, clients that do not read."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from defer.dispatcher import events as e
from defer.dispatcher.shell import DataShell
from defer.errors import InvalidCluster, PortInUse
from node_agent.frames import pack_item
from node_agent.security import Security

pytestmark = pytest.mark.integration

pack = msgspec.msgpack.encode
X = ["x", "float32", [1, 4], "raw", 16]
BODY = bytes(16)


@pytest.fixture
def dealer(server: Any) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[Any] = zmq.Context()
    made = context.socket(zmq.DEALER)
    made.connect(f"tcp://127.0.0.1:{server.shell.data_port}")
    made.RCVTIMEO = 5000
    yield made
    context.destroy(linger=0)


def answer(dealer: zmq.Socket[bytes]) -> list[Any]:
    header, *frames = dealer.recv_multipart()
    return [*msgspec.msgpack.decode(header), *frames]


def infer(name: str, **more: Any) -> list[Any]:
    fields = {"model": "", "left": 5 * 10**9, "tensors": [X]} | more
    return ["infer", name.encode().ljust(16), fields["model"], fields["left"], fields["tensors"]]


def test_a_request_by_hand(dealer: Any) -> None:
    dealer.send_multipart([pack(infer("r")), np.ones(4, np.float32).tobytes()])
    kind, request, tensors, seconds, frame = answer(dealer)
    assert (kind, request, tensors) == ("result", b"r".ljust(16), [["y", "float32", [1, 4], "raw", 16]])
    assert 0 < seconds < 5
    np.testing.assert_array_equal(np.frombuffer(frame, np.float32), np.full(4, 2, np.float32))


def test_a_resend_from_another_connection_runs_once_and_answers_there(server: Any, dealer: Any) -> None:
    server.stages[0].hold = True
    dealer.send_multipart([pack(infer("r")), BODY])
    while not server.stages[0].seen:
        time.sleep(0.001)
    context: zmq.Context[Any] = zmq.Context()
    other = context.socket(zmq.DEALER)
    other.connect(f"tcp://127.0.0.1:{server.shell.data_port}")
    other.RCVTIMEO = 5000
    other.send_multipart([pack(infer("r")), BODY])
    while not server.core(lambda core: core.counters.repeated):
        time.sleep(0.001)
    server.stages[0].hold = False
    assert answer(other)[0] == "result"
    other.send_multipart([pack(infer("r")), BODY])
    assert answer(other)[0] == "result"
    assert len(server.stages[0].seen) == 1
    context.destroy(linger=0)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ([b"\xc1not msgpack"], "bad-frame"),
        ([b""], "bad-frame"),
        ([pack(["nonsense", 1])], "bad-frame"),
        ([pack(["infer", b"short", "", 1, []])], "bad-frame"),
        ([pack(infer("r"))], "bad-frame"),
        ([pack(infer("r")), bytes(15)], "bad-frame"),
        ([pack(infer("r")), BODY, BODY], "bad-frame"),
        ([pack(infer("r", tensors=[["x", "float32", [2**40, 2**40], "raw", 16]])), BODY], "bad-frame"),
        ([pack(infer("r", tensors=[["x", "float32", [-1], "raw", 16]])), BODY], "bad-frame"),
        ([pack(infer("r", tensors=[["x", "object", [4], "raw", 16]])), BODY], "bad-frame"),
        ([pack(infer("r", tensors=[["x", "float32", [1, 4], "zip", 16]])), BODY], "bad-frame"),
        ([pack(["item", 1, 1, 1, -1, []])], "bad-message"),
        ([pack(["fail", 1, 1, 1, "code", "text", "where"])], "bad-message"),
        ([pack(["credit", 1, 1])], "bad-message"),
        ([pack(["greet", 99, 99, "future"])], "incompatible-version"),
        ([pack(["greet", 99, 99, "@client"])], "incompatible-version"),
    ],
)
def test_what_is_not_ours_is_refused_and_the_dispatcher_goes_on(
    dealer: Any, message: list[bytes], code: str
) -> None:
    dealer.send_multipart(message)
    kind, got, text = answer(dealer)
    assert (kind, got) == ("refuse", code)
    assert text
    dealer.send_multipart([pack(infer("s")), BODY])
    assert answer(dealer)[0] == "result"


def test_a_peer_that_sends_results_without_credit_is_refused(server: Any, dealer: Any) -> None:
    dealer.send_multipart([pack(["greet", 1, 1, "z"])])
    assert answer(dealer)[0] == "greet"
    kind, items, _ = answer(dealer)
    assert kind == "credit"
    for number in range(2 * items):
        dealer.send_multipart([pack(["item", 7, number, 1, -1, []])])
    granted = 0
    while granted < items:  # what is taken at once is given back, so this peer never runs dry
        kind, more, *_ = answer(dealer)
        assert kind == "credit"
        granted += more
    assert server.core(lambda core: core.counters.stale) >= items


def test_probes_are_echoed_without_their_bytes(dealer: Any) -> None:
    dealer.send_multipart([pack(["probe", 5, 100_000]), bytes(100_000)])
    assert answer(dealer)[:2] == ["echo", 5]  # behind it, what receiving them cost


def test_a_client_that_does_not_read_is_kept_within_bounds(make_server: Callable[..., Any]) -> None:
    server = make_server(e.Limits(answers=4, client_bytes=2 << 20))
    server.serve(server.stage(items=64))
    context: zmq.Context[Any] = zmq.Context()
    lazy = context.socket(zmq.DEALER)
    lazy.RCVHWM = 1
    lazy.RCVBUF = 4096
    lazy.RCVTIMEO = 5000
    lazy.connect(f"tcp://127.0.0.1:{server.shell.data_port}")
    rows = 2_000
    tensor = ["x", "float32", [rows, 4], "raw", rows * 16]
    sent = 0
    while sent < 3000 and server.shell._outbox.dropped == 0:
        try:
            lazy.send_multipart([pack(infer(str(sent), tensors=[tensor])), bytes(rows * 16)], zmq.NOBLOCK)
            sent += 1
        except zmq.Again:
            time.sleep(0.001)
    held = server.core(
        lambda _: [
            len(frame)
            for queue in server.shell._outbox.waiting.values()
            for _, frames in queue
            for frame in frames
        ]
    )
    assert 0 < sum(held) <= 2 << 20
    server.core(lambda core: core.requests)  # it still answers
    assert answer(lazy)[0] in ("result", "reject")
    context.destroy(linger=0)


def test_routes_that_start_on_one_device_share_its_connection(server: Any, dealer: Any) -> None:
    stage = server.stages[0]
    server.serve(stage, epoch=2, model="other")
    for number, model in enumerate(["twice", "other", "twice"]):
        dealer.send_multipart([pack(infer(str(number), model=model)), BODY])
        assert answer(dealer)[0] == "result"
    assert stage.epochs == [1, 2, 1]
    server.shell.post(e.RouteDropped(1, "undeployed"))
    dealer.send_multipart([pack(infer("last", model="other")), BODY])
    assert answer(dealer)[0] == "result"
    assert stage.greetings == 1


def test_a_stage_that_refuses_is_dialled_again(make_server: Callable[..., Any], caplog: Any) -> None:
    server = make_server()
    stage = server.stage()
    stage.refuse_first = True
    server.serve(stage)
    headers, frames = pack_item({"x": np.zeros((1, 4), np.float32)})
    assert server.shell.canary(1, headers, frames, 10).result(10)
    assert "refused our connection: full" in caplog.text


def test_a_canary_raises_what_a_client_would_get(server: Any) -> None:
    headers, frames = pack_item({"x": np.zeros((1, 4), np.float64)})
    with pytest.raises(Exception, match="element type float64"):
        server.shell.canary(1, headers, frames, 5).result(5)


def test_ports_in_use_and_foreign_addresses() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}"):
            DataShell("d", data_port=port).start()
    with pytest.raises(InvalidCluster, match=r"203\.0\.113\.1"):
        DataShell("d", "203.0.113.1", security=Security(insecure=True)).start()
