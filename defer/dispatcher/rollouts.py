"""The versions of a dispatcher's models: keeps the splits, and tells the data path of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Literal

from defer.dispatcher import events as e
from defer.dispatcher import rollout as r
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.shell import DataShell
from defer.dispatcher.store import SplitDropped, SplitKept
from defer.errors import DeferError, UnknownModel, UsageError
from defer.event_log import EventLog

logger = logging.getLogger("defer.dispatcher")

Action = Literal["show", "canary", "promote", "rollback"]


class Rollouts:
    """What each model's name stands for; safe to use from several threads.

    Args:
        shell: The data thread.
        keeper: Where splits are kept.
        log: Told of every change.
    """

    def __init__(self, shell: DataShell, keeper: Keeper, log: EventLog) -> None:
        self._shell, self._keeper, self._log = shell, keeper, log
        self._splits: dict[str, r.Split] = {}
        self._lock = threading.RLock()

    def load(self, splits: Collection[r.Split]) -> None:
        """Take over from an earlier process."""
        for split in splits:
            self._splits[split.name] = split
            self._shell.post(e.SplitSet(split))

    def split(self, name: str) -> r.Split | None:
        """What a name stands for; None where it has no versions."""
        with self._lock:
            return self._splits.get(name)

    def check(self, deployment: str, served: Collection[str]) -> None:
        """Check the name of a deployment that is to be made.

        Raises:
            UsageError: It is malformed, or hidden by versions of the same name that are served.
        """
        r.check_name(deployment)
        split = self.split(deployment)
        if split is not None and split.stable != deployment and split.stable in served:
            raise UsageError(
                f"requests for {deployment} take {split.stable}, so that a deployment without a version would get none",
                hint="deploy it with --version VERSION, and promote that",
            )

    def deployed(self, deployment: str, served: Collection[str]) -> None:
        """A deployment is served: the first version of a model is what its name stands for."""
        name = r.base_of(deployment)
        with self._lock:
            split = self._splits.get(name)
            if split is not None and name == deployment and split.stable not in served:
                self._set(r.Split(name, name), f"{name} stands for itself: {split.stable} is gone")
            if name != deployment and name not in self._splits and name not in served:
                self._set(r.Split(name, deployment), f"{name} stands for {deployment}")

    def beside(self, deployment: str, served: Collection[str]) -> str:
        """The stable version of the model that a version is, or is to be, of; empty where there is none."""
        name, at, _ = deployment.partition(r.AT)
        if not at:
            return ""
        split = self.split(name)
        stable = name if split is None else split.stable
        return stable if stable in served else ""

    def leave(self, name: str, served: Collection[str]) -> list[str]:
        """A deployment, or a model with all its versions, is to go; returns the deployments that go.

        `NAME@` is the deployment without a version, alone.

        Raises:
            UsageError: A share was decided, requests without a version take it, and there are others.
            UnknownModel: There is no such thing.
        """
        with self._lock:
            # Also where nothing was decided about the versions, or the one without a version has gone alone.
            mine = [each for each in served if r.base_of(each) == name]
            if mine:
                if name in self._splits:
                    self._drop(name)
                return mine
            what, name = name, r.unversioned(name)
            if name not in served:
                known = ", ".join(sorted(served)) or "none"
                which = "" if what == name else " without a version"
                raise UnknownModel(f"no model {name!r:.80}{which} is served; served: {known}")
            split = self._splits.get(r.base_of(name))
            if split is not None:
                left = r.without(split, name, served)
                if left is None:
                    self._drop(split.name)
                elif left != split:
                    self._set(left, f"{name} goes, and {split.name} goes on without it")
            return [name]

    def roll(self, name: str, action: Action, which: str, share: float, served: Collection[str]) -> r.Split:
        """Change, or show, what a model's name stands for.

        Args:
            name: The model's name.
            action: What to do; see `rollout`.
            which: A version, or a deployment's whole name; may be empty where `rollout` says so.
            share: Part of the requests for a canary.
            served: Deployments that are there.

        Raises:
            UsageError: It cannot be done; says why.
            UnknownModel: There is no such model, or no such version of it.
        """
        deployment = r.named(name, which) if which else ""
        with self._lock:
            bases = {r.base_of(each) for each in served}
            split = self._splits.get(name)
            if split is None and name in bases:
                split = r.Split(name, name if name in served else "")
            if split is None:
                known = ", ".join(sorted(bases)) or "none"
                raise UnknownModel(f"no model {name!r:.80} is served; served: {known}")
            match action:
                case "show":
                    return split
                case "canary":
                    changed = r.canary(split, deployment, share, served)
                    told = (
                        f"{r.show_share(share)} for {name} take {changed.canary}, the others {changed.stable}"
                    )
                case "promote":
                    changed = r.promote(split, deployment, served)
                    before = f", before that {changed.before}" if changed.before else ""
                    told = f"requests for {name} take {changed.stable} from now on{before}"
                case "rollback":
                    changed = r.rollback(split, served)
                    told = f"requests for {name} take {changed.stable} again"
            self._set(changed, told)
            return changed

    def _set(self, split: r.Split, told: str) -> None:
        """Keep a split before it counts, so that a restart does not undo what an operator saw done."""
        self._keeper.commit((SplitKept(split),))
        self._splits[split.name] = split
        self._shell.post(e.SplitSet(split))
        self._log.note("rollout", told, model=split.name)

    def _drop(self, name: str) -> None:
        del self._splits[name]
        self._shell.post(e.SplitForgotten(name))
        try:
            self._keeper.commit((SplitDropped(name),))
        except DeferError as error:
            logger.error("what %s stood for is still kept: %s", name, error)
