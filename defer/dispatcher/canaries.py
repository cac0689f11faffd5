"""Sends a request of zeros through each model that has given no result for a while, so that readiness is the truth."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from typing import Final

from defer import units
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.proving import zeros
from defer.dispatcher.pulse import Pulse, patience
from defer.dispatcher.shell import Answer, DataShell
from defer.documents.cluster import Dispatcher
from defer.errors import DeferError
from defer.translating import translate

logger = logging.getLogger("defer.dispatcher")

LOOK_S: Final = 0.5
"""Between two looks, or a quarter of the time after which a canary is due, if that is less."""


class Canaries:
    """See the module.

    Args:
        deployments: What is served.
        shell: The data thread.
        settings: How long nothing may be heard of a model.
    """

    def __init__(self, deployments: Deployments, shell: DataShell, settings: Dispatcher) -> None:
        self._deployments, self._shell, self._log = deployments, shell, deployments.log
        self._every = units.parse_duration(settings.canary)
        self._pulse = Pulse(self._every)
        self._lock = threading.Lock()
        self._serving: dict[str, tuple[int, ...]] = {}
        self._told: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to look, unless no canaries are wanted."""
        if self._every > 0:
            self._thread = threading.Thread(target=self._run, name="defer-canaries", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Send nothing more."""
        self._closing.set()

    def close(self) -> None:
        """`stop`, and wait for the thread."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(min(LOOK_S, self._every / 4)):
            try:
                self._look()
            except Exception:
                if not self._closing.is_set():
                    logger.exception("looking after canaries failed")

    def _look(self) -> None:
        answered, busy, serving = self._shell.call(_answered).result(5)
        with self._lock:
            self._serving = serving
            due = self._pulse.due(answered, time.monotonic(), busy)
        self._tell()
        for epoch in due:
            self._send(epoch)

    def _tell(self) -> None:
        """Models of which no route has let a canary through lately are said to be so, each with the reason."""
        with self._lock:
            found = {name: self._pulse.failing(epochs) for name, epochs in self._serving.items()}
        failing = {name: reason for name, reason in found.items() if reason}
        if failing != self._told:
            self._told = failing
            self._shell.call(lambda core, _: setattr(core, "failing", failing)).result(5)

    def _send(self, epoch: int) -> None:
        served = self._deployments.served.get(epoch)
        if served is None:
            self._failed(epoch, "", "not-ready", "it is going")
            return
        model, seconds = served.deployment.model, patience(self._deployments.canaries.get(epoch, 0.0))
        headers, frames = zeros(served.deployment)

        def ended(future: Future[Answer]) -> None:
            if future.cancelled():
                self._failed(epoch, model, "cancelled", "")
                return
            error = future.exception()
            if error is None:
                with self._lock:
                    news = self._pulse.passed(epoch, time.monotonic())
                if news:
                    self._log.note(
                        "canary-passes", f"{model} answers a canary again", model=model, epoch=epoch
                    )
                return
            told = error if isinstance(error, DeferError) else translate(error)
            self._failed(epoch, model, told.code, f"a canary was not answered: {told.message}")

        self._shell.canary(epoch, headers, frames, seconds).add_done_callback(ended)

    def _failed(self, epoch: int, model: str, code: str, reason: str) -> None:
        with self._lock:
            news = self._pulse.failed(epoch, time.monotonic(), code, reason)
        if news and not self._closing.is_set():
            self._log.note("canary-failed", f"{model}: {reason}", level="error", model=model, epoch=epoch)
            logger.error("model %s: %s", model, reason)


def _answered(core: DispatcherCore, _: float) -> tuple[dict[int, int], list[int], dict[str, tuple[int, ...]]]:
    """Results so far of every route that takes requests, the busy ones, and each model's routes; in the data thread."""
    serving = {
        model: tuple(epoch for epoch in epochs if core.routes[epoch].state == "ready")
        for model, epochs in core.routes.serving.items()
    }
    counts = {epoch: core.routes[epoch].traffic.answered for epochs in serving.values() for epoch in epochs}
    return counts, [epoch for epoch in counts if core.routes[epoch].busy], serving
