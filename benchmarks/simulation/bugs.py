"""Bugs to plant, so that a run can show that its checks would have found them.

Each is what somebody might really forget. A simulation with one of them must fail; the test suite sees to that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from defer.dispatcher import events as e
from defer.dispatcher.answers import RecentAnswers
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.routes import Routes
from node_agent.flow import ReceiveWindow
from node_agent.receiver import Receiver
from node_agent.sender import Sender

Undo = Callable[[], None]


def _patched(owner: Any, name: str, made: Callable[[Any], Any]) -> Undo:
    before = getattr(owner, name)
    setattr(owner, name, made(before))
    return lambda: setattr(owner, name, before)


def _drop_an_answer() -> Undo:
    """Every fifth request's answer is not sent."""

    def made(before: Any) -> Any:
        def answer(self: Any, request: Any, given: Any) -> Any:
            told = before(self, request, given)
            return told[1:] if request.number % 5 == 0 else told

        return answer

    return _patched(DispatcherCore, "_answer", made)


def _drop_a_credit() -> Undo:
    """A message that grants credit gets lost now and then."""

    def made(before: Any) -> Any:
        def release(self: Any, nbytes: int) -> Any:
            credit = before(self, nbytes)
            return None if credit is not None and credit.items % 3 == 0 else credit

        return release

    return _patched(ReceiveWindow, "release", made)


def _keep_credit_of_stale_items() -> Undo:
    """An item of a deployment that is gone is dropped, and its credit with it."""

    def made(before: Any) -> Any:
        def take(self: Any, origin: Any, header: Any, frames: Any) -> Any:
            if (header.epoch, header.hop) in self.routes:
                return before(self, origin, header, frames)
            origin.end.window.receive(sum(tensor.nbytes for tensor in getattr(header, "tensors", ())))
            self.stale += 1
            return True

        return take

    return _patched(Receiver, "_take", made)


def _keep_credit_of_failed_items() -> Undo:
    """What waits for a deployment that goes is dropped, and its credit with it."""
    return _patched(Sender, "_drop", lambda _: lambda *_: None)


def _forget_the_epoch() -> Undo:
    """A result is taken for its request's, whatever deployment it comes from."""

    def made(before: Any) -> Any:
        def returned(self: Any, item: Any, frames: Any, now: float) -> Any:
            request = self.requests.get(item.request)
            if request is not None:
                item = msgspec.structs.replace(item, epoch=request.epoch)
            return before(self, item, frames, now)

        return returned

    return _patched(DispatcherCore, "_returned", made)


def _deliver_twice() -> Undo:
    """A result that comes back a second time, because its request was sent again, is delivered again."""
    last: dict[tuple[int, int], list[Any]] = {}

    def made(before: Any) -> Any:
        def returned(self: Any, item: Any, frames: Any, now: float) -> Any:
            key = (id(self), item.request)
            if item.request in self.requests:
                last[key] = before(self, item, frames, now)
                return last[key]
            return last.get(key) or before(self, item, frames, now)

        return returned

    return _patched(DispatcherCore, "_returned", made)


def _run_again() -> Undo:
    """Nobody remembers what was answered, so a request that is sent again runs again."""
    return _patched(RecentAnswers, "put", lambda _: lambda *_: None)


def _mix_results_up() -> Undo:
    """A result goes to the request before it, where there is one."""

    def made(before: Any) -> Any:
        def returned(self: Any, item: Any, frames: Any, now: float) -> Any:
            earlier = self.requests.get(item.request - 1)
            if earlier is not None and earlier.epoch == item.epoch:
                item = msgspec.structs.replace(item, request=item.request - 1)
            return before(self, item, frames, now)

        return returned

    return _patched(DispatcherCore, "_returned", made)


def _no_deadline() -> Undo:
    """Nobody ends a request whose time is up."""
    return _patched(DispatcherCore, "_expire", lambda _: lambda *_: [])


def _take_over_without_a_device() -> Undo:
    """What stands by takes over, whether its devices are in reach or not."""
    return _patched(Routes, "able", lambda _: lambda self, epoch: self.by_epoch[epoch].state == "loaded")


def _retire_nothing() -> Undo:
    """What stands by takes over, and what it takes over from is left as it is, with all that waits there."""

    def made(before: Any) -> Any:
        def elsewhere(self: Any, state: Any, now: float) -> Any:
            model = state.route.model
            stand_in = None if self.routes.ready_for(model) else self.routes.stand_in(model)
            if stand_in is None or state.state != "lost" or model not in self.routes.serving:
                return before(self, state, now)
            self.routes.ready(stand_in)
            return [e.TookOver(model, stand_in[0])]

        return elsewhere

    return _patched(DispatcherCore, "_elsewhere", made)


def _no_limit() -> Undo:
    """The dispatcher takes as many requests as come."""

    def made(before: Any) -> Any:
        def choose(self: Any, *rest: Any) -> Any:
            kept, self.limits = self.limits, replace(self.limits, requests=1 << 30)
            try:
                return before(self, *rest)
            finally:
                self.limits = kept

        return choose

    return _patched(DispatcherCore, "_choose", made)


BUGS: dict[str, Callable[[], Undo]] = {
    "drop-answer": _drop_an_answer,
    "drop-credit": _drop_a_credit,
    "stale-credit": _keep_credit_of_stale_items,
    "dropped-credit": _keep_credit_of_failed_items,
    "forget-epoch": _forget_the_epoch,
    "deliver-twice": _deliver_twice,
    "run-again": _run_again,
    "mix-up": _mix_results_up,
    "no-deadline": _no_deadline,
    "no-limit": _no_limit,
    "stand-in-lost": _take_over_without_a_device,
    "retire-nothing": _retire_nothing,
}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Run with one of `BUGS`, or with none."""
    undo = BUGS[name]() if name else lambda: None
    try:
        yield
    finally:
        undo()
