"""Versions of one model side by side: which of them a request without a version takes. Pure.

A version is a deployment of its own, called `name@version`. A `Split` says what `name` alone stands for: a stable
version, beside it perhaps a new one that gets a share of the requests, and the one before, to which a rollback leads.

    deploy @2 ──▶ canary @2, 10 % ──▶ promote ──▶ @2 stable, @1 before ──▶ rollback ──▶ @1 alone
                        └── rollback ──▶ @1 alone
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import msgspec

from defer.errors import UnknownModel, UsageError
from node_agent.quantities import NAME_RULE, is_name

AT = "@"

TAKEN: Final = "stats"
"""No model's name: the Open Inference Protocol answers `/v2/models/stats` with the statistics of all models."""


class Split(msgspec.Struct, frozen=True):
    """What a model's name without a version stands for.

    Attributes:
        name: The name.
        stable: Deployment that requests take; the name itself where that was deployed without a version, empty where
            that has gone and only versions are left.
        canary: Deployment that is tried; empty for none.
        share: Part of the requests that takes it, 0 to 1.
        before: What was stable before; empty for none.
    """

    name: str
    stable: str
    canary: str = ""
    share: float = 0.0
    before: str = ""


def versioned(name: str, version: str) -> str:
    """The name of a deployment from a model's name and a version, which may be empty.

    Names go into logs, URLs and labels of metrics, so that models and versions are called as devices are.

    Raises:
        UsageError: One of them is no name.
    """
    if not is_name(name):
        at = "; a version is said with --version" if AT in name else ""
        raise UsageError(f"a model cannot be called {name!r:.80}", hint=NAME_RULE + at)
    if name == TAKEN:
        why = f"GET /v2/models/{TAKEN} of the gateway tells statistics of all models"
        raise UsageError(f"a model cannot be called {name!r}: {why}", hint="give it another name with --name")
    if version and not is_name(version):
        raise UsageError(f"a version cannot be called {version!r:.80}", hint=NAME_RULE)
    return f"{name}{AT}{version}" if version else name


def check_name(deployment: str) -> None:
    """Check the name of a deployment that is to be made.

    Raises:
        UsageError: It is malformed.
    """
    name, at, version = deployment.partition(AT)
    if at and not version:
        raise UsageError(f"{deployment!r:.80} names no version", hint="say NAME, or NAME@VERSION")
    versioned(name, version)


def check_share(share: float) -> None:
    """Check a part of the requests.

    Raises:
        UsageError: It is not between 0 and 1, or no number.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"a share of {share:g} is not between 0 and 1", hint="write 10% or 0.1")


def show_share(share: float) -> str:
    """A part of the requests for people."""
    return "all requests" if share >= 1 else f"{100 * share:.4g}% of the requests"


def unversioned(deployment: str) -> str:
    """A deployment as it is called; `NAME@` says of NAME that the one without a version is meant."""
    return deployment.removesuffix(AT)


def alone(deployment: str) -> str:
    """What to call one deployment so that no other of its model is meant."""
    return deployment if AT in deployment else deployment + AT


def base_of(deployment: str) -> str:
    """The model's name without its version."""
    return deployment.partition(AT)[0]


def named(name: str, which: str) -> str:
    """The deployment that is meant by a version, or by its whole name."""
    return which if which == name or which.startswith(name + AT) else f"{name}{AT}{which}"


# ---------------------------------------------------------------------------------------------------- operations


def canary(split: Split, deployment: str, share: float, served: Collection[str]) -> Split:
    """Let a part of the requests take another version.

    Args:
        split: As it is.
        deployment: The version to try.
        share: Part of the requests, 0 to 1.
        served: Deployments that are there.

    Raises:
        UsageError: It is stable already, nothing is, or the share is none.
        UnknownModel: It is not deployed.
    """
    if not split.stable:
        raise UsageError(f"requests for {split.name} take no version yet", hint=_which(split.name))
    _check(deployment, split.name, served)
    if deployment == split.stable:
        raise UsageError(f"{deployment} is what {split.name} stands for already")
    check_share(share)
    return msgspec.structs.replace(split, canary=deployment, share=share)


