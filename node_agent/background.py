"""Work beside which others are served: it runs at a lower priority, so that it takes what they leave.

Linux gives each thread a niceness of its own, which any process may raise and few may lower again (setpriority(2)).
Hence a thread for each piece of work; and since the threads that an engine starts inherit it and then run requests, it
is only raised where the engine starts none, or where it may be lowered again for them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

NICENESS = 10
"""What is added: where both want the processor all the time, such a thread gets a tenth of what another gets."""


def in_background(job: Callable[[], None], *, threads: int) -> None:
    """Runs `job` at a lower priority where that is possible, and waits for its end.

    Args:
        job: What is to be done; it does not raise.
        threads: Threads that one run of an engine may use; with one, engines start none.
    """
    if sys.platform != "linux" or not _tasks() or (threads > 1 and not _may_be_lowered()):
        job()
        return

    def run() -> None:
        usual, before = os.getpriority(os.PRIO_PROCESS, threading.get_native_id()), _tasks()
        yield_to_others()
        job()
        for task in _tasks() - before:
            with contextlib.suppress(OSError):  # it may have ended
                os.setpriority(os.PRIO_PROCESS, task, usual)

    thread = threading.Thread(target=run, name="background", daemon=True)
    thread.start()
    thread.join()


def yield_to_others() -> None:
    """Lowers the priority of the calling thread for good, where that is possible."""
    if sys.platform == "linux":
        mine = threading.get_native_id()
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, mine, os.getpriority(os.PRIO_PROCESS, mine) + NICENESS)


def _tasks() -> set[int]:
    """Native ids of this process's threads; none where the system does not tell."""
    try:
        return {int(task.name) for task in Path("/proc/self/task").iterdir()}
    except OSError:
        return set()


@functools.cache
def _may_be_lowered() -> bool:
    """Whether a thread may have its niceness back (RLIMIT_NICE, CAP_SYS_NICE); tried once, in a thread to spare."""
    allowed: list[bool] = []

    def attempt() -> None:
        mine = threading.get_native_id()
        usual = os.getpriority(os.PRIO_PROCESS, mine)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, mine, usual + 1)
            os.setpriority(os.PRIO_PROCESS, mine, usual)
            allowed.append(True)

    thread = threading.Thread(target=attempt, name="background-attempt")
    thread.start()
    thread.join()
    return bool(allowed)
