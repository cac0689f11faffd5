"""After a restart: what the command line still asks for, beside what was deployed and promoted since."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from defer.api import ModelInfo
from defer.cli.state_options import still_asked
from defer.dispatcher import restoring
from defer.dispatcher.bringup import Order
from defer.dispatcher.commanded import Commanded, commanded
from defer.dispatcher.restoring import digest_of, received, with_its_objective
from defer.dispatcher.returning import Back
from defer.dispatcher.rollout import Split
from defer.dispatcher.rollouts import Rollouts
from defer.documents.plan import PlanBatching
from defer.errors import UnknownModel, UsageError
from defer.gateway.backend import LocalBackend

ORDER = Order("m", Path("m.onnx"), source="serve", digest="one")
SERVED = received(ORDER, "")
DEPLOYED = received(Order("m", Path("upload"), digest="two"), "one")
PROMOTED = Split("m", "m@2", before="m")


def test_what_is_served_is_taken_over() -> None:
    assert commanded(ORDER, None, None, ()) == Commanded(load=True)
    assert commanded(ORDER, SERVED, None, ("m",)) == Commanded(load=False)
    assert commanded(replace(ORDER, digest="other"), SERVED, None, ("m",)) == Commanded(load=True)


def test_what_was_promoted_stays_with_what_a_rollback_leads_to() -> None:
    assert commanded(ORDER, SERVED, PROMOTED, ("m", "m@2")) == Commanded(load=False)
    # After a stop in order, what the command line had asked for is kept nowhere.
    found = commanded(ORDER, None, PROMOTED, ("m@2",))
    assert found.load
    assert "requests for m take m@2" in found.told


def test_what_nothing_leads_to_any_more_is_not_loaded() -> None:
    found = commanded(ORDER, None, Split("m", "m@2"), ("m@2",))
    assert not found.load
    assert "not loaded; `defer deploy m.onnx --name m --version VERSION`" in found.told
    assert commanded(ORDER, None, Split("m", "m@2"), ()) == Commanded(load=True), "m@2 is gone"


def test_what_was_deployed_over_the_command_lines_stays() -> None:
    found = commanded(ORDER, DEPLOYED, None, ("m",))
    assert not found.load
    assert "replaced by a deploy on 20" in found.told
    assert "`defer deploy m.onnx --name m` brings it back" in found.told
    third = received(Order("m", Path("upload"), digest="three"), "one")
    assert not commanded(ORDER, third, None, ("m",)).load
    assert commanded(replace(ORDER, digest="other"), DEPLOYED, None, ("m",)) == Commanded(load=True)
    alone = received(Order("m", Path("upload"), digest="two"), "")
    assert commanded(ORDER, alone, None, ("m",)) == Commanded(load=True), "it asks for the first time"


def test_when_and_by_whom_says_nothing_about_what_is_asked_for(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    order = Order("m", model)
    assert digest_of(received(replace(order, source="serve", digest="x"), "")) == digest_of(order)
    os.utime(model, ns=(1, 1))
    assert digest_of(order) != digest_of(replace(order, objective="cost"))


def test_an_option_that_came_later_leaves_orders_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dispatcher that is started with a newer version takes over what it served."""
    monkeypatch.setattr(restoring, "_asked", lambda _: "x")
    before = "881db3fd2a2ea7d77f10adeceab8abaa497cb872a0a3b017262e1bc4aef78ef0"
    assert digest_of(Order("m", Path("m"))) == before
    assert digest_of(Order("m", Path("m"), objective="throughput", replicas=True)) != before


def test_an_order_that_brings_a_plan_takes_its_objective() -> None:
    plan = cast(Any, SimpleNamespace(objective="throughput"))
    assert with_its_objective(Order("m", Path("m"), plan=plan, given=True)).objective == "throughput"
    assert with_its_objective(Order("m", Path("m"), objective="cost")).objective == "cost"
    plan.objective = "weighted"  # its weights are the plan's own
    assert with_its_objective(Order("m", Path("m"), plan=plan, given=True)).objective == "latency"