def promote(split: Split, deployment: str, served: Collection[str]) -> Split:
    """Make a version the stable one; the one before stays loaded, for a rollback.

    Args:
        split: As it is.
        deployment: Which version; empty for the one that is tried.
        served: Deployments that are there.

    Raises:
        UsageError: None is tried and none was named, or it is stable already.
        UnknownModel: It is not deployed.
    """
    chosen = deployment or split.canary
    if not chosen:
        raise UsageError(f"no version of {split.name} is being tried", hint=_which(split.name))
    _check(chosen, split.name, served)
    if chosen == split.stable:
        raise UsageError(f"{chosen} is what {split.name} stands for already")
    return Split(split.name, chosen, before=split.stable)


def rollback(split: Split, served: Collection[str]) -> Split:
    """End what is tried; where nothing is, make the version before the stable one again.

    The version that it leads away from stays loaded and is no version before: another rollback does not lead there.

    Raises:
        UsageError: There is nothing to go back to.
        UnknownModel: The version before is not deployed any more.
    """
    if split.canary:
        return msgspec.structs.replace(split, canary="", share=0.0)
    if not split.before:
        what = f"{split.name} has no version before {split.stable}"
        what = what if split.stable else f"requests for {split.name} take no version yet"
        raise UsageError(what, hint=_which(split.name))
    _check(split.before, split.name, served)
    return Split(split.name, split.before)


def without(split: Split, deployment: str, served: Collection[str] = ()) -> Split | None:
    """The split when a deployment is gone; None where nothing is left of it.

    Args:
        split: As it is.
        deployment: What goes.
        served: Deployments that are there.

    Raises:
        UsageError: The deployment is what the name stands for, and others are beside it.
    """
    if deployment == split.stable:
        if (
            split.canary
            or split.before
            or any(base_of(each) == split.name for each in served if each != deployment)
        ):
            raise UsageError(
                f"requests for {split.name} take {deployment}",
                hint=f"promote or roll back to another version first, or undeploy {split.name} with all its versions",
            )
        return None
    gone = {key: "" for key in ("canary", "before") if getattr(split, key) == deployment}
    left: Split = msgspec.structs.replace(split, **gone)
    return msgspec.structs.replace(left, share=left.share if left.canary else 0.0)


def _which(name: str) -> str:
    return f"say which version: `defer rollout promote {name} VERSION`"


def _check(deployment: str, name: str, served: Collection[str]) -> None:
    if deployment not in served:
        mine = ", ".join(sorted(each for each in served if base_of(each) == name)) or "none"
        raise UnknownModel(
            f"no {deployment!r:.80} is deployed; versions of {name}: {mine}",
            hint=f"deploy it first: `defer deploy MODEL.onnx --name {name} --version VERSION`",
        )


# ------------------------------------------------------------------------------------------------- per request


@dataclass(slots=True)
class Splits:
    """The splits of one dispatcher, by name."""

    by_name: dict[str, Split] = field(default_factory=dict)
    _due: dict[str, float] = field(default_factory=dict)

    def put(self, split: Split) -> None:
        """From now on a name stands for this."""
        self.by_name[split.name] = split
        self._due[split.name] = 0.0

    def drop(self, name: str) -> None:
        """The name stands for nothing but a deployment of that name."""
        self.by_name.pop(name, None)
        self._due.pop(name, None)

    def only(self, served: Collection[str]) -> str:
        """The name that a request without one means, where all that is served are versions of one model; else empty."""
        bases = {base_of(each) for each in served}
        return bases.pop() if len(bases) == 1 and bases <= self.by_name.keys() else ""

    def choose(self, model: str, takes: Callable[[str], bool]) -> str:
        """The deployment that a request takes.

        Shares come out exactly: of 10 requests in a row with a share of 10 %, one takes the version that is tried.

        Args:
            model: What the request names.
            takes: Whether a deployment is ready and takes what the request brings; asked of the one that is tried.
        """
        split = self.by_name.get(model)
        if split is None:
            return model
        if split.canary:
            due = self._due[model] + split.share
            # Shares like 0.1 do not add up to 1 in binary.
            if due >= 1 - 1e-9:
                if takes(split.canary):
                    self._due[model] = due - 1
                    return split.canary
                due = 1 - split.share  # the next request is for it
            self._due[model] = due
        return split.stable
