"""The dispatcher's data thread: it owns the data sockets, and executes what the core decides.

Frames pass through by reference: nothing is decoded, and nothing of 64 KiB or more is copied. The data-in ROUTER takes
clients' `Infer` and the results of last stages; the other sockets are in `defer.dispatcher.neighbours`. Other threads
post events and callables. The thread never blocks but in `poll`.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import zmq

from defer.client_core import CLIENT
from defer.dispatcher import events as e
from defer.dispatcher.callers import Answered, Callers, Driven
from defer.dispatcher.chronicle import QUIET, Chronicle
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.events import HERE
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.links import QUEUED, Inbound, Outbox
from defer.dispatcher.neighbours import Neighbours, drain, refuse, take
from defer.dispatcher.noted import RequestTraces
from defer.dispatcher.store import KeptAnswer, Spent
from defer.doors import DATA, FETCH
from defer.errors import DeferError, from_code
from defer.socket_loop import Errand, SocketLoop
from defer.translating import translate
from node_agent.connection import Handshake
from node_agent.errors import AgentError, FrameError, WireError
from node_agent.frames import encode_header
from node_agent.link import Socket, bind, borrow, open_socket, send
from node_agent.messages import (
    ID_BYTES,
    Accepted,
    Cancel,
    DataHeader,
    Failure,
    GiveUp,
    Greeting,
    Infer,
    Item,
    PeerRef,
    Probe,
    ProbeEcho,
    Recall,
    Rejection,
    Result,
    TensorHeader,
)
from node_agent.security import OPEN, Security

logger = logging.getLogger("defer.dispatcher")

T = TypeVar("T")

STALL_S = 0.005
"""How often a client that does not read is tried again."""

_ENDS = "the dispatcher is shutting down"

Answer = tuple[tuple[TensorHeader, ...], Sequence[Any], float]
"""Headers and frames of a canary's result, and the seconds that it took."""


FAREWELL_S = 0.25
"""How long connections stay open after the refusals with which a stopping dispatcher ends what it had accepted."""

REST_S = 0.02
"""How long the thread leaves the sockets alone after a caller has driven them: so late may be what others send then."""

COMPANY_S = 10.0
"""So long after a client or an agent said something no caller drives: more may come, and it would be late."""

PROBED_S = 1.0
"""So long after a link was probed: probes come every few seconds, a series at once."""


