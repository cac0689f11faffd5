"""The agent's mind: every control message, job end and tick in, decisions out. Pure.

`AgentCore.handle(event, now)` returns what to do; `node_agent.control` does it. No socket, thread, clock or
file is in reach from here, so every order of events can be tried in a test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from node_agent import events as ev
from node_agent.content import check_ref
from node_agent.controllers import Controllers, fault
from node_agent.epochs import Epoch, check_load, check_peer, partition_bytes
from node_agent.errors import AgentError, RequestError
from node_agent.messages import (
    CHUNK_WINDOW,
    Chunk,
    ControlMessage,
    Done,
    Drain,
    Fault,
    Heartbeat,
    Load,
    Loaded,
    Measure,
    MeasureLink,
    Offer,
    Progress,
    StatusRequest,
    TraceRequest,
    Unload,
    Want,
)
from node_agent.noise import Seldom
from node_agent.quantities import show_size
from node_agent.versions import OURS, VersionRange

IDLE_TICKS = 2
"""A draining agent is done when this many ticks in a row found nothing queued."""


class AgentCore:
    """Everything that an agent decides.

    Args:
        name: The device's name.
        boot: Differs for each start of the process.
        offer: What the device brings.
        dials: Connections that this agent opens to dispatchers.
        ours: Protocol versions of this build.
    """

    def __init__(
        self,
        name: str,
        boot: str,
        offer: Offer,
        dials: tuple[ev.Connection, ...] = (),
        ours: VersionRange = OURS,
    ) -> None:
        self.name = name
        self.boot = boot
        self.offer = offer
        self.state = "serving"
        self.controllers = Controllers(name, boot, offer, dials, ours)
        self._epochs: dict[int, Epoch] = {}
        self._chunks: dict[ev.Connection, int] = {}
        self._draining: list[ev.Ticket] = []
        self._stopping = False
        self._give_up = float("inf")
        self._idle_ticks = 0
        self._noise = Seldom()
        self._on_event: dict[type, Callable[[Any, float], list[ev.Instruction]]] = {
            ev.Received: self._received,
            ev.Unreadable: self._unreadable,
            ev.Dialled: self._dialled,
            ev.Lost: self._lost,
            ev.Tick: self._tick,
            ev.Finished: self._finished,
            ev.LoadProgressed: self._load_progressed,
            ev.PartitionsLoaded: self._loaded,
            ev.LoadFailed: self._load_failed,
            ev.Retired: self._retired,
            ev.StopAsked: self._stop_asked,
        }
        self._on_request: dict[type, Callable[[ev.Ticket, Any, Any], list[ev.Instruction]]] = {
            Want: self._want,
            Chunk: self._chunk,
            Load: self._load,
            Unload: self._unload,
            Measure: self._measure,
            MeasureLink: self._measure_link,
            StatusRequest: self._status,
            TraceRequest: self._trace,
            Drain: self._drain,
            Done: self._done,
        }

    @property
    def loaded(self) -> tuple[int, ...]:
        """Epochs that are in force."""
        return tuple(sorted(number for number, epoch in self._epochs.items() if epoch.phase == "loaded"))

    def handle(self, event: ev.Event, now: float) -> list[ev.Instruction]:
        """Takes an event that happened at monotonic time `now` (seconds); returns what to do, in order."""
        return self._on_event[type(event)](event, now)

    # ------------------------------------------------------------------------------------------ connections

    def _received(self, event: ev.Received, now: float) -> list[ev.Instruction]:
        connection, message = event.connection, event.message
        handled = self.controllers.received(connection, message, now)
        if handled is not None:
            return handled
        handler = self._on_request.get(type(message))
        if handler is None:
            return [ev.Log(logging.DEBUG, f"Ignored {type(message).__name__} from {connection[0]}.")]
        ticket = ev.Ticket(connection, getattr(message, "id", 0))
        if not self.controllers.knows(connection):
            return [
                fault(
                    ticket, RequestError("no-hello", "Say Hello first: nobody is known on this connection.")
                )
            ]
        try:
            return handler(ticket, message, event.payload)
        except AgentError as error:
            return [fault(ticket, error)]

    def _dialled(self, event: ev.Dialled, now: float) -> list[ev.Instruction]:
        return self.controllers.dialled(event.connection, now)

    def _lost(self, event: ev.Lost, _: float) -> list[ev.Instruction]:
        gone = event.connection
        self._chunks.pop(gone, None)
        for epoch in self._epochs.values():
            epoch.loading = [ticket for ticket in epoch.loading if ticket.connection != gone]
            epoch.unloading = [ticket for ticket in epoch.unloading if ticket.connection != gone]
        self._draining = [ticket for ticket in self._draining if ticket.connection != gone]
        return self.controllers.lost(gone)

    def _unreadable(self, event: ev.Unreadable, now: float) -> list[ev.Instruction]:
        answer: list[ev.Instruction] = [ev.Say(event.connection, Fault(0, event.code, event.message))]
        more = self._noise.told(now)
        if more is not None:
            text = f"Unreadable control message from {event.connection[0]}: {event.message}{more}"
            answer.append(ev.Log(logging.WARNING, text))
        return answer

    # ------------------------------------------------------------------------------------------------- time

    @property
    def calm(self) -> bool:
        """Whether time brings nothing but heartbeats: then `beat` is all that `Tick` would come to."""
        return self.state == "serving" and self.controllers.calm

    def beat(self, gauge: ev.Gauge) -> Heartbeat:
        """What the controllers are told ten times a second."""
        return Heartbeat(
            self.boot,
            gauge.progress,
            gauge.item_age_s,
            gauge.queued,
            self.state,
            gauge.resident_bytes,
            self.loaded,
            gauge.run_cpu_s,
        )

    def _tick(self, event: ev.Tick, now: float) -> list[ev.Instruction]:
        gauge = event.gauge
        instructions = self.controllers.tick(now)
        beat = self.beat(gauge)
        instructions += [ev.Say(connection, beat) for connection in self.controllers.connections]
        if self.state == "draining":
            idle = gauge.queued == 0 and gauge.item_age_s == 0
            self._idle_ticks = self._idle_ticks + 1 if idle else 0
            if self._idle_ticks >= IDLE_TICKS:
                instructions += [ev.Say(ticket.connection, Done(ticket.id)) for ticket in self._draining]
                self._draining = []
            if self._stopping and (self._idle_ticks >= IDLE_TICKS or now >= self._give_up):
                if gauge.queued:
                    instructions.append(
                        ev.Log(logging.WARNING, f"Stopping with {gauge.queued} items unfinished.")
                    )
                instructions.append(ev.Stop())
        return instructions

    def _stop_asked(self, event: ev.StopAsked, now: float) -> list[ev.Instruction]:
        self._stopping = True
        self._give_up = now + event.patience_s
        return [
            ev.Log(logging.INFO, "Draining: finishing what is queued, then stopping."),
            *self._start_drain(),
        ]

    def _start_drain(self) -> list[ev.Instruction]:
        self.state = "draining"
        self._idle_ticks = 0
        return [ev.StopCredit()]

    # --------------------------------------------------------------------------------------------- requests

    def _want(self, ticket: ev.Ticket, message: Want, _: Any) -> list[ev.Instruction]:
        for ref in message.files:
            check_ref(ref)
        return [ev.CheckFiles(ticket, message.files)]

    def _chunk(self, ticket: ev.Ticket, message: Chunk, payload: Any) -> list[ev.Instruction]:
        check_ref(message.file)
        if payload is None:
            raise RequestError("bad-chunk", "A Chunk came without its frame.")
        # Counted, whatever ids they come with: each holds its bytes until it is written.
        waiting = self._chunks.get(ticket.connection, 0)
        if waiting >= CHUNK_WINDOW:
            raise RequestError(
                "too-many-chunks",
                f"{waiting} chunks are unanswered; {CHUNK_WINDOW} are allowed.",
                hint="Wait for Taken before sending more.",
            )
        self._chunks[ticket.connection] = waiting + 1
        return [ev.StoreChunk(ticket, message.file, message.offset, payload)]

    def _load(self, ticket: ev.Ticket, message: Load, _: Any) -> list[ev.Instruction]:
        epoch = self._epochs.get(message.epoch)
        if epoch is not None:
            return self._load_again(ticket, message, epoch)
        if self.state == "draining":
            raise RequestError("draining", f"{self.name} is draining and takes no new load.")
        check_load(message, self.offer.engines)
        held = [epoch.load for epoch in self._epochs.values()]
        taken = partition_bytes(held)
        needed = partition_bytes([*held, message])
        # Nothing is known of a machine that does not say how much it has: the engine finds out.
        if self.offer.memory_bytes and needed > self.offer.memory_bytes:
            free, all_of_it = max(0, self.offer.memory_bytes - taken), self.offer.memory_bytes
            raise RequestError(
                "out-of-memory",
                f"Epoch {message.epoch} needs {show_size(needed - taken)} for its partitions on {self.name}; "
                f"{show_size(free)} of {show_size(all_of_it)} are free.",
                hint="Give the agent more with --memory, unload another epoch, or plan smaller partitions.",
            )
        self._epochs[message.epoch] = Epoch(message, loading=[ticket])
        return [ev.LoadPartitions(message)]

    def _load_again(self, ticket: ev.Ticket, message: Load, epoch: Epoch) -> list[ev.Instruction]:
        same = epoch.load.hops == message.hops and epoch.load.engine == message.engine
        if same and epoch.phase == "loading":
            epoch.loading.append(ticket)
            return []
        if same and epoch.phase == "loaded":
            return [_loaded_answer(ticket, epoch)]
        raise RequestError(
            "epoch-conflict",
            f"Epoch {message.epoch} is {epoch.phase} here" + ("." if same else " with other partitions."),
            hint="Use a higher epoch number.",
        )

    def _unload(self, ticket: ev.Ticket, message: Unload, _: Any) -> list[ev.Instruction]:
        epoch = self._epochs.get(message.epoch)
        if epoch is None:
            return [ev.Say(ticket.connection, Done(ticket.id))]
        epoch.unloading.append(ticket)
        if epoch.phase == "loading":
            epoch.phase = "cancelled"
            error = RequestError("cancelled", f"Epoch {message.epoch} was unloaded while it was loading.")
            waiting, epoch.loading = epoch.loading, []
            return [fault(waiter, error) for waiter in waiting]
        if epoch.phase == "loaded":
            epoch.phase = "unloading"
            return [ev.Retire(message.epoch)]
        return []

    def _measure(self, ticket: ev.Ticket, message: Measure, _: Any) -> list[ev.Instruction]:
        if self.state == "draining":
            raise RequestError("draining", f"{self.name} is draining and measures nothing.")
        for ref in (message.graph, *message.weights):
            check_ref(ref)
        return [ev.RunMeasure(ticket, message)]

    def _measure_link(self, ticket: ev.Ticket, message: MeasureLink, _: Any) -> list[ev.Instruction]:
        check_peer(message.peer)
        if not message.peer.endpoint:
            raise RequestError(
                "cannot-probe",
                f"Peer {message.peer.name} has no endpoint that {self.name} could dial.",
                hint="Measure this link from the side that dials.",
            )
        return [ev.RunProbe(ticket, message)]

    def _status(self, ticket: ev.Ticket, _: StatusRequest, __: Any) -> list[ev.Instruction]:
        return [ev.ReportStatus(ticket, self.state)]

    def _trace(self, ticket: ev.Ticket, message: TraceRequest, _: Any) -> list[ev.Instruction]:
        return [ev.ReportTraces(ticket, message.traces)]

    def _drain(self, ticket: ev.Ticket, _: Drain, __: Any) -> list[ev.Instruction]:
        self._draining.append(ticket)
        return self._start_drain()

    def _done(self, _: ev.Ticket, __: Done, ___: Any) -> list[ev.Instruction]:
        return [ev.ForgetMeasured()]

    # ------------------------------------------------------------------------------------------- job results

    def _finished(self, event: ev.Finished, _: float) -> list[ev.Instruction]:
        waiting = self._chunks.get(event.ticket.connection, 0)
        if event.chunk and waiting > 1:
            self._chunks[event.ticket.connection] = waiting - 1
        elif event.chunk:
            self._chunks.pop(event.ticket.connection, None)
        return [ev.Say(event.ticket.connection, event.answer)]

    def _load_progressed(self, event: ev.LoadProgressed, _: float) -> list[ev.Instruction]:
        epoch = self._epochs.get(event.epoch)
        waiting = epoch.loading if epoch is not None else []
        return [ev.Say(t.connection, Progress(t.id, event.what, event.fraction)) for t in waiting]

    def _loaded(self, event: ev.PartitionsLoaded, _: float) -> list[ev.Instruction]:
        epoch = self._epochs[event.epoch]
        if epoch.phase == "cancelled":
            del self._epochs[event.epoch]
            return [ev.Release(event.epoch), *_all_done(epoch)]
        epoch.phase = "loaded"
        epoch.seconds, epoch.resident_bytes = event.seconds, event.resident_bytes
        epoch.engine, epoch.notes = event.engine, event.notes
        waiting, epoch.loading = epoch.loading, []
        return [ev.Install(epoch.load), *(_loaded_answer(ticket, epoch) for ticket in waiting)]

    def _load_failed(self, event: ev.LoadFailed, _: float) -> list[ev.Instruction]:
        epoch = self._epochs.pop(event.epoch)
        return [
            *(
                ev.Say(ticket.connection, Fault(ticket.id, event.code, event.message, event.hint))
                for ticket in epoch.loading
            ),
            *_all_done(epoch),
        ]

    def _retired(self, event: ev.Retired, _: float) -> list[ev.Instruction]:
        epoch = self._epochs.pop(event.epoch)
        return [ev.Release(event.epoch), *_all_done(epoch)]


def _loaded_answer(ticket: ev.Ticket, epoch: Epoch) -> ev.Say:
    answer: ControlMessage = Loaded(
        ticket.id, epoch.load.epoch, epoch.seconds, epoch.resident_bytes, epoch.engine, epoch.notes
    )
    return ev.Say(ticket.connection, answer)


def _all_done(epoch: Epoch) -> list[ev.Instruction]:
    return [ev.Say(ticket.connection, Done(ticket.id)) for ticket in epoch.unloading]
