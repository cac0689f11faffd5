"""What is prepared for the loss of each device that serves a model, as `defer status` tells it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from defer.dispatcher.mending import Serving, devices_of_plan
from defer.dispatcher.standing import Mode
from defer.infos import StandbyInfo

if TYPE_CHECKING:
    from defer.dispatcher.questions import Foreseen
    from defer.documents.plan import Plan


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known about a model.

    Attributes:
        mode: What is to be prepared.
        serving: Its routes.
        missing: Devices that are out of reach now.
        standing: Plans that stand by and could take over now, by epoch.
        foreseen: Plans that were made, by what is lost then.
        reasons: Why one of those does not stand by.
    """

    mode: Mode
    serving: Sequence[Serving]
    missing: frozenset[str]
    standing: Mapping[int, Plan]
    foreseen: Mapping[frozenset[str], Foreseen]
    reasons: Mapping[frozenset[str], str]


def coverage(model: str, known: Prepared) -> tuple[StandbyInfo, ...]:
    """One line for each device that serves the model, sorted by name."""
    ready = [each.plan for each in known.serving if each.ready and each.plan is not None]
    devices = sorted({device for plan in ready for device in devices_of_plan(plan)})
    return tuple(_of_device(model, device, ready, known) for device in devices)


def _of_device(model: str, device: str, ready: Sequence[Plan], known: Prepared) -> StandbyInfo:
    if any(device not in devices_of_plan(plan) for plan in ready):
        return StandbyInfo(model, device, "replica")
    able = {epoch: plan for epoch, plan in known.standing.items() if device not in devices_of_plan(plan)}
    if able:
        epoch = min(able, key=lambda each: able[each].value)
        return StandbyInfo(model, device, "loaded", _stages(able[epoch]), epoch)
    lost = known.missing | {device}
    foreseen = known.foreseen.get(lost)
    if foreseen is None:
        return StandbyInfo(model, device, "planning")
    if foreseen.plan is None:
        return StandbyInfo(model, device, "impossible", reason=foreseen.problem)
    by: Literal["none", "files"] = "none" if known.mode == "none" else "files"
    return StandbyInfo(model, device, by, _stages(foreseen.plan), reason=known.reasons.get(lost, ""))


def _stages(plan: Plan) -> tuple[str, ...]:
    return tuple(stage.device for stage in plan.stages)
