"""Whether a thread gets on: the processor time that it has had, and the time in which it wanted some and got none."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

MOST_S: Final = 0.5
"""What one look at a thread that waits for a processor counts at most: it may not have waited since the last one."""


ENOUGH: Final = 0.02
"""A thread that had this part of a processor gets on, whatever else it wanted."""


class ThreadClock:
    """Of the thread that makes it; others read it."""

    def __init__(self) -> None:
        self._clock = (
            time.pthread_getcpuclockid(threading.get_ident())
            if hasattr(time, "pthread_getcpuclockid")
            else None
        )
        self._stat = Path(f"/proc/self/task/{threading.get_native_id()}/stat")
        self._had = self._wanted = 0.0
        self._looked = time.monotonic()

    def seconds(self) -> float:
        """Seconds so far; 0 where the system does not tell, or the thread has ended.

        A thread that is ready to run, on a machine that has no processor for it, counts as one that runs, as far as is
        seen by calling this every now and then.
        """
        if self._clock is None:
            return 0.0
        try:
            had = time.clock_gettime(self._clock)
        except OSError:
            return 0.0
        now = time.monotonic()
        passed = now - self._looked
        # To ask what state it is in reads a file of the kernel's, which a small box would pay for with each heartbeat.
        if had - self._had < ENOUGH * passed and self._ready():
            self._wanted += min(MOST_S, passed)
        self._had, self._looked = had, now
        return had + self._wanted

    def _ready(self) -> bool:
        """Whether it runs or waits for a processor now (Linux; elsewhere this is not known)."""
        try:
            # The name stands in brackets, and may hold any character.
            return self._stat.read_bytes().rpartition(b")")[2].split()[0] == b"R"
        except (OSError, IndexError):
            return False
