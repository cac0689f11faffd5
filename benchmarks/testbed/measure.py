"""Measuring what a bed really does, from inside of its devices."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.testbed.bed import Testbed
from defer.errors import Internal

PORT = 7700
TIMEOUT_S = 90.0
_PROBE = (sys.executable, "-ISu", str(Path(__file__).with_name("probe.py")))


@contextmanager
def serving(bed: Testbed, device: str) -> Iterator[None]:
    """Runs the probe's server on a device while the block lasts."""
    command = [*_PROBE, "serve", bed.address(device), str(PORT)]
    process = bed.start(command, device, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise Internal(f"the probe did not start on {device!r}")
        yield
    finally:
        bed.end(process)


def rate(bed: Testbed, source: str, target: str, nbytes: int) -> float:
    """Payload bytes/s of one TCP connection in its steady state; `serving` runs on the target."""
    return float(_probe(bed, source, "send", bed.address(target), str(PORT), str(nbytes)))


def rates(bed: Testbed, pairs: list[tuple[str, str]], nbytes: int) -> list[float]:
    """`rate` of several pairs at the same time."""
    running = [
        bed.start(
            [*_PROBE, "send", bed.address(target), str(PORT), str(nbytes)],
            source,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for source, target in pairs
    ]
    try:
        return [float(process.communicate(timeout=TIMEOUT_S)[0]) for process in running]
    finally:
        for process in running:
            bed.end(process)


def round_trips(bed: Testbed, source: str, target: str, count: int = 20) -> list[float]:
    """Round-trip seconds of single bytes, ascending; `serving` runs on the target."""
    return sorted(map(float, _probe(bed, source, "ping", bed.address(target), str(PORT), str(count)).split()))


def cpu_share(bed: Testbed, device: str, seconds: float) -> float:
    """Cores that a busy loop gets on a device."""
    return float(_probe(bed, device, "spin", str(seconds)))


def eat(bed: Testbed, device: str, nbytes: int) -> int:
    """Exit code of a process that takes so much memory on a device."""
    return bed.run([*_PROBE, "eat", str(nbytes)], device, timeout=TIMEOUT_S, capture=True).returncode


def _probe(bed: Testbed, device: str, *words: str) -> str:
    done = bed.run([*_PROBE, *words], device, timeout=TIMEOUT_S, capture=True, start_new_session=True)
    if done.returncode != 0:
        raise Internal(f"the probe on {device!r} failed: {str(done.stderr).strip()[-300:]}")
    return str(done.stdout)
