"""The data path as a whole: receive → run → send, and what is in force on it. Driven by the control thread."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from node_agent.batching import Batching
from node_agent.coder import Coder
from node_agent.data_loop import DataLoop
from node_agent.encoding import admit, decode, encode
from node_agent.engines.base import Session
from node_agent.events import Gauge
from node_agent.flow import Window
from node_agent.link import Context
from node_agent.machine import resident_bytes
from node_agent.messages import HopStatus, HopTrace, Load
from node_agent.receiver import Receiver
from node_agent.routing import Route, RoutingTable
from node_agent.sender import Sender
from node_agent.short_way import ShortWay, known_from
from node_agent.threads import Shell
from node_agent.work import LoadedRoute, Work
from node_agent.worker import Worker

log = logging.getLogger(__name__)

JOIN_S = 5.0
"""How long a thread may take to end; a run that hangs is not waited for longer."""

RESIDENT_EVERY = 10
"""The process's memory is read for one in so many heartbeats."""


class DataPlane:
    """The threads of the data path: one over all data sockets, one that runs, two for what a codec takes time for.

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
        self._name = name
        self._window = window or Window()
        self._gauged = 0
        self._resident = 0
        self._table = RoutingTable()
        self._loaded: dict[tuple[int, int], LoadedRoute] = {}
        self._loop = loop = DataLoop()
        self._worker = Worker(name, done=self._ran, drop=self._drop)
        self._sender = Sender(loop, context, name, host, ports[1], release=self._release)
        self._receiver = Receiver(
            loop,
            context,
            name,
            host,
            ports[0],
            admit=self._admit,
            forward=self._sender.submit,
            window=self._window,
        )
        self._receiver.short_way = ShortWay(self._worker, self._sender, self._receiver.release).take
        self._receiver.tell = self._sender.tell
        loop.parts = (self._sender, self._receiver)
        loop.submit = self._sender.submit
        self._decoder = Coder("decode", lambda work: decode(work, name), self._decoded)
        self._encoder = Coder("encode", lambda work: encode(work, name), loop.put)

    def time_runs(self, clock: Callable[[], int] | None) -> None:
        """Has the processor time of runs counted by a clock (`machine.quota_clock`); None ends that."""
        self._worker.processor_ns = clock

    @property
    def runs_timed(self) -> bool:
        """Whether the processor time of runs is counted."""
        return self._worker.processor_ns is not None

    @property
    def ports(self) -> tuple[int, int]:
        """Data-in and fetch port, once started."""
        return self._receiver.port, self._sender.port

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The threads, in the order in which an item passes them last."""
        return (self._decoder, self._worker, self._encoder, self._loop)

    def start(self) -> None:
        """Binds both data ports and starts the threads.

        Raises:
            StartError: A port cannot be bound.
        """
        for shell in reversed(self.shells):
            shell.start()

    def stop(self) -> bool:
        """Ends the threads; whether all of them ended."""
        for shell in self.shells:
            shell.stop()
        ended = [shell.join(JOIN_S) for shell in self.shells]
        if all(ended):
            self._loop.close()
        return all(ended)

    def install(
        self,
        load: Load,
        sessions: Mapping[int, Session],
        batching: Mapping[int, tuple[Batching | None, str]] | None = None,
    ) -> None:
        """Puts the hops of `load` in force and connects to their neighbours."""
        routes = [Route(load.epoch, load.model, hop) for hop in load.hops]
        self._table = self._table.with_routes(routes)
        added = {route.key: LoadedRoute(route, sessions.get(route.spec.hop)) for route in routes}
        for hop, (batches, note) in (batching or {}).items():
            loaded = added[(load.epoch, hop)]
            loaded.batching, loaded.batch_note = batches, note
        self._loaded = {**self._loaded, **added}
        self._receiver.routes = self._loaded

        def connect() -> None:
            for route in routes:
                self._sender.attach(route.spec.next)
                if route.spec.previous.endpoint:
                    self._receiver.dial(route.spec.previous)
            self._receiver.size(self._table.windows(self._window))

        self._loop.put(connect)

    def retire(self, epoch: int, done: Callable[[], None]) -> None:
        """Takes an epoch out of force: the item in work is finished, the rest dropped; then calls `done`."""
        for key, loaded in self._loaded.items():
            if key[0] == epoch:
                loaded.closed = True
        self._table = self._table.without_epoch(epoch)
        self._loaded = {key: loaded for key, loaded in self._loaded.items() if key[0] != epoch}
        self._receiver.routes = self._loaded

        def disconnect() -> None:
            # Asked only now: meanwhile another epoch may need a peer that this one leaves.
            self._receiver.keep(self._table.peers("previous"))
            self._receiver.size(self._table.windows(self._window))
            # After the item in work; those behind it find their route closed.
            self._worker.put(lambda: self._loop.put(forget))

        def forget() -> None:
            self._sender.retire(epoch, self._table.peers("next"))
            done()

        self._loop.put(disconnect)

    def stop_credit(self) -> None:
        """Grants no more credit to anybody upstream."""
        self._loop.put(self._receiver.pause)

    def gauge(self) -> Gauge:
        """How the data path stands."""
        started = self._worker.started_ns
        age = (time.monotonic_ns() - started) / 1e9 if started else 0.0
        progress = self._worker.progress + self._sender.relayed
        cpu_s = self._worker.cpu_s() if started else 0.0
        # Read now and then only: a heartbeat's cost is noticed on a small box.
        if self._gauged % RESIDENT_EVERY == 0:
            self._resident = resident_bytes()
        self._gauged += 1
        return Gauge(progress, max(0.0, age), self._receiver.held, self._resident, cpu_s)

    def status(self) -> tuple[tuple[HopStatus, ...], int]:
        """The counters of every hop in force, and the number of items that belonged to none."""
        return tuple(loaded.status() for loaded in self._loaded.values()), self._receiver.stale

    def traces(self, wanted: tuple[str, ...]) -> tuple[HopTrace, ...]:
        """What is still known of traced requests; from any thread."""
        return self._sender.traces.find(wanted)

    # ---------------------------------------------------------------------------------- an item's way through

    def _admit(self, work: Work) -> None:
        """In the data thread: an item has come in."""
        if not admit(work, self._name):
            self._sender.submit(work)
        elif work.loaded.coded:
            self._decoder.put(work)
        else:
            decode(work, self._name)
            if work.failure is not None:
                self._sender.submit(work)
            elif not _encodes(work) and self._worker.run_here(work):
                self._sender.submit(work)
                work.loaded.known = known_from(work)
            else:
                self._worker.put(work)

    def _decoded(self, work: Work) -> None:
        """In the decode thread."""
        (self._loop if work.failure is not None else self._worker).put(work)

    def _ran(self, work: Work) -> None:
        """In the run thread."""
        (self._encoder if _encodes(work) else self._loop).put(work)

    def _release(self, origin: Any, nbytes: int) -> None:
        self._receiver.release(origin, nbytes)

    def _drop(self, work: Work) -> None:
        self._loop.put(lambda: self._receiver.release(work.origin, work.nbytes))


def _encodes(work: Work) -> bool:
    """Whether handing on an item takes an encoder."""
    return work.loaded.route.spec.codec != "raw"
