"""Human units in files and on screen, SI units inside: `"4 GiB"` is 4294967296 bytes, `"2 ms"` is 0.002 s.

Parsing is exact: a text is read as a decimal number times the unit's factor, and rounded once, to the nearest
value of the result's type. `format_*` write a short text that reads back as the same value; `show_*` round to
three digits for tables and diagrams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from defer.errors import InvalidDocument


@dataclass(frozen=True, slots=True)
class Quantity:
    """A kind of quantity and its units.

    Attributes:
        name: What is measured, for messages.
        base: Unit of the SI value that parsing returns.
        factors: Unit → how many base units it is; messages list them in this order.
        example: A good value, for messages.
        whole: Whether only whole base units make sense (bytes).
        steps: Units to write values in, ascending.
    """

    name: str
    base: str
    factors: Mapping[str, Fraction]
    example: str
    steps: tuple[str, ...]
    whole: bool = False

    @property
    def pattern(self) -> str:
        """Regular expression of an accepted text, for JSON Schema."""
        units = "|".join(re.escape(unit) for unit in self.factors)
        return rf"^ *[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)? *({units}) *$"


_POWERS: Final = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def _decimal(symbol: str, prefixes: str, scale: Fraction = Fraction(1)) -> dict[str, Fraction]:
    """Factors of `symbol` with SI prefixes, as in kB, MB, GB."""
    return {f"{prefix}{symbol}": Fraction(1000) ** _POWERS[prefix] * scale for prefix in prefixes}


def _binary(symbol: str, scale: Fraction = Fraction(1)) -> dict[str, Fraction]:
    return {f"{prefix}i{symbol}": Fraction(1024) ** _POWERS[prefix] * scale for prefix in "KMGT"}


_BITS = Fraction(1, 8)

SIZE: Final = Quantity(
    "a size",
    "B",
    _binary("B") | _decimal("B", "kMGT") | {"KB": Fraction(1000), "B": Fraction(1), "bytes": Fraction(1)},
    "4 GiB",
    ("B", "KiB", "MiB", "GiB", "TiB"),
    whole=True,
)
BANDWIDTH: Final = Quantity(
    "a bandwidth",
    "B/s",
    _decimal("bit/s", "kMGT", _BITS)
    | {"bit/s": _BITS}
    | _decimal("B/s", "kMGT")
    | _binary("B/s")
    | _binary("bit/s", _BITS)
    | {"B/s": Fraction(1)}
    | _decimal("bps", "kMG", _BITS),
    "100 Mbit/s",
    ("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"),
)
DURATION: Final = Quantity(
    "a duration",
    "s",
    {
        "s": Fraction(1),
        "ms": Fraction(1, 1000),
        "us": Fraction(1, 10**6),
        "µs": Fraction(1, 10**6),  # MICRO SIGN, as keyboards type it
        "μs": Fraction(1, 10**6),  # GREEK SMALL LETTER MU, as Unicode prefers it
        "ns": Fraction(1, 10**9),
        "min": Fraction(60),
        "h": Fraction(3600),
    },
    "2 ms",
    ("ns", "us", "ms", "s"),
)
SPEED: Final = Quantity(
    "a speed",
    "FLOP/s",
    _decimal("FLOP/s", "kMGTP") | {"FLOP/s": Fraction(1)} | _decimal("FLOPS", "MGT"),
    "200 GFLOP/s",
    ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"),
)

POWER: Final = Quantity(
    "a power",
    "W",
    {"W": Fraction(1), "mW": Fraction(1, 1000), "kW": Fraction(1000)},
    "15 W",
    ("mW", "W", "kW"),
)
ENERGY: Final = Quantity(
    "an energy",
    "J",
    {
        "J": Fraction(1),
        "mJ": Fraction(1, 1000),
        "uJ": Fraction(1, 10**6),
        "kJ": Fraction(1000),
        "MJ": Fraction(10**6),
        "Wh": Fraction(3600),
        "kWh": Fraction(3_600_000),
    },
    "0.5 J",
    ("uJ", "mJ", "J", "kJ", "MJ"),
)

_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_LONGEST = 64


def parse(text: str, quantity: Quantity) -> float:
    """The SI value of a text such as `"100 Mbit/s"`.

    Args:
        text: A number ≥ 0 and a unit, with or without spaces between them. Units are case-sensitive, because
            MB and Mb differ by what people get wrong.
        quantity: What is expected.

    Returns:
        The nearest float (for whole quantities a float that is an integer; use `parse_size` for bytes).

    Raises:
        InvalidDocument: The text has no number or no unit of this quantity; the hint lists the units.
    """
    return float(_exact(text, quantity))


def _exact(text: str, quantity: Quantity) -> Fraction:
    stripped = text.strip()
    found = _NUMBER.match(stripped) if len(stripped) <= _LONGEST else None
    hint = f"write a number and a unit, as in {quantity.example!r}; units: {', '.join(quantity.factors)}"
    shown = stripped if len(stripped) <= _LONGEST else stripped[:_LONGEST] + "…"
    if found is None:
        raise InvalidDocument(f"{shown!r} is not {quantity.name}", hint=hint)
    unit = stripped[found.end() :].strip()
    factor = quantity.factors.get(unit)
    if factor is None:
        problem = f"{unit!r} is not a unit of {quantity.name}" if unit else f"{shown!r} has no unit"
        raise InvalidDocument(problem, hint=hint)
    value = Fraction(found.group()) * factor
    if value > Fraction(10) ** 300:
        raise InvalidDocument(f"{shown!r} is too large for {quantity.name}", hint=hint)
    if quantity.whole and value.denominator != 1:
        raise InvalidDocument(f"{shown!r} is not a whole number of {quantity.base}", hint=hint)
    return value


def parse_size(text: str) -> int:
    """Bytes of a text such as `"4 GiB"` or `"512 MB"`; errors as in `parse`."""
    return int(_exact(text, SIZE))


def parse_bandwidth(text: str) -> float:
    """Bytes per second of a text such as `"100 Mbit/s"`; errors as in `parse`."""
    return parse(text, BANDWIDTH)


def parse_duration(text: str) -> float:
    """Seconds of a text such as `"2 ms"`; errors as in `parse`."""
    return parse(text, DURATION)


def parse_speed(text: str) -> float:
    """Floating-point operations per second of a text such as `"200 GFLOP/s"`; errors as in `parse`."""
    return parse(text, SPEED)


def format_size(nbytes: int) -> str:
    """Bytes as the largest binary unit that keeps them whole: 4294967296 → `"4 GiB"`, 1000 → `"1000 B"`."""
    unit = next(u for u in reversed(SIZE.steps) if nbytes % SIZE.factors[u] == 0 or u == "B")
    return f"{nbytes // int(SIZE.factors[unit])} {unit}"


def format_bandwidth(bytes_per_s: float) -> str:
    """Bytes per second as bit/s with a prefix, exactly: 12.5e6 → `"100 Mbit/s"`."""
    return _format(bytes_per_s, BANDWIDTH)


def format_duration(seconds: float) -> str:
    """Seconds with the prefix that fits, exactly: 0.002 → `"2 ms"`."""
    return _format(seconds, DURATION)


def _step(value: Fraction, quantity: Quantity) -> str:
    """The largest unit in which the value is at least 1."""
    fitting = [unit for unit in quantity.steps if value >= quantity.factors[unit]]
    if fitting:
        return fitting[-1]
    if not value and quantity in (DURATION, ENERGY):
        return quantity.base
    return quantity.steps[0]


def _format(value: float, quantity: Quantity) -> str:
    # repr is the shortest decimal that reads back as this float. Scaled and rounded it nearly always
    # still does ("2 ms"); where it does not, the base unit is exact.
    unit = _step(Fraction(value), quantity)
    number = _plain(float(Fraction(repr(float(value))) / quantity.factors[unit]))
    text = f"{number} {unit}"
    if parse(text, quantity) == value:
        return text
    return f"{_plain(float(value))} {quantity.base}"


def _plain(number: float) -> str:
    return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def show_size(nbytes: float) -> str:
    """Bytes for people: 3 digits and a binary unit."""
    return _show(nbytes, SIZE)


def show_bandwidth(bytes_per_s: float) -> str:
    """Bytes per second for people, in bit/s."""
    return _show(bytes_per_s, BANDWIDTH)


def show_duration(seconds: float) -> str:
    """Seconds for people: 3 digits and µs, ms or s."""
    return _show(seconds, DURATION).replace(" us", " µs")


def show_speed(flop_per_s: float) -> str:
    """FLOP/s for people."""
    return _show(flop_per_s, SPEED)


def show_energy(joules: float) -> str:
    """Joules for people."""
    return _show(joules, ENERGY).replace(" uJ", " µJ")


def show_flops(flops: float) -> str:
    """A count of floating-point operations for people, as in `8.18 GFLOP`."""
    return _show(flops, SPEED).removesuffix("/s")


def show_number(value: float) -> str:
    """A number for people: 3 digits where it is below a thousand, else whole with separators."""
    if not math.isfinite(value):
        return "∞"
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def show_count(number: int, noun: str) -> str:
    """How many of something, for people, as in `1 request`; the noun takes an s where there are several."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _show(value: float, quantity: Quantity) -> str:
    if not math.isfinite(value):
        return f"∞ {quantity.base}"
    unit = _step(Fraction(abs(value)), quantity)
    number = float(Fraction(value) / quantity.factors[unit])
    text = f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}"
    return f"{text} {unit}"
