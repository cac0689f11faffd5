"""Whether devices and links have become slower or faster than planning believes. Pure.

What is measured is compared with what was planned with: a ratio of times, 1 for as planned, 2 for twice as slow. One
ratio says little, because machines are busy with other things now and then. So a belief changes only where nearly all
of the last samples, over some time, lie beyond a band around it; then it becomes their median, or for links their lower
quartile: others share a link now and then, nobody makes it faster than it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

Kind = Literal["device", "bandwidth", "delay"]

LEAST: Final = 4
"""Samples that a belief rests on at least."""

MOST: Final = 15
"""Samples of one subject that are kept; older ones say nothing of now."""

NEARLY_ALL: Final = 0.8
"""Part of the samples that must agree before a belief changes."""

STALE: Final = 10.0
"""A sample counts for so many times the span that a change must last."""

BANDS: Final[Mapping[Kind, float]] = {"device": 1.3, "bandwidth": 2.0, "delay": 2.0}
"""Factor by which samples must differ from what is believed; what differs less makes no other plan worth its price."""


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What is watched: a device, or one direction of a link.

    Attributes:
        kind: Seconds of a device's runs, seconds per byte of a link, or its delay.
        source: The device, or where the link begins.
        target: Where it ends; empty for a device.
    """

    kind: Kind
    source: str
    target: str = ""

    def __str__(self) -> str:
        if self.kind == "device":
            return self.source
        return f"{'bandwidth' if self.kind == 'bandwidth' else 'delay'} {self.source} → {self.target}"


@dataclass(frozen=True, slots=True)
class Drifted:
    """A belief has changed.

    Attributes:
        subject: Of what.
        before: Factor of time that was believed.
        now: Factor that is believed from now on; 1 is as planned.
        samples: How many it rests on.
    """

    subject: Subject
    before: float
    now: float
    samples: int

    def __str__(self) -> str:
        return f"{self.subject} takes {self.now:.2g} × what was planned, {self.before:.2g} × before"


@dataclass(slots=True)
class Drift:
    """The beliefs about one model's devices and links.

    Args:
        lasting: Seconds that a change must last before it is believed.
    """

    lasting: float
    _samples: dict[Subject, deque[tuple[float, float]]] = field(default_factory=dict)
    _believed: dict[Subject, float] = field(default_factory=dict)

    @property
    def factors(self) -> dict[Subject, float]:
        """What is believed to be otherwise than planned, with its factor of time."""
        return dict(self._believed)

    def note(self, subject: Subject, ratio: float, now: float) -> Drifted | None:
        """A measurement, by what was planned; the belief that it changes, if it does.

        Args:
            subject: Of what.
            ratio: Time that was measured, by the planned one; what is no positive number is passed over.
            now: When, in seconds.
        """
        if not (math.isfinite(ratio) and ratio > 0):
            return None
        samples = self._samples.setdefault(subject, deque(maxlen=MOST))
        samples.append((now, ratio))
        while samples[0][0] < now - STALE * self.lasting:
            samples.popleft()
        return self._weigh(subject, samples)

    def _weigh(self, subject: Subject, samples: deque[tuple[float, float]]) -> Drifted | None:
        recent = self._recent(samples)
        if len(recent) < LEAST:
            return None
        before, band = self._believed.get(subject, 1.0), BANDS[subject.kind]
        above = sum(ratio > before * band for ratio in recent)
        below = sum(ratio < before / band for ratio in recent)
        if max(above, below) < NEARLY_ALL * len(recent):
            return None
        found = float(median(recent) if subject.kind == "device" else sorted(recent)[len(recent) // 4])
        if 1 / band <= found <= band:
            found = 1.0  # as planned, as far as can be told
            self._believed.pop(subject, None)
        else:
            self._believed[subject] = found
        if found == before:
            return None
        return Drifted(subject, before, found, len(recent))

    def _recent(self, samples: deque[tuple[float, float]]) -> list[float]:
        """The newest samples: those of the span that a change must last, and more where these are few.

        Nothing where all of them are younger than that span.
        """
        newest, oldest = samples[-1][0], samples[0][0]
        if newest - oldest < self.lasting:
            return []
        within = sum(at >= newest - self.lasting for at, _ in samples)
        count = min(len(samples), max(LEAST, within))
        return [ratio for _, ratio in samples][-count:]


def floored(measured: float, planned: float, floor: float) -> float:
    """Ratio of two times that differences far below `floor` seconds do not move."""
    return (measured + floor) / (planned + floor)
