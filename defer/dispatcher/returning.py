"""Brings back what an earlier process served: each model as soon as its own agents are there. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from defer.api import ModelInfo
from defer.dispatcher.mending import where_it_runs
from defer.dispatcher.report import Served
from defer.dispatcher.store import KeptModel
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan


@dataclass(frozen=True, slots=True)
class Back:
    """A model of an earlier process, after the start.

    Attributes:
        info: How it is now.
        on: Where it runs, in words; empty where it does not.
        as_before: Whether it is what was served before.
        without: Devices that did not answer.
    """

    info: ModelInfo
    on: str = ""
    as_before: bool = True
    without: tuple[str, ...] = ()

    def told(self) -> str:
        """One sentence for people."""
        reason = f": {self.info.reason}" if self.info.reason else ""
        reason += self._split()
        if self.info.state != "ready":
            return f"model {self.info.name} is not ready{reason}"
        if self.as_before:
            return f"model {self.info.name} is ready as before{reason}"
        where = f" on {self.on}" if self.on else ""
        why = f", without {', '.join(self.without)}" if self.without else ""
        return f"model {self.info.name} is ready{where}{why}{reason}"

    def _split(self) -> str:
        """What its requests take, where that is not just the deployment of its name."""
        info = self.info
        takes = f"; its requests take {info.stable}" if info.stable not in ("", info.name) else ""
        return (
            f"{takes}; {100 * info.share:.4g}% of its requests take {info.canary}" if info.canary else takes
        )


def backs(
    infos: Iterable[ModelInfo], served: Iterable[Served], postponed: Mapping[str, tuple[str, ...]]
) -> tuple[Back, ...]:
    """What has become of models.

    Args:
        infos: How they are.
        served: What agents hold, the latest last.
        postponed: Those that did not come back as they were, each with the devices that did not answer.
    """
    plans: dict[str, list[Plan]] = {}
    for each in served:
        plans.setdefault(each.deployment.model, []).append(each.deployment.plan)

    def back(info: ModelInfo) -> Back:
        name = info.stable or info.name
        on = where_it_runs(*plans.get(name, ()))
        return Back(info, on, name not in postponed, postponed.get(name, ()))

    return tuple(back(info) for info in infos)


def summary(back: Collection[Back]) -> str:
    """What there is, in a few words."""
    ready = sum(each.info.state == "ready" for each in back)
    if ready < len(back):
        return "no model is back yet" if not ready else f"{ready} of {len(back)} models"
    return "as before" if all(each.as_before for each in back) else "not on the same devices as before"


def devices_of_kept(kept: KeptModel) -> frozenset[str]:
    """Devices that a deployment was served on."""
    return frozenset(device for route in kept.routes for device in route.hops)


def lacking(devices: Collection[str], cluster: Cluster) -> str:
    """Why a model is not back: its devices that did not answer, apart from those that the cluster has no more."""
    here = {device.name for device in cluster.agents}
    gone, quiet = [each for each in devices if each not in here], [each for each in devices if each in here]
    reasons = [f"the cluster has no {', '.join(gone)} any more"] if gone else []
    reasons += [f"no answer from {', '.join(quiet)}"] if quiet else []
    return "; ".join(reasons)


def bring_back(
    models: Iterable[KeptModel],
    missing: Callable[[Collection[str]], tuple[str, ...] | None],
    wait: Callable[[], object],
    restore: Callable[[KeptModel, tuple[str, ...]], None],
    give_up: Callable[[KeptModel, tuple[str, ...]], None],
    late: Callable[[], bool],
) -> None:
    """Restore every model, or give it up; one that lacks an agent holds up no other.

    Args:
        models: Deployments of an earlier process.
        missing: Which of some devices do not answer; None while that is not known.
        wait: Called while it is not; returns when more may be known.
        restore: Serves a model; told which devices of routes that it can do without do not answer.
        give_up: Told of a model, and which devices do not answer: each of its routes needs one of them.
        late: Whether who has not answered yet is waited for no longer where a route can do without.
    """
    left = list(models)
    while left:
        for kept in tuple(left):
            absent = missing(devices_of_kept(kept))
            if absent is None and late():
                absent = _without_late(kept, missing)
            if absent is None:
                continue
            left.remove(kept)
            if absent and all(not route.hops.keys().isdisjoint(absent) for route in kept.routes):
                give_up(kept, absent)
            else:
                restore(kept, absent)
        if left:
            wait()


def _without_late(
    kept: KeptModel, missing: Callable[[Collection[str]], tuple[str, ...] | None]
) -> tuple[str, ...] | None:
    """Devices that have not answered, or will not; None where every route needs one of them."""
    if all(missing(route.hops.keys()) != () for route in kept.routes):
        return None
    return tuple(sorted(device for device in devices_of_kept(kept) if missing([device]) != ()))
