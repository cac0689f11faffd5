"""What items cost the processes that they pass: processor time, waits and page faults, counted by the kernel.

Other work on the machine changes these less than it changes latencies and rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Burden:
    """What a process has used since it began, or used per item.

    Attributes:
        seconds: Processor time of all its threads.
        waits: How often a thread gave the processor up to wait for something.
        faults: Pages that the kernel had to find or clear for it.
    """

    seconds: float
    waits: float
    faults: float

    def since(self, before: Burden, items: int) -> Burden:
        """Per item, from `before` on."""
        return Burden(
            (self.seconds - before.seconds) / items,
            (self.waits - before.waits) / items,
            (self.faults - before.faults) / items,
        )


def burden(pid: int) -> Burden:
    """What a process of this user has used so far (Linux)."""
    # The clock of another process, as clock_getcpuclockid makes it: /proc counts in hundredths of a second.
    seconds = time.clock_gettime((~pid << 3) | 2)
    waits = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = status.read_text().splitlines()
        waits += sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))
    # The name of the program is in brackets, and may hold blanks.
    faults = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
    return Burden(seconds, waits, faults)


def per_item(work: Callable[[], object], items: int, processes: Mapping[str, int]) -> dict[str, Burden]:
    """What `work`, which moves so many items, costs each process per item.

    Args:
        work: Called once.
        items: How many it moves.
        processes: Process ids by name.
    """
    before = {name: burden(pid) for name, pid in processes.items()}
    work()
    return {name: burden(pid).since(before[name], items) for name, pid in processes.items()}
