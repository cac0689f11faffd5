"""What becomes of requests when links break and devices are lost: they wait, are sent again, or go another way. Pure."""

from __future__ import annotations

from defer.dispatcher import events as e
from defer.dispatcher.conveyor import Conveyor
from defer.dispatcher.routes import RouteState
from node_agent.errors import FlowError
from node_agent.messages import Credit

MOST_LOSSES = 8
"""A request that was under way at the loss of so many devices is perhaps what they are lost by."""


class Losses(Conveyor):
    """Links and devices that go, and come back."""

    def _credit(self, link: str, credit: Credit, now: float) -> list[e.Instruction]:
        window = self._links.get(link)
        if window is None:
            return []
        try:
            window.add(credit)
        except FlowError as error:  # a peer that does not count as we do: start anew with it
            return [*self._link_down(link), e.CutLink(link, str(error))]
        return self._pump(link, now)

    def _link_down(self, link: str) -> list[e.Instruction]:
        """What was on the broken connection may be lost: it is sent again, in order, once the peer is back.

        Running it twice does no harm, since only the first result is delivered.
        """
        self._links.pop(link, None)
        for state in self.routes.on_link(link):
            self._send_again(state)
        return []

    def _results_broke(self, peer: str, now: float) -> list[e.Instruction]:
        """Results may be lost, and nobody can tell which: all that is under way there is sent again."""
        links = []
        for state in self.routes.by_epoch.values():
            if state.route.last == peer and state.sent:
                self._send_again(state)
                links.append(state.route.link)
        return [said for link in dict.fromkeys(links) for said in self._pump(link, now)]

    def _send_lost(self, now: float) -> list[e.Instruction]:
        """Send what must have got lost between two devices once more."""
        links: dict[str, None] = {}
        for epoch, numbers in self.overdue.lost(now):
            state = self.routes[epoch]
            if not state.lost:
                self._send_again(state, numbers)
                links[state.route.link] = None
        return [said for link in links for said in self._pump(link, now)]

    def _device_lost(self, event: e.DeviceLost, now: float) -> list[e.Instruction]:
        out: list[e.Instruction] = []
        text = f"device {event.device!r} was lost: {event.reason}"
        known = {
            state.route.epoch for state in self.routes.through(event.device) if event.device in state.lost
        }
        for state in self.routes.lose(event.device, event.reason, restarted=event.restarted):
            for number in sorted({*state.waiting, *state.sent}):
                request = self.requests[number]
                request.losses += request.sent and state.route.epoch not in known
                if request.pinned:
                    out += self._end(request, "agent-lost", text)
                elif request.losses >= MOST_LOSSES:
                    many = f"the request was under way at the loss of {request.losses} devices"
                    out += self._end(request, "agent-lost", f"{many}, and is not tried again")
            out += self._elsewhere(state, now)
        return out

    def _end_pinned(self, state: RouteState, reason: str) -> list[e.Instruction]:
        """End what runs on this route or on none: nobody waits until a canary's deadline."""
        on_it = [self.requests[number] for number in sorted({*state.waiting, *state.sent})]
        return [
            said for request in on_it if request.pinned for said in self._end(request, "agent-lost", reason)
        ]

    def _device_back(self, device: str, now: float) -> list[e.Instruction]:
        self.routes.regain(device)
        hit = self.routes.through(device)
        links = dict.fromkeys(state.route.link for state in hit)
        out = [said for link in links for said in self._pump(link, now)]
        for model in dict.fromkeys(state.route.model for state in hit):
            out += self._replace_lost(model, now)
        return out

    def _replace_lost(self, model: str, now: float) -> list[e.Instruction]:
        """Something has perhaps become able to serve: what stands by takes over where nothing else does.

        Then nothing waits on a lost route any more, on one that has served before and drained neither.
        """
        states = self.routes.lost_with_work(model)
        return [said for state in states for said in self._elsewhere(state, now)]

    def _elsewhere(self, state: RouteState, now: float) -> list[e.Instruction]:
        """Move what is on a lost route to another route of its model that is ready, or stands by; else it waits.

        The lost route is given up then: unloading it frees what its requests hold of the stages that it shares with the
        others. What still comes back on it carries its epoch, and is not taken for the answer any more.
        """
        model, epoch = state.route.model, state.route.epoch
        if state.state not in ("lost", "retired"):
            return []
        out: list[e.Instruction] = []
        if model in self.routes.serving and not self.routes.ready_for(model):
            stand_in = self.routes.stand_in(model)
            if stand_in is not None:
                out += self._ready(stand_in, now, the_same=True)
                out.append(e.TookOver(model, stand_in[0]))
        if self.routes.get(epoch) is state and self.routes.ready_for(model):
            out += [*self._move(state, now), *self._retire(epoch)]
        return out
