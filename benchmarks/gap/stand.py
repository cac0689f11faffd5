"""What the scenes are played on: agents in the testbed that note their runs, a dispatcher, clients under open load."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.chaos import model
from benchmarks.chaos.bed import CLIENT, DISPATCHER, Bed, wait_ready
from benchmarks.chaos.history import Asked, read_client
from benchmarks.processes import serving
from benchmarks.testbed import Testbed

NAME = "numbered"
DEADLINE_S = 30.0
READY_S = 120.0
CAPACITY_S = 4.0
PLANNED_S = 6.0
"""In which the dispatcher has planned for the next loss."""
QUIET = 200_000
"""Bytes per second from the dispatcher below which it sends no files."""


@dataclass
class Load:
    """Requests at a steady rate, and what their client notes."""

    process: subprocess.Popen[Any]
    history: Path
    begun: float

    def asked(self) -> dict[int, Asked]:
        """Wait for its end, and read what it noted."""
        self.process.wait(DEADLINE_S + 120)
        return read_client(self.history.read_text().splitlines())


def results(asked: dict[int, Asked]) -> list[tuple[float, float]]:
    """When right results came, in order, and their seconds."""
    return sorted(
        (at, at - one.sent)
        for one in asked.values()
        for at, outcome, _ in one.ends[:1]
        if outcome == "result"
    )


def failed(asked: dict[int, Asked]) -> int:
    """Requests that did not end with one right result."""
    return sum(
        [outcome for _, outcome, _ in one.ends] != ["result"] or one.again > 0 for one in asked.values()
    )


def gap(asked: dict[int, Asked], begin: float, end: float, *, whole: bool = False) -> float:
    """The longest time between two results of which one, or with `whole` each, came between `begin` and `end`."""
    times = [at for at, _ in results(asked) if not whole or begin <= at <= end]
    gaps = [b - a for a, b in pairwise(times) if b > begin and a < end]
    return max(gaps, default=end - begin)


def p99(asked: dict[int, Asked], begin: float, end: float) -> float:
    """99th percentile of the latencies of requests that were sent between `begin` and `end`."""
    seconds = sorted(took for at, took in results(asked) if begin <= at - took <= end)
    return seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else float("nan")


@dataclass
class Stand:
    """See the module.

    Attributes:
        bed: Devices and what can be done to them.
        running: The testbed.
        work: Directory for everything.
        more: Arguments for `defer serve` beside the usual.
    """

    bed: Bed
    running: Testbed
    work: Path
    more: Sequence[str] = ()
    address: str = ""
    rate: float = 0.0
    dispatcher: int = 0
    _loads: int = field(default=0)

    @contextlib.contextmanager
    def serving(self, *, fresh: bool = True, standby: str = "auto") -> Iterator[None]:
        """A dispatcher that serves the network.

        Args:
            fresh: It saves its plan and what was measured; else it takes over what was served.
            standby: What it prepares for the loss of a device.
        """
        with (self.work / "dispatcher.log").open("a") as log:

            def start(command: Sequence[str]) -> subprocess.Popen[str]:
                return self.running.start(command, None, stdout=subprocess.PIPE, stderr=log, text=True)

            more = [*self.bed.certificate(DISPATCHER), "--state", str(self.work / "state"), "--wait", "60"]
            more += ["--model", str(self.work / f"{NAME}.onnx"), "--objective", "throughput"]
            # A busy machine looks like a slow device: each round is to begin with the same plan.
            more += ["--replan", "never"]
            more += ["--input", f"a0={model.ROWS},{model.WIDTH}", "--standby", standby, *self.more]
            if fresh:
                more += ["--save-plan", str(self.work / "plan.json")]
                more += ["--save-profile", str(self.work / "profile.json")]
            with serving(self.running.cluster_file, *more, start=start) as ready:
                self.address, self.dispatcher = ready["ready"], ready["pid"]
                yield

    def defer(self, *words: str, role: str = DISPATCHER) -> str:
        """Run a command of ours beside the dispatcher; what it prints."""
        command = [sys.executable, "-m", "defer", *words]
        if words[0] != "plan":  # which asks nobody
            command += ["--dispatcher", self.address, *self.bed.certificate(role)]
        done = self.running.run(command, capture=True, timeout=120)
        if done.returncode:
            raise SystemExit(f"defer {' '.join(words)} failed: {done.stdout}{done.stderr}")
        return str(done.stdout)

    def empty_stores(self) -> None:
        """Remove every partition from the devices' stores; what is loaded stays loaded."""
        for path in (self.running.directory / "stores").rglob("*"):
            if path.suffix in (".onnx", ".bin"):
                path.unlink(missing_ok=True)

    def status(self) -> Any:
        """`defer status`."""
        return json.loads(self.defer("status", "--json"))

    def events(self, since: float, *kinds: str) -> list[Any]:
        """What the dispatcher noted after `since` on the wall clock."""
        told = [json.loads(line) for line in self.defer("events", "--json").splitlines()]
        return [one for one in told if one["at"] >= since and (not kinds or one["kind"] in kinds)]

    def stages(self) -> list[str]:
        """Devices of the route that serves, in order."""
        ready = [each for each in self.status()["deployments"] if each["state"] == "ready"]
        return [stage["device"] for stage in max(ready, key=lambda each: each["epoch"])["stages"]]

    def client(self) -> list[str]:
        """The command of a client under load."""
        command = [sys.executable, "-m", "benchmarks.chaos.load", self.address]
        return command + ([] if self.bed.keys is None else self.bed.certificate(CLIENT))

    def measure_rate(self) -> float:
        """Half of what the devices carry."""
        told = self.running.run([*self.client(), "--capacity", str(CAPACITY_S)], capture=True, timeout=120)
        return float(json.loads(told.stdout)) / 2

    def load(self, seconds: float, *, rate: float = 0.0, durable: bool = False) -> Load:
        """Start requests, and return when the first has been sent."""
        self._loads += 1
        history = self.work / f"client-{self._loads}.history"
        command = [*self.client(), "--rate", str(rate or self.rate), "--seconds", str(seconds)]
        command += ["--first", str(100_000 * self._loads), "--seed", str(self._loads)]
        command += ["--history", str(history), "--deadline", str(DEADLINE_S)]
        process = self.running.start([*command, *(["--durable"] if durable else [])])
        while not history.exists() or not history.read_text():
            time.sleep(0.02)
        return Load(process, history, time.monotonic())

    def settle(self, stages: Sequence[str], by: str, seconds: float = 300.0) -> list[str]:
        """Until these devices serve again, and losses are prepared for: nothing more is sent to agents.

        Args:
            stages: Which.
            by: How, in the words of `defer status`.
            seconds: How long that may take.

        Returns:
            Those whose loss is prepared for like this; memory may not do for all.
        """
        deadline = time.monotonic() + seconds
        while self.stages() != list(stages):
            if time.monotonic() > deadline:
                raise SystemExit(f"{' → '.join(stages)} do not serve again after {seconds:g} s")
            time.sleep(0.5)
        time.sleep(PLANNED_S)
        while not self._prepared(by):
            if time.monotonic() > deadline:
                raise SystemExit(f"after {seconds:g} s no loss is prepared for by {by}")
            time.sleep(0.5)
        quiet = 0
        while quiet < 3 and time.monotonic() < deadline:
            before = self._sent()
            time.sleep(1.0)
            quiet = quiet + 1 if self._sent() - before < QUIET else 0
        return [name for name in stages if name in self._prepared(by)]

    def _prepared(self, by: str) -> set[str]:
        """Devices whose loss is prepared for like this, once it is decided for all."""
        told = self.status()["standby"]
        if any(
            each["by"] == "planning" or (by == "loaded" and each["by"] == "files" and not each["reason"])
            for each in told
        ):
            return set()
        return {each["lost"] for each in told if each["by"] == by}

    def _sent(self) -> int:
        """Bytes that have left the dispatcher's device."""
        home = self.running.spec.dispatcher
        return sum(nbytes for (source, _), nbytes in self.running.traffic().items() if source == home)


@contextlib.contextmanager
def stand(work: Path, devices: int, more: Sequence[str] = ()) -> Iterator[Stand]:
    """Devices whose agents are ready."""
    bed = Bed(devices, work, work)
    with bed.running() as running:
        wait_ready(bed, READY_S)
        model.save(work / f"{NAME}.onnx")
        yield Stand(bed, running, work, more)
