"""What the drawings of a plan say: the same words in the terminal and in the SVG."""

from __future__ import annotations

from typing import Final

from defer import units
from defer.documents.plan import Plan, PlanAccuracy, PlanStage, PlanTransfer

GOALS: Final = {
    "latency": "latency",
    "throughput": "period",
    "cost": "cost",
    "energy": "energy",
    "weighted": "weighted sum",
}
"""What each objective makes least."""

PER: Final = {
    "latency": "per request",
    "throughput": "between results",
    "cost": "per request",
    "energy": "per request",
    "weighted": "in the weighted sum",
}
"""What a value of each objective is counted by."""


def headline(plan: Plan) -> str:
    """What the plan is of, and how large."""
    everywhere = [*plan.stages, *(stage for share in plan.shares for stage in share.stages)]
    stages, devices = len(plan.stages), len({stage.device for stage in everywhere})
    routes = f", {units.show_count(len(plan.shares), 'route')}" if plan.shares else ""
    return (
        f"{plan.model}: {units.show_count(stages, 'stage')} on {units.show_count(devices, 'device')}{routes}"
    )


def verdict(plan: Plan) -> str:
    """What the plan promises, and how sure that is."""
    rate = f"{units.show_number(1 / plan.period_s)} requests/s" if plan.period_s > 0 else "∞ requests/s"
    costs = {"measured": "measured costs", "static": "static costs", "mixed": "costs partly measured"}[
        plan.method
    ]
    priced = [show_money(plan.cost)] if plan.cost else []
    priced += [units.show_energy(plan.energy_j)] if plan.energy_j else []
    facts = [
        f"{units.show_duration(plan.latency_s)} per request",
        *priced,
        f"{rate} when full",
        proof(plan),
        costs,
    ]
    return " · ".join(facts)


def proof(plan: Plan) -> str:
    """How good the plan is known to be."""
    goal = GOALS[plan.objective]
    if plan.by_hand:
        return "placed by hand"
    if plan.optimal:
        return f"least {goal}, proven"
    if plan.bound > 0:
        return f"{goal} at most {plan.value / plan.bound - 1:.1%} above the best"
    return f"{goal} not proven best"


def show_value(plan: Plan, value: float) -> str:
    """A value of the plan's objective in its unit."""
    if plan.objective in ("latency", "throughput"):
        return units.show_duration(value)
    if plan.objective == "energy":
        return units.show_energy(value)
    return show_money(value) if plan.objective == "cost" else f"{value:.4g}"


def show_money(amount: float) -> str:
    """An amount in the cluster file's currency, of which we do not know the name."""
    return f"{amount:.3g} ¤"


def gain_words(gain: float) -> str:
    """A relative gain."""
    if abs(gain) < 5e-4:
        return "none"
    return f"{gain:.1%} less" if gain > 0 else f"{-gain:.1%} more"


def bottleneck_words(plan: Plan) -> str:
    """What sets the period, and how busy it is beside the next."""
    return f"{plan.bottleneck}, busy for {units.show_duration(plan.period_s)} of every request"


def stage_facts(stage: PlanStage) -> str:
    """What a stage holds."""
    blocks = (
        f"blocks {stage.start}–{stage.stop - 1}" if stage.stop - stage.start > 1 else f"block {stage.start}"
    )
    return f"{blocks} · {units.show_flops(stage.flops)} · {units.show_size(stage.weight_bytes)} weights"


def accuracy(found: PlanAccuracy) -> str:
    """What the codecs do to the output, as it was measured."""
    what = "‖Δoutput‖₂/‖output‖₂" if found.metric == "relative" else "changed classes"
    where = "made-up requests" if found.calibration == "generated" else f"requests of {found.calibration}"
    return f"Codecs: {what} {found.error:.2%} of {found.budget:.2%} allowed, on {found.requests} {where}."


def transfer_facts(transfer: PlanTransfer) -> str:
    """What moves between two stages, and how."""
    if len(transfer.path) == 1:
        return f"{units.show_size(transfer.nbytes)} stay on {transfer.path[0]}"
    size = units.show_size(transfer.nbytes)
    if transfer.codec == "raw":
        size = f"{size} raw"
    else:
        size = f"{size} as {units.show_size(transfer.wire_bytes)} {transfer.codec}"
    via = f" via {', '.join(transfer.path[1:-1])}" if len(transfer.path) > 2 else ""
    return f"{size}{via}"


def tensor_names(transfer: PlanTransfer) -> str:
    """The tensors that move."""
    return ", ".join(transfer.tensors)


def first_tensor(transfer: PlanTransfer, most: int) -> str:
    """The first tensor that moves, in at most `most` characters or so, and how many more there are."""
    if not transfer.tensors:
        return ""
    more = f" and {len(transfer.tensors) - 1} more" if len(transfer.tensors) > 1 else ""
    return shortened(transfer.tensors[0], most - len(more)) + more


def is_bottleneck(plan: Plan, part: PlanStage | PlanTransfer) -> bool:
    """Whether this part is what sets the plan's period."""
    if isinstance(part, PlanStage):
        return plan.bottleneck == f"device {part.device}"
    hops = set(zip(part.path, part.path[1:], strict=False))
    if any(plan.bottleneck == f"link {source} -> {target}" for source, target in hops):
        return True
    shared = {(link.source, link.target): link.medium for link in plan.link_loads if link.medium}
    return any(plan.bottleneck == f"medium {shared[hop]}" for hop in hops if hop in shared)


def shortened(text: str, most: int) -> str:
    """At most `most` characters, cut in the middle: both ends of a tensor's or device's name say something."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
