"""The dispatcher's end of link measurements: it answers agents' probes, and probes agents itself."""

from __future__ import annotations

import contextlib
import socket as sockets
import threading
import time
from collections.abc import Iterator

import zmq

from defer.documents.address import Address
from defer.doors import DATA
from defer.hops import DISPATCHER, Place
from node_agent.frames import encode_header
from node_agent.link import bind, new_context, open_socket, receive, send
from node_agent.messages import (
    PROTOCOL_MINIMUM,
    PROTOCOL_VERSION,
    Greeting,
    LinkMeasured,
    MeasureLink,
    PeerRef,
    Probe,
    ProbeEcho,
)
from node_agent.prober import measure_link
from node_agent.security import OPEN, Security


def measure_from_here(peer: PeerRef, *, budget_s: float, security: Security = OPEN) -> LinkMeasured:
    """Time the link from this process to a peer's data port; errors as in `node_agent.prober.measure_link`."""
    with new_context(security) as context:
        return measure_link(context, MeasureLink(0, peer, budget_s=budget_s))


@contextlib.contextmanager
def probe_responder(host: str, security: Security = OPEN) -> Iterator[Place]:
    """Answer probes on a free port while the block runs, where no dispatcher's data thread does.

    Args:
        host: Address of this machine that the agents reach.
        security: How connections are protected.

    Yields:
        Where the probes go, as the dispatcher's place.
    """
    context = new_context(security)
    stop_read, stop_write = sockets.socketpair()
    router = open_socket(context, zmq.ROUTER, purpose="data")
    try:
        port = bind(router, host, 0, DATA)
    except BaseException:
        context.destroy(linger=0)
        stop_read.close()
        stop_write.close()
        raise

    def answer() -> None:
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(stop_read, zmq.POLLIN)
        while stop_read.fileno() not in dict(poller.poll()):
            identity, header, _ = receive(router, routed=True)
            if isinstance(header, Probe):
                send(router, encode_header(ProbeEcho(header.id, time.process_time())), (), identity)
            elif isinstance(header, Greeting):
                send(
                    router,
                    encode_header(Greeting(PROTOCOL_MINIMUM, PROTOCOL_VERSION, DISPATCHER)),
                    (),
                    identity,
                )
        router.close(linger=0)

    thread = threading.Thread(target=answer, name="defer-probe-responder", daemon=True)
    thread.start()
    endpoint = Address(host, port).endpoint()
    try:
        yield Place(DISPATCHER, endpoint, endpoint)
    finally:
        stop_write.send(b"\0")
        thread.join()
        stop_read.close()
        stop_write.close()
        context.term()
