"""Which of the core's changes are worth an entry in the event log: routes that serve, stand still, drain, are gone.

It compares what the routes are with what they were, so that it needs no part in the core's decisions.
"""

from __future__ import annotations

from defer.dispatcher import events as e
from defer.dispatcher.routes import Routes, State
from defer.event_log import EventLog

QUIET = (e.InferArrived, e.ItemReturned, e.FailureReturned, e.CreditArrived, e.LinkUp, e.LinkDown, e.Tick)
"""Events of single requests and connections: no route changes by them but one that has drained."""


class Chronicle:
    """Watches the routes of one core, in the thread that owns it.

    Args:
        log: Where to note.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._known: dict[int, tuple[str, State]] = {}

    def happened(self, event: e.Event, routes: Routes) -> None:
        """Note what `event` has changed; call it after the core has handled one that is not `QUIET`, or a drain."""
        given_up = isinstance(event, e.DeviceLost)
        for epoch, state in routes.by_epoch.items():
            if state.route.reference_of:
                continue
            model, before = self._known.get(epoch, (state.route.model, "loaded"))
            self._known[epoch] = (model, state.state)
            if state.state != before:
                self._changed(epoch, model, before, state.state, state.reason, given_up=given_up)
        for epoch in self._known.keys() - routes.by_epoch.keys():
            model, before = self._known.pop(epoch)
            if before == "loaded":
                text = f"deployment {epoch} of {model}, which was loaded but not in use, is put away"
                self._note("route-dropped", text, model, epoch)
                continue
            if before != "retired":
                self._changed(epoch, model, before, "retired", "", given_up=given_up)
            self._note(
                "route-gone", f"deployment {epoch} of {model} has ended its last request", model, epoch
            )

    def answered(self, code: str, text: str, model: str = "") -> None:
        """A client got an error instead of a result."""
        self._log.note_seldom("request-failed", code, f"{code}: {text}", model=model)

    def _changed(
        self, epoch: int, model: str, before: State, now: State, reason: str, *, given_up: bool
    ) -> None:
        what = f"deployment {epoch} of {model}"
        if now == "ready":
            again = " again" if before == "lost" else ""
            self._note("route-serves", f"{what} serves{again}", model, epoch)
        elif now == "lost":
            self._log.note(
                "route-lost", f"{what} stands still: {reason}", level="error", model=model, epoch=epoch
            )
        elif now == "retired" and given_up:
            text = f"{what} is given up; its requests go on over the other routes"
            self._log.note("route-given-up", text, level="warning", model=model, epoch=epoch)
        elif now == "retired":
            self._note("route-drains", f"{what} takes no more requests", model, epoch)

    def _note(self, kind: str, text: str, model: str, epoch: int) -> None:
        self._log.note(kind, text, model=model, epoch=epoch)
