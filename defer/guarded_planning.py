"""The best plan whose codecs, all together, keep the output within an error budget.

What each codec does at each boundary is measured first. Errors of several codecs hardly ever point the same way, so
their squares add up, not they; that is a guess which the end-to-end check of every candidate corrects.

For throughput the router finds cuts and codecs together under such a sum, and proves how near to the best they are
(`router.solver`), where the cluster is of few kinds of devices; what the sum may be, so that a check finds no more than
the budget, is looked for between one that passed and one that failed.
Otherwise candidates come from shares of the budget: with the whole budget for each transfer the plan is the fastest and
mostly too inaccurate; its stages are kept while its codecs are chosen anew under the budget (`defer.codec_choice`); then
the same with smaller shares, as long as what they allow could still be better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

import router
from defer.accuracy import Arrays, Budget
from defer.block_runner import BlockRunner
from defer.calibration import generated, load
from defer.codec_costs import Errors
from defer.codec_errors import OnStep, error_table, plan_error
from defer.costs import make_costs
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan, PlanAccuracy, PlanAdvice
from defer.documents.profile import CostProfile
from defer.errors import MissingExtra, NoRoute
from defer.parts import bound_inputs
from defer.planning import Placement, goal_of, in_our_words, make_plan, recode_plan
from defer.wishes import NO_LIMITS, NO_RULES, Limits, Rules, check_wishes
from node_agent.errors import EngineMissingError
from partitioner import BlockChain

SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
"""Parts of the budget that a single transfer may use."""

TIGHTENINGS = 4
"""How often the codecs of one split are chosen anew because the check found more than the errors promised."""

MARGIN = 0.97
"""Aimed at, so that the next check does not fail by a hair."""

LOOKS = 7
"""How many plans are found and checked where cuts and codecs are found together."""

WORTH = 0.01
"""A plan that gains less over the one that keeps the budget is not checked."""

NEAR = 1.05
"""Within this multiple of what is proved to be the least, a plan is not looked for in other ways."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for; see `make_plan`."""

    objective: Objective = "latency"
    max_stages: int | None = None
    placement: Placement | None = None
    codec: str | None = None
    limits: Limits = NO_LIMITS
    rules: Rules = NO_RULES
    advice: bool = False


def plan_on_calibration(
    model: Path,
    chain: BlockChain,
    cluster: Cluster,
    profile: CostProfile,
    budget: Budget,
    wish: Wish,
    *,
    calibration: Path | None,
    parts: Path,
    on_step: OnStep | None = None,
) -> Plan:
    """`plan_within` for a model's file: loads its blocks here and the calibration requests.

    Args:
        model: The ONNX file.
        chain: The blocks to plan with.
        cluster: Devices and links.
        profile: What was measured.
        budget: How far the output may move.
        wish: Objective, and what the operator decided.
        calibration: An .npz file; None makes requests up.
        parts: Directory for the blocks' files.
        on_step: Told of progress.

    Raises:
        MissingExtra: ONNX Runtime is not installed here.
        NoRoute, WrongInput, FileMissing: See `plan_within` and `defer.calibration`.
    """
    specs = bound_inputs(chain)
    inputs = load(calibration, specs) if calibration is not None else generated(specs)
    try:
        with BlockRunner(model, chain, parts) as runner:
            name = calibration.name if calibration is not None else "generated"
            return plan_within(runner, cluster, profile, budget, inputs, name, wish, on_step)
    except EngineMissingError as error:
        raise MissingExtra(
            "an error budget is checked with ONNX Runtime on this machine, which does not have it",
            hint="pip install 'defer-edge[cpu]'",
        ) from error


