"""Being told to stop: every way of it becomes an exception, and none of them interrupts the tearing down."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

STOPPING = (signal.SIGTERM, signal.SIGHUP)
DEFERRED = (signal.SIGINT, *STOPPING)


class Interrupts:
    """Turns SIGTERM and SIGHUP into `SystemExit` while a bed lives, so that its teardown runs.

    Only where nobody else has said what these signals do, and only in the main thread, which alone may say so.
    SIGINT is a `KeyboardInterrupt` already.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """From now on, they raise."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in STOPPING:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._before[number] = signal.signal(number, _leave)

    def stop(self) -> None:
        """As before `start`."""
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Runs a block, which must be bounded in time, to its end; a signal that came meanwhile counts afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _frame: came.append(n)) for number in DEFERRED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        if came:
            signal.raise_signal(came[0])
