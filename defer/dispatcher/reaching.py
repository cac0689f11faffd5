"""Reaches agents side by side, and tells whom it waits for: who needs only some of them need not wait for the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Final, Self

from defer.agents import AgentPool
from defer.documents.cluster import Cluster, Device
from defer.errors import AgentUnreachable
from node_agent.messages import Offer

TELL_S: Final = 0.5
"""Agents that have not answered by then are told of: those that are there answer sooner."""


class Reaching:
    """Connects to every agent of a cluster; use it as a context manager.

    Args:
        pool: Started; agents that dial out need one that listens. It goes on dialling whom it has not reached.
        cluster: The devices.
        seconds: How long each is waited for.
        tell: Told once, after `TELL_S`, which agents have not answered.
        dial: Whether this is the first time; otherwise they are dialled already, and only waited for.
    """

    def __init__(
        self,
        pool: AgentPool,
        cluster: Cluster,
        seconds: float,
        tell: Callable[[tuple[str, ...]], None],
        *,
        dial: bool = True,
    ) -> None:
        self._pool, self._tell, self._told, self._dial = pool, tell, False, dial
        self._begin = time.monotonic()
        devices = cluster.agents
        self._threads = ThreadPoolExecutor(max(1, len(devices)), thread_name_prefix="defer-reach")
        self._futures: dict[str, Future[Offer]] = {
            device.name: self._threads.submit(self._connect, device, seconds) for device in devices
        }

    def _connect(self, device: Device, seconds: float) -> Offer:
        endpoint = "" if device.dials or not self._dial else f"tcp://{device.address}"
        return self._pool.connect(device.name, endpoint, timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What still waits ends with its seconds, or with the pool.
        self._threads.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> tuple[str, ...]:
        """Wait until one more agent has answered or was waited for long enough; those that are waited for still."""
        pending = {name: future for name, future in self._futures.items() if not future.done()}
        if not pending:
            return ()
        left = None if self._told else max(0.0, self._begin + TELL_S - time.monotonic())
        done, _ = wait(pending.values(), left, FIRST_COMPLETED)
        if not done:
            self._told = True
            self._tell(tuple(sorted(name for name, future in pending.items() if not future.done())))
        return tuple(name for name, future in pending.items() if not future.done())

    def told(self) -> bool:
        """Whether somebody has kept it waiting for so long that it was told."""
        return self._told

    def wait_for_all(self) -> None:
        """Wait until every agent has answered or was waited for long enough."""
        while self.wait():
            pass

    def settle(self) -> None:
        """Wait until every agent has answered, or those that have not were told of."""
        while not self._told and self.wait():
            pass

    def missing(self, devices: Collection[str]) -> tuple[str, ...] | None:
        """Which of these did not answer, those without an agent among them; None while one is waited for."""
        asked = [self._futures.get(device) for device in devices]
        if any(future is not None and not future.done() for future in asked):
            return None
        return tuple(
            sorted(
                device
                for device, future in zip(devices, asked, strict=True)
                if future is None or future.exception() is not None
            )
        )

    def problems(self) -> list[BaseException]:
        """What became of those that did not answer, those that never will first; waits for all."""
        self.wait_for_all()
        found = [error for future in self._futures.values() if (error := future.exception()) is not None]
        return sorted(found, key=lambda error: isinstance(error, AgentUnreachable))
