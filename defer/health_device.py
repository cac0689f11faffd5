"""The box itself, for `defer doctor`: engines, GPUs, sensors, clock, ports. None of it is an error."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from node_agent.engines import inventory
from node_agent.machine import cpu_model
from node_agent.messages import EngineInfo
from node_agent.sensors import Sensors
from node_agent.sensors_nvml import INSTALL as SENSORS_INSTALL
from node_agent.sensors_nvml import Nvml

PORTS: Final = {"dispatcher": range(7600, 7603), "agent": range(7700, 7703)}
"""Ports that dispatcher and agent take unless told otherwise."""

_UNSYNCHRONISED: Final = 5
"""TIME_ERROR of ntp_gettime(3)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row: what was looked at, whether it is there, what was found, and how to get what is missing."""

    name: str
    there: bool
    found: str
    hint: str = ""


def findings() -> Iterator[Finding]:
    """Everything about this device."""
    yield from engines(inventory())
    nvml = Nvml()
    sensors = Sensors(nvml=nvml)
    try:
        readings = sensors.read()
        yield from devices(nvml, readings)
        yield sensing(readings, nvml.missing)
    finally:
        sensors.close()
    yield clock(_kernel_clock())
    yield from ports()


def engines(infos: Sequence[EngineInfo]) -> Iterator[Finding]:
    """Each engine: its version and what it runs on, or what keeps it from running and the command that helps."""
    for info in infos:
        if info.missing:
            sentence, _, rest = info.missing.partition(". ")
            yield Finding(f"engine {info.name}", False, sentence.rstrip(".") or "missing", rest)
        else:
            yield Finding(f"engine {info.name}", True, f"{info.version}, {info.provider}")


def devices(nvml: Nvml, readings: Mapping[str, float]) -> Iterator[Finding]:
    """The processor, and each GPU with its memory."""
    yield Finding("processor", True, cpu_model() or "unknown")
    driver = nvml.driver()
    for index, name in enumerate(nvml.names()):
        total = readings.get(f"gpu{index}.memory_total_bytes")
        used = readings.get(f"gpu{index}.memory_used_bytes")
        memory = f", {total / 2**30:.1f} GiB" if total else ""
        memory += f", {(total - used) / 2**30:.1f} GiB free" if total and used is not None else ""
        yield Finding(f"gpu{index}", True, f"{name}{memory}, driver {driver or 'unknown'}")


def sensing(readings: Mapping[str, float], nvml_missing: str) -> Finding:
    """What the sensors say; what they have no sensor for is not mentioned."""
    if not readings:
        hint = "RAPL's counters are for root alone on most systems"
        return Finding("sensors", False, "none", f"{SENSORS_INSTALL} reads NVIDIA GPUs; {hint}")
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(readings.items()))
    return Finding("sensors", True, shown, "" if not nvml_missing else f"for NVIDIA GPUs: {SENSORS_INSTALL}")


def clock(known: tuple[bool, float] | None) -> Finding:
    """How far the clock may be off, as the kernel was told by whoever sets it.

    Args:
        known: Whether it is synchronised and its greatest error (s); None where the system does not say.
    """
    if known is None:
        return Finding("clock", True, "this system does not say how far it is off")
    synchronised, error_s = known
    if not synchronised:
        return Finding(
            "clock",
            False,
            "not synchronised; deadlines do not depend on it, times in logs do",
            "install chrony or enable systemd-timesyncd",
        )
    return Finding("clock", True, f"synchronised, off by at most {1000 * error_s:.3g} ms")


class _NtpTime(ctypes.Structure):
    """`struct ntptimeval` of sys/timex.h."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("tai", ctypes.c_long),
        ("reserved", ctypes.c_long * 4),
    )


def _kernel_clock() -> tuple[bool, float] | None:
    try:
        ask: Any = ctypes.CDLL(None).ntp_gettimex
    except (OSError, AttributeError):
        return None
    answer = _NtpTime()
    state = ask(ctypes.byref(answer))
    if state < 0:
        return None
    return state != _UNSYNCHRONISED, answer.maxerror * 1e-6


def ports(wanted: Mapping[str, range] = PORTS) -> Iterator[Finding]:
    """Whether the ports that a dispatcher and an agent take by default are free."""
    for who, numbers in wanted.items():
        taken = [number for number in numbers if not _is_free(number)]
        span = f"{numbers.start}–{numbers.stop - 1}"
        if taken:
            held = ", ".join(map(str, taken))
            yield Finding(
                f"ports of {who}",
                False,
                f"{held} in use",
                f"its own {who} has them, or choose others: --listen",
            )
        else:
            yield Finding(f"ports of {who}", True, f"{span} free")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno not in (errno.EADDRINUSE, errno.EACCES)
    return True
