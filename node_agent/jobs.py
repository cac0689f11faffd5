"""A thread for jobs that take long, so that the control thread never does one itself."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue

from node_agent.background import yield_to_others
from node_agent.threads import Shell

Job = Callable[[], None]


class Jobs(Shell):
    """Runs jobs one after the other; a job reports by itself and does not raise.

    Args:
        name: Of the thread.
        background: Whether it leaves the processor to other threads that want it.
    """

    def __init__(self, name: str, *, background: bool = False) -> None:
        super().__init__(name)
        self._background = background
        self._jobs: SimpleQueue[Job] = SimpleQueue()

    def open(self) -> None:
        """See `Shell.open`."""
        if self._background:
            yield_to_others()

    def submit(self, job: Job) -> None:
        """Runs `job` after those that wait."""
        self._jobs.put(job)

    def wake(self) -> None:
        """See `Shell.wake`."""
        self._jobs.put(lambda: None)

    def turn(self) -> None:
        """See `Shell.turn`."""
        self._jobs.get()()
