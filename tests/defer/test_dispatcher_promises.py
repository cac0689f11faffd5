"""Whatever comes in whatever order: one answer per accepted request, bounded memory, nothing left behind."""

from __future__ import annotations

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from defer.dispatcher import events as e
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.losses import MOST_LOSSES
from node_agent.messages import NO_DEADLINE, Credit, Failure, Infer, Item, TensorHeader, TensorSpec

INPUTS = (TensorSpec("x", "uint8", ("N",)),)
OUTPUTS = (TensorSpec("y", "uint8", ("N",)),)
DEVICES = ("a", "b", "c")
LIMITS = e.Limits(requests=6, nbytes=60, answers=8, answer_bytes=64, longest_s=50)


class Dispatcher(RuleBasedStateMachine):
    """A random schedule of clients, agents, losses and deployments around one core."""

    def __init__(self) -> None:
        super().__init__()
        self.core = DispatcherCore(LIMITS)
        self.now = 0.0
        self.ids: list[bytes] = []
        self.asked: Counter[bytes] = Counter()
        self.accepted: set[bytes] = set()
        self.deadline: dict[bytes, float] = {}
        self.delivered: Counter[bytes] = Counter()
        self.on_the_way: list[tuple[int, int]] = []
        self.credit: Counter[str] = Counter()
        self.up: set[str] = set()
        self.epoch = 0
        self.void: set[int] = set()

    @initialize()
    def start_serving(self) -> None:
        for first, model in enumerate("mn"):
            self.deploy(model, first, True)
            self.link_up(f"L{first}")
            self.grant(f"L{first}", 3)

    def feed(self, event: e.Event) -> None:
        before = {request.infer.request for request in self.core.requests.values()}
        out = self.core.handle(event, self.now)
        after = {request.infer.request for request in self.core.requests.values()}
        if isinstance(event, e.InferArrived) and event.infer.request in after - before:
            name = event.infer.request
            assert name not in self.accepted, "a request that has had its answer ran again"
            self.accepted.add(name)
            self.delivered[name] = 0
            left = (
                LIMITS.longest_s
                if event.infer.remaining_ns == NO_DEADLINE
                else event.infer.remaining_ns / 1e9
            )
            self.deadline[name] = self.now + left
        for instruction in out:
            match instruction:
                case e.SendItem(link, item, frames):
                    assert link in self.up, "sent on a connection that does not stand"
                    assert item.epoch not in self.void, "sent on a route that a restarted agent does not hold"
                    assert self.credit[link] > 0, "sent without credit"
                    assert len(frames) == 1
                    self.credit[link] -= 1
                    self.on_the_way.append((item.epoch, item.request))
                case e.Deliver(_, result, _):
                    self.note(result.request, event)
                case e.Reject(_, rejection):
                    self.note(rejection.request, event)

    def note(self, name: bytes, event: e.Event) -> None:
        repeat = isinstance(event, e.InferArrived) and event.infer.request == name
        if name in self.accepted and not repeat:
            self.delivered[name] += 1
            assert self.delivered[name] == 1, "answered twice"
            assert self.now <= self.deadline[name] or isinstance(event, e.Tick)

    @rule(
        size=st.one_of(st.integers(1, 25), st.just(LIMITS.nbytes + 5)),
        left=st.sampled_from([NO_DEADLINE, 0, 10**9, 5 * 10**9]),
        model=st.sampled_from("mn"),
    )
    def ask(self, size: int, left: int, model: str) -> None:
        name = len(self.ids).to_bytes(16, "big")
        self.ids.append(name)
        self.send(name, size, left, model)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        self.send(data.draw(st.sampled_from(self.ids[-6:])), 5, 5 * 10**9, "m")

    def send(self, name: bytes, size: int, left: int, model: str) -> None:
        tensor = TensorHeader("x", "uint8", (size,), "raw", size)
        self.feed(e.InferArrived(b"c", Infer(name, model, left, (tensor,)), (b"",)))

    @precondition(lambda self: self.on_the_way)
    @rule(
        data=st.data(),
        how=st.sampled_from(["result", "twice", "failure", "lost", "wrong epoch", "wrong hop"]),
    )
    def come_back(self, data: st.DataObject, how: str) -> None:
        epoch, number = self.on_the_way.pop(data.draw(st.integers(0, len(self.on_the_way) - 1)))
        y = TensorHeader("y", "uint8", (30,), "raw", 30)
        item = Item(epoch, number, 1, NO_DEADLINE, (y,))
        match how:
            case "result":
                self.feed(e.ItemReturned(item, (b"y",)))
            case "twice":
                self.feed(e.ItemReturned(item, (b"y",)))
                self.feed(e.ItemReturned(item, (b"y",)))
            case "failure":
                self.feed(e.FailureReturned(Failure(epoch, number, 1, "run-failed", "boom", "a")))
            case "wrong epoch":
                before = sum(self.delivered.values())
                self.feed(e.ItemReturned(Item(epoch + 7, number, 1, NO_DEADLINE, (y,)), (b"y",)))
                assert sum(self.delivered.values()) == before, "a result of another epoch was delivered"
            case "wrong hop":
                self.feed(e.ItemReturned(Item(epoch, number, 3, NO_DEADLINE, (y,)), (b"y",)))

    @rule(link=st.sampled_from(["L0", "L1"]))
    def link_up(self, link: str) -> None:
        if link not in self.up:
            self.up.add(link)
            self.feed(e.LinkUp(link))

    @rule(link=st.sampled_from(["L0", "L1"]), items=st.integers(1, 4))
    def grant(self, link: str, items: int) -> None:
        if link in self.up:
            self.credit[link] += items
            self.feed(e.CreditArrived(link, Credit(items, 1000)))

    @rule(link=st.sampled_from(["L0", "L1"]))
    def link_down(self, link: str) -> None:
        self.up.discard(link)
        self.credit[link] = 0
        self.feed(e.LinkDown(link))

    @rule(device=st.sampled_from(DEVICES))
    def lose(self, device: str) -> None:
        held = [request for request in self.core.requests.values() if request.losses + 1 < MOST_LOSSES]
        self.feed(e.DeviceLost(device, "gone"))
        assert all(self.core.requests.get(r.number) is r for r in held), "a loss ended a request"

    @rule(device=st.sampled_from(DEVICES))
    def regain(self, device: str) -> None:
        self.feed(e.DeviceBack(device))

    @rule(device=st.sampled_from(DEVICES))
    def restart(self, device: str) -> None:
        self.void |= {state.route.epoch for state in self.core.routes.through(device)}
        self.feed(e.DeviceLost(device, "its agent restarted", restarted=True))

    @rule(devices=st.sets(st.sampled_from(DEVICES)))
    def fall_quiet(self, devices: set[str]) -> None:
        self.feed(e.DevicesQuiet(dict.fromkeys(devices, self.now)))

    @rule(model=st.sampled_from("mn"))
    def be_stuck(self, model: str) -> None:
        self.feed(e.ModelStuck(model, "nothing holds it"))

    @precondition(lambda self: self.epoch)
    @rule(data=st.data())
    def unload(self, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(1, self.epoch))
        self.void.add(epoch)
        self.feed(e.RouteVoid(epoch, "unloaded"))

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), client=st.sampled_from([b"c", b"other"]))
    def cancel(self, data: st.DataObject, client: bytes) -> None:
        name = data.draw(st.sampled_from(self.ids[-6:]))
        self.feed(e.CancelArrived(client, name))
        assert client != b"c" or self.core.ledger.named(name) is None

    @rule(device=st.sampled_from(DEVICES))
    def lose_results(self, device: str) -> None:
        self.feed(e.ResultsBroke(device))

    @rule(model=st.sampled_from("mn"), first=st.integers(0, 1), serve=st.booleans())
    def deploy(self, model: str, first: int, serve: bool, stands: bool = False, beside: bool = False) -> None:
        self.epoch += 1
        route = e.Route(model, self.epoch, INPUTS, OUTPUTS, f"L{first}", 1, (DEVICES[first], "c"), last="c")
        self.feed(e.RouteLoaded(route))
        if stands:
            self.feed(e.RouteStands(self.epoch, (self.epoch - 1,) if beside else (), 1 / self.epoch))
        elif serve:
            self.feed(e.RouteReady(self.epoch, the_same=self.epoch % 2 == 0))

    @rule(model=st.sampled_from("mn"), first=st.integers(0, 1), beside=st.booleans())
    def stand_by(self, model: str, first: int, beside: bool) -> None:
        if beside:
            self.deploy(model, 1 - first, False)
        self.deploy(model, first, False, True, beside)

    @precondition(lambda self: self.epoch)
    @rule(data=st.data(), drop=st.booleans())
    def undeploy(self, data: st.DataObject, drop: bool) -> None:
        epoch = data.draw(st.integers(1, self.epoch))
        self.feed(e.RouteDropped(epoch, "undeployed") if drop else e.RouteRetired(epoch))

    @precondition(lambda self: self.epoch)
    @rule(data=st.data())
    def stand_down(self, data: st.DataObject) -> None:
        epoch = data.draw(st.integers(1, self.epoch))
        state = self.core.routes.get(epoch)
        serves = state is not None and state.state != "loaded"
        self.feed(e.RouteStandsDown(epoch, state.beside if state is not None else (), "not needed"))
        assert not serves or self.core.routes.get(epoch) is state

    @rule(seconds=st.floats(0.1, 3))
    def wait(self, seconds: float) -> None:
        # A shell wakes at the deadline, not some time after it.
        until = self.now + seconds
        while self.core.next_deadline() <= until:
            self.now = max(self.now, self.core.next_deadline())
            self.feed(e.Tick())
        self.now = until

    @invariant()
    def bounds_hold(self) -> None:
        core = self.core
        assert core.nbytes == sum(request.nbytes for request in core.requests.values())
        assert core.nbytes <= LIMITS.nbytes or len(core.requests) == 1
        assert len(core.answers) <= LIMITS.answers
        assert core.answers.nbytes <= LIMITS.answer_bytes
        # What moves from a lost route may come on top of what another holds.
        assert len(core.requests) <= LIMITS.requests * max(1, len(core.routes.by_epoch))
        assert sum(state.busy for state in core.routes.by_epoch.values()) == len(core.requests)
        assert all(state.busy or state.state != "retired" for state in core.routes.by_epoch.values())

    @invariant()
    def what_was_accepted_is_held_or_answered(self) -> None:
        held = {request.infer.request for request in self.core.requests.values()}
        for name in self.accepted:
            assert (name in held) != (self.delivered[name] == 1)

    def teardown(self) -> None:
        self.now += LIMITS.longest_s + 1
        self.feed(e.Tick())
        assert not self.core.requests
        assert all(self.delivered[name] == 1 for name in self.accepted)


Dispatcher.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPromises = Dispatcher.TestCase
