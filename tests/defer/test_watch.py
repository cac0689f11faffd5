"""What heartbeats tell: a hang is one, slowness is none, idleness has a beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher.watch import AT_WORK_S, BUSY, FACTOR, LEAST_S, LOOKS_BACK_S, Hung, Moving, Watch
from node_agent.messages import Heartbeat


@dataclass
class Stage:
    """A stage on one device, and the watch over it."""

    expected: float | None = 0.05
    watch: Watch = field(default_factory=Watch)
    now: float = 0.0
    progress: int = 0

    def beat(self, age: float, queued: int = 1, cpu: float = 0.0) -> list[Hung | Moving]:
        self.now += 0.1
        beat = Heartbeat("boot", self.progress, age, queued, "serving", 0, (1,), cpu)
        expected = {} if self.expected is None else {"a": self.expected}
        return self.watch.look({"a": (beat, self.now)}, expected)


def test_an_item_that_grows_too_old_hangs_and_moves_again() -> None:
    stage = Stage()
    assert [stage.beat(age) for age in (0.1, 0.2, LEAST_S)] == [[]] * 3
    assert stage.beat(0.5) == [Hung("a", 0.5, LEAST_S)]
    assert stage.beat(0.6) == []
    assert stage.watch.hung == {"a"}
    stage.progress += 1
    assert stage.beat(0.0) == [Moving("a")]
    assert stage.watch.hung == frozenset()


def test_what_was_predicted_to_be_slow_may_be() -> None:
    stage = Stage(expected=2.0)
    assert stage.beat(5.9) == []
    assert stage.beat(6.1) == [Hung("a", 6.1, 6.0)]


def test_what_was_seen_to_be_slow_may_be() -> None:
    stage = Stage(expected=0.0)
    for age in (0.1, 0.2):
        assert stage.beat(age) == []
    stage.progress += 1
    assert stage.beat(0.55) == []
    assert stage.beat(0.65) == [Hung("a", 0.65, FACTOR * 0.2)]


def test_a_device_of_no_plan_cannot_hang() -> None:
    assert Stage(expected=None).beat(99.0) == []


def test_idleness_begins_when_the_last_item_has_left() -> None:
    stage = Stage()
    stage.beat(0.0, queued=0)
    assert stage.watch.quiet == {"a": 0.1}
    stage.beat(0.0, queued=0)
    assert stage.watch.quiet == {"a": 0.1}
    stage.progress += 1  # it has done an item between two heartbeats
    stage.beat(0.0, queued=0)
    assert stage.watch.quiet["a"] == stage.now
    stage.beat(0.0, queued=1)
    assert stage.watch.quiet == {}


def test_what_was_seen_of_a_lost_device_is_forgotten() -> None:
    stage = Stage()
    stage.beat(0.5)
    assert stage.watch.look({}, {}) == []
    assert (stage.watch.hung, stage.watch.quiet) == (frozenset(), {})


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8), st.floats(0.34, 1.0))
def test_a_stage_as_slow_as_predicted_is_never_taken_for_dead(parts: list[float], scale: float) -> None:
    slowest = max(parts)
    stage = Stage(expected=slowest * scale)
    for part in parts:
        age = 0.0
        while age < part:
            assert stage.beat(age) == []
            age += 0.1
        stage.progress += 1


def ages(until: float) -> list[float]:
    return [number / 10 for number in range(1, round(10 * until) + 1)]


@given(st.floats(0.02, 1.0), st.floats(0.0, 100.0))
def test_a_stage_that_works_is_slow_and_hangs_nowhere(share: float, before: float) -> None:
    """However little its thread gets of a processor, up to `BUSY` times longer than a hang may take."""
    stage = Stage()
    for age in ages(BUSY * LEAST_S):
        assert stage.beat(age, cpu=1.0 + before + share * age) == []
    stage.progress += 1
    assert stage.beat(0.05, cpu=1.0 + before) == []
    assert stage.watch.hung == frozenset()


def test_a_stage_that_works_for_ever_hangs_too() -> None:
    stage = Stage()
    told = [change for age in ages(3 * BUSY * LEAST_S) for change in stage.beat(age, cpu=age)]
    assert told == [Hung("a", BUSY * LEAST_S + 0.1, BUSY * LEAST_S)]


def test_a_stage_that_has_worked_and_waits_hangs() -> None:
    stage = Stage()
    for age in ages(2.0):
        assert stage.beat(age, cpu=5 + age) == []
    told = [change for age in ages(3.0)[20:] for change in stage.beat(age, cpu=7.0)]
    assert [type(change) for change in told] == [Hung]
    assert told[0].age_s <= 2.0 + LOOKS_BACK_S + 0.2


def test_a_thread_that_waits_hangs_whatever_it_used_before() -> None:
    stage = Stage()
    assert stage.beat(0.0, queued=0) == []
    told = [age for age in ages(0.5) if stage.beat(age, cpu=9.0)]
    assert [round(age, 1) for age in told] == [next(age for age in ages(1.0) if age > LEAST_S)]


def test_late_heartbeats_of_a_busy_device_are_waited_for() -> None:
    stage = Stage()
    assert stage.beat(0.9, cpu=3.0) == []  # the first that is heard of this item
    stage.now += 0.4
    assert stage.beat(1.4, cpu=3.1) == []
    stage.now += 0.4
    assert [type(change) for change in stage.beat(1.9, cpu=3.1)] == [Hung]


def test_a_device_is_at_work_while_a_long_item_uses_its_processor() -> None:
    stage = Stage()
    for age in ages(1.0):
        stage.beat(age, cpu=1 + age)
    assert stage.watch.at_work(stage.now) == {"a"}
    assert stage.watch.at_work(stage.now + AT_WORK_S) == frozenset()
    idle = Stage()
    for age in ages(1.0):
        idle.beat(age, cpu=1.0)
    assert idle.watch.at_work(idle.now) == frozenset()