def test_other_batching_over_http_counts_as_a_deploy(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    done: list[Order] = []
    deployments = SimpleNamespace(
        orders={"m": replace(SERVED, model=model)}, bring_up=lambda order, _: done.append(order)
    )
    backend = LocalBackend(cast(Any, SimpleNamespace(deployments=deployments)))
    asyncio.run(backend.load("m", None, PlanBatching(sizes=(4,))))
    asyncio.run(backend.load("m", None))
    assert [(each.source, each.digest) for each in done] == [("deploy", ""), ("serve", "one")]


def rollouts(*splits: Split) -> Rollouts:
    made = Rollouts(
        cast(Any, SimpleNamespace(post=lambda _: None)),
        cast(Any, SimpleNamespace(commit=lambda _: None)),
        cast(Any, SimpleNamespace(note=lambda *_, **__: None)),
    )
    made.load(splits)
    return made


def test_a_deployment_without_a_version_goes_alone_when_nothing_is_routed_to_it() -> None:
    served = ("m", "m@2", "n")
    made = rollouts(PROMOTED)
    assert made.leave("m@", served) == ["m"]
    assert made.split("m") == Split("m", "m@2")
    with pytest.raises(UnknownModel):
        made.leave("m@", ("m@2", "n"))
    with pytest.raises(UsageError, match="requests for m take m"):
        rollouts(Split("m", "m", "m@2", 0.5)).leave("m@", served)
    assert made.leave("n@", served) == ["n"]
    assert rollouts(PROMOTED).leave("m", served) == ["m", "m@2"], "a name alone means all of them"
    assert rollouts().leave("m", served) == ["m", "m@2"], "also where nothing was decided about them"
    assert rollouts().leave("m", ("m@2", "n")) == ["m@2"], "also where the one without a version has gone"
    assert rollouts().leave("m@2", served) == ["m@2"]
    assert rollouts().leave("m@", served) == ["m"]
    with pytest.raises(UnknownModel, match="no model 'm' without a version is served; served: m@2, n"):
        rollouts().leave("m@", ("m@2", "n"))


def test_versions_without_a_stable_one_are_shown_and_can_be_promoted() -> None:
    made, served = rollouts(), ("m@1", "m@2", "n")
    assert made.roll("m", "show", "", 0.0, served) == Split("m", "")
    with pytest.raises(UsageError, match="take no version yet"):
        made.roll("m", "canary", "2", 0.1, served)
    assert made.split("m") is None
    assert made.roll("m", "promote", "1", 0.0, served) == Split("m", "m@1")
    with pytest.raises(UnknownModel, match="no model 'o' is served; served: m, n"):
        made.roll("o", "show", "", 0.0, served)


def test_a_name_whose_versions_are_gone_can_be_deployed_again() -> None:
    made = rollouts(PROMOTED)
    with pytest.raises(UsageError, match="would get none"):
        made.check("m", ("m", "m@2"))
    made.check("m", ())
    made.deployed("m", ("m",))
    assert made.split("m") == Split("m", "m")


@pytest.mark.parametrize(
    ("split", "gone"),
    [(Split("old", "old@2", before="old"), "old@"), (Split("old", "old", "old@2"), "old"), (None, "old@")],
)
def test_another_model_of_the_command_line_leaves_promoted_versions_alone(
    split: Split | None, gone: str
) -> None:
    taken: list[str] = []
    told: list[str] = []
    orders = {"old": replace(SERVED, name="old"), "old@2": Order("old@2", Path("upload"))}
    deployments = SimpleNamespace(
        rollouts=rollouts(*filter(None, [split])),
        orders=orders,
        asked={},
        take_down=lambda name, _: taken.append(name),
        log=SimpleNamespace(note=lambda kind, *_, **__: told.append(kind)),
    )
    assert still_asked(cast(Any, deployments), ORDER) == Commanded(load=True)
    assert taken == [gone]
    assert told == []
    assert deployments.asked == {"m": "one"}


def test_a_name_that_stands_for_a_version_is_told_as_that() -> None:
    promoted = Back(ModelInfo("m", "ready", stable="m@2"))
    assert promoted.told() == "model m is ready as before; its requests take m@2"
    tried = Back(ModelInfo("m", "ready", stable="m", canary="m@2", share=0.5))
    assert tried.told() == "model m is ready as before; 50% of its requests take m@2"
