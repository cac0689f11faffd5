"""No copy of a tensor that is not needed: what is received is what the engine reads, what it writes is what is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import zmq

from node_agent import messages as m
from node_agent.codecs import CODECS
from node_agent.connection import Handshake, ReceivingEnd
from node_agent.encoding import admit, decode, encode
from node_agent.frames import encode_header, pack_item
from node_agent.link import bind, open_socket, receive, send
from node_agent.routing import Route
from node_agent.work import LoadedRoute, Origin, Work

LARGE = (256, 1024)


class Remembers:
    """A partition that keeps what it was given and gave."""

    outputs = (m.TensorSpec("y", "float32", LARGE),)

    def __init__(self) -> None:
        self.given: Mapping[str, np.ndarray[Any, Any]] = {}
        self.gave = np.ones(LARGE, np.float32)

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        self.given = dict(inputs)
        return {"y": self.gave}

    def close(self) -> None:
        pass


def hop(codec: str, session: Remembers) -> LoadedRoute:
    spec = m.HopSpec(
        0,
        m.PeerRef("p"),
        m.PeerRef("n"),
        graph=m.FileRef("ab" * 32, 1, ".onnx"),
        inputs=(m.TensorSpec("x", "float32", LARGE),),
        outputs=session.outputs,
        send=("y", "skip"),
        codec=codec,
    )
    return LoadedRoute(Route(1, "m", spec), session)


def passed(codec: str) -> tuple[Work, Remembers, list[Any]]:
    """An item that came over a real connection, after its partition has run."""
    x = np.arange(np.prod(LARGE), dtype=np.float32).reshape(LARGE)
    tensors, frames = pack_item({"x": x, "skip": x * 2})
    context: zmq.Context[Any] = zmq.Context()
    try:
        router, dealer = (open_socket(context, kind, purpose="data") for kind in (zmq.ROUTER, zmq.DEALER))
        dealer.connect(f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0)}")
        assert dealer.poll(5000, zmq.POLLOUT)
        send(dealer, encode_header(m.Item(1, 2, 0, m.NO_DEADLINE, tensors)), frames)
        assert router.poll(5000)
        identity, item, received = receive(router, routed=True)
        assert isinstance(item, m.Item)
        session = Remembers()
        origin = Origin(ReceivingEnd(Handshake("b", dialled=False)), router, identity)
        work = Work(hop(codec, session), item, received, origin, 0, 0)
        assert admit(work, "b")
        decode(work, "b")
        assert work.inputs is not None
        np.testing.assert_array_equal(work.inputs["x"], x)
        work.outputs = session.run(work.inputs)
        encode(work, "b")
        return work, session, received
    finally:
        context.destroy(linger=0)


def test_a_hop_copies_nothing() -> None:
    work, session, received = passed("raw")
    assert work.encoded is not None
    names = [header.name for header in work.encoded[0]]
    sent = dict(zip(names, work.encoded[1], strict=True))
    copies = [
        not np.shares_memory(session.given["x"], np.frombuffer(received[0], np.uint8)),
        not np.shares_memory(np.frombuffer(sent["y"], np.uint8), session.gave),
        sent["skip"] is not received[1],
    ]
    assert sum(copies) == 0


@pytest.mark.parametrize("codec", ["lz4", "int8"])
def test_a_codec_reads_the_engines_output_once(codec: str) -> None:
    work, session, _ = passed(codec)
    assert work.encoded is not None
    header, frame = next(pair for pair in zip(*work.encoded, strict=True) if pair[0].name == "y")
    assert header.codec == codec
    decoded = CODECS[codec].decode(frame, header.dtype, header.shape)
    np.testing.assert_allclose(decoded, session.gave, rtol=0.02)
