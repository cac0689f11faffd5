"""What this process may use of its machine: cores, memory, threads; read from the kernel.

The text of each kernel file is parsed by a function of its own, so that the rules are tested without the
machine.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

_SOFTWARE = (
    "defer-edge",
    "numpy",
    "pyzmq",
    "lz4",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-openvino",
    "tensorrt",
    "cuda-bindings",
)

_CGROUP = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""cgroup v1 states an unlimited memory as a number near 2^63."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of malloc.h."""

_frugal, _frugal_lock = 0, threading.Lock()
"""How many blocks of `frugal_heap` threads are in."""


def parse_cgroup_paths(text: str) -> dict[str, str]:
    """The process's cgroup by controller from /proc/self/cgroup; v2's has the empty name."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    return paths


def parse_cpu_max(text: str) -> float | None:
    """Cores that cgroup v2's `cpu.max` grants ("max 100000", "20000 100000"); None for no limit."""
    fields = text.split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def parse_quota(quota: str, period: str) -> float | None:
    """Cores that cgroup v1's quota and period (µs) grant; None for no limit."""
    micros = int(quota)
    return None if micros <= 0 else micros / int(period)


def parse_memory(text: str) -> int | None:
    """Bytes that a cgroup's memory limit grants; None for no limit."""
    value = text.strip()
    if value == "max":
        return None
    nbytes = int(value)
    return None if nbytes >= _UNLIMITED else nbytes


def parse_meminfo(text: str, entry: str = "MemTotal") -> int:
    """The machine's memory in bytes from /proc/meminfo, or another of its entries; 0 if it is not stated."""
    for line in text.splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    return 0


def parse_cached(text: str) -> int:
    """Bytes of files that a cgroup's memory.stat counts, which the kernel gives up for others, v1's with children."""
    entries = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    total = "total_" if "total_inactive_file" in entries else ""
    return sum(int(entries.get(f"{total}{name}", 0)) for name in ("inactive_file", "active_file"))


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _ancestors(mount: Path, group: str) -> list[Path]:
    """The cgroup's directory and those above it: each may hold a limit.

    Inside a container the path that the kernel states may not exist under the mount; the mount's own files
    are then the limits.
    """
    folders = [mount]
    for part in Path(group.lstrip("/")).parts:
        folders.append(folders[-1] / part)
    return [folder for folder in folders if folder.is_dir()]


def _cpu_quota() -> float | None:
    paths = parse_cgroup_paths(_read(Path("/proc/self/cgroup")) or "")
    found: list[float] = []
    for folder in _ancestors(_CGROUP, paths.get("", "/")):
        text = _read(folder / "cpu.max")
        if text and (cores := parse_cpu_max(text)) is not None:
            found.append(cores)
    for folder in _ancestors(_CGROUP / "cpu", paths.get("cpu", "/")):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota and period and (cores := parse_quota(quota, period)) is not None:
            found.append(cores)
    return min(found, default=None)


def cores() -> float:
    """CPU cores that this process may use: its affinity, and its cgroups' quotas (a fraction under one)."""
    affinity = getattr(os, "sched_getaffinity", None)
    available = float(len(affinity(0)) if affinity is not None else os.cpu_count() or 1)
    quota = _cpu_quota()
    return available if quota is None else min(available, quota)


def work_clock(available: float, threads: int) -> Callable[[], float]:
    """A clock for work that goes on and on: its differences are seconds per piece of work.

    A quota is refilled every few milliseconds, so a short burst runs at full speed and is paid for later; timed by
    the wall, blocks would seem several times as fast as a pipeline of them is. Under a quota, processor time over the
    share counts.

    Args:
        available: Cores that the process may use.
        threads: Threads that do the work.
    """
    clock = quota_clock(available, threads)
    return time.perf_counter if clock is None else lambda: clock() / 1e9 / available


def quota_clock(available: float, threads: int) -> Callable[[], int] | None:
    """Nanoseconds of processor time that the caller's work has taken; None where no quota makes them count.

    Args:
        available: Cores that the process may use.
        threads: Threads that do the work; one of them is the caller.
    """
    if available >= threads:
        return None
    return time.thread_time_ns if threads == 1 else time.process_time_ns


