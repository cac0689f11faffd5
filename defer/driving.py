"""Requests at a rate or with a number under way, and how long each took; of whatever server."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from defer.errors import DeferError
from defer.translating import translate

Submit = Callable[[], Future[Any]]
"""Sends one request without waiting for it."""

SLACK_S = 120.0
"""Every request ends by its own deadline; this is for a machine that stalls."""


@dataclass(slots=True)
class Driven:
    """What came out.

    Attributes:
        seconds: From the first request to the last answer.
        latencies: Of the requests that were answered, s, in the order of the answers.
        failed: The others, by error code.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds > 0 else 0.0

    def quantile(self, share: float) -> float:
        """Latency that this share of the answered requests stayed below, s; NaN where none was answered."""
        return float(np.quantile(self.latencies, share)) if self.latencies else float("nan")


def drive(submit: Submit, *, count: int, window: int, rate: float | None = None) -> Driven:
    """Sends requests.

    With a rate, request i is due i / rate seconds after the first, and its latency counts from then on, whether or not
    it could be sent: what a stalled server keeps from being sent is not left out (G. Tene, "coordinated omission").

    Args:
        submit: Sends one request.
        count: How many.
        window: How many at once, at most.
        rate: Requests per second; None for as many as the window allows.

    Raises:
        DeferError: The first one failed: whatever is measured after that is worth nothing.
    """
    driven = Driven()
    room = threading.Semaphore(window)
    changed = threading.Condition()
    ended = 0
    first: BaseException | None = None

    def end(due: float, number: int, future: Future[Any]) -> None:
        nonlocal ended, first
        now = time.perf_counter()
        error = future.exception()
        with changed:
            if error is None:
                driven.latencies.append(now - due)
            else:
                driven.failed[translate(error).code if isinstance(error, Exception) else "cancelled"] += 1
                first = error if number == 0 else first
            driven.seconds = now - begun
            ended += 1
            changed.notify()
        room.release()

    begun = time.perf_counter()
    for number in range(count):
        due = begun + number / rate if rate is not None else 0.0
        if rate is not None:
            time.sleep(max(0.0, due - time.perf_counter()))
        room.acquire()
        if first is not None:
            break
        sent = due if rate is not None else time.perf_counter()
        try:
            future = submit()
        except DeferError as error:
            future = Future()
            future.set_exception(error)
        future.add_done_callback(partial(end, sent, number))
    else:
        number = count
    with changed:
        changed.wait_for(lambda: ended >= number, SLACK_S)
    if first is not None:
        raise translate(first) if isinstance(first, Exception) else first
    return driven
