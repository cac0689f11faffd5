from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from defer.dispatcher import ahead
from defer.dispatcher.ahead import Ahead
from defer.dispatcher.questions import Foreseen
from defer.dispatcher.tidying import Tidying
from defer.errors import AgentFault
from node_agent.messages import FileRef

ONE, TWO, SHARED = (FileRef(letter * 64, 8) for letter in "abc")
WANTED = frozenset({frozenset({"box"})})


def foreseen(*stages: tuple[str, FileRef]) -> Any:
    """A plan whose stages each have a file of their own and one that all need."""
    plan = SimpleNamespace(stages=[SimpleNamespace(device=device) for device, _ in stages])
    parts = [SimpleNamespace(files={file: Path("one"), SHARED: Path("shared")}) for _, file in stages]
    return SimpleNamespace(plan=plan, written=lambda _: parts)


class Shipped:
    """Takes the place of `ship`."""

    def __init__(self) -> None:
        self.files: dict[str, set[FileRef]] = {}
        self.refuses = ""
        self.during: Callable[[], object] = lambda: None

    def __call__(
        self, _: Any, device: str, files: dict[FileRef, Path], *, on_sent: Callable[[int], None], gently: bool
    ) -> int:
        assert gently  # nobody waits for it, and others do for the link
        if device == self.refuses:
            raise AgentFault("its disk is full")
        for file in files:
            self.files.setdefault(device, set()).add(file)
            self.during()
            on_sent(file.nbytes)
        return len(files)


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Shipped:
    made = Shipped()
    monkeypatch.setattr(ahead, "ship", made)
    return made


@pytest.fixture
def plans() -> Any:
    made = Ahead(SimpleNamespace(parts=Path("parts")), SimpleNamespace())  # type: ignore[arg-type]
    made._asked["model"] = WANTED
    yield made
    made.close()


ORDER: Any = SimpleNamespace(name="model")
MADE = [foreseen(("a", ONE), ("b", TWO)), SimpleNamespace(plan=None), foreseen(("b", ONE))]


def test_agents_get_what_any_of_the_plans_would_load(plans: Ahead, shipped: Shipped) -> None:
    plans._bring(ORDER, WANTED, MADE)
    assert shipped.files == {"a": {ONE, SHARED}, "b": {ONE, TWO, SHARED}}


def test_an_agent_that_takes_nothing_keeps_nothing_from_the_others(plans: Ahead, shipped: Shipped) -> None:
    shipped.refuses = "a"
    plans._bring(ORDER, WANTED, MADE)
    assert shipped.files == {"b": {ONE, TWO, SHARED}}


def test_nothing_more_is_brought_when_something_else_is_wanted(plans: Ahead, shipped: Shipped) -> None:
    shipped.during = lambda: plans._asked.update(model=frozenset())
    plans._bring(ORDER, WANTED, MADE)
    assert sum(map(len, shipped.files.values())) == 1


def test_nothing_more_is_brought_when_the_dispatcher_stops(plans: Ahead, shipped: Shipped) -> None:
    shipped.during = plans.stop
    plans._bring(ORDER, WANTED, MADE)
    assert sum(map(len, shipped.files.values())) == 1


def kept_ahead(monkeypatch: pytest.MonkeyPatch, mode: str) -> tuple[list[frozenset[str]], list[str]]:
    """What is planned for in the background under a mode, and what is done with it."""
    done: list[str] = []
    standbys = SimpleNamespace(bring=lambda *_: done.append("loaded"))
    deployments = SimpleNamespace(tidying=Tidying(Path("parts"), set))
    made = Ahead(deployments, SimpleNamespace(), standbys)  # type: ignore[arg-type]
    monkeypatch.setattr(ahead, "SETTLE_S", 0.0)
    monkeypatch.setattr(made, "_ask", lambda *_a, **_k: (Foreseen(),))
    monkeypatch.setattr(made, "_bring", lambda *_: done.append("brought"))
    order: Any = SimpleNamespace(name="model", standby_mode=mode, plan=None, batching=None)
    made.want(order, frozenset(), frozenset({"box"}))
    made._worker.shutdown(wait=True)
    made.close()
    return list(made.known(order)), done


@pytest.mark.parametrize(
    ("mode", "done"), [("none", []), ("files", ["brought"]), ("auto", ["brought", "loaded"])]
)
def test_plans_are_made_in_every_mode_and_brought_as_it_says(
    mode: str, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_ahead(monkeypatch, mode) == ([frozenset({"box"})], done)


def test_a_plan_from_before_the_costs_changed_is_better_than_none() -> None:
    made = Ahead(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    first, again, other = (
        SimpleNamespace(name="m", model=model, digest="d", plan=None, batching=None) for model in "aab"
    )
    lost, plan = frozenset({"box"}), Foreseen(SimpleNamespace(batching=None))  # type: ignore[arg-type]
    made._keep(first, {lost: plan, frozenset({"b"}): Foreseen()})  # type: ignore[arg-type]
    assert made.find(again, lost) is plan  # type: ignore[arg-type]
    assert made.known(again) == {}  # type: ignore[arg-type]
    assert made.find(again, frozenset({"b"})) is None  # type: ignore[arg-type]
    made._keep(first, {lost: Foreseen()})  # type: ignore[arg-type]
    assert made.find(again, lost) is plan, "what was planned for an order before comes too late"  # type: ignore[arg-type]
    made.forget(again, lost)  # type: ignore[arg-type]
    assert made.find(again, lost) is None, "it could not be loaded"  # type: ignore[arg-type]
    made._keep(again, {lost: plan})  # type: ignore[arg-type]
    assert made.find(other, lost) is None  # type: ignore[arg-type]
    made.close()
