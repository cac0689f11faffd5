"""What is wanted of batching: sizes and a delay, as they are typed, and as a plan carries them.

The dispatcher does not batch: the agents do, each for its own stage (docs/decisions/0009-batches-in-the-stages.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from defer import units
from defer.documents.plan import Plan, PlanBatching
from defer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    import partitioner
    from node_agent.messages import TensorSpec

MOST = 256
"""Requests in a batch; agents take no more."""


def parse_batching(sizes: str | None, delay: str | None) -> PlanBatching | None:
    """What `--batch 4,8` and `--batch-delay 2ms` ask for.

    Raises:
        UsageError: They are not sizes of 2 to 256, or no duration; or a delay is given alone.
    """
    if sizes is None:
        if delay is not None:
            raise UsageError("--batch-delay needs --batch", hint="for example --batch 8 --batch-delay 2ms")
        return None
    try:
        numbers = tuple(sorted({int(part) for part in sizes.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or not 2 <= numbers[0] <= numbers[-1] <= MOST:
        raise UsageError(
            f"--batch {sizes!r} are no batch sizes", hint=f"give one size or several, 2 to {MOST}: 4,8"
        )
    seconds = units.parse_duration(delay) if delay is not None else 0.0
    return make_batching(numbers, seconds)


def make_batching(sizes: Sequence[int], delay_s: float) -> PlanBatching | None:
    """The same from numbers; None without sizes.

    Raises:
        UsageError: No size, or a delay that is too long.
    """
    if not sizes:
        return None
    wanted = PlanBatching(sizes=tuple(sizes), delay_s=delay_s)
    problem = wanted.problem()
    if problem:
        raise UsageError(f"batching: {problem}")
    return wanted


def with_batching(
    plan: Plan, inputs: Iterable[TensorSpec | partitioner.TensorSpec], wanted: PlanBatching | None
) -> Plan:
    """A plan whose stages batch; as it is where nothing is wanted.

    Raises:
        UsageError: An input of the model has no free first dimension.
    """
    if wanted is None:
        return plan
    for spec in inputs:
        if not spec.shape or not isinstance(spec.shape[0], str):
            raise UsageError(
                f"requests of {plan.model} cannot be batched: input {spec.name!r} is {list(spec.shape)}",
                hint="only a model whose first dimension is free takes several requests at once",
            )
    return msgspec.structs.replace(plan, batching=wanted)
