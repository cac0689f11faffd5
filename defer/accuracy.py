"""How far lossy codecs may move a model's output, and how far an output has moved. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from defer.errors import UsageError

Metric = Literal["relative", "top1"]
Arrays = Mapping[str, npt.NDArray[Any]]

TOP1 = "top1:"
"""Before a number, it bounds the share of changed classes in place of the relative error."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that all codecs of a plan together may do.

    Attributes:
        metric: `relative`: ‖Δoutput‖₂ / ‖output‖₂, of the worst output on the worst input. `top1`: the share of
            classifications (the largest along an output's last axis) that change, over all inputs.
        limit: Above 0, below 1.
    """

    metric: Metric
    limit: float

    def __str__(self) -> str:
        return f"{TOP1 if self.metric == 'top1' else ''}{self.limit:g}"

    @property
    def power(self) -> int:
        """Errors of independent codecs add up in this power: squares of lengths, shares as they are."""
        return 2 if self.metric == "relative" else 1

    def shown(self, value: float) -> str:
        """A deviation in words."""
        if self.metric == "top1":
            return f"top-1 changes on {value:.2%}"
        return f"‖Δoutput‖₂/‖output‖₂ = {value:.2e}"


def parse_budget(text: str) -> Budget:
    """A budget from `0.01` or `top1:0.01`.

    Raises:
        UsageError: Not of that form, or not between 0 and 1.
    """
    metric: Metric = "top1" if text.startswith(TOP1) else "relative"
    try:
        limit = float(text.removeprefix(TOP1))
    except ValueError:
        limit = math.nan
    if not 0 < limit < 1:
        raise UsageError(
            f"{text!r} is not an error budget",
            hint="write 0.01 for 1 % of the output's length, or top1:0.01 for 1 % of the classes",
        )
    return Budget(metric, limit)


def deviation(metric: Metric, exact: Arrays, got: Arrays) -> float:
    """How far the outputs of one request are from the exact ones; infinite where one is not finite and should be.

    Args:
        metric: See `Budget`.
        exact: Every output as it should be.
        got: The outputs as they are.
    """
    measure = _relative if metric == "relative" else _changed
    names = list(exact) if metric == "relative" else list(exact)[:1]
    return max((measure(exact[name], got[name]) for name in names), default=0.0)


def combined(metric: Metric, deviations: Sequence[float]) -> float:
    """Of several requests: the worst, or for `top1` the mean."""
    if not deviations:
        return 0.0
    return max(deviations) if metric == "relative" else math.fsum(deviations) / len(deviations)


def _relative(exact: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    wide = np.complex128 if exact.dtype.kind == "c" else np.float64
    a, b = exact.astype(wide).reshape(-1), got.astype(wide).reshape(-1)
    usual = np.isfinite(a)
    if not np.array_equal(usual, np.isfinite(b)):
        return math.inf
    # Masked logits are often minus infinity on both sides; what is left is compared.
    off, length = float(np.linalg.norm(b[usual] - a[usual])), float(np.linalg.norm(a[usual]))
    if off == 0:
        return 0.0
    return off / length if length > 0 else math.inf


def _changed(exact: npt.NDArray[Any], got: npt.NDArray[Any]) -> float:
    if exact.ndim == 0 or not exact.size:
        return 0.0
    return float(np.mean(np.argmax(exact, axis=-1) != np.argmax(got, axis=-1)))
