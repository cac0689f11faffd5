"""How the agent's process is told to end: by a signal, or by the parent that holds its standard input."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from node_agent.agent import Agent


def end_with_stdin(agent: Agent, drain_timeout: float) -> None:
    """Whoever started this process holds the other end of its standard input; the system closes it however they end."""

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        agent.ask_stop(drain_timeout)

    # A daemon: nothing can wake a thread that reads, and nothing has to.
    threading.Thread(target=watch, name="stdin", daemon=True).start()


@contextlib.contextmanager
def ending_on_signals(agent: Agent, drain_timeout: float) -> Iterator[None]:
    """Drains on the first SIGTERM, SIGINT or SIGHUP (a closed terminal), ends at once on the second.

    A terminal that closes says so twice, by its shell and by the system; a SIGHUP that is to be ignored (`nohup`) is.
    """
    seen = 0

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen > 1 and number != signal.SIGHUP:
            os._exit(128 + number)
        if number == signal.SIGINT and sys.stderr is not None and sys.stderr.isatty():
            # Not through sys.stderr, whose lock this thread may hold.
            os.write(2, f"\ndraining for up to {drain_timeout:g} s; Ctrl-C again ends at once\n".encode())
        agent.ask_stop(drain_timeout)

    every = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    numbers = [each for each in every if signal.getsignal(each) is not signal.SIG_IGN]
    before = [signal.signal(number, on_signal) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
