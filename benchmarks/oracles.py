"""The planner against cases with known answers, and against brute force.

python -m benchmarks.oracles placement FILE…                     operator graphs of msr-fiddle/dnn-partitioning
python -m benchmarks.oracles edge FILE [--boards A,B] [--mbps M]   PipeEdge profiles
python -m benchmarks.oracles routes FILE.graphml… [--cases N]     random jobs on real networks
python -m benchmarks.oracles seifer                               random wireless clusters, the zoo's models
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import oracles_edge, oracles_placement, oracles_routes, oracles_seifer, topologies
from benchmarks.measuring import apart
from benchmarks.runner import Measure, Options, Outcome, Row, Target, main
from router import GraphPlan, Solution


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's own arguments."""
    parser.add_argument("oracle", choices=["placement", "edge", "routes", "seifer"])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE")
    parser.add_argument("--boards", metavar="A,B", help="edge: boards per type, in the file's order")
    parser.add_argument("--mbps", type=float, metavar="M", help="edge: Mbit/s instead of the file's")
    parser.add_argument("--cases", type=int, default=1000, metavar="N", help="routes: cases to count out")
    parser.add_argument("--limit", type=float, default=60.0, metavar="S", help="routes: seconds per MILP")


def measure(options: Options) -> Outcome:
    """Dispatch to one oracle."""
    chosen = options.arguments.oracle
    if chosen != "seifer" and not options.arguments.files:
        sys.stderr.write(f"error: oracles {chosen}: name at least one file\n")
        raise SystemExit(2)
    oracles: dict[str, Measure] = {
        "placement": placement,
        "edge": edge,
        "routes": routes,
        "seifer": oracles_seifer.measure,
    }
    return oracles[chosen](options)


def _four_digits(name: str, value: float, known: float) -> Target:
    return Target(f"{name}: relative difference to {known}", abs(value - known) / known, 5e-5, "most")


def placement(options: Options) -> Outcome:
    """One row per file."""
    rows: list[Row] = []
    targets = []
    for file in options.arguments.files:
        with options.console.status(file.stem):
            plan, seconds, peak = apart(oracles_placement.solve_placement, file)
        assert isinstance(plan, GraphPlan)
        rows.append(
            {
                "case": file.stem,
                "objective": "throughput",
                "value": plan.value,
                "bound": plan.bound,
                "optimal": plan.optimal,
                "gap": plan.value / plan.bound - 1 if plan.bound else 0.0,
                "stages": len(plan.stages),
                "ideals": plan.ideals,
                "seconds": round(seconds, 3),
                "peak_bytes": peak,
            }
        )
        known = oracles_placement.KNOWN.get(file.stem)
        if known is not None:
            targets.append(_four_digits(file.stem, plan.value, known))
            targets.append(Target(f"{file.stem}: optimal", float(plan.optimal), 1, "least"))
        gap = 0.0 if plan.optimal else plan.value / plan.bound - 1
        targets.append(Target(f"{file.stem}: proved gap", gap, 0.05, "most"))
        targets.append(Target(f"{file.stem}: seconds", seconds, 60, "most"))
        targets.append(Target(f"{file.stem}: GB", peak / 1e9, 4, "most"))
    return Outcome(rows, targets)


def edge(options: Options) -> Outcome:
    """One row per combination of boards."""
    rows: list[Row] = []
    targets = []
    arguments = options.arguments
    for file in arguments.files:
        if arguments.boards:
            counts = tuple(int(count) for count in arguments.boards.split(","))
            cases = [(*counts, arguments.mbps)]
        else:
            cases = list(oracles_edge.KNOWN)
        for *boards, mbps in cases:
            found, seconds, peak = apart(oracles_edge.solve_edge, file, boards, mbps)
            assert isinstance(found, Solution)
            name = "+".join(str(count) for count in boards) + ("" if mbps is None else f" at {mbps:g} Mbit/s")
            rows.append(
                {
                    "case": name,
                    "objective": "throughput",
                    "value": found.value,
                    "bound": found.bound,
                    "optimal": found.optimal,
                    "stages": len(found.route.stages),
                    "seconds": round(seconds, 3),
                    "peak_bytes": peak,
                }
            )
            known = oracles_edge.KNOWN.get((*boards, mbps)) if file.stem == oracles_edge.KNOWN_FILE else None
            if known is not None:
                targets.append(_four_digits(name, found.value, known))
                targets.append(Target(f"{name}: optimal", float(found.optimal), 1, "least"))
    return Outcome(rows, targets)


def routes(options: Options) -> Outcome:
    """Counted-out cases first, then whole networks beside a MILP."""
    networks = [topologies.load(file) for file in options.arguments.files]
    cases = 20 if options.quick else options.arguments.cases
    kinds = {
        "small": (oracles_routes.small_case, cases * 7 // 10),
        "wide": (oracles_routes.wide_case, cases * 3 // 10),
    }
    rows: list[Row] = []
    wrong = 0
    for name, (case, count) in kinds.items():
        results, seconds, peak = apart(oracles_routes.many, case, networks, count)
        wrong += sum(equal < compared for compared, equal, _ in results)
        rows.append(
            {
                "case": f"{count} {name} cases",
                "objective": "all five, free and bounded" if name == "small" else "latency",
                "bound": None,
                "compared": sum(compared for compared, _, _ in results),
                "equal": sum(equal for _, equal, _ in results),
                "optimal": all(proved == compared for compared, _, proved in results),
                "seconds": round(seconds, 1),
                "peak_bytes": peak,
            }
        )
    limit = 5.0 if options.quick else options.arguments.limit
    whole = []
    for network in networks:
        for blocks in (6, 12, 24):
            for number in range(1 if options.quick else 3):
                with options.console.status(f"{network.name} x {blocks}"):
                    row, _, peak = apart(oracles_routes.whole_case, network, blocks, number, limit)
                whole.append({**row, "peak_bytes": peak})
    proved = sum(bool(row["optimal"]) for row in whole) / len(whole)
    solved = sum(bool(row["milp solved"]) for row in whole) / len(whole)
    targets = [
        Target(f"cases of {cases} that differ from brute force", wrong, 0, "most"),
        Target(
            "whole networks that differ from the MILP where it finished",
            sum(not r["ok"] for r in whole),
            0,
            "most",
        ),
    ]
    notes = [
        topologies.names(networks),
        f"whole networks: ours proved {proved:.0%}, HiGHS {solved:.0%} within {limit:g} s",
    ]
    return Outcome([*rows, *whole], targets, notes)


if __name__ == "__main__":
    main("oracles", measure, __doc__, add_arguments=add_arguments)
