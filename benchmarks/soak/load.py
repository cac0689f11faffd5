"""Requests of all sizes at a steady rate, whatever becomes of the ones before; each is checked and counted."""

from __future__ import annotations

import queue
import random
import secrets
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak import model
from defer.client import Client
from defer.errors import DeferError

CLIENTS = 3
DEADLINE_S = 30.0
LATE_S = 10.0
"""What a busy machine may add to a deadline."""

ROWS = (1, 1, 1, 1, 4, 4, 16, 64)
HURRIED, CANCELLED = 0.05, 0.05
"""Parts of the requests whose deadline may be too short, and that are cancelled."""

HURRY_S = 0.02
DURABLE_S = 1.0
"""Mean seconds between two durable requests."""

RECONNECT_S = 12.0
"""Seconds after which the next client hangs up, whatever it has under way, and another one takes its place."""

REFUSALS = frozenset({"overloaded", "not-ready"})


@dataclass(slots=True)
class Tally:
    """What became of the requests.

    Attributes:
        sent: How many.
        ends: By how they ended: `right`, `wrong`, `cancelled`, `hung-up` (with their client), or an error's code.
        unexpected: Errors where none was to be expected, an example each.
        lost: Neither ended in time.
        slowest_s: Longest until a right result.
        reconnects: Clients that hung up.
    """

    sent: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    unexpected: dict[str, str] = field(default_factory=dict)
    errors: int = 0
    lost: int = 0
    slowest_s: float = 0.0
    reconnects: int = 0


@dataclass(slots=True, eq=False)
class _Sent:
    number: int
    rows: int
    client: int
    at: float
    deadline: float
    hurried: bool
    cancelled: bool
    generation: int
    future: Future[Any] | None = None
    ended: float = 0.0


class Load:
    """See the module; use it as a context manager.

    Args:
        address: The dispatcher's api.
        rate: Requests per second.
        seed: Of all choices.
    """

    def __init__(self, address: str, rate: float, seed: int) -> None:
        self.tally = Tally()
        self._address, self._rate = address, rate
        self._draw = random.Random(f"{seed} load")
        self._weights = model.weights()
        self._clients = [Client(address, model=model.NAME, timeout=DEADLINE_S) for _ in range(CLIENTS)]
        self._generations = [0] * CLIENTS
        self._open: dict[int, _Sent] = {}
        self._lock = threading.Lock()
        self._ended: queue.Queue[_Sent | None] = queue.Queue()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"soak-{target.__name__}")
            for target in (self._send, self._check, self._durable)
        ]

    def __enter__(self) -> Load:
        for client in self._clients:
            client.models()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        sender, checker, durable = self._threads
        sender.join(2 * DEADLINE_S)
        durable.join(2 * DEADLINE_S)
        deadline = time.monotonic() + DEADLINE_S + LATE_S
        while self._open and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            self.tally.lost += len(self._open)
        self._ended.put(None)
        checker.join(10 * DEADLINE_S)
        for client in self._clients:
            client.close()

    def _send(self) -> None:
        begin = due = time.monotonic()
        hang_up = begin + RECONNECT_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._draw.expovariate(self._rate)
            used, now = self._one(), time.monotonic()
            if now > hang_up:
                hang_up = now + RECONNECT_S
                self._reconnect(used)
            if self.tally.sent % 64 == 0:
                self._look_for_lost(now)

    def _one(self) -> int:
        """Send a request; by which client."""
        number, draw, now = self.tally.sent, self._draw, time.monotonic()
        hurried, cancelled = draw.random() < HURRIED, draw.random() < CANCELLED
        seconds = HURRY_S * draw.random() if hurried else DEADLINE_S
        client = draw.randrange(CLIENTS)
        each = _Sent(
            number,
            draw.choice(ROWS),
            client,
            now,
            now + seconds,
            hurried,
            cancelled,
            self._generations[client],
        )
        inputs = model.request(number, each.rows)
        self.tally.sent += 1
        with self._lock:
            self._open[number] = each
        try:
            each.future = self._clients[client].submit(inputs, timeout=max(0.001, seconds))
        except DeferError as error:
            each.future = Future()
            each.future.set_exception(error)
        each.future.add_done_callback(lambda _, each=each: self._note_end(each))  # type: ignore[misc]
        if cancelled:
            each.future.cancel()
        return client

    def _reconnect(self, which: int) -> None:
        old, self._clients[which] = (
            self._clients[which],
            Client(self._address, model=model.NAME, timeout=DEADLINE_S),
        )
        self._generations[which] += 1
        self.tally.reconnects += 1
        old.close()

    def _look_for_lost(self, now: float) -> None:
        with self._lock:
            late = [each for each in self._open.values() if now > each.deadline + LATE_S]
            for each in late:
                del self._open[each.number]
            self.tally.lost += len(late)

    def _note_end(self, each: _Sent) -> None:
        """When it ended; what it ended with is looked at later, however long that takes on a busy machine."""
        each.ended = time.monotonic()
        with self._lock:
            if self._open.pop(each.number, None) is None:
                return  # was counted as lost
        self._ended.put(each)

    def _check(self) -> None:
        while (each := self._ended.get()) is not None:
            self._count(each, each.ended - each.at)
            each.future = None

    def _count(self, each: _Sent, took: float) -> None:
        tally, future = self.tally, each.future
        assert future is not None
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or getattr(error, "code", "") == "cancelled":
            tally.ends["cancelled" if each.cancelled else "hung-up"] += 1
            if not each.cancelled and self._generations[each.client] == each.generation:
                self._unexpected("cancelled", "nobody had cancelled it")
            return
        if error is None:
            (array,) = future.result().values()
            right = model.is_right(array, each.number, each.rows, self._weights)
            tally.ends["right" if right else "wrong"] += 1
            if right:
                tally.slowest_s = max(tally.slowest_s, took)
            return
        code = getattr(error, "code", type(error).__name__)
        tally.ends[code] += 1
        if code == "deadline-exceeded" and each.hurried:
            return
        if code not in REFUSALS:
            self._unexpected(code, str(error))

    def _unexpected(self, code: str, text: str) -> None:
        self.tally.errors += 1
        self.tally.unexpected.setdefault(code, text)

    def _durable(self) -> None:
        """Requests that outlive the dispatcher, one after the other, each asked for again."""
        draw = random.Random(f"{self._draw.random()} durable")
        with Client(self._address, model=model.NAME, timeout=DEADLINE_S) as client:
            number = 1 << 30
            while not self._stop.wait(2 * DURABLE_S * draw.random()):
                number += 1
                rows, name = draw.choice(ROWS), secrets.token_bytes(16)
                self.tally.ends["durable"] += 1
                try:
                    (first,) = client.infer(model.request(number, rows), durable=True, request=name).values()
                    (again,) = client.recall(name).values()
                except DeferError as error:
                    if error.code not in REFUSALS:
                        self._unexpected(f"durable {error.code}", str(error))
                    continue
                right = model.is_right(first, number, rows, self._weights) and bool((first == again).all())
                if not right:
                    self.tally.ends["wrong"] += 1
