"""Has agents forget epochs: now where they answer, and later where they do not."""

from __future__ import annotations

import logging
from collections.abc import Callable

from defer.agents import AgentPool
from defer.dispatcher.epochs import EpochLog
from defer.errors import AgentUnreachable, DeferError
from node_agent.messages import Unload

logger = logging.getLogger("defer.dispatcher")

UNLOAD_S = 10.0
"""Seconds in which an agent forgets an epoch."""


class Unloader:
    """See the module.

    Args:
        pool: Connections to the agents.
        epochs: Numbers of the epochs that agents may hold.
    """

    def __init__(self, pool: AgentPool, epochs: EpochLog) -> None:
        self._pool, self._epochs = pool, epochs
        self.hung: Callable[[], frozenset[str]] = frozenset
        """Devices whose stage hangs: they forget when it goes on, and nobody waits for that."""
        self.left: dict[int, tuple[str, ...]] = {}

    def unload(self, epoch: int, devices: tuple[str, ...]) -> None:
        """Tell agents to forget an epoch; where one cannot be told now, `clean` tells it later."""
        asked = []
        left = []
        for device in devices:
            known = self._pool.liveness(device)
            try:
                if known is None or known.state != "alive":
                    raise AgentUnreachable(f"agent {device!r} is out of reach")
                asked.append((device, self._pool.submit(device, Unload(0, epoch), timeout=UNLOAD_S)))
            except AgentUnreachable:  # or the control thread has ended
                left.append(device)
        hung = self.hung()
        for device, future in asked:
            if device in hung:
                left.append(device)  # it was told; when it is back it is told once more, to be sure
                continue
            try:
                self._pool.result(future, device, UNLOAD_S)
            except AgentUnreachable as error:
                logger.warning("agent %s was not told to unload %d: %s", device, epoch, error)
                left.append(device)
            except DeferError as error:  # it answered: it does not hold the epoch
                logger.info("agent %s: %s", device, error)
        if left:
            self.left[epoch] = tuple(left)
        else:
            self.left.pop(epoch, None)
            self._epochs.end(epoch)

    def clean(self, device: str | None = None) -> None:
        """Tell agents (one, or all) to forget epochs that they could not be told of before."""
        for epoch, devices in list(self.left.items()):
            if device is None or device in devices:
                self.unload(epoch, devices)
