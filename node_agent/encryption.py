"""What encryption costs this device, in processor time per byte, as the connections with keys do it."""

from __future__ import annotations

import time
from typing import Any

import zmq

from node_agent.keys import new_pair
from node_agent.link import bind, open_socket

_BYTES = 4 << 20
_ROUNDS = 6
_WAIT_MS = 5_000


def measure_encryption() -> float:
    """Processor seconds to encrypt a byte, or to decrypt one: half of what both add to a message over loopback.

    Zero where nothing came through in time.

    Raises:
        KeyFileError: This libzmq was built without CURVE.
    """
    public, secret = new_pair()
    plain, coded = _seconds(None), _seconds((public, secret))
    return max(0.0, coded - plain) / (2 * _BYTES)


def _seconds(pair: tuple[str, str] | None) -> float:
    """Processor seconds of one message; the least of some, for others only make it slower."""
    context: zmq.Context[Any] = zmq.Context()
    try:
        router = open_socket(context, zmq.ROUTER, purpose="data")
        dealer = open_socket(context, zmq.DEALER, purpose="data")
        if pair is not None:
            # Nobody is let in or kept out here, so nobody has to be asked.
            for socket in (router, dealer):
                socket.setsockopt(zmq.CURVE_PUBLICKEY, pair[0].encode())
                socket.setsockopt(zmq.CURVE_SECRETKEY, pair[1].encode())
            router.setsockopt(zmq.CURVE_SERVER, 1)
            dealer.setsockopt(zmq.CURVE_SERVERKEY, pair[0].encode())
        dealer.connect(f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0)}")
        dealer.poll(_WAIT_MS, zmq.POLLOUT)
        message = bytes(_BYTES)
        taken = []
        for _ in range(_ROUNDS):
            began = time.process_time()
            dealer.send(message, zmq.NOBLOCK)
            if not router.poll(_WAIT_MS):
                return 0.0
            router.recv_multipart(copy=False)
            taken.append(time.process_time() - began)
        return min(taken)
    finally:
        context.destroy(linger=0)
