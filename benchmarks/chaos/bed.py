"""The cluster under test: devices in the testbed whose agents note what they run, and what can be done to them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.chaos import clock
from benchmarks.chaos.faults import Fault
from benchmarks.testbed import AgentPlace, Testbed, uniform
from benchmarks.testbed import Options as BedOptions
from benchmarks.testbed.agents import node_agent_command
from defer import keys

CPU = 0.5
MEMORY = 512 << 20
BANDWIDTH = 12.5e6
DELAY = 0.001
DISK = 96 << 20
"""Of each device's store: room for every partition, not for much else."""

SLOWER, LATER_S = 0.1, 0.05
PARTITIONS = "52 MiB"
"""What each agent lends to partitions: no device holds the network alone."""

FLIP_EVERY = 100_000
"""Bytes on a link for one that is spoilt: a message in a few."""

JUMPS_S = (-30 * 86400.0, -3600.0, 3600.0, 30 * 86400.0)
"""How wrong a clock may be; by the fault's time, so that the seed decides."""

HOG = f"""
import time
# The kernel takes the largest process that it may; this one it may not.
open("/proc/self/oom_score_adj", "w").write("-1000")
held = bytearray()
while len(held) < {MEMORY - (24 << 20)}:
    held += b"x" * (8 << 20)
    time.sleep(0.01)
time.sleep(3600)
"""
BUSY = "while True: pass"
FILL = "fill"
DISPATCHER, CLIENT = "dispatcher", "client"
"""Names of keys."""


