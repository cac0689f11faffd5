"""Whether a deployment is still wanted: whoever asked for it may give it up, until it is about to serve."""

from __future__ import annotations

import threading
from collections.abc import Callable

from defer.errors import Cancelled


class Withdrawal:
    """What ends a deployment before it serves. Safe to use from several threads.

    Attributes:
        begun: Whether the deployment is being made; else it waits for others.
    """

    def __init__(self) -> None:
        self.begun = False
        self._lock = threading.Lock()
        self._withdrawn = self._settled = False
        self._acts: list[Callable[[], None]] = []

    def withdraw(self) -> bool:
        """Give the deployment up; whether that was in time."""
        with self._lock:
            if self._settled:
                return False
            self._withdrawn = True
            acts, self._acts = self._acts, []
        for act in acts:
            act()
        return True

    def when(self, act: Callable[[], None]) -> None:
        """Have `act` called when the deployment is given up, by whoever does that; now, where it was."""
        with self._lock:
            if not self._withdrawn:
                self._acts.append(act)
                return
        act()

    def check(self) -> None:
        """Go on, where the deployment is wanted.

        Raises:
            Cancelled: It was given up.
        """
        if self._withdrawn:
            raise given_up()

    def settle(self) -> None:
        """From now on the deployment cannot be given up: it takes over.

        Raises:
            Cancelled: It was given up before.
        """
        with self._lock:
            if self._withdrawn:
                raise given_up()
            self._settled = True
            self._acts.clear()


def given_up() -> Cancelled:
    """Why a deployment goes no further."""
    return Cancelled("the deployment was given up by whoever asked for it")
