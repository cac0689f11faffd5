"""Durable requests in the core: acknowledged when written, answered once, whatever is lost in a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher import events as e
from defer.dispatcher import store as s
from defer.dispatcher.answers import Answer
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.durable import Durable, Retention
from defer.dispatcher.rollout import Split
from node_agent.messages import NO_DEADLINE, Credit, Infer, Item, Rejection, Result, TensorHeader, TensorSpec

X = TensorHeader("x", "uint8", (2,), "raw", 2)
Y = TensorHeader("y", "uint8", (3,), "raw", 3)
S = 10**9
WALL = 1000.0


def route(epoch: int) -> e.Route:
    spec = (TensorSpec("x", "uint8", ("N",)),), (TensorSpec("y", "uint8", ("N",)),)
    return e.Route("m", epoch, *spec, "L", 1, ("a",))


def ready(core: DispatcherCore, epoch: int = 1, now: float = 0.0) -> list[e.Instruction]:
    out = core.handle(e.RouteLoaded(route(epoch)), now)
    out += core.handle(e.RouteReady(epoch), now)
    out += core.handle(e.LinkUp("L"), now)
    return out + core.handle(e.CreditArrived("L", Credit(1000, 1 << 20)), now)


def made(*, durable: bool = True) -> DispatcherCore:
    core = DispatcherCore()
    if durable:
        core.durable.enable((), WALL)
    ready(core)
    return core


def infer(number: int, *, left: int = 60 * S, durable: bool = True) -> Infer:
    return Infer(number.to_bytes(16), "m", left, (X,), durable=durable)


def ask(
    core: DispatcherCore, number: int, now: float = 0.0, client: bytes = b"c", **more: int
) -> list[e.Instruction]:
    return core.handle(e.InferArrived(client, infer(number, **more), (b"xx",)), now)


def returned(core: DispatcherCore, number: int, now: float = 0.0, epoch: int = 1) -> list[e.Instruction]:
    return core.handle(e.ItemReturned(Item(epoch, number, 1, NO_DEADLINE, (Y,)), (b"yyy",)), now)


def changes(out: Sequence[e.Instruction]) -> list[s.Change]:
    return [change for each in out if isinstance(each, e.Keep) for change in each.build()]


def kept(what: str, number: int = 1, **more: str) -> e.Kept:
    return e.Kept(number.to_bytes(16), what, **more)  # type: ignore[arg-type]


def test_it_runs_at_once_is_acknowledged_when_written_and_answered_when_that_is_written() -> None:
    core = made()
    keep, send = ask(core, 1, now=5.0)
    assert isinstance(send, e.SendItem)
    assert changes([keep]) == [s.RequestKept(s.KeptRequest(infer(1), b"xx", WALL + 65.0))]
    assert ask(core, 1, client=b"d") == [], "not written yet: there is nothing to say"
    assert core.handle(kept("request"), 6.0) == [e.Acknowledge(b"d", (1).to_bytes(16))]
    assert ask(core, 1, client=b"e") == [e.Acknowledge(b"e", (1).to_bytes(16))]
    (keep,) = returned(core, 1, now=7.0)
    result = Result((1).to_bytes(16), (Y,), 2.0)
    assert changes([keep]) == [s.AnswerKept(s.KeptAnswer(result, b"yyy", WALL + 7.0))]
    assert ask(core, 1, client=b"f") == [], "whoever asks last gets the answer"
    assert core.durable.owed == 1
    assert core.handle(kept("answer"), 8.0) == [e.Deliver(b"f", result, (b"yyy",))]
    assert ask(core, 1, client=b"g") == [e.Recall(b"g", (1).to_bytes(16))]
    found = s.KeptAnswer(result, b"yyy", WALL + 7.0)
    (deliver,) = core.handle(e.Recalled(b"g", (1).to_bytes(16), found), 9.0)
    assert isinstance(deliver, e.Deliver)
    assert (deliver.client, deliver.result, [bytes(each) for each in deliver.frames]) == (
        b"g",
        result,
        [b"yyy"],
    )


def test_an_answer_that_is_faster_than_the_disk_needs_no_acknowledgement() -> None:
    core = made()
    ask(core, 1)
    returned(core, 1)
    assert core.handle(kept("request"), 0.0) == []
    (said,) = core.handle(kept("answer"), 0.0)
    assert isinstance(said, e.Deliver)


def test_a_full_disk_ends_the_request_and_never_withholds_an_answer() -> None:
    core = made()
    ask(core, 1)
    (keep,) = core.handle(kept("request", code="disk-full", problem="no space left"), 0.0)
    assert isinstance(keep, e.Keep)
    (said,) = core.handle(kept("answer", code="disk-full", problem="no space left"), 0.0)
    assert isinstance(said, e.Reject)
    assert (said.rejection.code, "no space left" in said.rejection.message) == ("disk-full", True)
    (after,) = core.handle(e.RecallArrived(b"c", (1).to_bytes(16)), 0.0)
    assert isinstance(after, e.Reject)


def test_without_a_store_it_is_refused() -> None:
    (said,) = ask(made(durable=False), 1)
    assert isinstance(said, e.Reject)
    assert (said.rejection.code, "--state" in said.rejection.message) == ("usage", True)


def test_recall_finds_what_runs_what_was_answered_and_says_what_is_unknown() -> None:
    core = made()
    (said,) = core.handle(e.RecallArrived(b"c", (9).to_bytes(16)), 0.0)
    assert isinstance(said, e.Reject)
    assert said.rejection.code == "request-failed"
    ask(core, 2, durable=False)  # type: ignore[arg-type]
    assert core.handle(e.RecallArrived(b"d", (2).to_bytes(16)), 0.0) == []
    (deliver,) = returned(core, 1)
    assert isinstance(deliver, e.Deliver)
    assert deliver.client == b"d"
    assert core.handle(e.RecallArrived(b"e", (2).to_bytes(16)), 0.0) == [
        e.Deliver(b"e", deliver.result, deliver.frames)
    ]


def test_cancelling_ends_it_wherever_it_is_and_recall_says_so() -> None:
    name = (1).to_bytes(16)
    core = made()
    ask(core, 1)
    core.handle(kept("request"), 0.0)
    # On another connection than it came by: the client's has broken meanwhile.
    keep, dropped = core.handle(e.CancelArrived(b"again", name), 1.0)
    assert dropped == e.CancelItems("L", 1, (1,))
    (change,) = changes([keep])
    assert isinstance(change, s.AnswerKept)
    assert isinstance(change.answer.message, Rejection)
    assert change.answer.message.code == "cancelled"
    core.handle(kept("answer"), 2.0)
    assert core.handle(e.RecallArrived(b"d", name), 3.0) == [e.Recall(b"d", name)]
    (said,) = core.handle(e.Recalled(b"d", name, change.answer), 3.0)
    assert isinstance(said, e.Reject)
    assert said.rejection.code == "cancelled"
    assert core.handle(e.CancelArrived(b"c", name), 4.0) == [], "it has its answer"


def test_one_that_waits_for_a_restarted_dispatchers_model_is_cancelled_too() -> None:
    name = (1).to_bytes(16)
    core = DispatcherCore()
    core.durable.enable((), WALL)
    core.parking.open = True
    assert core.handle(e.CancelArrived(b"c", name), 0.0) == []
    core.routes.announced["m"] = "it is coming back"
    waits = e.InferArrived(b"", infer(1), (b"xx",), kept=True)
    (keep,) = core.handle(e.Resumed((waits,)), 1.0)
    (change,) = changes([keep])
    assert isinstance(change, s.AnswerKept)
    assert isinstance(change.answer.message, Rejection)
    assert change.answer.message.code == "cancelled"
    assert not any(isinstance(each, e.SendItem) for each in ready(core))


def test_a_dispatcher_that_stops_leaves_them_for_the_next() -> None:
    core = made()
    ask(core, 1)
    ask(core, 2, durable=False)  # type: ignore[arg-type]
    out = core.handle(e.Stopped(), 1.0)
    assert [type(each) for each in out] == [e.Reject], "only the one that nobody keeps is refused"


def test_what_comes_while_it_resumes_waits_and_loses_the_time() -> None:
    core = DispatcherCore()
    core.durable.enable((), WALL)
    core.parking.open = True
    assert ask(core, 1, now=0.0, client=b"c") == []
    assert ask(core, 2, now=1.0, client=b"d") == []
    assert core.handle(e.RecallArrived(b"e", (3).to_bytes(16)), 1.0) == []
    ready(core, 7, now=2.0)
    before = e.InferArrived(b"", infer(3), (b"xx",), kept=True)
    out = core.handle(e.Resumed((before,)), 4.0)
    sent = [each.item for each in out if isinstance(each, e.SendItem)]
    assert [(item.request, item.remaining_ns) for item in sent] == [(1, 60 * S), (2, 56 * S), (3, 57 * S)]
    assert [len(changes([each])) for each in out if isinstance(each, e.Keep)] == [1, 1], "3 is kept already"
    assert e.Acknowledge(b"e", (3).to_bytes(16)) in out
    assert core.requests[1].client == b"e"


def test_requests_for_what_is_back_do_not_wait_for_the_rest() -> None:
    core = DispatcherCore()
    core.durable.enable((), WALL)
    core.parking.open = True
    for model in ("m", "other"):
        core.handle(e.ModelAnnounced(model, "coming back"), 0.0)
    other = Infer((9).to_bytes(16), "other", 60 * S, (X,))
    assert core.handle(e.InferArrived(b"c", other, (b"xx",)), 0.0) == []
    assert ask(core, 1, now=1.0, durable=False) == []
    sent = [each.item for each in ready(core, 7, now=3.0) if isinstance(each, e.SendItem)]
    assert [(item.request, item.remaining_ns) for item in sent] == [(1, 58 * S)], (
        "it goes as its model is back"
    )
    (sends,) = ask(core, 2, now=4.0, durable=False)
    assert isinstance(sends, e.SendItem)
    assert ask(core, 3, now=4.0) == [], "a durable one may be among those that the store brings"
    assert core.handle(e.CancelArrived(b"c", (2).to_bytes(16)), 4.0) != [], "what runs is cancelled at once"
    core.handle(e.ModelStuck("other", "nothing can hold it"), 5.0)
    out = core.handle(e.Resumed(()), 6.0)
    (refused,) = [each.rejection for each in out if isinstance(each, e.Reject)]
    assert refused.message == "model 'other' is not ready: coming back: nothing can hold it"
    assert [type(each) for each in out if not isinstance(each, e.Reject)] == [e.Keep, e.SendItem]


def test_a_request_that_names_no_model_or_one_with_versions_waits_for_what_it_means() -> None:
    core = DispatcherCore()
    core.parking.open = True
    core.handle(e.SplitSet(Split("m", "m@1")), 0.0)
    core.handle(e.ModelAnnounced("m@1", "coming back"), 0.0)
    for number, model in ((1, "m"), (2, "")):
        asked = Infer(number.to_bytes(16), model, 60 * S, (X,))
        assert core.handle(e.InferArrived(b"c", asked, (b"xx",)), 0.0) == []
    core.handle(e.RouteLoaded(replace(route(1), model="m@1")), 1.0)
    core.handle(e.RouteReady(1), 1.0)
    assert core.requests.keys() == {1, 2}


def test_only_so_many_wait() -> None:
    core = DispatcherCore(e.Limits(requests=2))
    core.parking.open = True
    assert ask(core, 1) == ask(core, 2) == []
    for event in (e.InferArrived(b"c", infer(3), ()), e.RecallArrived(b"c", bytes(16))):
        (said,) = core.handle(event, 0.0)
        assert isinstance(said, e.Reject)
        assert said.rejection.code == "overloaded"


def test_a_kept_request_waits_for_its_model_and_a_wrong_one_is_answered() -> None:
    core = DispatcherCore()
    core.durable.enable((), WALL)
    wrong = Infer(bytes(16), "other", 60 * S, (X,), durable=True)
    late = infer(2, left=0)
    events = (
        e.InferArrived(b"", infer(1), (b"xx",), kept=True),
        e.InferArrived(b"", wrong, (b"xx",), kept=True),
    )
    core.handle(e.ModelAnnounced("m", "loading"), 0.0)
    out = core.handle(e.Resumed(events), 0.0)
    (change,) = changes(out)
    assert isinstance(change, s.AnswerKept)
    assert isinstance(change.answer.message, Rejection)
    assert change.answer.message.code == "unknown-model"
    out = ready(core, 1, now=5.0)
    assert [each.item.remaining_ns for each in out if isinstance(each, e.SendItem)] == [55 * S]
    (keep,) = core.handle(e.InferArrived(b"", late, (b"xx",), kept=True), 6.0)
    assert changes([keep])[0].answer.message.code == "deadline-exceeded"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("retention", "left"),
    [
        (Retention(seconds=10.0, count=99, nbytes=99), {6, 7, 8, 9}),
        (Retention(seconds=999.0, count=3, nbytes=99), {7, 8, 9}),
        (Retention(seconds=999.0, count=99, nbytes=7), {8, 9}),
    ],
)
def test_answers_are_dropped_by_age_number_and_bytes(retention: Retention, left: set[int]) -> None:
    durable = Durable(retention)
    durable.enable((s.Spent((0).to_bytes(16), 3, WALL),), WALL)
    held = {0}
    for number in range(1, 10):
        durable.at(number * 3.0)
        result = Result(number.to_bytes(16), (Y,), 0.0)
        for change in changes(durable.ended(b"c", infer(number), Answer(result, (b"yyy",), 3))):
            if isinstance(change, s.AnswersDropped):
                held -= {int.from_bytes(request) for request in change.requests}
            else:
                held.add(number)
        durable.answer_kept(number.to_bytes(16), "")
    assert held == left
    assert {number for number in range(10) if durable.known(b"c", number.to_bytes(16))} == left


# ------------------------------------------------------------------------------------------- crashes, at any moment


@dataclass
class World:
    """A dispatcher whose disk is slow, agents that answer when told, clients that ask again after each restart."""

    store: s.MemoryStore = field(default_factory=s.MemoryStore)
    epoch: int = 0
    writing: list[e.Keep] = field(default_factory=list)
    running: list[e.SendItem] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    answers: dict[int, list[float]] = field(default_factory=dict)
    ran: int = 0

    def start(self) -> None:
        """Also after a crash: what was not written is gone, and what runs belongs to nobody."""
        snapshot = self.store.open()
        self.core = DispatcherCore()
        self.core.durable.enable(snapshot.answers, WALL)
        self.core.parking.open = True
        self.writing.clear()
        self.epoch += 1
        # A client's connection is back before the models are.
        for number in sorted(self.asked - self.answers.keys()):
            self.ask(number)
        self.do(ready(self.core, self.epoch))
        kept = tuple(e.InferArrived(b"", r.infer, r.split(), kept=True) for r in snapshot.requests)
        self.do(self.core.handle(e.Resumed(kept), 0.0))

    def ask(self, number: int) -> None:
        self.asked.add(number)
        self.do(ask(self.core, number))

    def do(self, out: list[e.Instruction]) -> None:
        for each in out:
            match each:
                case e.SendItem():
                    self.running.append(each)
                case e.Keep():
                    self.writing.append(each)
                case e.Acknowledge(client, request) if client:
                    self.acknowledged.add(int.from_bytes(request))
                case e.Deliver(client, result, _) if client:
                    self.answers.setdefault(int.from_bytes(result.request), []).append(result.seconds)
                case e.Recall(client, request):
                    self.do(self.core.handle(e.Recalled(client, request, self.store.answer(request)), 0.0))
                case e.Reject():
                    raise AssertionError(each)

    def write(self) -> None:
        keep = self.writing.pop(0)
        self.store.apply(list(keep.build()))
        self.do(self.core.handle(e.Kept(keep.request, keep.what), 0.0))

    def run(self, which: int) -> None:
        """An agent is done with an item, perhaps one that a dispatcher sent which is no more."""
        item = self.running.pop(which % len(self.running)).item
        known = self.core.requests.get(item.request)
        if known is not None and item.epoch == self.epoch:
            assert int.from_bytes(known.infer.request) not in self.answers, "it runs although it was answered"
        self.ran += 1
        # The time that it took stands for the answer: two executions never take the same.
        self.do(returned(self.core, item.request, float(self.ran), item.epoch))


STEPS: dict[str, Callable[[World, int], None]] = {
    "ask": lambda world, number: world.ask(number % 6),
    "write": lambda world, _: world.write() if world.writing else None,
    "run": lambda world, which: world.run(which) if world.running else None,
    "crash": lambda world, _: world.start(),
}


@given(st.lists(st.tuples(st.sampled_from([*STEPS, "run", "write"]), st.integers(0, 20)), max_size=60))
def test_whenever_it_crashes_all_that_was_acknowledged_is_answered_with_one_answer(
    steps: list[tuple[str, int]],
) -> None:
    world = World()
    world.start()
    for name, number in steps:
        STEPS[name](world, number)
    world.start()
    while world.writing or world.running:
        if world.running:
            world.run(0)
        if world.writing:
            world.write()
    assert set(world.answers) == world.asked
    assert world.acknowledged <= set(world.answers)
    for number, given_out in world.answers.items():
        assert len(set(given_out)) == 1, f"request {number} has two answers"
        assert world.store.answer(number.to_bytes(16)) is not None
    assert world.store.open().requests == ()
