"""What two looks at a dispatcher, some time apart, say about the time between them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from defer.api import DeploymentInfo, ServerStatus, StageInfo

IDLE: Final = 0.02
"""A pipeline whose busiest stage is less busy than this part of the time has no bottleneck worth a name."""


@dataclass(frozen=True, slots=True)
class StageLoad:
    """A stage between two looks.

    Attributes:
        epoch: Of its deployment.
        number: Of the stage, from 1.
        device: Where it runs.
        utilisation: Part of the time in which it ran a request, 0 to 1.
        rate: Requests per second that it finished.
        run_s: Mean seconds of a run between the looks; that of all runs where there was none between them.
        bytes_out_per_s: Bytes per second that it handed on.
        queued: Requests that wait there now.
        bottleneck: Whether it is the busiest stage of its deployment, and busy at all.
    """

    epoch: int
    number: int
    device: str
    utilisation: float
    rate: float
    run_s: float
    bytes_out_per_s: float
    queued: int
    bottleneck: bool = False


def stage_loads(before: ServerStatus | None, now: ServerStatus) -> tuple[StageLoad, ...]:
    """The load of every stage, deployment by deployment, in the order of the stages.

    Args:
        before: An earlier look at the same process; without one, everything since its start counts.
        now: The later look.
    """
    known = {info.epoch: info for info in before.deployments} if before is not None else {}
    found: list[StageLoad] = []
    for info in now.deployments:
        old = known.get(info.epoch)
        seconds = now.uptime_s - before.uptime_s if before is not None and old is not None else now.uptime_s
        found += _loads(old, info, seconds)
    return tuple(found)


def _loads(old: DeploymentInfo | None, info: DeploymentInfo, seconds: float) -> Sequence[StageLoad]:
    loads = []
    for number, stage in enumerate(info.stages):
        past = old.stages[number] if old is not None and number < len(old.stages) else None
        if past is None or past.items > stage.items:  # it was loaded again, and counts anew
            past = StageInfo(stage.device, stage.start, stage.stop)
        items = stage.items - past.items
        busy = max(0.0, stage.run_s * stage.items - past.run_s * past.items)
        loads.append(
            StageLoad(
                info.epoch,
                number + 1,
                stage.device,
                # Counters of agents are read at slightly different times than the dispatcher's clock.
                min(1.0, busy / seconds) if seconds > 0 else 0.0,
                items / seconds if seconds > 0 else 0.0,
                busy / items if items else stage.run_s,
                max(0, stage.bytes_out - past.bytes_out) / seconds if seconds > 0 else 0.0,
                stage.queued,
            )
        )
    return _marked(loads)


def _marked(loads: list[StageLoad]) -> list[StageLoad]:
    busiest = max(range(len(loads)), key=lambda at: loads[at].utilisation, default=None)
    if busiest is None or loads[busiest].utilisation < IDLE:
        return loads
    loads[busiest] = replace(loads[busiest], bottleneck=True)
    return loads
