"""How long results stay away: after a stage dies or hangs, when the dispatcher dies, while plans and versions change.

Real agents in the testbed under open load, half of what they carry; clients note when each result came. Needs root.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from benchmarks.gap import scenes
from benchmarks.gap.scenes import Seen
from benchmarks.gap.stand import stand
from benchmarks.runner import Options, Outcome, Row, Target, main

KILLS = {"kill": "loaded", "kill-files": "files", "kill-cold": "none"}
"""SIGKILL of a stage, by what was prepared for it (`--standby`): partitions in memory, files, nothing."""

HANGS = {"hang": "loaded", "hang-files": "files"}
"""A stage that hangs, likewise."""

SCENES = (*KILLS, *HANGS, "slow", "dispatcher", "replan", "roll-out")

APART = ("kill-files", "kill-cold", "hang-files")
"""Each with a dispatcher of its own: it prepares in another way."""

SLOW_S = 0.6
"""Of each item of a stage that has become slow: longer than one that hangs is left alone."""


def measure(options: Options) -> Outcome:
    """See `benchmarks.runner`."""
    given = options.arguments
    rounds = 1 if options.quick else given.rounds
    wanted = given.scenes or SCENES
    seen: dict[str, Seen] = {}
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-gap-")))
        if given.keep is not None:
            work = given.keep
            work.mkdir(parents=True)
        on = stack.enter_context(stand(work, given.devices))
        status = stack.enter_context(options.console.status("measuring, planning, loading"))
        for name in APART:
            if name in wanted:
                by = {**KILLS, **HANGS}[name]
                with on.serving(standby=by):
                    on.rate = on.rate or on.measure_rate()
                    status.update(name)
                    seen[name] = (scenes.kills if name in KILLS else scenes.hangs)(on, rounds, by)
        with on.serving(standby="loaded"):
            on.rate = on.rate or on.measure_rate()
            for name in (name for name in wanted if name not in ("dispatcher", *APART)):
                status.update(name)
                match name:
                    case "kill":
                        seen[name] = scenes.kills(on, rounds, KILLS[name])
                    case "hang":
                        seen[name] = scenes.hangs(on, rounds, HANGS[name])
                    case "slow":
                        seen[name] = scenes.slows(on, 10.0 if options.quick else 30.0, SLOW_S)
                    case "replan" | "roll-out":
                        seen[name] = scenes.changes(on, name, rounds)
        if "dispatcher" in wanted:
            status.update("dispatcher")
            seen["dispatcher"] = scenes.dispatcher_dies(on, 10.0)
    return _outcome({name: seen[name] for name in SCENES if name in seen}, on.rate)


def _outcome(seen: dict[str, Seen], rate: float) -> Outcome:
    rows: list[Row] = [
        {
            "scene": name,
            "rounds": len(one.gaps) or 1,
            "requests": one.sent,
            "without a right result": one.failed,
            "median gap s": median(one.gaps) if one.gaps else None,
            "longest gap s": max(one.gaps, default=None),
            "median longest gap before s": median(one.natural) if one.natural else None,
            "median detection s": median(one.detected) if one.detected else None,
            "longest detection s": max(one.detected, default=None),
        }
        for name, one in seen.items()
    ]
    targets = [
        Target("requests without one right result", sum(one.failed for one in seen.values()), 0, "most")
    ]
    if one := seen.get("kill"):
        targets += [
            Target("death of a process, detection s", max(one.detected), 0.4, "most"),
            Target("SIGKILL with a warm standby, median gap s", median(one.gaps), 1.0, "most"),
            Target(
                "SIGKILL with a warm standby, rounds with a load", len(one.gaps) - one.without_load, 0, "most"
            ),
        ]
    for name, what in (("kill-files", "with files alone"), ("kill-cold", "with nothing prepared")):
        if one := seen.get(name):
            bound = median(one.bounds)
            targets.append(Target(f"SIGKILL {what}, median gap s", median(one.gaps), bound, "most"))
    for name in HANGS:
        if one := seen.get(name):
            longest = max(0.4, 3 * one.more["slowest stage, mean run"])
            targets.append(Target(f"{name}, median detection s", median(one.detected), longest, "most"))
    if one := seen.get("slow"):
        targets.append(
            Target("slow stage: devices taken for lost", one.more["devices taken for lost"], 0, "most")
        )
    if one := seen.get("dispatcher"):
        reloaded = one.more["partitions loaded again"]
        targets.append(Target("dispatcher killed: partitions loaded again", reloaded, 0, "most"))
    for name in ("replan", "roll-out"):
        if one := seen.get(name):
            ratio = one.more["p99 during by p99 before"]
            targets.append(Target(f"{name}: p99 during by p99 before", ratio, 2.0, "most"))
    notes = [f"{rate:.1f} requests per second"]
    notes += [f"{name}: {key} {value:.4g}" for name, one in seen.items() for key, value in one.more.items()]
    return Outcome(rows, targets, notes)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=int, default=6, help="with agents (6)")
    parser.add_argument("--rounds", type=int, default=5, help="of each scene but `slow` and `dispatcher` (5)")
    parser.add_argument("--scenes", nargs="*", choices=SCENES, help="these only")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep notes and logs in this new folder")


if __name__ == "__main__":
    main("gap", measure, __doc__, add_arguments=_add_arguments)
