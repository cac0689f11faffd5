"""Thousands of random schedules of requests and faults on a virtual clock; a seed that breaks a promise replays.

Each schedule is a cluster of up to four agents, deployments (with relays, replicas, devices that dial), clients, and
faults: processes killed, stopped, hung, slow; connections cut at one end or both, links slow or blocked, a header
spoiled, a client that goes, a request sent twice, a deployment replaced. Then all is made whole, and what was promised
must hold. `--replay SEED` plays one schedule and prints what happened; `--plant BUG` plants one that must be found;
`--day 24` plays one that lasts a day, in which no table of the cores may grow.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from benchmarks.runner import Options, Outcome, Target, main
from benchmarks.simulation.bugs import BUGS, planted
from benchmarks.simulation.day import Day
from benchmarks.simulation.schedule import Ended, Schedule
from benchmarks.simulation.seams import simulated
from benchmarks.simulation.world import BEGIN_S

BATCH = 100
SHOWN = 5
"""Broken seeds that are told."""

HOUR_S = 3600.0
REQUESTS_PER_HOUR, FAULTS_PER_HOUR = 600, 60
HOURS_APART = 1_000_000
"""Seeds of simulated hours are told from those of short schedules by this."""


@dataclass(slots=True)
class Tally:
    """What a batch of schedules came to."""

    schedules: int = 0
    events: int = 0
    asked: int = 0
    results: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[int, str]] = field(default_factory=list)

    def add(self, ended: Ended) -> None:
        """Count a schedule."""
        self.schedules += 1
        self.events += ended.world.handled
        self.asked += ended.asked
        self.results += ended.results
        self.codes.update(ended.codes)
        self.faults.update(ended.faults)
        if ended.world.problems:
            self.broken.append((ended.seed, ended.world.problems[0]))

    def merge(self, other: Tally) -> None:
        """Count what another counted."""
        self.schedules += other.schedules
        self.events += other.events
        self.asked += other.asked
        self.results += other.results
        self.codes.update(other.codes)
        self.faults.update(other.faults)
        self.broken += other.broken


def schedule_of(seed: int) -> Schedule:
    """The schedule of a seed: a short one, or an hour's."""
    if seed >= HOURS_APART:
        return Schedule(seed, busy_s=HOUR_S, requests=REQUESTS_PER_HOUR, faults=FAULTS_PER_HOUR)
    return Schedule(seed)


def play(seeds: Iterable[int], bug: str | None = None, *, first: bool = False) -> Tally:
    """Play some schedules.

    Args:
        seeds: Which.
        bug: One of `BUGS` to plant, or None.
        first: End with the first that breaks a promise.
    """
    tally = Tally()
    with simulated(), planted(bug):
        for seed in seeds:
            tally.add(schedule_of(seed).play())
            if first and tally.broken:
                break
    return tally


def replay(seed: int, bug: str | None = None) -> list[str]:
    """What happened in one schedule, a line each, and what was broken."""
    with simulated(), planted(bug):
        ended = schedule_of(seed).play()
    lines = [
        f"{at - BEGIN_S:11.5f}  {who:5} {' '.join(map(str, what))}" for at, who, what in ended.world.history
    ]
    return [*lines, *(ended.world.problems or ["every promise was kept"])]


def measure(options: Options) -> Outcome:
    """See `benchmarks.runner`."""
    given = options.arguments
    if given.day:
        return whole_day(given.seed, given.day, given.plant)
    first = given.seed + (HOURS_APART if given.hours else 0)
    count = given.hours or (200 if options.quick else given.schedules)
    total = Tally()
    with ProcessPoolExecutor(given.processes) as pool:
        for tally in pool.map(
            partial(play, bug=given.plant), _batches(first, count, 1 if given.hours else BATCH)
        ):
            total.merge(tally)
    row = {
        "schedules": total.schedules,
        "events": total.events,
        "requests": total.asked,
        "results": total.results,
        "errors": sum(total.codes.values()),
        "faults": sum(total.faults.values()),
        "broken": len(total.broken),
    }
    notes = [f"errors: {', '.join(f'{count} {code}' for code, count in total.codes.most_common())}"]
    plant = f" --plant {given.plant}" if given.plant else ""
    for seed, problem in sorted(total.broken)[:SHOWN]:
        notes.append(f"seed {seed}: {problem}")
        notes.append(f"  again: python -m benchmarks.simulation --replay {seed}{plant}")
    targets = [Target("schedules that break a promise", len(total.broken), 0, "most")]
    return Outcome([row], targets, notes)


def whole_day(seed: int, hours: float, bug: str | None = None) -> Outcome:
    """One schedule of many hours, and whether any table of the cores grows."""
    with simulated(), planted(bug):
        day = Day(seed, hours)
        ended = day.play()
    full = max(day.looks[-1].items(), key=lambda each: each[1]) if day.looks else ("", 0)
    row = {
        "hours": hours,
        "events": ended.world.handled,
        "requests": ended.asked,
        "results": ended.results,
        "errors": sum(ended.codes.values()),
        "faults": len(ended.faults),
        "tables": len({path for look in day.looks for path in look}),
        "broken": len(ended.world.problems),
    }
    notes = [
        f"errors: {', '.join(f'{count} {code}' for code, count in ended.codes.items())}",
        f"the fullest table is {full[0]} with {full[1]}",
        *ended.world.problems[:SHOWN],
    ]
    targets = [Target("promises broken, or tables that grow", len(ended.world.problems), 0, "most")]
    return Outcome([row], targets, notes)


def _batches(first: int, count: int, size: int) -> Iterator[range]:
    for begin in range(first, first + count, size):
        yield range(begin, min(begin + size, first + count))


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--schedules", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed; the others follow (0)")
    parser.add_argument("--hours", type=int, default=0, help="instead, this many schedules of an hour each")
    parser.add_argument(
        "--day", type=float, default=0, metavar="HOURS", help="instead, one schedule of so many hours"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="processes at once (all cores)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one and print what happened")
    parser.add_argument("--plant", choices=tuple(BUGS), help="plant a bug, which must be found")


def _same_hashes() -> None:
    """Sets of names are walked in the order of their hashes, which differ between processes unless they are told."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(
            sys.executable,
            [sys.executable, "-m", "benchmarks.simulation", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": "0"},
        )


if __name__ == "__main__":
    _same_hashes()
    if any(argument.startswith("--replay") for argument in sys.argv[1:]):
        parser = argparse.ArgumentParser(prog="python -m benchmarks.simulation")
        _add_arguments(parser)
        chosen = parser.parse_args()
        sys.stdout.write("\n".join(replay(chosen.replay, chosen.plant)) + "\n")
    else:
        main("simulation", measure, __doc__, add_arguments=_add_arguments)
