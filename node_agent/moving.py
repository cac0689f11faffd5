"""What an item costs a device beside its run: being received, handed to the run thread and back, and sent.

Measured in processor time over this machine's loopback, with the sockets and functions of the data path. A network
card's driver costs something else than loopback; what dominates, copying between kernel and process, is the same.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from statistics import median
from typing import Any

import numpy as np
import zmq

from node_agent.frames import encode_header, pack_item, unpack
from node_agent.link import bind, open_socket, receive, send
from node_agent.messages import Item

_SMALL, _LARGE = 1 << 10, 4 << 20
_ROUNDS = (60, 10)
_WARM_UP = 3
_WAIT_MS = 5_000
_CACHE = 32 << 20
"""Between two items a partition runs over this much and more, so that nothing of the item before is left in a cache."""


def measure_moving() -> tuple[float, float]:
    """Processor seconds per item, and per byte of it, for a device that receives and sends it once."""
    context: zmq.Context[Any] = zmq.Context()
    router = open_socket(context, zmq.ROUTER, purpose="data")
    dealer = open_socket(context, zmq.DEALER, purpose="data")
    there: SimpleQueue[Any] = SimpleQueue()
    back: SimpleQueue[Any] = SimpleQueue()
    runner = threading.Thread(target=_hand_back, args=(there, back), daemon=True)
    runner.start()
    try:
        dealer.connect(f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0)}")
        small, large = (
            _per_item(router, dealer, there, back, nbytes, rounds)
            for nbytes, rounds in zip((_SMALL, _LARGE), _ROUNDS, strict=True)
        )
    finally:
        there.put(None)
        runner.join()
        context.destroy(linger=0)
    return small, max(0.0, large - small) / (_LARGE - _SMALL)


def _per_item(router: Any, dealer: Any, there: Any, back: Any, nbytes: int, rounds: int) -> float:
    dealer.poll(_WAIT_MS, zmq.POLLOUT)
    other = np.zeros(_CACHE, np.uint8)
    taken = []
    for number in range(_WARM_UP + rounds):
        tensors, frames = pack_item({"x": np.full(nbytes, number, np.uint8)})
        other += 1
        began = time.process_time()
        send(dealer, encode_header(Item(1, number, 0, 1 << 40, tensors)), frames)
        if not router.poll(_WAIT_MS):
            break
        _, header, received = receive(router, routed=True)
        assert isinstance(header, Item)
        there.put(unpack(header.tensors, received))
        back.get()
        taken.append(time.process_time() - began)
    return median(taken[_WARM_UP:]) if len(taken) > _WARM_UP else 0.0


def _hand_back(there: SimpleQueue[Any], back: SimpleQueue[Any]) -> None:
    while (item := there.get()) is not None:
        back.put(item)
