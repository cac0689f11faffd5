"""What goes wrong when: drawn from a seed before anything runs. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

KINDS = (
    "kill",
    "restart",
    "stop",
    "partition",
    "alone",
    "slow-link",
    "bit-flips",
    "busy",
    "clock-jump",
    "disk-full",
    "out-of-memory",
)
"""A crash (the agent comes back later), a crash (at once), SIGSTOP, no packet between two devices, none of one device
to anybody, a tenth of the bandwidth and 50 ms more, bits turned over on a link, a busy loop beside the agent, a clock
that is wrong by up to a month (an agent's, or the dispatcher's), no room on its disk, a neighbour that takes all its
memory, for which the kernel kills the agent."""

ON_LINKS = frozenset({"partition", "slow-link", "bit-flips"})
"""Faults between two devices."""

OUT = frozenset({"kill", "restart", "stop", "alone", "out-of-memory"})
"""Faults that take a device out."""

LASTS_S = {
    "kill": (2.0, 10.0),
    "restart": (0.0, 0.0),
    "stop": (0.3, 8.0),
    "partition": (0.5, 8.0),
    "alone": (0.5, 8.0),
    "slow-link": (2.0, 6.0),
    "bit-flips": (1.0, 6.0),
    "busy": (1.0, 4.0),
    "clock-jump": (2.0, 10.0),
    "disk-full": (3.0, 10.0),
    "out-of-memory": (1.0, 3.0),
}
"""Shortest and longest."""

BACK_S = 6.0
"""A device that was out counts as out for so long after it is back: an agent takes time to start."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at: Seconds after the begin.
        kind: One of `KINDS`.
        device: Where.
        other: The other end of a link, or empty.
        seconds: For how long.
    """

    at: float
    kind: str
    device: str
    other: str
    seconds: float

    @property
    def end(self) -> float:
        """When it is over."""
        return self.at + self.seconds


def plan(
    seed: int,
    seconds: float,
    devices: Sequence[str],
    dispatcher: str,
    *,
    every_s: float,
    most_out: int,
    kinds: Sequence[str] = KINDS,
) -> list[Fault]:
    """The faults of a run.

    Args:
        seed: Decides everything.
        seconds: How long it is; nothing begins in its last quarter minute, so that the end shows recovery.
        devices: Those with agents.
        dispatcher: The dispatcher's device, for links.
        every_s: Mean seconds between two.
        most_out: Devices that may be out at once.
        kinds: Which.
    """
    draw = random.Random(seed)
    made: list[Fault] = []
    at = every_s
    while at < seconds - 15.0:
        kind = draw.choice(kinds)
        out = {fault.device for fault in made if fault.kind in OUT and fault.end + BACK_S > at}
        hit = {fault.device for fault in made if fault.end + 1.0 > at}
        # A device has one trouble at a time, else the second fault's end would end the first.
        free = [name for name in devices if name not in hit and name not in out]
        if free and (kind not in OUT or len(out) < most_out):
            device = draw.choice(free)
            others = [name for name in (*free, dispatcher) if name != device]
            other = draw.choice(others) if kind in ON_LINKS else ""
            if kind == "clock-jump" and draw.random() < 1 / 4:
                device = dispatcher
            made.append(Fault(at, kind, device, other, draw.uniform(*LASTS_S[kind])))
        at += draw.expovariate(1 / every_s) if every_s > 0 else seconds
    return made
