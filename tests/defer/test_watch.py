"""What heartbeats tell: a hang is one, slowness is none, idleness has a beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher.watch import FACTOR, LEAST_S, Hung, Moving, Watch
from node_agent.messages import Heartbeat


@dataclass
class Stage:
    """A stage on one device, and the watch over it."""

    expected: float | None = 0.05
    watch: Watch = field(default_factory=Watch)
    now: float = 0.0
    progress: int = 0

    def beat(self, age: float, queued: int = 1) -> list[Hung | Moving]:
        self.now += 0.1
        beat = Heartbeat("boot", self.progress, age, queued, "serving", 0, (1,))
        expected = {} if self.expected is None else {"a": self.expected}
        return self.watch.look({"a": (beat, self.now)}, expected)


def test_an_item_that_grows_too_old_hangs_and_moves_again() -> None:
    stage = Stage()
    assert [stage.beat(age) for age in (0.1, 0.2, 0.3, LEAST_S)] == [[]] * 4
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
    for age in (0.1, 0.2, 0.3):
        assert stage.beat(age) == []
    stage.progress += 1
    assert stage.beat(0.85) == []
    assert stage.beat(0.95) == [Hung("a", 0.95, FACTOR * 0.3)]


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
