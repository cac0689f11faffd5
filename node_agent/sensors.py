"""What the box can tell about itself: power, energy, temperature, load; from the kernel's files and from NVML.

A reading is a name and a number in SI units (°C for temperatures). What is not there is not in the answer: an absent
sensor is never a zero. Sources: Documentation/hwmon/ina3221.rst, Documentation/power/powercap/powercap.rst and
Documentation/driver-api/thermal of the Linux kernel; for Jetson's GPU load the files of NVIDIA's gk20a/ga10b driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from node_agent.sensors_nvml import Nvml

Reading = tuple[str, float]


class Sensors:
    """All sensors of this machine.

    Args:
        root: Root of the file system; another one in tests.
        nvml: NVIDIA's library; None to look for it.
    """

    def __init__(self, root: Path = Path("/"), nvml: Nvml | None = None) -> None:
        self._root = root
        self._nvml = Nvml() if nvml is None else nvml

    def read(self) -> dict[str, float]:
        """Every reading that is there now, by name, as `gpu0.power_w` or `rail.VDD_IN.power_w`."""
        found: dict[str, float] = {}
        for source in (power_rails, temperatures, gpu_load, energy):
            found.update(source(self._root))
        found.update(self._nvml.read())
        return found

    def close(self) -> None:
        """Lets NVML go."""
        self._nvml.close()


def power_rails(root: Path) -> Iterator[Reading]:
    """Power of each rail that an INA3221 watches (every Jetson has one or two), W."""
    for chip in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (_text(chip / "name") or "") not in ("ina3221", "ina3221x"):
            continue
        for label in sorted(chip.glob("in*_label")):
            channel = label.name.removeprefix("in").removesuffix("_label")
            name = _text(label)
            volts, amperes = _number(chip / f"in{channel}_input"), _number(chip / f"curr{channel}_input")
            if not name or "sum of" in name.lower() or volts is None or amperes is None:
                continue  # the sum over the shunts is a voltage that belongs to no rail
            yield f"rail.{_clean(name)}.power_w", volts * amperes * 1e-6  # mV and mA


def temperatures(root: Path) -> Iterator[Reading]:
    """Temperature of each thermal zone, °C. Zones that are switched off fail to be read, or show 0 K or less."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None and value > -273_150:
            yield f"thermal.{_clean(name.removesuffix('-thermal'))}.temperature_c", value / 1000


def gpu_load(root: Path) -> Iterator[Reading]:
    """Load of a Jetson's GPU, 0 to 1; its driver states tenths of a percent."""
    devices = ("gpu.0", "17000000.gpu", "17000000.ga10b", "17000000.gv11b", "57000000.gpu")
    for device in devices:
        for folder in ("sys/devices/platform", "sys/devices"):
            value = _number(root / folder / device / "load")
            if value is not None:
                yield "gpu.load", value / 1000
                return


def energy(root: Path) -> Iterator[Reading]:
    """Energy counters of the processor's packages (RAPL), J since some start; they wrap around."""
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue  # cores and uncore are parts of their package
        name, value = _text(zone / "name"), _number(zone / "energy_uj")
        if name and value is not None:
            yield f"rapl.{_clean(name)}.energy_j", value * 1e-6


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _clean(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)