class Bed:
    """A testbed for faults.

    Args:
        count: Devices with agents.
        history: Directory for the agents' notes, and for keys and clocks.
        logs: Directory that keeps the agents' logs.
        insecure: Without keys. TCP's checksum is all that guards what travels then.
    """

    def __init__(
        self, count: int, history: Path, logs: Path | None = None, *, insecure: bool = False
    ) -> None:
        self.names = [f"box-{number + 1}" for number in range(count)]
        self._history = history
        self.keys = None if insecure else history / "keys"
        spec = uniform(
            count,
            cpu=CPU,
            memory=MEMORY,
            bandwidth=BANDWIDTH,
            delay=DELAY,
            arguments=("--memory", PARTITIONS),
        )
        spec = replace(spec, delay_by="tun")  # its delay line can turn bits over
        self.bed = Testbed(spec, BedOptions(agent_command=self._command, agents=False, keep_logs=logs))
        self._beside: dict[str, subprocess.Popen[Any]] = {}
        self._started: dict[str, subprocess.Popen[Any]] = {}

    def history_of(self, name: str) -> Path:
        """Where a device's agents note what they run."""
        return self._history / f"{name}.runs"

    def certificate(self, name: str) -> list[str]:
        """Arguments by which a process proves who it is."""
        return ["--insecure"] if self.keys is None else ["--keys", str(self.keys / "secret" / f"{name}.toml")]

    def clocked(self, name: str, command: Sequence[str]) -> list[str]:
        """A `python -m` command whose process has a device's clock."""
        at = command.index("-m")
        return [*command[: at + 1], "benchmarks.chaos.clock", str(self._clock_of(name)), *command[at + 1 :]]

    def _clock_of(self, name: str) -> Path:
        return self._history / f"{name}.clock"

    def _command(self, place: AgentPlace) -> Sequence[str]:
        name = place.device.name
        command = node_agent_command(place)
        at = command.index("node_agent")
        command[at : at + 1] = ["benchmarks.chaos.agent", str(self.history_of(name))]
        at = command.index("--insecure")
        command[at : at + 1] = self.certificate(name)
        return self.clocked(name, command)

    def _prepare(self) -> None:
        """Make keys, and clocks that are right."""
        for name in (*self.names, self.bed.spec.dispatcher):
            clock.put(self._clock_of(name), 0.0)
        if self.keys is not None:
            keys.make(self.keys, DISPATCHER, "dispatcher")
            keys.make(self.keys, CLIENT, "client")
            for name in self.names:
                keys.make(self.keys, name, "agent")

    @contextlib.contextmanager
    def running(self) -> Iterator[Testbed]:
        """Make the devices and start their agents."""
        mounted: list[Path] = []
        self._prepare()
        with self.bed as bed:
            try:
                for name in self.names:
                    store = bed.directory / "stores" / name
                    store.mkdir(parents=True)
                    subprocess.run(
                        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "defer-chaos", str(store)], check=True
                    )
                    mounted.append(store)
                for name in self.names:
                    self.start_agent(name)
                yield bed
            finally:
                for name in self.names:
                    with contextlib.suppress(Exception):
                        bed.cont(name)
                        bed.kill(name)
                for store in mounted:
                    subprocess.run(["umount", "-l", str(store)], check=False)

    # ---------------------------------------------------------------------------------------------- what happens

    def begin(self, fault: Fault) -> None:
        """Let something go wrong."""
        bed, name = self.bed, fault.device
        match fault.kind:
            case "kill":
                bed.kill(name)
            case "restart":
                bed.kill(name)
                self.start_agent(name)
            case "stop":
                bed.stop(name)
            case "partition":
                bed.cut(name, fault.other)
            case "alone":
                bed.cut(name)
            case "slow-link":
                bed.set_link(name, fault.other, bandwidth=SLOWER * BANDWIDTH, delay=DELAY + LATER_S)
            case "busy" | "out-of-memory":
                script = BUSY if fault.kind == "busy" else HOG
                self._beside[name] = bed.start(
                    [sys.executable, "-c", script], name, stderr=subprocess.DEVNULL, start_new_session=True
                )
            case "bit-flips":
                bed.flip(name, fault.other, FLIP_EVERY)
            case "clock-jump":
                clock.put(self._clock_of(name), JUMPS_S[int(fault.at * 1e3) % len(JUMPS_S)])
            case "disk-full":
                self._fill(name)

    def end(self, fault: Fault) -> None:
        """Undo it."""
        bed, name = self.bed, fault.device
        match fault.kind:
            case "kill":
                self.start_agent(name)
            case "stop":
                bed.cont(name)
            case "partition":
                bed.heal(name, fault.other)
            case "alone":
                bed.heal(name)
            case "slow-link":
                bed.set_link(name, fault.other, bandwidth=BANDWIDTH, delay=DELAY)
            case "busy" | "out-of-memory":
                beside = self._beside.pop(name)
                beside.kill()
                beside.wait()
                self.revive(name)
            case "bit-flips":
                bed.flip(name, fault.other, 0)
            case "clock-jump":
                clock.put(self._clock_of(name), 0.0)
            case "disk-full":
                (bed.directory / "stores" / name / FILL).unlink(missing_ok=True)

    def start_agent(self, name: str) -> None:
        """Start a device's agent, without waiting until it is ready."""
        self._started[name], _, _ = self.bed._spawn(name)

    def revive(self, name: str) -> bool:
        """Start an agent that has ended; whether it had."""
        if self._started[name].poll() is None:
            return False
        self.start_agent(name)
        return True

    def _fill(self, name: str) -> None:
        path = self.bed.directory / "stores" / name / FILL
        with contextlib.suppress(OSError), path.open("wb") as file:
            while True:
                os.write(file.fileno(), bytes(1 << 20))


def wait_ready(bed: Bed, seconds: float) -> None:
    """Until every agent has said that it is ready.

    Raises:
        SystemExit: One did not.
    """
    deadline = time.monotonic() + seconds
    for name in bed.names:
        said = bed.bed.directory / "logs" / f"{name}.out"
        while not said.exists() or not said.read_text().strip():
            if time.monotonic() > deadline:
                raise SystemExit(f"the agent on {name} is not ready after {seconds:g} s")
            time.sleep(0.1)