def plan_within(
    runner: BlockRunner,
    cluster: Cluster,
    profile: CostProfile,
    budget: Budget,
    inputs: Sequence[Arrays],
    calibration: str,
    wish: Wish,
    on_step: OnStep | None = None,
) -> Plan:
    """The best plan found that keeps the budget, checked end to end.

    Args:
        runner: The blocks that are planned with.
        cluster: Devices and links.
        profile: What was measured; codecs that it does not have are not used.
        budget: How far the output may move.
        inputs: Calibration requests.
        calibration: Where they come from, for the plan.
        wish: Objective, and what the operator decided.
        on_step: Told of progress.

    Raises:
        NoRoute: No plan can exist, or none with the codec that the operator named keeps the budget.
    """
    table = error_table(runner, inputs, profile.codecs, budget, on_step)
    search = _Search(runner.chain, cluster, profile, budget, table, wish)

    def check(plan: Plan) -> float:
        # With replicas a request takes one of several routes, and each keeps the budget.
        return max(plan_error(runner, inputs, leg, budget, on_step) for _, leg in plan.legs)

    found = search.run(check)
    if found is None:
        raise NoRoute(
            f"no plan keeps the error budget of {budget} with codec {wish.codec!r}",
            hint="allow a larger --max-error, or another codec",
        )
    plan, error = found
    if wish.advice:
        plan = search.advised(plan)
    accuracy = PlanAccuracy(
        metric=budget.metric,
        budget=budget.limit,
        error=error,
        requests=len(inputs),
        calibration=calibration,
    )
    return msgspec.structs.replace(plan, accuracy=accuracy)


@dataclass(slots=True)
class _Room:
    """What a plan's errors may add up to, so that the check finds no more than the limit: looked for from both sides.

    Attributes:
        limit: What the check may find.
        next: To be tried; without any bound at first, since a plan may keep the budget for all that.
        kept: With so much the check was passed.
        refused: With so much it was not.
    """

    limit: float
    next: float = math.inf
    kept: float = 0.0
    refused: float = math.inf

    def tried(self, promised: float, error: float) -> None:
        """A plan was checked whose errors add up to `promised`, and `error` was found."""
        first = self.next == math.inf
        if error <= self.limit:
            self.kept = self.next
        else:
            self.refused = promised
        if self.kept:
            self.next = math.sqrt(self.kept * self.refused)
        elif first:
            self.next = min(self.limit, promised * MARGIN)
        else:
            # If both shrink alike, the next check finds just the limit.
            self.next = promised * MARGIN * (self.limit / error if math.isfinite(error) else 0.5)

    @property
    def narrow(self) -> bool:
        """Whether there is nothing left to look for."""
        return self.refused <= self.kept / MARGIN or self.kept == math.inf


