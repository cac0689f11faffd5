"""Metrics as text: the exposition format 0.0.4 that Prometheus and everything that speaks to it reads. Pure.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram"]

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")


@dataclass(slots=True)
class Family:
    """A metric and its samples.

    Attributes:
        name: As Prometheus knows it.
        kind: `counter` (only rises while a process lives), `gauge` or `histogram`.
        help: One sentence.
    """

    name: str
    kind: Kind
    help: str
    _samples: list[tuple[str, Mapping[str, str], float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), self.name

    def add(self, value: float, **labels: str) -> None:
        """One more sample."""
        self._samples.append(("", labels, value))

    def add_histogram(
        self, bounds: Iterable[float], counts: Iterable[int], total: float, **labels: str
    ) -> None:
        """The samples of one histogram.

        Args:
            bounds: Upper bounds of the buckets, rising; what is above the last is in one more bucket.
            counts: How many fell into each bucket, one more than bounds.
            total: Sum of what was observed.
            labels: Of all its samples.
        """
        seen = 0
        for bound, count in zip((*bounds, math.inf), counts, strict=True):
            seen += count
            self._samples.append(("_bucket", {**labels, "le": show_number(bound)}, seen))
        self._samples.append(("_sum", labels, total))
        self._samples.append(("_count", labels, seen))

    @property
    def empty(self) -> bool:
        """Whether it has no sample."""
        return not self._samples

    def lines(self) -> list[str]:
        """Its part of the text; nothing where it has no sample."""
        if self.empty:
            return []
        told = self.help.replace("\\", r"\\").replace("\n", r"\n")
        return [
            f"# HELP {self.name} {told}",
            f"# TYPE {self.name} {self.kind}",
            *(
                f"{self.name}{suffix}{_labels(labels)} {show_number(value)}"
                for suffix, labels, value in self._samples
            ),
        ]


def render(families: Iterable[Family]) -> str:
    """The whole text.

    Args:
        families: Each name once.
    """
    lines = [line for family in families for line in family.lines()]
    return "\n".join(lines) + "\n"


def show_number(value: float) -> str:
    """A number as the format wants it; whole ones without a point."""
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    assert all(_LABEL.fullmatch(name) for name in labels), labels
    pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{pairs}}}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
