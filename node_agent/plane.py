"""The data path as a whole: receive → run → send, and what is in force on it. Driven by the control thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

from node_agent.engines.base import Session
from node_agent.events import Gauge
from node_agent.flow import Window
from node_agent.link import Context
from node_agent.machine import resident_bytes
from node_agent.messages import HopStatus, Load
from node_agent.receiver import Receiver
from node_agent.routing import Route, RoutingTable
from node_agent.sender import Sender
from node_agent.threads import Shell
from node_agent.work import Ledger, LoadedRoute, Work
from node_agent.worker import Worker

log = logging.getLogger(__name__)

JOIN_S = 5.0
"""How long a thread may take to end; a run that hangs is not waited for longer."""


class DataPlane:
    """The three threads of the data path.

    Args:
        context: The process's context.
        name: This device's name.
        host: Address to bind to.
        ports: Data-in and fetch port; 0 for any.
        window: What each upstream connection may have under way.
    """

    def __init__(
        self, context: Context, name: str, host: str, ports: tuple[int, int], window: Window | None = None
    ) -> None:
        self._ledger = Ledger()
        self._table = RoutingTable()
        self._loaded: dict[tuple[int, int], LoadedRoute] = {}
        runs: SimpleQueue[Any] = SimpleQueue()
        self.sender = Sender(context, name, host, ports[1], release=self._release)
        forward = self.sender.inbox.put
        self.worker = Worker(name, runs, forward=forward, drop=self._drop)
        self.receiver = Receiver(
            context,
            name,
            host,
            ports[0],
            ledger=self._ledger,
            runs=runs,
            try_now=self.worker.try_now,
            forward=forward,
            window=window or Window(),
        )

    @property
    def ports(self) -> tuple[int, int]:
        """Data-in and fetch port, once started."""
        return self.receiver.port, self.sender.port

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The threads."""
        return (self.receiver, self.worker, self.sender)

    def start(self) -> None:
        """Binds both data ports and starts the threads.

        Raises:
            StartError: A port cannot be bound.
        """
        for shell in (self.sender, self.worker, self.receiver):
            shell.start()

    def stop(self) -> bool:
        """Ends the threads; whether all of them ended."""
        for shell in (self.receiver, self.worker, self.sender):
            shell.stop()
        ended = [shell.join(JOIN_S) for shell in (self.receiver, self.worker, self.sender)]
        if all(ended):
            self.receiver.inbox.close()
            self.sender.inbox.close()
        return all(ended)

    def install(self, load: Load, sessions: Mapping[int, Session]) -> None:
        """Puts the hops of `load` in force and connects to their neighbours."""
        routes = [Route(load.epoch, load.model, hop) for hop in load.hops]
        self._table = self._table.with_routes(routes)
        added = {route.key: LoadedRoute(route, sessions.get(route.spec.hop)) for route in routes}
        self._loaded = {**self._loaded, **added}
        for route in routes:
            # Downstream first: an item that arrives at once finds where to go.
            self.sender.attach(route.spec.next)
        self.receiver.routes = self._loaded
        for route in routes:
            if route.spec.previous.endpoint:
                self.receiver.dial(route.spec.previous)

    def retire(self, epoch: int, done: Callable[[], None]) -> None:
        """Takes an epoch out of force: the item in work is finished, the rest dropped; then calls `done`."""
        for key, loaded in self._loaded.items():
            if key[0] == epoch:
                loaded.closed = True
        self._table = self._table.without_epoch(epoch)
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key[0] != epoch}
        self.receiver.routes = self._loaded
        # Asked when the threads come to it: by then another epoch may need a peer that this one leaves.
        self.receiver.keep(lambda: self._table.peers("previous"))
        self.worker.call(lambda: self.sender.retire(epoch, lambda: self._table.peers("next"), done))

    def stop_credit(self) -> None:
        """Grants no more credit to anybody upstream."""
        self.receiver.pause()

    def gauge(self) -> Gauge:
        """How the data path stands."""
        started = self.worker.started_ns
        age = (time.monotonic_ns() - started) / 1e9 if started else 0.0
        return Gauge(
            self.worker.progress + self.sender.relayed, max(0.0, age), self._ledger.held, resident_bytes()
        )

    def status(self) -> tuple[tuple[HopStatus, ...], int]:
        """The counters of every hop in force, and the number of items that belonged to none."""
        return tuple(loaded.status() for loaded in self._loaded.values()), self.receiver.stale

    def _release(self, origin: Any, nbytes: int) -> None:
        self.receiver.release(origin, nbytes)

    def _drop(self, work: Work) -> None:
        self.receiver.release(work.origin, work.nbytes)