def default_threads(available: float) -> int:
    """Engine threads for a share of `available` cores: more than the share would only be throttled."""
    return max(1, round(available))


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where its cgroups say so; 0 where neither tells."""
    limits = [parse_meminfo(_read(Path("/proc/meminfo")) or "")]
    limits += [parse_memory(_read(limit) or "max") or 0 for limit, _ in _memory_files()]
    return min((limit for limit in limits if limit > 0), default=0)


def available_bytes() -> int | None:
    """Memory that this process could take now, what the kernel would free for it included; None where nothing tells."""
    machine = parse_meminfo(_read(Path("/proc/meminfo")) or "", "MemAvailable")
    found = [machine] if machine else []
    for file, taken in _memory_files():
        limit, used = parse_memory(_read(file) or "max"), _read(taken)
        if limit is not None and used:
            found.append(max(0, limit - int(used) + parse_cached(_read(file.parent / "memory.stat") or "")))
    return min(found, default=None)


def _memory_files() -> list[tuple[Path, Path]]:
    """Of each cgroup that the process is in: where its memory's limit stands, and what it takes."""
    paths = parse_cgroup_paths(_read(Path("/proc/self/cgroup")) or "")
    v2 = _ancestors(_CGROUP, paths.get("", "/"))
    v1 = _ancestors(_CGROUP / "memory", paths.get("memory", "/"))
    files = [(folder / "memory.max", folder / "memory.current") for folder in v2]
    return files + [(folder / "memory.limit_in_bytes", folder / "memory.usage_in_bytes") for folder in v1]


def resident_bytes() -> int:
    """Resident memory of this process."""
    try:
        # Not by `Path`: heartbeats ask often, and a small box notices.
        descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return 0
    try:
        return int(os.read(descriptor, 128).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(descriptor)


def trim() -> None:
    """Gives freed heap back to the machine: creating an engine session leaves about its weights' size behind."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        # Another C library than glibc: it has no such call and keeps less.
        return


def keep_buffers() -> None:
    """Has the C library keep the memory of large tensors for the next ones; at the start of a process.

    By default it gives back what lies free at the end of a heap, and the kernel clears the same pages again for each
    item. A small box has no such memory to spare: one of 128 MiB keeps an eighth of what one of 1 GiB does.
    """
    part = min(1.0, memory_bytes() / (1 << 30) or 1.0)
    _mallopt(_MMAP_THRESHOLD, int(part * (32 << 20)))  # the most that it takes
    _mallopt(_TRIM_THRESHOLD, int(part * (64 << 20)))


@contextmanager
def frugal_heap() -> Iterator[None]:
    """Has the C library give the memory of each large tensor back at once, while any thread is in such a block."""
    global _frugal
    with _frugal_lock:
        _frugal += 1
        _mallopt(_MMAP_THRESHOLD, 64 << 10)
    try:
        yield
    finally:
        with _frugal_lock:
            _frugal -= 1
            if not _frugal:
                keep_buffers()
        trim()


def _mallopt(parameter: int, value: int) -> None:
    try:
        ctypes.CDLL(None).mallopt(parameter, value)
    except (OSError, AttributeError):
        return  # see `trim`


def settle_collector() -> None:
    """Has Python's collector leave alone what is here already; when a process has started, and serves from now on.

    What a start leaves (modules, plans, schemas) is some hundred thousand objects, and a full collection that walks all
    of them stops the process for tens of milliseconds. How often it runs stays as it is: what libraries leave in cycles
    may be large.
    """
    gc.collect()
    gc.freeze()


def software(
    names: tuple[str, ...] = _SOFTWARE,
) -> dict[str, str]:
    """Versions of the distributions that decide how this agent behaves, and Python's."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name."""
    for line in (_read(Path("/proc/cpuinfo")) or "").splitlines():
        if line.lower().startswith(("model name", "hardware", "cpu model")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def fingerprint(share: float, threads: int, engine: Mapping[str, str]) -> str:
    """Equal for two agents whose block times may be taken as the same.

    Args:
        share: Cores they may use.
        threads: Engine threads.
        engine: What identifies the engine: name, version, provider.
    """
    machine = _read(Path("/etc/machine-id")) or socket.gethostname()
    facts = [machine.strip(), platform.machine(), cpu_model(), f"{share:.3f}", str(threads)]
    facts += [f"{key}={value}" for key, value in sorted(engine.items())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
