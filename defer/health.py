"""The state of this installation, checked for `defer doctor`. Every check is a function that returns what it found."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from defer import units
from defer.paths import cache
from defer.translating import EXTRAS

PACKAGES: Final = ("defer", "partitioner", "router", "node_agent", "models")
"""Our five top-level names, all generic enough that another distribution or a file may shadow them."""

BASE: Final = ("click", "lz4", "msgspec", "numpy", "pyzmq", "rich")
"""Distributions that everything needs."""

ENGINES: Final = {"onnxruntime": "cpu", "tensorrt": "tensorrt"}
"""Engines by module, and the extra that installs each."""


class Check(msgspec.Struct, frozen=True):
    """One finding.

    Attributes:
        name: What was looked at.
        state: `good`, `missing` (not installed, needed only for some verbs), or `bad`.
        found: What is there.
        hint: What to do, empty when good.
    """

    name: str
    state: Literal["good", "missing", "bad"]
    found: str
    hint: str = ""


def examine() -> list[Check]:
    """All checks, in the order in which they matter."""
    found: list[Check] = []
    for check in (_python, _packages, _base, _extras, _engines, _device, _machine, _loopback, _store):
        found.extend(check())
    return found


def _python() -> Iterator[Check]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    where = f"{version} on {platform.system()} {platform.machine()}"
    yield Check(
        "python", "good" if good else "bad", where, "" if good else "defer needs Python 3.11 or newer"
    )


def _packages() -> Iterator[Check]:
    """Where each of our packages comes from; they must come from one place, and from nowhere else."""
    home = Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            namespace = (
                f" ({next(iter(spec.submodule_search_locations), '')})"
                if spec and spec.submodule_search_locations
                else ""
            )
            yield Check(
                f"package {name}",
                "bad",
                f"not found{namespace}",
                "a folder of that name hides it: move it, or run elsewhere"
                if namespace
                else "install defer-edge again",
            )
            continue
        origin = Path(spec.origin).resolve()
        if origin.parent.parent == home:
            yield Check(f"package {name}", "good", str(origin.parent))
        else:
            yield Check(
                f"package {name}",
                "bad",
                f"imported from {origin}, which is not ours",
                f"move {origin} out of sys.path, or rename it; ours is in {home / name}",
            )


def _base() -> Iterator[Check]:
    for name in ("defer-edge", *BASE):
        version = _version(name)
        if version:
            yield Check(name, "good", version)
        elif name == "defer-edge":
            yield Check(
                name, "missing", "runs from a source tree", "pip install -e . makes it a distribution"
            )
        else:
            yield Check(name, "bad", "not installed", f"pip install {name}")


def _extras() -> Iterator[Check]:
    for module, extra in EXTRAS.items():
        if module in ENGINES:
            continue
        yield _module(module, extra)


def _engines() -> Iterator[Check]:
    """ONNX Runtime as a package; what of it and of the other engines runs here, `_device` tells."""
    check = _module("onnxruntime", ENGINES["onnxruntime"], "engine ")
    yield _providers(check) if check.state == "good" else check


def _device() -> Iterator[Check]:
    """Engines that could run here, GPUs, sensors, clock, ports. An ONNX Runtime that is broken was found before."""
    from defer.health_device import findings

    try:
        for each in findings():
            yield Check(each.name, "good" if each.there else "missing", each.found, each.hint)
    except Exception as exc:  # a vendor's library may raise anything, and the other checks still count
        yield Check(
            "device", "bad", f"{type(exc).__name__}: {exc}", "report this with the versions shown above"
        )


def _providers(check: Check) -> Check:
    """The execution providers of ONNX Runtime, found by importing it: a broken wheel shows here and not in an agent."""
    try:
        from node_agent.engines.onnxruntime_cpu import import_runtime

        onnxruntime = import_runtime()
        names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    except Exception as exc:  # whatever a broken native library raises is the finding
        return Check(
            check.name, "bad", f"cannot be imported: {exc}", 'pip install --force-reinstall "defer-edge[cpu]"'
        )
    return Check(check.name, "good", f"{check.found}, providers {', '.join(names)}")


def _module(module: str, extra: str, prefix: str = "") -> Check:
    name = f"{prefix}{module}"
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return Check(name, "missing", "not installed", f'pip install "defer-edge[{extra}]"')
    distributions = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    versions = [f"{each} {_version(each)}" for each in dict.fromkeys(distributions)]
    if len(versions) > 3:  # parts of one namespace: which of them holds the module, their names do not tell
        return Check(name, "good", "installed")
    return Check(name, "good", ", ".join(versions) or "installed")


def _machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    limited = f", cgroup quota {quota:g}" if quota is not None and quota < cores else ""
    yield Check("cores", "good", f"{cores}{limited}")
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = cgroup_memory()
    limited = f", cgroup limit {units.show_size(limit)}" if limit is not None and limit < total else ""
    yield Check("memory", "good", f"{units.show_size(total)}{limited}")


def cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that the cgroup's quota allows (version 2, then 1); None without a quota."""
    words = _words(root / "cpu.max")
    if len(words) == 2 and words[0].isdecimal():
        return int(words[0]) / int(words[1])
    quota, period = _words(root / "cpu/cpu.cfs_quota_us"), _words(root / "cpu/cpu.cfs_period_us")
    if quota and period and quota[0].isdecimal():
        return int(quota[0]) / int(period[0])
    return None


def cgroup_memory(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the cgroup allows (version 2, then 1); None without a limit."""
    for path in (root / "memory.max", root / "memory/memory.limit_in_bytes"):
        words = _words(path)
        if words and words[0].isdecimal() and int(words[0]) < 1 << 60:
            return int(words[0])
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _loopback() -> Iterator[Check]:
    """One message over TCP on this machine, as agents and dispatcher exchange them."""
    try:
        import zmq
    except ImportError as exc:
        yield Check(
            "loopback", "bad", f"ZeroMQ cannot be imported: {exc}", "pip install --force-reinstall pyzmq"
        )
        return
    context = zmq.Context()
    try:
        sender, receiver = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
        for socket in (sender, receiver):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVTIMEO, 2000)
        port = receiver.bind_to_random_port("tcp://127.0.0.1")
        sender.connect(f"tcp://127.0.0.1:{port}")
        sender.send(b"defer")
        good = receiver.recv() == b"defer"
        found = f"ZeroMQ {zmq.zmq_version()} over tcp://127.0.0.1"
        yield Check("loopback", "good" if good else "bad", found)
    except zmq.ZMQError as exc:
        yield Check("loopback", "bad", f"no message got through: {exc}", "allow connections to 127.0.0.1")
    finally:
        context.destroy(linger=0)


def _store() -> Iterator[Check]:
    path = cache() / "store"
    there = path
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        yield Check("store", "good", f"{path}, {units.show_size(shutil.disk_usage(there).free)} free")
    except OSError as exc:
        advice = "give agents another folder with --store, or set XDG_CACHE_HOME"
        yield Check("store", "bad", f"cannot write to {path}: {exc.strerror}", advice)


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
