"""Running queued requests of one partition as a batch: whether that pays here, and when to start.

Requests of one shape are put together along their first dimension where the partition leaves it free, run once, and
parted again. On the wire each stays a request of its own, with its own deadline, credit and trace. Whether a batch gives
what single runs give, and is cheaper, is tried when the partition is loaded; where it is not, nothing is batched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from node_agent.engines.base import Arrays, Session
from node_agent.errors import AgentError
from node_agent.messages import HopSpec, TensorSpec
from node_agent.samples import samples

PAYS = 0.95
"""A size is used where a request in it takes at most this share of what it takes in the next smaller one."""

TOLERANCE = 1e-3
"""Largest difference between a batch and single runs, as a share of the output's largest value."""

TOLERANCE_16 = 2e-2
"""The same for 16-bit floats."""

REPEATS = 3
"""Timed runs of each size; the fastest counts, for others were disturbed."""

BUDGET_S = 10.0
"""A partition that is too slow for all of that is timed less often."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How the requests of one partition are batched on this device.

    Attributes:
        took: Size and ns of a run, from size 1 on, increasing in size; those after the first are preferred sizes.
        delay_ns: The first of a batch waits for others at most this long after its arrival.
    """

    took: tuple[tuple[int, int], ...]
    delay_ns: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """The preferred sizes."""
        return tuple(size for size, _ in self.took[1:])

    @property
    def most(self) -> int:
        """The largest size."""
        return self.took[-1][0]

    def run_ns(self, size: int) -> int:
        """About how long a run of `size` requests takes, ns; between measured sizes by a straight line."""
        last_size, last = self.took[0]
        for measured, took in self.took[1:]:
            if size <= measured:
                return last + (took - last) * (size - last_size) // (measured - last_size)
            last_size, last = measured, took
        return last

    def start_by(self, arrived_ns: int, deadline_ns: int | None, size: int) -> int:
        """When a batch must start at the latest, ns.

        Args:
            arrived_ns: When the first of its requests arrived.
            deadline_ns: The earliest deadline among them; None without any.
            size: How many it holds.
        """
        latest = arrived_ns + self.delay_ns
        return latest if deadline_ns is None else min(latest, deadline_ns - self.run_ns(size))

    def may_grow(self, size: int, deadline_ns: int | None, now_ns: int) -> bool:
        """Whether one more request may join a batch of `size` without a deadline being missed for it."""
        if size >= self.most:
            return False
        return deadline_ns is None or now_ns + self.run_ns(size + 1) <= deadline_ns


def batchable(spec: HopSpec) -> str:
    """Why a partition's requests cannot be put together; empty where they can.

    All inputs and outputs must have the same free first dimension.
    """
    first = {tensor.shape[0] if tensor.shape else None for tensor in (*spec.inputs, *spec.outputs)}
    if len(first) == 1 and isinstance(next(iter(first)), str):
        return ""
    fixed = next(
        tensor
        for tensor in (*spec.inputs, *spec.outputs)
        if not tensor.shape or not isinstance(tensor.shape[0], str) or len(first) > 1
    )
    return f"{fixed.name!r} is {fixed.dtype}{list(fixed.shape)}, whose first dimension is not the batch"


def prove(
    session: Session, spec: HopSpec, clock: Callable[[], int] = time.perf_counter_ns
) -> tuple[Batching | None, str]:
    """Tries a partition's batch sizes: right results, and less time per request.

    Args:
        session: The loaded partition.
        spec: Its hop, with the sizes wanted.
        clock: ns.

    Returns:
        How to batch, None where that does no good; and a sentence about it, empty where nothing was asked for.
    """
    if not spec.batch:
        return None, ""
    problem = batchable(spec)
    if not problem and not _bound(spec.warm_up):
        problem = "the shapes of its usual requests are not known"
    if problem:
        return None, f"hop {spec.hop} does not batch: {problem}"
    singles = [samples(spec.warm_up, seed) for seed in (1, 2)]
    deadline = clock() + int(BUDGET_S * 1e9)
    try:
        expected = [session.run(inputs) for inputs in singles]
        took = [(1, _timed(session, singles[0], deadline, clock))]
        for size in spec.batch:
            inputs = joined([singles[number % 2] for number in range(size)])
            worst = _difference(session.run(inputs), expected, size)
            if worst:
                return None, f"hop {spec.hop} does not batch: {worst}"
            lasted = _timed(session, inputs, deadline, clock)
            if lasted / size <= PAYS * took[-1][1] / took[-1][0]:
                took.append((size, lasted))
    except AgentError as error:
        return None, f"hop {spec.hop} does not batch: {error}"
    if len(took) == 1:
        return None, f"hop {spec.hop} does not batch: a request takes no less time in one"
    gains = ", ".join(f"{size} in {lasted / took[0][1]:.2g}×" for size, lasted in took[1:])
    return Batching(tuple(took), round(spec.batch_delay_s * 1e9)), (
        f"hop {spec.hop} batches up to {took[-1][0]} requests ({gains} the time of one)"
    )


def _bound(specs: Sequence[TensorSpec]) -> bool:
    return bool(specs) and all(isinstance(size, int) for spec in specs for size in spec.shape)


def _timed(session: Session, inputs: Arrays, deadline: int, clock: Callable[[], int]) -> int:
    """The fastest of some runs; one at least, whatever the deadline."""
    best = None
    for _ in range(REPEATS):
        begun = clock()
        session.run(inputs)
        lasted = max(1, clock() - begun)
        best = lasted if best is None else min(best, lasted)
        if clock() >= deadline:
            break
    assert best is not None
    return best


def _difference(outputs: Arrays, expected: Sequence[Arrays], size: int) -> str:
    """What sets a batch's outputs apart from those of single runs; empty where they are as good as equal."""
    try:
        parts = parted(outputs, size)
    except ValueError as error:
        return str(error)
    for number, part in enumerate(parts):
        for name, value in part.items():
            want = expected[number % 2][name]
            if value.shape != want.shape:
                return (
                    f"{name!r} of a request in a batch is {list(value.shape)}, alone it is {list(want.shape)}"
                )
            if value.dtype.kind not in "fc":
                if not np.array_equal(value, want):
                    return f"{name!r} of a batch of {size} differs from single runs"
                continue
            near = TOLERANCE_16 if value.dtype.itemsize <= 2 else TOLERANCE
            largest = float(np.max(np.abs(want), initial=0.0))
            worst = float(np.max(np.abs(value - want), initial=0.0))
            if not worst <= near * largest:
                return (
                    f"{name!r} of a batch of {size} differs from single runs by {worst:.2g} of {largest:.2g}"
                )
    return ""


def joined(requests: Sequence[Mapping[str, Any]]) -> Arrays:
    """The inputs of several requests along the first dimension."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def parted(outputs: Mapping[str, Any], count: int) -> list[Arrays]:
    """A batch's outputs by request; each lies on the batch's memory, without a copy.

    Raises:
        ValueError: An output's first dimension is no multiple of the number of requests.
    """
    for name, value in outputs.items():
        if not value.ndim or value.shape[0] % count or not value.shape[0]:
            raise ValueError(f"{name!r} of a batch of {count} is {list(value.shape)}")
    return [
        {
            name: value[index * (len(value) // count) : (index + 1) * (len(value) // count)]
            for name, value in outputs.items()
        }
        for index in range(count)
    ]
