"""Real agents and a real dispatcher under varied load for as long as you like: does anything that they hold grow?

Four agents, a dispatcher and three clients on loopback. Requests of 1 to 64 rows come at a steady rate, some with
deadlines that are too short, some cancelled; durable ones are asked for again; clients hang up and come again. Now and
then the plan changes, an agent is killed and started again, a version is tried and taken down. Every answer is checked.
Memory, descriptors, threads, sockets and files of each process are looked at, and what grows after the first quarter is
told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.soak.clients import Clients
from benchmarks.soak.growth import ALLOWED, MIB, Growth, judge
from benchmarks.soak.load import Tally
from benchmarks.soak.stand import MORTAL, Changes, Stand, bytes_in, stand
from benchmarks.watch import taken

LOOKS = 360
"""How often each process is looked at, in all."""

CHANGES = 48
LEAST_S = 4.0
"""Between two changes."""

QUICK_MINUTES = 0.3
DATABASE = "dispatcher.db*"


@dataclass(slots=True)
class Watched:
    """What was seen of each process: by quantity and process, seconds and values.

    In arrays: this process is one of those that are watched, and may not grow by what it notes.
    """

    seen: dict[tuple[str, str], tuple[array[float], array[float]]] = field(default_factory=dict)

    def look(self, stand: Stand, at: float) -> None:
        """Look at every process once."""
        for name, pid in dict(stand.pids).items():
            try:
                held = taken(pid)
                sockets = _sockets(pid)
            except ProcessLookupError:
                if name == MORTAL:
                    continue  # it has just been killed
                raise
            values: dict[str, float] = {
                "memory": held.resident,
                "descriptors": held.descriptors,
                "threads": held.threads,
                "sockets": sockets,
            }
            if (folder := stand.folders.get(name)) is not None:
                values["disk"] = bytes_in([folder])
            if name == "dispatcher":
                values["database"] = (
                    sum(file.stat().st_size for file in folder.glob(DATABASE)) if folder else 0
                )
            for kind, value in values.items():
                times, held_then = self.seen.setdefault((kind, name), (array("d"), array("d")))
                times.append(at)
                held_then.append(value)


def _sockets(pid: int) -> int:
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            continue
    return count


def measure(options: Options) -> Outcome:
    """See `benchmarks.runner`."""
    given = options.arguments
    seconds = 60.0 * (QUICK_MINUTES if options.quick else given.minutes)
    watched = Watched()
    with (
        tempfile.TemporaryDirectory(prefix="defer-soak-", ignore_cleanup_errors=True) as folder,
        stand(Path(folder)) as running,
        Clients(running, given.rate, given.seed) as clients,
    ):
        with Changes(running, max(LEAST_S, seconds / CHANGES), given.seed):
            begin = time.monotonic()
            with options.console.status("") as status:
                while (now := time.monotonic() - begin) < seconds:
                    clients.check()
                    watched.look(running, now)
                    status.update(f"{now:.0f} of {seconds:.0f} s")
                    time.sleep(max(0.5, seconds / LOOKS))
        tally = clients.tally()
    return outcome(watched, tally, running, given)


def outcome(watched: Watched, tally: Tally, running: Stand, given: argparse.Namespace) -> Outcome:
    """The table, a row per process and quantity, and whether everything was kept and is flat."""
    rows: list[Row] = []
    grown: list[str] = []
    for (kind, name), (times, values) in watched.seen.items():
        seen = list(zip(times, values, strict=True))
        found = judge(kind, seen)
        # A process that is killed every few minutes begins anew each time; what it keeps on disk does not.
        judged = name != MORTAL or kind == "disk"
        rows.append(_row(kind, name, seen, found, judged=judged))
        if judged and not found.flat:
            grown.append(f"{name}: {kind}")
    refused = sum(tally.ends[code] for code in ("overloaded", "not-ready")) / max(1, tally.sent)
    notes = [
        f"seed {given.seed}: {tally.sent} requests at {given.rate:g}/s; "
        + ", ".join(f"{count} {code}" for code, count in tally.ends.most_common()),
        f"slowest right result {tally.slowest_s:.2f} s; clients hung up {tally.reconnects} times; "
        + ", ".join(f"{count} × {what}" for what, count in running.changes.items()),
        "flat: over the last three quarters, slope (Theil-Sen of each span's lower fifth) times that time is at most "
        + ", ".join(
            f"{kind} {100 * allowed.share:g} % and at least {allowed.least / MIB:g} MiB"
            if allowed.share
            else f"{kind} {allowed.least:g}"
            for kind, allowed in ALLOWED.items()
        ),
        *(f"grows: {what}" for what in grown),
        *(f"{code}: {text}" for code, text in tally.unexpected.items()),
        *running.problems,
    ]
    targets = [
        Target("quantities that grow", len(grown), 0, "most"),
        Target("results that are wrong", tally.ends["wrong"], 0, "most"),
        Target("requests that never ended", tally.lost, 0, "most"),
        Target("errors that nothing explains", tally.errors, 0, "most"),
        Target("part of the requests that was refused", refused, 0.01, "most"),
        Target("changes that failed", len(running.problems), 0, "most"),
    ]
    return Outcome(rows, targets, notes)


def _row(kind: str, name: str, seen: list[tuple[float, float]], found: Growth, *, judged: bool) -> Row:
    whole = ALLOWED[kind].share == 0.0
    unit = 1.0 if whole else MIB
    return {
        "process": name,
        "what": kind if whole else f"{kind} MiB",
        "first": round(seen[0][1] / unit, 2),
        "most": round(max(value for _, value in seen) / unit, 2),
        "last": round(seen[-1][1] / unit, 2),
        "level": round(found.level / unit, 2),
        "grown": round(found.grown / unit, 3),
        "per day": round(found.per_day / unit, 2),
        "verdict": ("flat" if found.flat else "grows") if judged else "killed and started",
    }


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (30)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests per second (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the load and of when things change (0)")


if __name__ == "__main__":
    main("soak", measure, __doc__, add_arguments=_add_arguments)
