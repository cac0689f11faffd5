"""Numbers of deployments: none is used twice, and those that agents may still hold are known after a crash."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from defer.dispatcher.keeper import Keeper
from defer.dispatcher.store import EpochBegun, EpochEnded, Snapshot


class EpochLog:
    """The dispatcher's epochs; safe to use from several threads.

    Args:
        keeper: Where they are kept.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._last = 0
        self._open: set[int] = set()
        self._lock = threading.Lock()

    def load(self, snapshot: Snapshot) -> Mapping[int, tuple[str, ...]]:
        """Take over from an earlier process; returns the epochs that it left open, with their devices."""
        self._last = snapshot.last_epoch
        self._open = set(snapshot.epochs)
        return dict(snapshot.epochs)

    def begin(self, devices: tuple[str, ...]) -> int:
        """A new epoch, noted as held by `devices` before any of them hears of it.

        Milliseconds of the wall clock, so that dispatchers that share an agent do not meet in a number; never less
        than the one before, whatever the clock says.
        """
        epoch, noted = self.begin_soon(devices)
        noted()
        return epoch

    def begin_soon(self, devices: tuple[str, ...]) -> tuple[int, Callable[[], None]]:
        """`begin` for whoever has something to do before `devices` hear of it: they may once the second has returned."""
        with self._lock:
            epoch = self._last = max(self._last + 1, int(time.time() * 1000))
            noted = self._keeper.begin((EpochBegun(epoch, devices),))
            self._open.add(epoch)
            return epoch, noted

    def end(self, epoch: int) -> None:
        """Note that no agent holds the epoch any more."""
        with self._lock:
            if epoch in self._open:
                self._open.discard(epoch)
                self._keeper.commit((EpochEnded(epoch),))
