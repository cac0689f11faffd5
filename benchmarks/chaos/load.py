"""A client under open load that notes what it asked and what came: one JSON list per line.

    ["sent", time, number]   ["end", time, number, outcome, text]   ["again", time, number]

Outcomes: `result`, `wrong`, or an error's code. `again` is a result for a request that had ended: the client did not ask
for it a second time. Requests are sent when they are due, whether earlier ones have ended or not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from benchmarks.chaos import model
from defer import client_events
from defer.client import Client
from defer.client_session import Session
from defer.errors import DeferError

WARM = 32
"""Requests under way while the capacity is measured."""

SENDERS = 64
"""Durable requests that wait to be accepted at the same time."""


class Notes:
    """The client's history.

    Args:
        file: Where it goes.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def add(self, *what: Any) -> None:
        """One line."""
        with self._lock:
            self._file.write(json.dumps(what) + "\n")
            self._file.flush()


class Asker:
    """Sends numbered requests.

    Args:
        client: By which.
        notes: What is noted.
        deadline_s: Of each.
        first: The first number.
        durable: Have each kept on the dispatcher's disk.
    """

    def __init__(
        self, client: Client, notes: Notes, deadline_s: float, first: int, *, durable: bool = False
    ) -> None:
        self._client, self._notes, self._deadline_s = client, notes, deadline_s
        self._next = first
        self._weights = model.weights()
        self._numbers: dict[bytes, int] = {}
        self._open = 0
        self._changed = threading.Condition()
        # A durable request is sent when it has been accepted; others are due meanwhile.
        self._senders = ThreadPoolExecutor(SENDERS) if durable else None

    def send(self) -> None:
        """One request; does not wait for its end."""
        number, self._next = self._next, self._next + 1
        name = number.to_bytes(16, "big")
        self._numbers[name] = number
        self._notes.add("sent", time.monotonic(), number)
        with self._changed:
            self._open += 1
        if self._senders is not None:
            self._senders.submit(self._submit, number, name, durable=True)
        else:
            self._submit(number, name)

    def _submit(self, number: int, name: bytes, *, durable: bool = False) -> None:
        try:
            future = self._client.submit(
                model.request(number), timeout=self._deadline_s, request=name, durable=durable
            )
        except DeferError as error:
            self._end(number, error.code, str(error))
            return
        future.add_done_callback(lambda done: self._ended(number, done))

    def wait(self, seconds: float) -> None:
        """Until all have ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._open == 0, seconds)
        if self._senders is not None:
            self._senders.shutdown(wait=False, cancel_futures=True)

    def listen(self) -> None:
        """Hear of results for requests that have ended; once the first request has opened the connection."""
        deadline = time.monotonic() + self._deadline_s
        while (session := self._client._requests._session) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert isinstance(session, Session)
        core: Any = session._core
        handle = core.handle

        def hearing(event: Any, now: float) -> Any:
            late = core.late
            told = handle(event, now)
            if core.late != late and isinstance(event, client_events.ResultArrived):
                self._notes.add("again", time.monotonic(), self._numbers.get(event.result.request, -1))
            return told

        core.handle = hearing

    def _ended(self, number: int, done: Future[Any]) -> None:
        error = done.exception()
        if error is not None:
            self._end(number, getattr(error, "code", type(error).__name__), str(error))
            return
        (array,) = done.result().values()
        self._end(number, "result" if model.is_right(array, number, self._weights) else "wrong", "")

    def _end(self, number: int, outcome: str, text: str) -> None:
        self._notes.add("end", time.monotonic(), number, outcome, text)
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


def capacity(client: Client, seconds: float) -> float:
    """Results per second with always enough under way."""
    deadline = time.monotonic() + seconds
    count = 0
    begin = time.monotonic()

    def inputs() -> Any:
        while time.monotonic() < deadline:
            yield model.request(1)

    for _ in client.map(inputs(), window=WARM, ordered=False):
        count += 1
    return count / (time.monotonic() - begin)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos.load")
    parser.add_argument("address")
    parser.add_argument(
        "--capacity", type=float, metavar="SECONDS", help="print how many results per second come"
    )
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--deadline", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--history", type=Path)
    parser.add_argument("--durable", action="store_true")
    parser.add_argument("--keys", type=Path)
    given = parser.parse_args()
    with Client(
        given.address, timeout=given.deadline, keys=given.keys, insecure=given.keys is None
    ) as client:
        if given.capacity:
            sys.stdout.write(json.dumps(capacity(client, given.capacity)) + "\n")
            return
        draw = random.Random(given.seed)
        with given.history.open("w") as file:
            asker = Asker(client, Notes(file), given.deadline, given.first, durable=given.durable)
            asker.send()
            asker.listen()
            begin = due = time.monotonic()
            while due < begin + given.seconds:
                due += draw.expovariate(given.rate)
                time.sleep(max(0.0, due - time.monotonic()))
                asker.send()
            asker.wait(given.deadline + 10)


if __name__ == "__main__":
    main()
