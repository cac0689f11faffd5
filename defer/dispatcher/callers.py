"""Those of the dispatcher's own process who wait for answers: their requests come as values, through no socket.

They hand a request to the data thread; or one that waits, with nothing else under way, drives the sockets itself
(`Driven`): two wake-ups less, where threads share an interpreter.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from defer.dispatcher import events as e
from defer.dispatcher.events import HERE
from defer.dispatcher.noted import RequestTraces
from node_agent.messages import Infer, Recall, Rejection, Result

logger = logging.getLogger("defer.dispatcher")

Answered = Callable[[Result | Rejection, Sequence[Any]], None]
"""Takes the answer to a request of this process, where the sockets are led; must not block."""

Caller = tuple[Answered, Callable[[], object] | None, bool]
"""Who waits: what takes the answer, what is told when the store has the request, and if the request is theirs to end."""


class Callers:
    """Who waits for what; for whoever leads the sockets.

    Args:
        feed: Takes events to the core.
        traces: Told when traced requests come.
    """

    def __init__(self, feed: Callable[[e.Event], None], traces: RequestTraces) -> None:
        self._feed = feed
        self._traces = traces
        self._waiting: dict[bytes, list[Caller]] = {}
        self.answers: list[tuple[Answered, Result | Rejection, Sequence[Any]]] = []
        """To be handed over at the end of the turn."""

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __contains__(self, request: bytes) -> bool:
        return request in self._waiting

    def take(self, infer: Infer | Recall, frames: Sequence[Any], caller: Caller) -> None:
        """A request comes."""
        self._waiting.setdefault(infer.request, []).append(caller)
        if isinstance(infer, Recall):
            self._feed(e.RecallArrived(HERE, infer.request))
            return
        if infer.trace:
            self._traces.arrived(infer, time.monotonic_ns())
        self._feed(e.InferArrived(HERE, infer, frames))

    def give_up(self, request: bytes, caller: Caller) -> None:
        """One who waited for the answer does so no more."""
        callers = self._waiting.get(request, [])
        if caller not in callers:
            return
        callers.remove(caller)
        if callers:
            return  # others wait for it
        del self._waiting[request]
        if caller[-1]:  # whoever asked by its id alone only waits no longer
            self._feed(e.CancelArrived(HERE, request))

    def answered(self, answer: Result | Rejection, frames: Sequence[Any]) -> None:
        """An answer for all who wait for it, also where a client has asked for it since."""
        for number, (answered, _, _) in enumerate(self._waiting.pop(answer.request, ())):
            # Each may write to what it gets.
            own = [bytes(memoryview(frame)) for frame in frames] if number else frames
            self.answers.append((answered, answer, own))

    def kept(self, request: bytes) -> None:
        """The store has a request."""
        for _, kept, _ in self._waiting.get(request, ()):
            if kept is not None:
                kept()

    def hand_over(self) -> None:
        """Whoever is woken wants the interpreter at once, so nobody is before this thread is done with its turn."""
        answers, self.answers = self.answers, []
        for answered, answer, frames in answers:
            try:
                answered(answer, frames)
            except Exception:
                logger.exception("an answer could not be handed over")

    def end(self, code: str, message: str) -> None:
        """Refuse what has no answer yet."""
        for request in list(self._waiting):
            self.answered(Rejection(request, code, message), ())
        self.hand_over()


class Driven:
    """A request whose caller drives the sockets until it is answered.

    Args:
        callers: Where it waits.
        infer: The request.
        frames: Its tensor frames, to be left alone until it is answered.
        answered: Takes the answer.
        until: When the caller waits no longer, on the monotonic clock.
        enqueue: Runs a command in the data thread, or says that it has ended.
    """

    def __init__(
        self,
        callers: Callers,
        infer: Infer,
        frames: Sequence[Any],
        answered: Answered,
        until: float,
        enqueue: Callable[[Callable[[], None]], bool],
    ) -> None:
        self._callers, self._infer, self._frames = callers, infer, frames
        self._answered, self.until, self._enqueue = answered, until, enqueue
        self._settled = False

    def _caller(self) -> Caller:
        # Made anew, and equal, each time: kept it would be a cycle, and keep the tensors.
        return self._settle, None, True

    def _settle(self, answer: Result | Rejection, frames: Sequence[Any]) -> None:
        self._settled = True
        self._answered(answer, frames)

    @property
    def done(self) -> bool:
        """See `Errand`."""
        return self._settled or time.monotonic() >= self.until

    def begin(self) -> None:
        """See `Errand`."""
        self._callers.take(self._infer, self._frames, self._caller())
        if self._callers.answers:  # it was refused
            self._callers.hand_over()

    def leave(self) -> None:
        """See `Errand`: the data thread hands the answer over."""

    def give_up(self) -> None:
        """Give the request up, from any thread, and cancel it on its way."""
        self._enqueue(partial(self._callers.give_up, self._infer.request, self._caller()))
