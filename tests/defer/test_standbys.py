"""What stands by, as it is loaded, dropped and taken over, while the data thread may be ahead of what is known of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from defer.dispatcher import events as e
from defer.dispatcher.bringup import Order, check_standby
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.planner import Planner
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.standbys import RETRY_S, Standbys, Stood
from defer.dispatcher.tidying import Tidying
from defer.errors import AgentUnreachable, UsageError

PLAN = cast(
    Any, SimpleNamespace(order=(), batching=None, legs=(), shares=(), stages=(), transfers=(), value=1.0)
)
ORDER = Order("m", Path("m.onnx"))


class Shell:
    """A core without a thread."""

    def __init__(self) -> None:
        self.core = DispatcherCore()
        self.said: list[e.Instruction] = []

    def post(self, event: e.Event) -> None:
        self.said += self.core.handle(event, 0)

    def call(self, action: Callable[[DispatcherCore, float], object]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(action(self.core, 0))
        return future


def route(epoch: int, *devices: str) -> e.Route:
    return e.Route("m", epoch, (), (), "L", 1, devices, last=devices[-1])


class Fake:
    """Stand-bys of m, which route 1 on a serves, over deployments that only note what they are asked."""

    def __init__(self) -> None:
        self.shell = Shell()
        pool = SimpleNamespace(agents=dict)
        self.kept: list[int] = []
        self.waited: list[list[int]] = []
        self.deployments = SimpleNamespace(
            served={},
            cluster=None,
            log=SimpleNamespace(note=lambda *_a, **_k: None),
            gone=lambda epochs, _: self.waited.append(list(epochs)),
            keep_served=lambda _order, _plan, opened: self.kept.extend(made.epoch for made in opened),
            changed=lambda: None,
        )
        self.all = Standbys(cast(Any, self.deployments), cast(Any, pool), cast(Any, self.shell))
        self.shell.post(e.RouteLoaded(route(1, "a")))
        self.shell.post(e.RouteReady(1))

    def stand(self, epoch: int, *devices: str) -> None:
        self.shell.post(e.RouteLoaded(route(epoch, *devices)))
        self.all._stood[epoch] = Stood(ORDER, PLAN, cast(Any, (SimpleNamespace(epoch=epoch),)))
        self.shell.post(e.RouteStands(epoch, (), float(epoch)))


def test_what_has_taken_over_is_not_dropped_before_that_is_known() -> None:
    fake = Fake()
    fake.stand(2, "b")
    fake.stand(3, "c")
    fake.shell.post(e.DeviceLost("a", "gone"))
    assert fake.shell.core.routes.serving == {"m": (2,)}
    assert fake.all._shapes("m").keys() == {3}
    assert fake.all.clear()
    assert fake.waited == [[3]]
    assert fake.shell.core.routes.serving == {"m": (2,)}
    assert fake.shell.core.routes.by_epoch.keys() == {2}
    fake.all.took_over("m", 2)
    assert fake.kept == [2]
    assert fake.all.of("m") == {}


def test_what_takes_over_as_soon_as_it_stands_is_known() -> None:
    fake = Fake()
    fake.shell.post(e.RouteLoaded(route(2, "b")))
    made = SimpleNamespace(epoch=2)

    def stand(_order: Order, _made: object, _wanted: object, about_to: Callable[[Any], None]) -> list[Any]:
        about_to([made])
        fake.shell.post(e.RouteStands(2))
        fake.shell.post(e.DeviceLost("a", "gone"))
        fake.all.took_over("m", 2)
        return [made]

    fake.deployments.stand = stand
    assert fake.all._load(ORDER, frozenset("a"), cast(Any, SimpleNamespace(plan=PLAN)), lambda: True) == ""
    assert fake.kept == [2]
    assert fake.all.of("m") == {}


def test_a_canary_of_what_stands_by_is_no_hang_of_the_device() -> None:
    def served(device: str, seconds: float) -> SimpleNamespace:
        stages = (SimpleNamespace(device=device, seconds=seconds),)
        return SimpleNamespace(
            deployment=SimpleNamespace(plan=SimpleNamespace(method="measured", stages=stages))
        )

    deployments = SimpleNamespace(
        served={1: served("a", 0.1), 2: served("a", 4.0)}, canaries={}, standing={2}
    )
    recovery = cast(Any, SimpleNamespace(_deployments=deployments))
    assert Recovery._expected(recovery, {}) == {"a": 4.0}


def test_what_was_refused_is_tried_again_and_what_cannot_be_is_not() -> None:
    fake = Fake()
    impossible = cast(Any, SimpleNamespace(plan=None, problem="nothing holds it"))
    fake.all.bring(ORDER, {frozenset("a"): impossible}, lambda: True)
    assert fake.all.retries("m", 1e9) == (0, math.inf)

    def stand(*_: object) -> None:
        raise TimeoutError

    fake.deployments.stand = stand
    found = cast(Any, SimpleNamespace(plan=PLAN, parts=()))
    begun = time.monotonic()
    fake.all.bring(ORDER, {frozenset("a"): found}, lambda: True)
    assert fake.all.reasons("m") == {frozenset("a"): "TimeoutError"}
    times, at = fake.all.retries("m", begun)
    assert (times, at >= begun + RETRY_S) == (0, True)
    assert fake.all.retries("m", at) == (1, math.inf)
    fake.all.prune(())
    assert fake.all.retries("m", at) == (0, math.inf)


def bare(pool: object, **more: object) -> Any:
    """Deployments without what opens files and sockets."""
    found = cast(Any, object.__new__(Deployments))
    found._pool, found._switching, found.served = pool, threading.Lock(), {}
    found.standing, found._has_served = set(), set()
    for name, value in more.items():
        setattr(found, name, value)
    return found


def test_only_what_serves_for_the_same_order_is_kept() -> None:
    kept: list[int] = []
    shell = Fake().shell
    keeper = SimpleNamespace(put=lambda _order, _plan, opened: kept.append(opened[0].epoch))
    deployments = bare(None, _shell=shell, kept=keeper, orders={"m": ORDER})
    made = [SimpleNamespace(epoch=1)]
    deployments.keep_served(ORDER, PLAN, made)
    deployments.keep_served(replace(ORDER, digest="another"), PLAN, made)
    deployments.keep_served(replace(ORDER, name="n"), PLAN, made)
    deployments.keep_served(ORDER, PLAN, [SimpleNamespace(epoch=2)])
    assert kept == [1]


def test_nobody_waits_for_a_canary_through_a_device_that_is_lost() -> None:
    known = {"a": SimpleNamespace(state="alive"), "b": SimpleNamespace(state="lost")}
    deployments = bare(SimpleNamespace(liveness=known.get))
    made = SimpleNamespace(
        layout=SimpleNamespace(hops={"a": (SimpleNamespace(hop=0),), "b": (SimpleNamespace(hop=1),)})
    )
    with pytest.raises(AgentUnreachable, match="lost while"):
        deployments._require_alive(made)
    known["b"].state = "alive"
    deployments._require_alive(made)


def test_what_is_unloaded_from_service_leaves_room_and_what_stood_by_only_gives_back_its_own() -> None:
    unloader = SimpleNamespace(unload=lambda *_: None)
    deployments = bare(None, unloader=unloader, freed=0, canaries={}, sampler=SimpleNamespace(tallies={}))
    made = SimpleNamespace(deployment=SimpleNamespace(layout=SimpleNamespace(hops={})))
    deployments.served, deployments._has_served = {1: made, 2: made}, {1}
    deployments._leftover = set()
    deployments.forget(2)
    assert deployments.freed == 0
    deployments.forget(1)
    assert deployments.freed == 1


def test_what_stands_by_goes_even_where_a_load_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("defer.dispatcher.standbys.CLEAR_S", 0.01)
    fake = Fake()
    with fake.all._loading:
        assert not fake.all.clear()
        fake.stand(2, "b")
        assert fake.all.clear()
        assert fake.waited[-1] == [2]
    assert fake.all._loading.acquire(blocking=False)


def test_what_nobody_can_prepare_is_refused() -> None:
    assert [check_standby(each) for each in ("", "auto", "none")] == ["", "auto", "none"]
    with pytest.raises(UsageError) as told:
        check_standby("file")
    assert told.value.hint == "say one of auto, loaded, files, none"


def test_nothing_stands_by_in_memory_that_was_cleared_for_somebody_else() -> None:
    fake = Fake()
    fake.stand(2, "b")
    loaded: list[object] = []
    candidate = SimpleNamespace(lost=frozenset("a"), shape=1, loads={})
    fake.all._candidates = lambda *_: [candidate]  # type: ignore[method-assign, assignment, list-item, return-value]
    fake.all._load = lambda *given: loaded.append(given) or ""  # type: ignore[method-assign, assignment, func-returns-value]
    other = replace(ORDER, name="other")
    made = cast(Any, {frozenset("a"): SimpleNamespace(plan=PLAN)})
    before = fake.all.cleared
    assert fake.all.clear()
    fake.all.bring(other, made, lambda: True)
    assert loaded == []
    fake.all.resume()
    assert fake.all.cleared > before + 1  # so that it is asked for again
    fake.all.bring(other, made, lambda: True)
    assert len(loaded) == 1


def proving(
    monkeypatch: pytest.MonkeyPatch, *, unserved: bool
) -> tuple[Deployments, list[str], list[Future[Any]]]:
    """Deployments that load in no time, what they say in order, and the canaries that they send."""
    said: list[str] = []
    canaries: list[Future[Any]] = []

    def canary(epoch: int, *_: object) -> Future[Any]:
        said.append(f"canary {epoch}")
        canaries.append(Future())
        if not unserved:
            canaries[-1].set_result((None, None, 0.5))
        return canaries[-1]

    shell = SimpleNamespace(
        post=lambda event: said.append(f"{type(event).__name__} {event.epoch}"),
        open_route=lambda route, _: said.append(f"open {route.epoch}"),
        canary=canary,
    )
    made = SimpleNamespace(epoch=7, layout=SimpleNamespace(first="a"))
    monkeypatch.setattr("defer.dispatcher.raising.route_of", lambda made: route(made.epoch, "b"))
    monkeypatch.setattr("defer.dispatcher.proving.zeros", lambda _: ((), []))
    deployments = bare(
        None,
        _shell=shell,
        tidying=Tidying(Path("parts"), set),
        _switching=threading.Lock(),
        orders={"m": ORDER},
        canaries={},
        _has_served=set(),
        kept=SimpleNamespace(put=lambda *_: None),
        planner=Planner(),
    )
    for name, value in {
        "_load_route": lambda *_a, **_k: made,
        "_require_alive": lambda _: None,
        "unserved": lambda _: unserved,
    }.items():
        monkeypatch.setattr(deployments, name, value)
    return deployments, said, canaries


LEGS = cast(Any, SimpleNamespace(legs=((1.0, PLAN),)))


def test_what_takes_the_place_of_a_lost_deployment_serves_before_its_canary_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployments, said, canaries = proving(monkeypatch, unserved=True)

    def switched(_: object) -> None:
        # The canary goes first, so that what it tells is not how long others had waited.
        assert said == ["open 7", "canary 7", "RouteReady 7"]
        canaries[0].set_result((None, None, 0.25))

    assert deployments.change(ORDER, LEGS, None, lambda: True, switched=switched) is not None
    assert deployments.canaries == {7: 0.25}
    assert said[3:] == []


def test_where_its_canary_fails_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments, said, canaries = proving(monkeypatch, unserved=True)

    def switched(_: object) -> None:
        canaries[0].set_exception(AgentUnreachable("it is gone"))

    with pytest.raises(AgentUnreachable, match="canary failed"):
        deployments.change(ORDER, LEGS, None, lambda: True, switched=switched)
    assert said[3:] == ["RouteVoid 7"]


def test_what_takes_the_place_of_one_that_serves_is_proven_before(monkeypatch: pytest.MonkeyPatch) -> None:
    deployments, said, _ = proving(monkeypatch, unserved=False)
    assert deployments.change(ORDER, LEGS, None, lambda: True) is not None
    assert said == ["open 7", "canary 7", "RouteReady 7"]
    assert deployments.canaries == {7: 0.5}
    said.clear()
    assert deployments.change(ORDER, LEGS, None, lambda: False) is None
    assert said == ["open 7", "canary 7", "RouteDropped 7"]
