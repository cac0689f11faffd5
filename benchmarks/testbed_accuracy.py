"""How true the testbed is: bandwidth, delay, shared media and CPU shares as asked and as measured inside.

Payload is measured, bandwidth is asked on the wire: a full segment carries 1448 of 1514 bytes, so 95.6 % is exact.
"""

from __future__ import annotations

from statistics import median

from benchmarks.runner import Options, Outcome, Row, Target, main
from benchmarks.testbed import Link, Spec, Testbed, measure, uniform
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed.layout import SEGMENT

PAYLOAD = SEGMENT / 1514
MBIT = 125_000.0
RATES = (5.0, 20.0, 100.0, 1000.0)
DELAYS = (0.001, 0.002, 0.01, 0.05)
SHARES = (0.05, 0.2, 0.5, 1.0)
EMPTY = BedOptions(agents=False)


def measure_all(options: Options) -> Outcome:
    """Rows of every kind; the targets are the largest errors."""
    rates, delays, shares = (
        (RATES[1:3], DELAYS[1:3], SHARES[1:2]) if options.quick else (RATES, DELAYS, SHARES)
    )
    seconds = 0.5 if options.quick else 2.0
    with options.console.status("bandwidth"):
        bandwidth = [_bandwidth(rate, seconds) for rate in rates]
        both = [_bandwidth(rate, seconds, 0.01) for rate in rates]
        shared = [_medium(rate, seconds) for rate in rates[:2]]
    with options.console.status("delay"):
        delay = [_delay(one, 20 if options.quick else 100) for one in (0.0, *delays)]
    with options.console.status("CPU shares"):
        cpu = [_share(share, seconds) for share in shares]
    carried = [_carried(seconds)]
    targets = [
        Target("largest error of a bandwidth, part", _largest(bandwidth + both + shared), 0.15, "most"),
        Target("largest error of a delay, part beyond 1 ms", _late(delay), 0.2, "most"),
        Target("largest error of a CPU share, part", _largest(cpu), 0.2, "most"),
    ]
    notes = ["error: measured ÷ asked − 1, for bandwidths after the headers' part of the wire is taken off"]
    return Outcome([*bandwidth, *both, *shared, *delay, *cpu, *carried], targets, notes)


def _row(what: str, unit: str, asked: float | None, measured: float, fair: float = 1.0) -> Row:
    error = None if not asked else measured / (asked * fair) - 1
    return {"what": what, "unit": unit, "asked": asked, "measured": measured, "error": error}


def _bandwidth(mbit: float, seconds: float, delay: float = 0.0) -> Row:
    what = f"bandwidth, {delay * 1e3:g} ms delay" if delay else "bandwidth"
    nbytes = int(mbit * MBIT * (seconds + 20 * delay))
    with Testbed(uniform(2, bandwidth=mbit * MBIT, delay=delay), EMPTY) as bed, measure.serving(bed, "box-2"):
        measured = measure.rate(bed, "box-1", "box-2", nbytes) / MBIT
    return _row(what, "Mbit/s", mbit, measured, PAYLOAD)


def _medium(mbit: float, seconds: float) -> Row:
    """Two pairs on one medium at the same time: together they get its bandwidth."""
    plain = uniform(4)
    links = tuple(Link(link.source, link.target, medium="air") for link in plain.links)
    spec = Spec(plain.devices, links, media={"air": mbit * MBIT})
    nbytes = int(mbit * MBIT * seconds / 2)
    with Testbed(spec, EMPTY) as bed, measure.serving(bed, "box-2"), measure.serving(bed, "box-4"):
        both = measure.rates(bed, [("box-1", "box-2"), ("box-3", "box-4")], nbytes)
    return _row("shared medium, two pairs", "Mbit/s", mbit, sum(both) / MBIT, PAYLOAD)


def _delay(delay: float, count: int) -> Row:
    with Testbed(uniform(2, delay=delay), EMPTY) as bed, measure.serving(bed, "box-2"):
        trips = measure.round_trips(bed, "box-1", "box-2", count)
    return _row("round trip", "ms", 2e3 * delay, median(trips) * 1e3)


def _share(share: float, seconds: float) -> Row:
    with Testbed(uniform(1, cpu=share), EMPTY) as bed:
        measured = measure.cpu_share(bed, "box-1", seconds)
    return _row("CPU share", "cores", share, measured)


def _carried(seconds: float) -> Row:
    """What the delay line can carry when no bandwidth limits it."""
    with Testbed(uniform(2, delay=0.001), EMPTY) as bed, measure.serving(bed, "box-2"):
        measured = measure.rate(bed, "box-1", "box-2", int(500e6 * seconds)) / MBIT
    return _row("no bandwidth limit, 1 ms delay", "Mbit/s", None, measured)


def _largest(rows: list[Row]) -> float:
    return max(abs(float(row["error"] or 0.0)) for row in rows)


def _late(rows: list[Row]) -> float:
    late = []
    for row in rows:
        asked, measured = float(row["asked"] or 0.0), float(row["measured"] or 0.0)
        if asked:
            late.append(max(0.0, abs(measured - asked) - 1.0) / asked)
    return max(late)


if __name__ == "__main__":
    main("testbed_accuracy", measure_all, __doc__)
