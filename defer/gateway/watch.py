"""Whether the dispatcher of a gateway elsewhere answers: asked in the background, so that no probe waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from defer import api
from defer.errors import DeferError, DispatcherUnreachable, from_code
from defer.translating import translate

logger = logging.getLogger("defer.gateway")

PAUSE_S = 0.4
"""Seconds between an answer and the next question."""

LATE_S = 0.6
"""A dispatcher that answered before, and has not for so many seconds after it was asked, counts as away meanwhile."""


def _nothing() -> None:
    pass


class DispatcherWatch:
    """Asks a dispatcher for its models again and again, in a thread of its own once it is started.

    Args:
        ask: Asks once; raises where nobody answers.
        address: Whom, for messages.
        pause_s: Seconds between two questions.
        clock: Seconds.
        give_up: Ends the question that is under way, from another thread.
    """

    def __init__(
        self,
        ask: Callable[[], Sequence[api.ModelInfo]],
        address: str,
        pause_s: float = PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
        give_up: Callable[[], None] = _nothing,
    ) -> None:
        self._ask, self._address, self._pause_s = ask, address, pause_s
        self._clock, self._give_up = clock, give_up
        self._since: float | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._asked = False
        self._there = threading.Event()
        self._on_there = _nothing
        self.models: Sequence[api.ModelInfo] = ()
        """What it served when it was last asked."""
        self._problem: DeferError | None = DispatcherUnreachable(
            f"the dispatcher at {address} has not answered yet"
        )

    @property
    def problem(self) -> DeferError | None:
        """Why it is not there; None where it answered, and is not late with the next answer."""
        since = self._since
        if self._problem is None and since is not None and (late := self._clock() - since) > LATE_S:
            return DispatcherUnreachable(
                f"the dispatcher at {self._address} has not answered for {late:.1f} s"
            )
        return self._problem

    @property
    def running(self) -> bool:
        """Whether it is asked at all."""
        return self._thread is not None

    @property
    def away(self) -> bool:
        """Whether it was asked, and did not answer."""
        return self.running and self._asked and self.problem is not None

    def error(self) -> DeferError:
        """Why it is not there, to be raised; each caller gets one of its own."""
        problem = self.problem or DispatcherUnreachable(f"no dispatcher answers at {self._address}")
        return from_code(problem.code, problem.message, problem.hint, problem.where)

    def start(self, on_there: Callable[[], None] = _nothing) -> threading.Event:
        """Begin to ask.

        Args:
            on_there: Called once, in the thread: when it has answered for the first time.

        Returns:
            What is set then.
        """
        self._on_there = on_there
        self._thread = threading.Thread(target=self._run, name="defer-gateway-watch", daemon=True)
        self._thread.start()
        return self._there

    def close(self) -> None:
        """Ask no more; takes as long as the question that is under way needs to end when it is given up."""
        self._stop.set()
        self._give_up()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(self._pause_s)

    def look(self) -> None:
        """Ask once."""
        self._since = self._clock()
        try:
            self.models = self._ask()
        except Exception as error:
            problem = translate(error)
            if self._problem is None and not self._stop.is_set():
                logger.warning("The dispatcher is away: %s", problem)
            self._problem = problem
        else:
            if self._problem is not None and self._there.is_set():
                logger.warning("The dispatcher at %s is back", self._address)
            self._problem = None
            if not self._there.is_set():
                self._there.set()
                self._on_there()
        finally:
            self._since = None
        self._asked = True
