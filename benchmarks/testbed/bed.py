"""`Testbed`: a cluster of emulated devices with real agents, for as long as a `with` block lasts."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.testbed import capabilities, document, owner
from benchmarks.testbed.agents import Agent, AgentCommand, AgentPlace, node_agent_command, wait_ready
from benchmarks.testbed.clusterfile import cluster_toml
from benchmarks.testbed.devices import Devices
from benchmarks.testbed.interrupts import Interrupts, undisturbed
from benchmarks.testbed.layout import Layout
from benchmarks.testbed.network import Network, changed
from benchmarks.testbed.spec import Spec
from defer.errors import Internal, UsageError

START_TIMEOUT_S = 120.0
"""An agent with a twentieth of a core needs its time to import what it needs."""
RUN_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Options:
    """How a bed is run, beside what it is.

    Attributes:
        agents: Whether agents are started; without them, it is a network of empty devices.
        agent_command: Makes the command line of an agent.
        keep_logs: Directory that gets the agents' output when the bed ends.
        start_timeout: Seconds until every agent must have said that it is ready.
    """

    agents: bool = True
    agent_command: AgentCommand = node_agent_command
    keep_logs: Path | None = None
    start_timeout: float = START_TIMEOUT_S


class Testbed:
    """An emulated edge cluster on this machine; needs root.

        with Testbed(uniform(2, cpu=0.2, bandwidth=12.5e6)) as bed:
            bed.run(["defer", "serve", "--cluster", str(bed.cluster_file)])

    Everything that it makes is gone when the block is left, whatever the reason. Used by one thread, once.

    Args:
        spec: What to emulate, or the path of a testbed's file.
        options: How.

    Attributes:
        spec: What is emulated.
        layout: Names and addresses.
        directory: Scratch directory: `cluster.toml`, `logs`, and a store per agent.
        agents: Agents by device, also those that have been killed.
    """

    __test__ = False  # not a test, whatever pytest thinks of its name

    def __init__(self, spec: Spec | str | Path, options: Options | None = None) -> None:
        self.spec = spec if isinstance(spec, Spec) else document.load(spec)
        self.agents: dict[str, Agent] = {}
        tag = owner.new_tag()
        self.layout = Layout(self.spec, tag, zlib.crc32(tag.encode()) % 512)
        self.directory = owner.scratch(tag)
        self._options = options or Options()
        self._interrupts = Interrupts()
        self._record: owner.Record | None = None
        self._devices: Devices | None = None
        self._network: Network | None = None

    def __enter__(self) -> Self:
        """Makes everything and waits until every agent is ready.

        Raises:
            PermissionDenied, MissingExtra: This machine cannot; the hint says what it needs.
            AgentUnreachable: An agent did not start; the message holds the end of its log.
        """
        capabilities.require()
        self._interrupts.start()
        try:
            owner.reap()
            self._make()
            if self._options.agents:
                self._start_agents([device.name for device in self.spec.devices if device.agent])
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything; takes a few seconds at most, and signals wait for it.

        Raises:
            Internal: Something could not be removed; the next bed tries again.
        """
        problems: list[str] = []
        with undisturbed():
            if self._devices is not None:
                self._devices.end_all()
            if self._network is not None:
                self._network.close()
            self._keep_logs()
            if self._record is not None:
                problems = owner.dismantle(self._record)
            if self._devices is not None:
                self._devices.forget_all()
            self._record = self._devices = self._network = None
            self._interrupts.stop()
        if problems:
            raise Internal("; ".join(problems), hint="the next testbed on this machine tries again")

    @property
    def cluster_file(self) -> Path:
        """The `cluster.toml` with the devices' addresses."""
        return self.directory / "cluster.toml"

    def address(self, name: str) -> str:
        """A device's IP address."""
        return self.layout.address(name)

    # Processes.

    def start(
        self,
        command: Sequence[str],
        device: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[Any]:
        """Starts a process on a device, inside of its limits and network; it ends with the bed at the latest.

        Args:
            command: Program and arguments.
            device: Where; the dispatcher's device if None.
            env: More environment, beside thread settings, `DEFER_CLUSTER` and `DEFER_TESTBED_DIR`.
            popen: As for `subprocess.Popen`.

        Returns:
            The process; its id is that of the program.
        """
        return self._running.start(command, device or self.spec.dispatcher, env or {}, **popen)

    def run(
        self,
        command: Sequence[str],
        device: str | None = None,
        *,
        env: Mapping[str, str] | None = None,
        timeout: float | None = RUN_TIMEOUT_S,
        capture: bool = False,
        **popen: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a command on a device to its end.

        Args:
            command: Program and arguments.
            device: Where; the dispatcher's device if None.
            env: More environment, as in `start`.
            timeout: Seconds it may take; None for no limit.
            capture: Return what it prints, as text.
            popen: As for `subprocess.Popen`.

        Raises:
            DeadlineExceeded: It did not end within `timeout` seconds; it and all that it started is ended.
        """
        if capture:
            popen |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return self._running.run(command, device or self.spec.dispatcher, env or {}, timeout, **popen)

    def end(self, process: subprocess.Popen[Any]) -> None:
        """Ends a process of `start` and everything that it started: asked first, killed after 3 s."""
        self._running.end(process)

    def kill(self, name: str) -> None:
        """Kills everything on a device at once, as a crash does; peers see their connections closed.

        A box that loses power says nothing to anybody: `cut` its links before.
        """
        self._running.kill(name)

    def stop(self, name: str) -> None:
        """Freezes a device's processes, as a hang does; the kernel still answers for their connections."""
        self._running.of(name).signal(signal.SIGSTOP)

    def cont(self, name: str) -> None:
        """Lets a stopped device go on."""
        self._running.of(name).signal(signal.SIGCONT)

    def restart(self, name: str) -> Agent:
        """Kills what is left on a device and starts its agent again, with the same address and store.

        Raises:
            UsageError: The device has no agent.
            AgentUnreachable: It did not start.
        """
        if not self.spec.device(name).agent:
            raise UsageError(f"{name!r} has no agent", hint="only devices with an agent can be restarted")
        self.kill(name)
        self._start_agents([name])
        return self.agents[name]

    def cpu_seconds(self, name: str) -> float:
        """CPU time that a device's processes have taken so far, in seconds."""
        return self._running.of(name).cpu_seconds()

    def memory_bytes(self, name: str) -> int:
        """Memory charged to a device now, its file cache included."""
        return self._running.of(name).memory_bytes()

    def set_cpu(self, name: str, cores: float) -> None:
        """Gives a running device more or less of its processor: so many cores."""
        self._running.of(name).limit_cpu(cores, self.spec.period)

    # Links.

    def set_link(
        self,
        one: str,
        other: str,
        *,
        bandwidth: float | None = None,
        delay: float | None = None,
        both: bool = True,
    ) -> None:
        """Changes a link while it is used.

        Args:
            one: Sender.
            other: Receiver.
            bandwidth: New bytes/s; None leaves it.
            delay: New one-way delay in seconds; None leaves it.
            both: The other direction as well.

        Raises:
            UsageError: There is no such link, or it has its medium's bandwidth.
            InvalidCluster: No bandwidth or delay that a link can have.
        """
        for source, target in self._directions(one, other, both):
            link = changed(self._links.link(source, target), bandwidth, delay)
            self._links.change(link)

    def set_medium(self, name: str, bandwidth: float) -> None:
        """Changes the rate of a shared medium, bytes/s."""
        self._links.change_medium(name, bandwidth)

    def cut(self, one: str, other: str | None = None, *, both: bool = True) -> None:
        """Loses every packet between two devices from now on, or with one device all of its links'."""
        self._cut(one, other, both, cut=True)

    def heal(self, one: str, other: str | None = None, *, both: bool = True) -> None:
        """Undoes `cut`."""
        self._cut(one, other, both, cut=False)

    def flip(self, one: str, other: str, every: int, *, both: bool = True) -> None:
        """Turns one bit over in about `every` bytes between two devices, unnoticed by TCP's checksum.

        Args:
            one: Sender.
            other: Receiver.
            every: Bytes per bit; 0 ends it.
            both: The other direction as well.

        Raises:
            UsageError: There is no such link, or it has no delay, or the kernel delays its packets (`delay_by`).
        """
        for source, target in self._directions(one, other, both):
            self._links.flip(source, target, every)

    def bytes_sent(self, one: str, other: str) -> int:
        """Bytes that one device has sent to another so far, with Ethernet, IP and TCP headers."""
        return self._links.bytes_sent(one, other)

    def traffic(self) -> dict[tuple[str, str], int]:
        """`bytes_sent` of every link, by source and target."""
        return self._links.traffic()

    # How it is made.

    @property
    def _running(self) -> Devices:
        if self._devices is None:
            raise _not_running()
        return self._devices

    @property
    def _links(self) -> Network:
        if self._network is None:
            raise _not_running()
        return self._network

    def _make(self) -> None:
        environment = {"DEFER_CLUSTER": str(self.cluster_file), "DEFER_TESTBED_DIR": str(self.directory)}
        devices = Devices(self.layout, environment)
        pid, started, _ = owner.parts(self.layout.tag)
        record = owner.Record(
            tag=self.layout.tag,
            pid=pid,
            started=started,
            pid_namespace=owner.pid_namespace(),
            namespaces=self.layout.namespaces,
            groups=tuple(str(path) for path in devices.group.directories),
            directory=str(self.directory),
        )
        record.save()
        self._record = record
        self.directory.mkdir(mode=0o700)
        (self.directory / "logs").mkdir()
        self.cluster_file.write_text(cluster_toml(self.layout))
        self._devices = devices
        devices.make()
        netem = capabilities.delays_by_netem(self.spec)
        self._network = Network(self.layout, devices.network_group, netem=netem)
        self._network.build()

    def _start_agents(self, names: Sequence[str]) -> None:
        deadline = time.monotonic() + self._options.start_timeout
        started = [(name, *self._spawn(name)) for name in names]
        for name, process, output, log in started:
            self.agents[name] = wait_ready(process, name, output, log, deadline)

    def _spawn(self, name: str) -> tuple[subprocess.Popen[Any], Path, Path]:
        store = self.directory / "stores" / name
        store.mkdir(parents=True, exist_ok=True)
        place = AgentPlace(self.spec.device(name), self.address(name), store)
        output, log = (self.directory / "logs" / f"{name}.{kind}" for kind in ("out", "log"))
        # Its own session: Ctrl-C in the terminal reaches the owner alone, which then ends it in order.
        with output.open("wb") as out, log.open("ab") as err:
            process = self.start(
                self._options.agent_command(place),
                name,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return process, output, log

    def _keep_logs(self) -> None:
        logs = self.directory / "logs"
        if self._options.keep_logs is not None and logs.is_dir():
            shutil.copytree(logs, self._options.keep_logs, dirs_exist_ok=True)

    def _cut(self, one: str, other: str | None, both: bool, *, cut: bool) -> None:
        others = [other]
        if other is None:
            pairs = {(link.source, link.target) for link in self.spec.links}
            others = [name for name in self.spec.names if {(one, name), (name, one)} & pairs]
        for name in others:
            for source, target in self._directions(one, name or "", both):
                self._links.cut(source, target, cut=cut)

    def _directions(self, one: str, other: str, both: bool) -> list[tuple[str, str]]:
        return [(one, other), (other, one)] if both else [(one, other)]


def _not_running() -> UsageError:
    return UsageError("the testbed is not running", hint="use it inside of its `with` block")