class _Search:
    """Candidates and the best of them so far."""

    def __init__(
        self,
        chain: BlockChain,
        cluster: Cluster,
        profile: CostProfile,
        budget: Budget,
        table: Errors,
        wish: Wish,
    ) -> None:
        self._chain = chain
        self._cluster = cluster
        self._profile = profile
        self._budget = budget
        self._table = table
        self._wish = wish
        self._best: tuple[Plan, float] | None = None
        self._bound = 0.0

    def run(self, check: Callable[[Plan], float]) -> tuple[Plan, float] | None:
        """The best plan that `check` finds within the budget, and what it found."""
        if self._wish.objective == "throughput" and not self._forced and self._jointly(check):
            assert self._best is not None
            return self._told(*self._best)
        # A codec that was named is used whatever it does, and the check decides.
        for number, share in enumerate((math.inf,) if self._forced else SHARES):
            try:
                fastest = self._plan(share)
            except NoRoute:
                if number == 0:
                    raise
                break
            self._bound = self._bound or fastest.bound
            if self._best is not None and fastest.value >= self._best[0].value:
                break  # smaller shares allow only what this one allows
            self._take(fastest, check)
        if self._best is None and not self._forced:
            lossless = self._plan(0.0)
            self._best = lossless, check(lossless)
        if self._best is None:
            return None
        return self._told(*self._best)

    def _jointly(self, check: Callable[[Plan], float]) -> bool:
        """Cuts and codecs at once, under the sum of errors; whether what keeps the budget is near what can be proved.

        The sum is a guess: so a plan without any comes first, which may keep the budget for all that.
        """
        limit = self._budget.limit
        wish, errors = self._wish, self._errors(1.0)
        if wish.rules.replicas or wish.placement is not None:
            return False
        check_wishes(wish.objective, wish.limits, wish.rules, placed=False)
        costs = make_costs(
            self._chain,
            self._cluster,
            self._profile,
            max_stages=wish.max_stages,
            codec=wish.codec,
            errors=errors,
            rules=wish.rules,
        )
        goal = goal_of(wish.objective, wish.limits, limit**self._budget.power)
        with in_our_words(costs):
            if not router.soon(costs.problem, goal):
                return False
        room, near = _Room(limit), False
        for _ in range(LOOKS):
            try:
                plan = self._made(errors, max_error=room.next**self._budget.power)
            except NoRoute:
                break  # said by the search below, whose words are about this
            if room.next == math.inf:
                self._bound = plan.bound  # what is proved under a guess is no bound
            if self._best is not None and plan.value > self._best[0].value * (1 - WORTH):
                break
            error = check(plan)
            if error <= limit:
                self._best, near = (plan, error), plan.value <= plan.bound * NEAR
            room.tried(self._sum(plan), error)
            if room.narrow:
                break
        return near

    def _told(self, plan: Plan, error: float) -> tuple[Plan, float]:
        """The plan with what is proved of it."""
        optimal = plan.value <= self._bound * (1 + 1e-9)
        by_hand = self._wish.placement is not None
        plan = msgspec.structs.replace(
            plan, by_hand=by_hand, optimal=optimal, bound=plan.value if optimal else self._bound
        )
        return plan, error

    def _take(self, plan: Plan, check: Callable[[Plan], float]) -> None:
        """Offer a plan, and while it fails its check the same stages with other codecs."""
        limit = self._budget.limit
        room = limit
        for _ in range(TIGHTENINGS):
            error = check(plan)
            if error <= limit:
                if self._best is None or plan.value < self._best[0].value:
                    self._best = plan, error
                return
            believed = self._sum(plan)
            # What the errors add up to when the check finds just the limit, if both shrink alike.
            room = min(room, believed) * MARGIN * min(1.0, limit / error if math.isfinite(error) else 0.5)
            recoded = None if self._forced or plan.shares else self._recode(plan, room)
            if recoded is None or (self._best is not None and recoded.value >= self._best[0].value):
                return
            plan = recoded

    @property
    def _forced(self) -> bool:
        """Whether the operator named the codec."""
        return (self._wish.codec or self._cluster.network.codec) != "auto"

    def _errors(self, share: float) -> Errors:
        """What the router adds up: errors of transfers that take at most `share` of the budget."""
        power, limit = self._budget.power, share * self._budget.limit
        return {
            codec: [error**power if error <= limit else math.inf for error in row]
            for codec, row in self._table.items()
        }

    def _recode(self, plan: Plan, room: float) -> Plan | None:
        """The same stages with codecs whose errors promise at most `room`."""
        most = room**self._budget.power
        errors, limits = self._errors(1.0), self._wish.limits
        return recode_plan(plan, self._chain, self._cluster, self._profile, errors, most, limits)

    def _plan(self, share: float) -> Plan:
        """The fastest plan in which no transfer takes more than `share` of the budget."""
        return self._made(self._errors(share))

    def advised(self, plan: Plan) -> Plan:
        """The plan with what limits it, as far as planning knows: errors as they add up, not as the check finds them."""
        most = math.inf if self._forced else self._budget.limit**self._budget.power
        known = self._made(self._errors(math.inf), max_error=most, advice=True)
        return msgspec.structs.replace(plan, advice=scaled_advice(known, plan))

    def _made(self, errors: Errors, *, max_error: float = math.inf, advice: bool = False) -> Plan:
        wish = self._wish
        return make_plan(
            self._chain,
            self._cluster,
            self._profile,
            objective=wish.objective,
            max_stages=wish.max_stages,
            placement=wish.placement,
            codec=wish.codec,
            errors=errors,
            max_error=max_error,
            limits=wish.limits,
            rules=wish.rules,
            advice=advice,
        )

    def _sum(self, plan: Plan) -> float:
        """What the measured errors of a plan's codecs add up to."""
        power = self._budget.power
        errors = [
            self._table[transfer.codec][transfer.boundary]
            for transfer in plan.transfers
            if transfer.codec in self._table
        ]
        return float(math.fsum(error**power for error in errors) ** (1 / power))


def scaled_advice(known: Plan, plan: Plan) -> PlanAdvice | None:
    """The advice for `known`, its gains told of `plan`, which does the same a little slower or faster."""
    if known.advice is None:
        return None
    what_ifs = tuple(
        msgspec.structs.replace(each, value=plan.value * (1 - each.gain)) for each in known.advice.what_ifs
    )
    return msgspec.structs.replace(known.advice, what_ifs=what_ifs)
