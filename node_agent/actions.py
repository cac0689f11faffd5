"""Carries out what the core decides: hands long work to its thread, and turns its end into an event."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from node_agent import events as ev
from node_agent import machine
from node_agent.background import in_background
from node_agent.errors import AgentError, code_of
from node_agent.jobs import Jobs
from node_agent.json_log import NEWS
from node_agent.link import Context
from node_agent.loader import Loader
from node_agent.measure import BlockTimer
from node_agent.messages import AgentStatus, ControlMessage, Fault, Have, Taken, TraceReport
from node_agent.plane import DataPlane
from node_agent.prober import measure_link
from node_agent.sensors import Sensors
from node_agent.store import FileStore
from node_agent.threads import Shell

log = logging.getLogger(__name__)
news = logging.getLogger(NEWS)

Answer = Callable[[], ControlMessage]


class Actions:
    """One method per instruction that is not about a control socket.

    Args:
        name: This device's name.
        boot: Differs for each start of the process.
        memory_bytes: What partitions may take in all.
        context: The process's context.
        plane: The data path.
        store: Used in the storing thread, and for reading in the loading one.
        loader: Used in the loading thread.
        timer: Used in the loading thread.
        sensors: Used in the storing thread.
    """

    def __init__(
        self,
        name: str,
        boot: str,
        memory_bytes: int,
        *,
        context: Context,
        plane: DataPlane,
        store: FileStore,
        loader: Loader,
        timer: BlockTimer,
        sensors: Sensors,
    ) -> None:
        self._sensors = sensors
        self._name = name
        self._boot = boot
        self._memory_bytes = memory_bytes
        self._began = time.monotonic()
        self._context = context
        self._plane = plane
        self._store = store
        self._loader = loader
        self._timer = timer
        self._report: Callable[[ev.Event], None] = _nowhere
        # Files, partitions and links each have a thread: a slow load keeps nobody from shipping the next
        # files.
        self._threads = {
            # Hashing and writing take nothing from requests; a load says for itself what it is beside.
            "store": Jobs("store", background=True),
            "load": Jobs("load"),
            "probe": Jobs("probe"),
        }
        self._on: dict[type, Callable[[Any], None]] = {
            ev.CheckFiles: self._check_files,
            ev.StoreChunk: self._store_chunk,
            ev.LoadPartitions: self._load,
            ev.Install: self._install,
            ev.Retire: self._retire,
            ev.Release: self._release,
            ev.RunMeasure: self._measure,
            ev.ForgetMeasured: self._forget,
            ev.RunProbe: self._probe,
            ev.ReportStatus: self._status,
            ev.ReportTraces: self._traces,
            ev.StopCredit: lambda _: plane.stop_credit(),
            ev.Log: lambda said: (news if said.news else log).log(said.level, "%s", said.text),
        }

    @property
    def shells(self) -> tuple[Shell, ...]:
        """The threads."""
        return tuple(self._threads.values())

    def start(self, report: Callable[[ev.Event], None]) -> None:
        """Starts the threads; `report` takes the events that they make."""
        self._report = report
        for jobs in self.shells:
            jobs.start()

    def stop(self, patience_s: float) -> bool:
        """Ends the threads; whether all of them ended within `patience_s` each."""
        for jobs in self.shells:
            jobs.stop()
        ended = [jobs.join(patience_s) for jobs in self.shells]
        if all(ended):
            self._sensors.close()
        return all(ended)

    def carry_out(self, instruction: ev.Instruction) -> None:
        """Does what `instruction` says, or has it done."""
        self._on[type(instruction)](instruction)

    def gauge(self) -> ev.Gauge:
        """How the data path stands."""
        return self._plane.gauge()

    def _answering(self, kind: str, ticket: ev.Ticket, job: Answer, *, chunk: bool = False) -> None:
        def run() -> None:
            try:
                answer = job()
            except AgentError as error:
                answer = Fault(ticket.id, code_of(error), str(error), error.hint)
            except Exception as error:
                log.exception("A job failed.")
                answer = Fault(ticket.id, "internal", f"{type(error).__name__}: {error}")
            self._report(ev.Finished(ticket, answer, chunk))

        self._threads[kind].submit(run)

    def _check_files(self, job: ev.CheckFiles) -> None:
        def check() -> ControlMessage:
            return Have(job.ticket.id, tuple(self._store.offset(ref) for ref in job.files))

        self._answering("store", job.ticket, check)

    def _store_chunk(self, job: ev.StoreChunk) -> None:
        def write() -> ControlMessage:
            return Taken(job.ticket.id, self._store.write(job.file, job.offset, job.data))

        self._answering("store", job.ticket, write, chunk=True)

    def _load(self, job: ev.LoadPartitions) -> None:
        load = job.load

        def report(what: str, fraction: float) -> None:
            self._report(ev.LoadProgressed(load.epoch, what, fraction))

        def run() -> None:
            try:
                event: ev.Event = ev.PartitionsLoaded(load.epoch, *self._loader.load(load, report))
            except AgentError as error:
                event = ev.LoadFailed(load.epoch, code_of(error), str(error), error.hint)
            except MemoryError:
                event = ev.LoadFailed(load.epoch, "out-of-memory", f"{self._name} ran out of memory.")
            except Exception as error:
                log.exception("A load failed.")
                event = ev.LoadFailed(load.epoch, "internal", f"{type(error).__name__}: {error}")
            self._report(event)

        def beside() -> None:
            if self._loader.idle:
                run()
            else:
                in_background(run, threads=self._loader.threads)

        self._threads["load"].submit(beside)

    def _install(self, job: ev.Install) -> None:
        epoch = job.load.epoch
        self._plane.install(job.load, self._loader.sessions(epoch), self._loader.batching(epoch))

    def _retire(self, job: ev.Retire) -> None:
        self._plane.retire(job.epoch, lambda: self._report(ev.Retired(job.epoch)))

    def _release(self, job: ev.Release) -> None:
        self._threads["load"].submit(lambda: self._loader.release(job.epoch))

    def _measure(self, job: ev.RunMeasure) -> None:
        self._answering("load", job.ticket, lambda: self._timer.measure(job.measure))

    def _forget(self, _: ev.ForgetMeasured) -> None:
        self._threads["load"].submit(self._timer.forget)

    def _probe(self, job: ev.RunProbe) -> None:
        self._answering("probe", job.ticket, lambda: measure_link(self._context, job.measure))

    def _status(self, job: ev.ReportStatus) -> None:
        # In the storing thread: counting the store's bytes reads its directory.
        self._answering("store", job.ticket, lambda: self._status_now(job.ticket.id, job.state))

    def _status_now(self, number: int, state: str) -> AgentStatus:
        hops, stale = self._plane.status()
        return AgentStatus(
            number,
            self._name,
            self._boot,
            state,
            time.monotonic() - self._began,
            machine.resident_bytes(),
            self._memory_bytes,
            self._store.nbytes(),
            hops,
            stale,
            self._sensors.read(),
            time.time(),
            self._loader.loads,
            machine.cores() if self._plane.runs_timed else 0.0,
        )

    def look(self, state: str) -> Future[AgentStatus]:
        """What a dispatcher would be told now; from any thread."""
        future: Future[AgentStatus] = Future()

        def run() -> None:
            try:
                future.set_result(self._status_now(0, state))
            except Exception as error:
                future.set_exception(error)

        self._threads["store"].submit(run)
        return future

    def _traces(self, job: ev.ReportTraces) -> None:
        # In the control thread itself: a clock that is read late is read wrong.
        hops = self._plane.traces(job.traces)
        self._report(ev.Finished(job.ticket, TraceReport(job.ticket.id, time.monotonic_ns(), hops)))


def _nowhere(_: ev.Event) -> None:
    raise RuntimeError("Actions were not started.")