class DataShell:
    """The data thread.

    Args:
        name: How the dispatcher introduces itself to agents, with the port of its data socket: two dispatchers that
            share an agent must not be taken for one.
        host: Address to bind.
        data_port: Port of the data-in ROUTER; 0 takes a free one.
        fetch_port: Port of the fetch ROUTER; 0 takes a free one.
        limits: What is held at most.
        on_drained: Called in the data thread with the epoch of a route on which nothing is in flight any more.
        on_sampled: Called in the data thread with a request that is to be compared.
        on_took_over: Called in the data thread when routes that stood by serve: the model, the first one's epoch.
        on_crash: Called when the thread ends by an error.
        security: How connections are protected.
        chronicle: Told what changes, and what clients are refused; in the data thread.
        may_act: Whether this process still leads those that share its state; asked before anything is done.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        data_port: int = 0,
        fetch_port: int = 0,
        *,
        limits: e.Limits | None = None,
        on_drained: Callable[[int], None] | None = None,
        on_sampled: Callable[[e.Sampled], None] | None = None,
        on_took_over: Callable[[str, int], None] | None = None,
        on_crash: Callable[[BaseException], None] | None = None,
        chronicle: Chronicle | None = None,
        security: Security = OPEN,
        may_act: Callable[[], bool] | None = None,
    ) -> None:
        self._may_act = may_act
        self.name = name
        self.data_port = data_port
        self.fetch_port = fetch_port
        self.traces = RequestTraces()
        """For the data thread alone."""
        self._host = host
        self._on_drained = on_drained
        self._on_sampled = on_sampled
        self._on_took_over = on_took_over
        self._chronicle = chronicle
        self._core = DispatcherCore(limits)
        bounds = self._core.limits
        self._outbox = Outbox(bounds.unread, bounds.client_bytes, bounds.unread_bytes)
        self._canaries: dict[bytes, Future[Answer]] = {}
        self._callers = Callers(self._feed, self.traces)
        self._alone_from = -math.inf
        """From when on callers may drive, as nobody else has sent anything lately but results and credit."""
        self._keeper: Keeper | None = None
        self._neighbours: Neighbours | None = None
        self._last_words = False
        self._loop = SocketLoop(
            "defer-data",
            opened=self._open,
            next_wake=self._next_wake,
            turned=self._turned,
            closed=self._close,
            on_crash=on_crash,
            security=security,
            idle=self._is_idle,
            rest_s=REST_S,
        )

    # ------------------------------------------------------------------------------------------- any thread's

    def start(self) -> None:
        """Bind the sockets and start the thread.

        Raises:
            PortInUse: Another process listens on one of the ports.
            UsageError: This machine has no such address.
        """
        self._loop.start()

    def keep_in(
        self,
        keeper: Keeper,
        answers: Iterable[Spent],
        *,
        durable: bool,
        resuming: bool,
        most: int | None = None,
    ) -> None:
        """Where durable requests go; before `start`.

        Args:
            keeper: Writes to the store.
            answers: Those that it holds.
            durable: Take durable requests.
            resuming: Let requests wait until `Resumed`.
            most: Answers that are kept at most; None for what is usual.
        """
        self._keeper = keeper
        if durable:
            self._core.durable.enable(answers, time.time() - time.monotonic(), most)
        self._core.parking.open = resuming

    @property
    def forked(self) -> bool:
        """Whether this process is a child of the one whose thread it was."""
        return self._loop.forked

    def close(self) -> None:
        """End the thread and close every socket; unanswered requests are dropped."""
        self._loop.close()

    def post(self, event: e.Event) -> None:
        """Feed an event to the core, soon."""
        self._loop.enqueue(lambda: self._feed(event))

    def call(self, action: Callable[[DispatcherCore, float], T]) -> Future[T]:
        """Run `action(core, now)` in the data thread; for looking, not for long."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(action(self._core, time.monotonic()))
            except Exception as error:
                future.set_exception(error)

        if not self._loop.enqueue(run):
            future.set_exception(_ended())
        return future

    def open_route(self, route: e.Route, first: PeerRef) -> None:
        """Connect to a loaded route's first stage and let requests that name its epoch run on it."""

        def run() -> None:
            if self._neighbours is not None:
                self._neighbours.open(route.epoch, first)
            self._feed(e.RouteLoaded(route))

        self._loop.enqueue(run)

    def canary(
        self, epoch: int, tensors: tuple[TensorHeader, ...], frames: Sequence[Any], timeout: float
    ) -> Future[Answer]:
        """Send one request of our own through the route `epoch`, served yet or not.

        The future raises what a client would get as an error.
        """
        future: Future[Answer] = Future()
        infer = Infer(secrets.token_bytes(ID_BYTES), "", int(timeout * 1e9), tensors)

        def run() -> None:
            self._canaries[infer.request] = future
            self._feed(e.InferArrived(b"", infer, frames, epoch))

        if not self._loop.enqueue(run):
            future.set_exception(_ended())
        return future

    def request(
        self,
        infer: Infer | Recall,
        frames: Sequence[Any],
        answered: Answered,
        kept: Callable[[], object] | None = None,
        *,
        waits: bool = False,
    ) -> Callable[[], object]:
        """Take a request of this process as if a client had sent it; its frames pass no socket on the way here.

        Args:
            infer: The request.
            frames: Its tensor frames, to be left alone until it is answered.
            answered: Called once, in the data thread, unless the request is given up before; must not block.
            kept: Called when a durable request is in the store; likewise.
            waits: Whether its caller would have driven the sockets.

        Returns:
            What gives the request up, from any thread, and cancels it on its way.
        """
        caller = answered, kept, type(infer) is Infer

        def run() -> None:
            if waits:
                self._loop.rests_soon(self._is_idle())
            self._callers.take(infer, frames, caller)

        if not self._loop.enqueue(run):
            answered(Rejection(infer.request, "not-ready", _ENDS), ())
        return partial(self._loop.enqueue, partial(self._callers.give_up, infer.request, caller))

    def driven(self, infer: Infer, frames: Sequence[Any], answered: Answered, until: float) -> Driven | None:
        """A request that the calling thread, which does nothing else until then, may `drive`; arguments as of `Driven`.

        Returns:
            None in the main thread: signals' handlers run there, and may raise between any two steps. What that left
            of the dispatcher's tables would be nothing to go on with. Nor for a durable request: the store's word has
            the data thread go on in any case.
        """
        if infer.durable or threading.get_ident() == threading.main_thread().ident:
            return None
        return Driven(self._callers, infer, frames, answered, until, self._loop.enqueue)

    def drive(self, errand: Driven) -> bool:
        """Turn the sockets in the calling thread until a request is answered, where nothing else goes on.

        Returns:
            False where it cannot be, and nothing was done. Else the request is answered, is overdue, or the data thread
            goes on with it.
        """
        return self._loop.drive(errand)

    # ------------------------------------------------------------------------------------------ data thread's

    def _is_idle(self, _: Errand | None = None) -> bool:
        """Whether a caller may drive: nobody waits for anything, and nobody sends anything but the agents."""
        if self._core.requests or self._callers or self._canaries or self._outbox.waiting:
            return False
        return time.monotonic() >= self._alone_from

    def _visited(self, header: DataHeader | FrameError) -> None:
        """Somebody sent what is neither a result nor credit."""
        company = PROBED_S if type(header) is Probe else COMPANY_S
        self._alone_from = max(self._alone_from, time.monotonic() + company)

    def _open(self) -> None:
        self._data: Socket = open_socket(self._loop.context, zmq.ROUTER, purpose="data")
        self._data.setsockopt(zmq.SNDHWM, QUEUED)
        fetch = open_socket(self._loop.context, zmq.ROUTER, purpose="data")
        try:
            self.data_port = bind(self._data, self._host, self.data_port, DATA)
            self.fetch_port = bind(fetch, self._host, self.fetch_port, FETCH)
        except AgentError as error:
            raise translate(error) from error
        self.name = f"{self.name}:{self.data_port}"
        self._inbound = Inbound(self.name)
        borrow(self._data, self._loop.watch, self._loop.unwatch)
        self._loop.watch(self._data, partial(drain, self._data, self._on_data, routed=True))
        self._neighbours = Neighbours(self.name, self._loop, fetch, self._feed, self._visited)

    def _close(self) -> None:
        if self._last_words:
            # A client's socket drops what it has not read yet when the connection closes under it.
            time.sleep(FAREWELL_S)
        for future in self._canaries.values():
            future.set_exception(_ended())
        self._canaries.clear()
        self._callers.end("not-ready", _ENDS)
        if self._neighbours is not None:
            self._neighbours.close_all()

    def _next_wake(self) -> float:
        wake = self._core.wake
        if self._neighbours is not None and self._neighbours.again:
            wake = min(wake, self._neighbours.next_wake())
        return min(wake, time.monotonic() + STALL_S) if self._outbox.waiting else wake

    def _turned(self) -> None:
        if self._may_act is not None and not self._may_act():
            return
        if self._core.wake <= time.monotonic():
            self._feed(e.Tick())
        if self._outbox.waiting:
            self._outbox.retry(self._data)
        if self._neighbours is not None and self._neighbours.again:
            self._neighbours.turned()
        if self._callers.answers:
            self._callers.hand_over()

    def _feed(self, event: e.Event) -> None:
        neighbours = self._neighbours
        assert neighbours is not None
        if self._may_act is not None and not self._may_act():
            return  # another dispatcher may lead by now, and this one ends
        instructions = self._core.handle(event, time.monotonic())
        if self._chronicle is not None and not isinstance(event, QUIET):
            self._chronicle.happened(event, self._core.routes)
        for instruction in instructions:
            # What every request takes, without a pattern to match.
            if type(instruction) is e.SendItem:
                item = instruction.item
                if item.trace:
                    self.traces.sent(item, time.monotonic_ns())
                neighbours.send_item(instruction.link, item, instruction.frames)
                continue
            if type(instruction) is e.Deliver:
                self._deliver(instruction.client, instruction.result, instruction.frames)
                continue
            match instruction:
                case e.Reject(client, rejection):
                    self._last_words |= isinstance(event, e.Stopped)
                    if rejection.request in self._callers:
                        self._callers.answered(rejection, ())
                    if client is HERE:
                        continue
                    if client:
                        if self._chronicle is not None:
                            self._chronicle.answered(rejection.code, rejection.message)
                        self._outbox.send(self._data, client, encode_header(rejection), ())
                    elif (future := self._canaries.pop(rejection.request, None)) is not None:
                        future.set_exception(from_code(rejection.code, rejection.message))
                case e.Drained(epoch):
                    neighbours.close(epoch)
                    if self._chronicle is not None and isinstance(event, QUIET):
                        self._chronicle.happened(event, self._core.routes)
                    if self._on_drained is not None:
                        self._on_drained(epoch)
                case e.CancelItems(link, epoch, numbers):
                    for number in numbers:
                        neighbours.cancel(link, Cancel(epoch, number, 0))
                case e.CutLink(link, _):
                    neighbours.redial(link)
                case e.TookOver(model, epoch) if self._on_took_over is not None:
                    self._on_took_over(model, epoch)
                case e.Sampled() if self._on_sampled is not None:
                    self._on_sampled(instruction)
                case e.Acknowledge(client, request) if client is HERE:
                    self._callers.kept(request)
                case e.Acknowledge(client, request) if client:
                    self._outbox.send(self._data, client, encode_header(Accepted(request)), ())
                case e.Keep() | e.Recall():
                    self._to_store(instruction)

    def _deliver(self, client: bytes, result: Result, frames: Sequence[Any]) -> None:
        if self.traces.open:
            self.traces.answered(result.request, time.monotonic_ns())
        if result.request in self._callers:
            self._callers.answered(result, frames)
        if client is HERE:
            return
        if client:
            self._outbox.send(self._data, client, encode_header(result), frames)
        elif (future := self._canaries.pop(result.request, None)) is not None:
            future.set_result((result.tensors, frames, result.seconds))

    def _to_store(self, instruction: e.Keep | e.Recall) -> None:
        assert self._keeper is not None  # without a store no request is durable
        request = instruction.request
        if isinstance(instruction, e.Recall):
            client = instruction.client

            def read(answer: KeptAnswer | None) -> None:
                self.post(e.Recalled(client, request, answer))

            self._keeper.read(request, read)
            return
        what = instruction.what

        def written(problem: DeferError | None) -> None:
            self.post(e.Kept(request, what, *((problem.code, str(problem)) if problem else ())))

        self._keeper.write(instruction.build, written)

    def _on_data(self, identity: bytes, header: DataHeader | FrameError, frames: list[Any]) -> None:
        if type(header) is Item:
            self._on_item(identity, header, frames)
            return
        self._visited(header)
        match header:
            case Infer() if len(header.request) == ID_BYTES:
                if header.trace:
                    self.traces.arrived(header, time.monotonic_ns())
                self._feed(e.InferArrived(identity, header, frames))
            case Recall() if len(header.request) == ID_BYTES:
                self._feed(e.RecallArrived(identity, header.request))
            case Infer() | Recall():
                refuse(self._data, identity, "bad-frame", f"a request id has {ID_BYTES} bytes")
            case Failure():
                self._on_item(identity, header, frames)
            case GiveUp():
                self._feed(e.CancelArrived(identity, header.request))
            case Cancel():
                pass  # the last hop hands it on like the others
            case Probe():
                send(self._data, encode_header(ProbeEcho(header.id, time.process_time())), (), identity)
            case Greeting():
                self._on_greeting(identity, header)
            case FrameError():
                refuse(self._data, identity, header.code, str(header))
            case _:
                refuse(self._data, identity, "bad-message", f"{type(header).__name__} has no place here")

    def _on_greeting(self, identity: bytes, greeting: Greeting) -> None:
        again = False
        if greeting.name == CLIENT:
            answers = Handshake(self.name, dialled=False, state="greeting").greeted(greeting)
        else:
            end, again = self._inbound.greet(identity, greeting.name)
            answers = end.handle(greeting)
            again = again and end.ready
        for answer in answers:
            send(self._data, encode_header(answer), (), identity)
        if again:
            self._feed(e.ResultsBroke(greeting.name))

    def _on_item(self, identity: bytes, header: Item | Failure, frames: list[Any]) -> None:
        end = self._inbound.peers.get(identity)
        if end is None or not end.ready:
            refuse(self._data, identity, "bad-message", "an item came before a greeting")
            return
        if type(header) is Item and header.trace:
            self.traces.returned(header, time.monotonic_ns())
        credit = take(end, header, frames, self._feed)
        if isinstance(credit, WireError):
            refuse(self._data, identity, credit.code, str(credit))
        elif credit is not None:
            send(self._data, encode_header(credit), (), identity)


def _ended() -> DeferError:
    return from_code("not-ready", _ENDS)
