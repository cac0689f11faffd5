"""The devices of a bed as places where processes run: their groups, limits, signals and counters."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.testbed.cgroups import Group, hierarchy
from benchmarks.testbed.enter import entering, thread_settings
from benchmarks.testbed.layout import Layout
from defer.errors import DeadlineExceeded, Internal

GRACE_S = 3.0
"""How long a process has for its own goodbye."""
ROOT = Path(__file__).resolve().parent.parent.parent


class Devices:
    """Runs processes on the devices of a bed.

    Args:
        where: Names and addresses.
        environment: What all processes are told, beside their thread settings.
    """

    def __init__(self, where: Layout, environment: Mapping[str, str]) -> None:
        self._layout = where
        self._environment = dict(environment)
        self.group = hierarchy().group(where.tag)
        self._running: dict[int, tuple[subprocess.Popen[Any], Group]] = {}
        self._number = 0

    def make(self) -> None:
        """Makes the groups and sets their limits."""
        spec = self._layout.spec
        self.group.make(delegate=True)
        self.group.weigh(len(spec.devices))
        self.network_group.make()
        for device in spec.devices:
            group = self.of(device.name)
            group.make()
            if device.cpu is not None:
                group.limit_cpu(device.cpu, spec.period)
            if device.memory is not None:
                group.limit_memory(device.memory)

    @property
    def network_group(self) -> Group:
        """The group of what emulates the network."""
        return self.group.below("network")

    def of(self, name: str) -> Group:
        """A device's group. The prefix keeps names apart from the kernel's files in the same directory."""
        self._layout.spec.device(name)
        return self.group.below(f"device-{name}")

    def start(
        self, command: Sequence[str], name: str, env: Mapping[str, str], **popen: Any
    ) -> subprocess.Popen[Any]:
        """Starts a process on a device, in a group of its own below the device's."""
        self._number += 1
        group = self.of(name).below(f"process-{self._number}")
        group.make()
        inside = entering(group.entrances(), self._layout.namespace(name), command)
        try:
            process = subprocess.Popen(inside, env={**self.environment(name), **env}, **popen)
        except BaseException:
            group.clear()
            raise
        self._running[process.pid] = process, group
        return process

    def run(
        self, command: Sequence[str], name: str, env: Mapping[str, str], timeout: float | None, **popen: Any
    ) -> subprocess.CompletedProcess[Any]:
        """Runs a process on a device to its end, and whatever it started with it.

        Raises:
            DeadlineExceeded: It did not end in time; it has been ended.
        """
        process = self.start(command, name, env, **popen)
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as exc:
            raise DeadlineExceeded(f"`{command[0]}` did not end within {timeout:g} s") from exc
        except KeyboardInterrupt:
            # The terminal has told the command as well; let it finish what it does about it.
            self._wait(process, GRACE_S)
            raise
        finally:
            self.end(process)
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def environment(self, name: str) -> dict[str, str]:
        """Environment of processes on a device."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = thread_settings(self._layout.spec.device(name).threads)
        return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths), **self._environment}

    def end(self, process: subprocess.Popen[Any], *, grace: float = GRACE_S) -> None:
        """Ends a process, asked politely if time is given, and everything that it started."""
        found = self._running.get(process.pid)
        if found is None:
            return
        if process.poll() is None and grace > 0:
            process.terminate()
            self._wait(process, grace)
        if not found[1].clear():
            raise Internal(f"process {process.pid} cannot be ended")
        self._reap(process)

    def kill(self, name: str) -> None:
        """Kills everything on a device at once; the group and its limits stay.

        Raises:
            Internal: Something outlived it for 10 s.
        """
        group = self.of(name)
        deadline = time.monotonic() + 10.0
        while pids := group.pids():
            group.signal(signal.SIGKILL)
            self._reap_all()
            if time.monotonic() > deadline:
                raise Internal(f"processes {sorted(pids)} of {name!r} cannot be killed")
            time.sleep(0.002)
        self._reap_all()

    def end_all(self, grace: float = GRACE_S) -> None:
        """Asks every process to end, and collects those that do; the groups' removal ends the others."""
        processes = [process for process, _ in self._running.values()]
        for process in processes:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)
        deadline = time.monotonic() + grace
        for process in processes:
            self._wait(process, max(0.0, deadline - time.monotonic()))

    def forget_all(self) -> None:
        """Collects all processes after their groups are gone."""
        for process, _ in list(self._running.values()):
            self._reap(process)

    def _reap_all(self) -> None:
        for process, _ in list(self._running.values()):
            process.poll()

    def _reap(self, process: subprocess.Popen[Any]) -> None:
        self._wait(process, 5.0)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        self._running.pop(process.pid, None)

    @staticmethod
    def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
