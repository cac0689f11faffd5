"""CPU shares, memory limits and CPU counters, with control groups of version 1 or 2, whichever the machine has.

A bed has one group, each device one below it, each command one below its device's. A process cannot leave its
group by forking, so ending a group ends everything that a device ever started.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from defer.errors import Internal, MissingExtra

MOUNTS = Path("/proc/self/mountinfo")
OWN = Path("/proc/self/cgroup")
CONTROLLERS = ("cpu", "cpuacct", "memory")
MIN_QUOTA_S = 0.001
"""The kernel refuses a CPU quota below 1 ms, so a small share gets a longer period."""
CLEAR_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups can be made.

    Attributes:
        version: 1 or 2.
        roots: Directory per controller; in version 2 the same for all.
    """

    version: int
    roots: Mapping[str, Path]

    def group(self, *names: str) -> Group:
        """The group at a path below the roots; it may not exist yet."""
        return Group(self.version, {name: root.joinpath(*names) for name, root in self.roots.items()})


@dataclass(frozen=True, slots=True)
class Group:
    """A control group: one directory per controller, or one for all."""

    version: int
    paths: Mapping[str, Path]

    @property
    def directories(self) -> tuple[Path, ...]:
        """Its directories, each once."""
        return tuple(dict.fromkeys(self.paths.values()))

    def make(self, *, delegate: bool = False) -> None:
        """Creates the group.

        Args:
            delegate: Groups below it get limits of their own (version 2 wants to be told).

        Raises:
            Internal: The kernel refuses.
        """
        for path in self.directories:
            try:
                path.mkdir(exist_ok=True)
            except OSError as exc:
                raise Internal(
                    f"cannot make a control group: {exc.strerror}",
                    where=str(path),
                    hint="`defer testbed check` says what is missing",
                ) from exc
        if delegate and self.version == 2:
            path = self.paths["cpu"]
            _delegate(path.parent)
            _delegate(path)

    def below(self, name: str) -> Group:
        """A group in this one; it may not exist yet."""
        return Group(self.version, {key: path / name for key, path in self.paths.items()})

    def limit_cpu(self, cores: float, period_s: float) -> None:
        """Grants so many cores, refilled every period (longer where the quota would be below 1 ms)."""
        period_s = max(period_s, MIN_QUOTA_S / cores)
        period, quota = round(period_s * 1e6), round(cores * period_s * 1e6)
        if period > 1_000_000:
            period, quota = 1_000_000, max(quota, 1000)
        path = self.paths["cpu"]
        if self.version == 2:
            _write(path / "cpu.max", f"{quota} {period}")
            return
        _write(path / "cpu.cfs_period_us", str(period))
        _write(path / "cpu.cfs_quota_us", str(quota))

    def weigh(self, devices: int) -> None:
        """Lets a whole bed compete with the rest of the machine as so many processes, not as one."""
        if self.version == 2:
            _write(self.paths["cpu"] / "cpu.weight", str(min(100 * devices, 10_000)))
        else:
            _write(self.paths["cpu"] / "cpu.shares", str(min(1024 * devices, 262_144)))

    def limit_memory(self, nbytes: int) -> None:
        """Limits resident memory and swap together; beyond it the kernel kills in this group, and nowhere else."""
        path = self.paths["memory"]
        if self.version == 2:
            _write(path / "memory.max", str(nbytes))
            if (path / "memory.swap.max").exists():
                _write(path / "memory.swap.max", "0")
            return
        _write(path / "memory.limit_in_bytes", str(nbytes))
        if (path / "memory.memsw.limit_in_bytes").exists():
            _write(path / "memory.memsw.limit_in_bytes", str(nbytes))

    def entrances(self, *, cpu: bool = True) -> tuple[str, ...]:
        """Files to which a process writes its id to enter; without `cpu`, its scheduling stays the parent's."""
        chosen = {name: path for name, path in self.paths.items() if cpu or name != "cpu"}
        return tuple(dict.fromkeys(str(path / "cgroup.procs") for path in chosen.values()))

    def pids(self) -> frozenset[int]:
        """Processes in this group and below it."""
        return frozenset(pid for path in self.directories for pid in _pids(path))

    def signal(self, number: int) -> None:
        """Sends a signal to every process of the group."""
        for pid in self.pids():
            _kill(pid, number)

    def cpu_seconds(self) -> float:
        """CPU time that the group has taken since it was made, in seconds."""
        if self.version == 2:
            words = (self.paths["cpu"] / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        return int((self.paths["cpuacct"] / "cpuacct.usage").read_text()) / 1e9

    def memory_bytes(self) -> int:
        """Memory that is charged to the group now."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.paths["memory"] / name).read_text())

    def clear(self) -> bool:
        """Ends all its processes and removes it; whether that worked in time."""
        cleared = [clear(path) for path in self.directories]  # each, also when the first fails
        return all(cleared)


def hierarchy() -> Hierarchy:
    """Finds where this process may make groups.

    Raises:
        MissingExtra: The controllers are not mounted, or are not given to groups below the root.
    """
    own = _own_groups()
    version_1: dict[str, Path] = {}
    version_2: Path | None = None
    for line in MOUNTS.read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split()[3:5]
        if kind == "cgroup":
            for name in set(options.split(",")) & set(CONTROLLERS):
                # Below our own group: whatever limits this process also limits what it emulates.
                version_1.setdefault(name, _beneath(Path(point), root, own.get(name, "/")))
        elif kind == "cgroup2" and version_2 is None:
            version_2 = Path(point)
    if all(name in version_1 for name in CONTROLLERS):
        return Hierarchy(1, version_1)
    if version_2 is not None:
        given = (version_2 / "cgroup.controllers").read_text().split()
        if {"cpu", "memory"} <= set(given):
            return Hierarchy(2, dict.fromkeys(CONTROLLERS, version_2))
    raise MissingExtra(
        "no control groups for cpu and memory here",
        hint="mount cgroup2 with the controllers cpu and memory (in a container: start it privileged)",
    )


def clear(directory: Path) -> bool:
    """Ends everything in a group's directory and below it, and removes it; whether that worked in time."""
    deadline = time.monotonic() + CLEAR_TIMEOUT_S
    while directory.exists():
        if (directory / "cgroup.kill").exists():
            _write(directory / "cgroup.kill", "1")
        for pid in _pids(directory):
            _kill(pid, signal.SIGKILL)
        if _removed(directory):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _removed(directory: Path) -> bool:
    for below, _, _ in os.walk(directory, topdown=False):
        try:
            Path(below).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _pids(directory: Path) -> list[int]:
    found: list[int] = []
    for below, _, _ in os.walk(directory):
        try:
            found += [int(word) for word in (Path(below) / "cgroup.procs").read_text().split()]
        except OSError:
            continue  # removed meanwhile
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except FileNotFoundError:
        if path.name != "cgroup.kill":  # the group may vanish while it is ended
            raise
    except OSError as exc:
        raise Internal(
            f"cannot write {text!r}: {exc.strerror}",
            where=str(path),
            hint="`defer testbed check` says what is missing",
        ) from exc


def _delegate(directory: Path) -> None:
    """Gives groups below a directory of version 2 their own limits, unless they have them."""
    control = directory / "cgroup.subtree_control"
    if not {"cpu", "memory"} <= set(control.read_text().split()):
        _write(control, "+cpu +memory")


def _own_groups() -> dict[str, str]:
    """This process's group per controller of version 1."""
    own: dict[str, str] = {}
    for line in OWN.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    return own


def _beneath(point: Path, root: str, own: str) -> Path:
    """The directory of group `own` of a hierarchy of which `root` is mounted at `point`."""
    relative = own.removeprefix(root.rstrip("/")).lstrip("/")
    found = point / relative
    return found if own.startswith(root) and found.is_dir() else point
