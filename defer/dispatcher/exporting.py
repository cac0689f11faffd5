"""Sends spans of traced requests to a collector: the dispatcher's own, and the agents', which need no SDK for it.

One thread looks once a second at which traced requests were answered, fetches what the agents noted of them, reads their
clocks, and hands the spans to OpenTelemetry's queue. A request pays nothing for it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from defer import api
from defer.agents import AgentPool
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.shell import DataShell
from defer.dispatcher.tracing import traces_of
from defer.tracing.clocks import Clock, Reading
from defer.tracing.otel import Telemetry, attributes_of, parent_of, set_failed, telemetry
from defer.tracing.timeline import DISPATCHER
from defer.tracing.told import Told, tell
from node_agent.messages import HopTrace

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from defer.dispatcher.daemon import Daemon

logger = logging.getLogger("defer.tracing")

LOOK_S: Final = 1.0

AT_ONCE: Final = 512
"""Requests that agents are asked about in one message."""

ROUNDS: Final = 8
"""Questions by which each agent's clock is read."""

SERVICES: Final = ("defer-dispatcher", "defer-agent")


@contextlib.contextmanager
def exporting(daemon: Daemon) -> Iterator[None]:
    """Export while the block runs, where the environment names a collector; the last spans leave at its end."""
    known = telemetry()
    if known is None:
        yield
        return
    exporter = Exporter(
        known,
        daemon.shell,
        daemon.pool,
        lambda: [device.name for device in daemon.cluster.agents],
        lambda epoch: served.deployment.model if (served := daemon.deployments.served.get(epoch)) else "",
    )
    exporter.start()
    try:
        yield
    finally:
        exporter.close()


class Exporter:
    """See the module.

    Args:
        known: The way to the collector.
        shell: Notes when requests come and go.
        pool: Reaches the agents.
        devices: Their names, now.
        model_of: A deployment's model.
    """

    def __init__(
        self,
        known: Telemetry,
        shell: DataShell,
        pool: AgentPool,
        devices: Callable[[], list[str]],
        model_of: Callable[[int], str],
    ) -> None:
        self._known, self._shell, self._pool = known, shell, pool
        self._devices, self._model_of = devices, model_of
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="defer-telemetry", daemon=True)

    def start(self) -> None:
        """Begin to note and to look."""

        def begin(_core: DispatcherCore, _now: float) -> None:
            self._shell.traces.exported = True

        self._shell.call(begin).result(5)
        self._thread.start()

    def close(self) -> None:
        """Hand over what was answered until now, and end; it leaves before the process does."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            last = self._closing.wait(LOOK_S)
            try:
                while self._look() == AT_ONCE:
                    pass
            except Exception as error:  # the requests matter more than their traces
                if not last:
                    logger.warning("spans could not be sent: %s", error)
            if last:
                return

    def _look(self) -> int:
        traces = self._shell.call(lambda _core, _now: self._shell.traces.take(AT_ONCE)).result(5)
        if not traces:
            return 0
        found = traces_of(self._shell, self._pool, self._devices(), api.GetTraces(0, traces, rounds=ROUNDS))
        clocks: dict[str, Clock] = {}
        hops: dict[str, list[tuple[str, HopTrace]]] = {}
        for agent in found.agents:
            if agent.error_ns >= 0:
                reading = Reading(agent.at_ns, agent.ahead_ns, agent.error_ns)
                clocks[agent.device] = Clock(reading, reading)
            for hop in agent.hops:
                hops.setdefault(hop.trace, []).append((agent.device, hop))
        wall = time.time_ns() - time.monotonic_ns()
        for request in found.requests:
            spans = tell(request, hops.get(request.trace, ()), clocks, self._model_of(request.epoch))
            self._send(parent_of(request.trace), spans, wall)
        return len(traces)

    def _send(self, parent: Context, spans: tuple[Told, ...], wall: int) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        kinds = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL}
        contexts: list[Context] = []
        for told in spans:
            here = told.where == DISPATCHER
            tracer = self._known.tracer(SERVICES[0]) if here else self._known.tracer(SERVICES[1], told.where)
            span = tracer.start_span(
                told.name,
                parent if told.parent < 0 else contexts[told.parent],
                kinds[told.kind],
                attributes_of({"device": told.where, **told.values}),
                start_time=told.begun_ns + wall,
            )
            if told.failed:
                set_failed(span, told.failed, f"ended by {told.failed}")
            span.end(told.ended_ns + wall)
            contexts.append(set_span_in_context(span))
