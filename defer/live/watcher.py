"""Looks at this process's dispatcher for all who watch: a look serves every reader, and the last minutes are kept."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from defer.live.health import unready
from defer.live.metrics import families
from defer.live.rates import StageLoad, stage_loads
from node_agent.exposition import CONTENT_TYPE, render
from node_agent.pages import Page, Pages

if TYPE_CHECKING:
    from defer.api import ModelInfo, ServerStatus
    from defer.dispatcher.daemon import Daemon

logger = logging.getLogger("defer.live")

EVERY_S: Final = 1.0
"""Between two points of the charts."""

POINTS: Final = 600
"""Points kept: ten minutes."""

FRESH_S: Final = 0.5
"""A look that is younger than this is shown again instead of taking another."""

ANSWER_S: Final = 2.0
"""The data thread answers a question within this, or it hangs."""


@dataclass(frozen=True, slots=True)
class Point:
    """One model at one moment; what is per second is of the time since the point before.

    Attributes:
        at: Seconds since 1970.
        rate: Results per second.
        failures: Failed requests per second.
        p50_s: Median of recent latencies, in seconds.
        p99_s: Their 99th percentile.
        queued: Requests that wait, before the first stage and at the stages.
        in_flight: Requests under way.
    """

    at: float
    rate: float
    failures: float
    p50_s: float
    p99_s: float
    queued: int
    in_flight: int


class Watcher:
    """Use it as a context manager where points are wanted; `status` and `pages` work without.

    Args:
        daemon: What is watched; started before and closed after.
    """

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._look: tuple[float, ServerStatus] | None = None
        self._points: dict[str, deque[Point]] = {}
        self._loads: tuple[StageLoad, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -------------------------------------------------------------------------------------------- life cycle

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="defer-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        earlier: ServerStatus | None = None
        while not self._stop.wait(EVERY_S):
            try:
                now = self.status()
            except (
                Exception
            ):  # a dispatcher that is starting or closing, or a hang: the next look may be better
                logger.debug("a look failed", exc_info=True)
                continue
            if earlier is not None and now.uptime_s > earlier.uptime_s:
                loads = stage_loads(earlier, now)
                made = points(earlier, now, time.time())
                with self._lock:
                    self._loads = loads
                    for model, point in made.items():
                        self._points.setdefault(model, deque(maxlen=POINTS)).append(point)
                    for gone in self._points.keys() - {info.model for info in now.deployments} - made.keys():
                        del self._points[gone]
            earlier = now

    # ------------------------------------------------------------------------------------------- any thread's

    def status(self) -> ServerStatus:
        """A look that is at most `FRESH_S` old; readers that come together share one."""
        with self._looking:
            if self._look is not None and time.monotonic() - self._look[0] < FRESH_S:
                return self._look[1]
            status = self.daemon.verbs.status()
            self._look = (time.monotonic(), status)
            return status

    def loads(self) -> tuple[StageLoad, ...]:
        """Every stage's load over the last second."""
        with self._lock:
            return self._loads

    def points(self, after: float = 0.0) -> dict[str, tuple[Point, ...]]:
        """The points of each model that are newer than `after`, the oldest first."""
        with self._lock:
            return {
                model: tuple(point for point in kept if point.at > after)
                for model, kept in self._points.items()
            }

    def models(self) -> tuple[ModelInfo, ...]:
        """What clients may ask for, from the data thread itself.

        Raises:
            TimeoutError: It hangs.
        """
        from defer.dispatcher.report import models_of

        return self.daemon.shell.call(models_of).result(ANSWER_S)

    # -------------------------------------------------------------------------------------------------- pages

    def metrics(self) -> Page:
        """What Prometheus reads."""
        return Page(
            render(families(self.status(), self.daemon.log.counts, self.daemon.adapting.believed())),
            kind=CONTENT_TYPE,
        )

    def alive(self) -> Page:
        """Whether the process does its work: 200 or 503."""
        try:
            self.models()
        except Exception as error:
            return Page(f"the data thread does not answer: {error!r}\n", 503)
        return Page("alive\n")

    def ready(self) -> Page:
        """Whether requests should come here: 200 or 503, with the reason."""
        phase = self.daemon.phase
        try:
            why = unready(self.models(), starting=phase == "starting", draining=phase == "stopping")
        except Exception as error:
            why = f"the data thread does not answer: {error!r}"
        return Page(f"{why}\n", 503) if why else Page("ready\n")

    def pages(self) -> Pages:
        """For `node_agent.pages.PageServer`."""
        return {"/metrics": self.metrics, "/healthz": self.alive, "/readyz": self.ready}


def points(before: ServerStatus, now: ServerStatus, at: float) -> dict[str, Point]:
    """Each model's point between two looks.

    Args:
        before: The earlier look.
        now: The later one.
        at: When it was, in seconds since 1970.
    """
    seconds = now.uptime_s - before.uptime_s
    old = {totals.model: totals for totals in before.totals}
    found = {}
    for totals in now.totals:
        infos = [info for info in now.deployments if info.model == totals.model]
        if not infos:
            continue
        past = old.get(totals.model)
        succeeded = totals.succeeded - (past.succeeded if past is not None else 0)
        failed = sum(totals.failed.values()) - (sum(past.failed.values()) if past is not None else 0)
        busiest = max(infos, key=lambda info: (info.rate, info.epoch))
        found[totals.model] = Point(
            at,
            succeeded / seconds,
            failed / seconds,
            busiest.p50_s,
            busiest.p99_s,
            sum(info.waiting + sum(stage.queued for stage in info.stages) for info in infos),
            sum(info.in_flight for info in infos),
        )
    return found
