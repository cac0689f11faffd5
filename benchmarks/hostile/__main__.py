"""Mutated messages on every port of a real agent and a real dispatcher, while an honest client works with them.

A million on each of six ports, by default: ZeroMQ messages made from honest ones, and now and then bytes that are not
even ZMTP. No process may end, hang or grow, no honest request may end wrong or without a result; after every 2,000
messages the port must answer an honest question. Before that, single messages that promise 2^40 elements, bombs and the
like, and peers that must not get in where there are keys: each is refused within a second, and the log has at most a
line for it. A million more go through the decoders of all messages and codecs in this process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.hostile.attacks import ATTACKS, refused
from benchmarks.hostile.cluster import Running, running
from benchmarks.hostile.corpus import PORTS
from benchmarks.hostile.decoders import LONGEST_S, decoders, take
from benchmarks.hostile.decoders import Taken as Decoded
from benchmarks.hostile.flood import BETWEEN, Flood
from benchmarks.hostile.strangers import Refused, guarded, refusals
from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.watch import Taken, taken

MIB = 1 << 20

WARM = 0.25
"""Part of the messages after which growth counts: what is allocated once has been by then."""

GROWTH_BYTES = 24 * MIB
"""A leak of 10 bytes per message would be more than this."""

LINES = 200
"""Lines that a process may log; what a peer provokes is told every 10 s at most, for each cause."""

QUICK = 4000

SETTLE_S = 6.0
"""An unfinished ZMTP handshake is given up after five."""


def measure(options: Options) -> Outcome:
    """See `benchmarks.runner`."""
    given = options.arguments
    frames = min(given.frames, QUICK) if options.quick else given.frames
    decoded, swollen = _decode(min(given.decoders, QUICK) if options.quick else given.decoders, given.seed)
    with tempfile.TemporaryDirectory(prefix="defer-strangers-") as folder, guarded(Path(folder)) as keyed:
        refused_peers = refusals(keyed)
    with tempfile.TemporaryDirectory(prefix="defer-hostile-") as folder, running(Path(folder)) as cluster:
        floods = [
            Flood(port, cluster.endpoints[port], corpus, given.seed)
            for port, corpus in PORTS.items()
            if not given.port or given.port in port
        ]
        try:
            slowest, lines = _attack(floods, cluster)
            before, after = _flood(floods, cluster, frames, options)
        finally:
            for flood in floods:
                flood.close()
        honest = cluster.honest
        logged = max(cluster.lines(name) for name in cluster.logs)
    rows: list[Row] = [
        {
            "port or decoder": flood.port,
            "messages": flood.sent,
            "answers or believed": flood.answers,
            "slowest s": flood.slowest_s,
        }
        for flood in floods
    ]
    rows += [
        {
            "port or decoder": each.decoder,
            "messages": each.messages,
            "answers or believed": each.accepted,
            "slowest s": each.slowest_s,
        }
        for each in decoded
    ]
    grown = {name: after[name].resident - before[name].resident for name in after}
    notes = [
        f"{name}: {before[name].resident / MIB:.0f} → {after[name].resident / MIB:.0f} MiB, "
        f"{before[name].descriptors} → {after[name].descriptors} descriptors, "
        f"{before[name].threads} → {after[name].threads} threads"
        for name in after
    ]
    notes.append(
        f"honest requests: {honest.right} right, slowest {honest.slowest_s:.2f} s, errors {honest.errors}"
    )
    notes += _strangers(refused_peers)
    targets = [
        Target("slowest refusal of an attack, s", slowest, 1.0, "most"),
        Target("most lines logged for an attack", lines, 1, "most"),
        Target(
            "slowest refusal of a stranger, s", max(each.slowest_s for each in refused_peers), 1.0, "most"
        ),
        Target("most lines logged for a stranger", max(each.lines for each in refused_peers), 1, "most"),
        Target("slowest message of a decoder, s", max(each.slowest_s for each in decoded), LONGEST_S, "most"),
        Target("growth while decoding, MiB", swollen / MIB, GROWTH_BYTES / MIB, "most"),
        Target("honest requests answered wrong", honest.wrong, 0, "most"),
        Target("honest requests without a result", sum(honest.errors.values()), 0, "most"),
        Target("most growth of a process, MiB", max(grown.values()) / MIB, GROWTH_BYTES / MIB, "most"),
        Target(
            "most new descriptors",
            max(after[n].descriptors - before[n].descriptors for n in after),
            2,
            "most",
        ),
        Target("most new threads", max(after[n].threads - before[n].threads for n in after), 0, "most"),
        Target("most lines in a log", logged, LINES, "most"),
    ]
    return Outcome(rows, targets, notes)


def _decode(count: int, seed: int) -> tuple[list[Decoded], int]:
    """What became of so many messages in all decoders of this process, and the bytes that it grew by once warm."""
    sources = decoders(seed)
    each = -(-count // len(sources))
    first = {name: take(name, source, int(WARM * each)) for name, source in sources.items()}
    before = taken(os.getpid()).resident
    found = []
    for name, source in sources.items():
        one, other = first[name], take(name, source, each - first[name].messages)
        found.append(
            Decoded(
                name,
                one.messages + other.messages,
                one.accepted + other.accepted,
                max(one.slowest_s, other.slowest_s),
                one.seconds + other.seconds,
            )
        )
    return found, taken(os.getpid()).resident - before


def _strangers(refused_peers: list[Refused]) -> list[str]:
    """A line per kind of stranger."""
    kinds = dict.fromkeys(each.stranger for each in refused_peers)
    mine = {kind: [each for each in refused_peers if each.stranger == kind] for kind in kinds}
    return [
        f"{kind}, at {len(found)} ports: refused after {max(each.slowest_s for each in found):.3f} s at most, "
        f"{sum(each.lines for each in found)} lines logged"
        for kind, found in mine.items()
    ]


def _attack(floods: list[Flood], cluster: Running) -> tuple[float, int]:
    """Slowest refusal in seconds, and most lines that one attack left in a log."""
    slowest, most = 0.0, 0
    for flood in floods:
        if not flood.port.endswith("data"):
            continue
        log = "first" if flood.port.startswith("agent") else "dispatcher"
        for attack in ATTACKS:
            before = cluster.lines(log)
            slowest = max(slowest, flood.told(attack.message, refused, attack.greeted))
            most = max(most, cluster.lines(log) - before)
    return slowest, most


def _flood(
    floods: list[Flood], cluster: Running, frames: int, options: Options
) -> tuple[dict[str, Taken], dict[str, Taken]]:
    """Send it all; what processes held when they were warm, and at the end."""
    before: dict[str, Taken] = {}
    warm = False
    with options.console.status("flooding") as status:
        for done in range(0, frames, BETWEEN):
            for flood in floods:
                flood.round(min(BETWEEN, frames - done))
            cluster.taken()  # raises where one has ended
            status.update(f"flooding: {done + BETWEEN:,} of {frames:,} on each port")
            if not warm and done + BETWEEN >= WARM * frames:
                warm, before = True, _settled(cluster)
    return before, _settled(cluster)


def _settled(cluster: Running) -> dict[str, Taken]:
    """What processes hold once they have given up on what never finished its handshake."""
    time.sleep(SETTLE_S)
    return cluster.taken()


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--frames", type=int, default=1_000_000, help="messages on each port (1,000,000)")
    parser.add_argument(
        "--decoders", type=int, default=1_000_000, help="messages to decoders in this process (1,000,000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all mutations (0)")
    parser.add_argument("--port", choices=("agent", "dispatcher", *PORTS), help="these ports only")


if __name__ == "__main__":
    main("hostile", measure, __doc__, add_arguments=_add_arguments)
