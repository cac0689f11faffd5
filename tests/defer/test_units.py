"""Human units: exact, both ways, and errors that list what is accepted."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer import units
from defer.errors import InvalidDocument

FINITE = st.floats(min_value=0, max_value=1e18, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4 GiB", 4 * 1024**3),
        ("512 MB", 512_000_000),
        ("512MB", 512_000_000),
        ("1.5 KiB", 1536),
        ("0 B", 0),
        ("  7   bytes ", 7),
        ("1e3 kB", 1_000_000),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert units.parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100 Mbit/s", 12.5e6),
        ("1 Gbit/s", 125e6),
        ("8 bit/s", 1.0),
        ("10 MB/s", 1e7),
        ("1 MiB/s", 1048576.0),
        ("100 Mbps", 12.5e6),
    ],
)
def test_bandwidths(text: str, value: float) -> None:
    assert units.parse_bandwidth(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 ms", 0.002),
        ("150 us", 150e-6),
        ("150 µs", 150e-6),
        ("150 μs", 150e-6),
        ("1.5 s", 1.5),
        ("2 min", 120.0),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert units.parse_duration(text) == value


@pytest.mark.parametrize(("text", "value"), [("3.2 GFLOP/s", 3.2e9), ("1 TFLOPS", 1e12), ("5 FLOP/s", 5.0)])
def test_speeds(text: str, value: float) -> None:
    assert units.parse_speed(text) == value


@pytest.mark.parametrize(
    "text", ["", "4", "GiB", "4 gb", "-4 GiB", "4,5 GiB", "4 GiB GiB", "0x10 B", "nan GiB", "1_0 B"]
)
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        units.parse_size(text)
    assert "GiB" in caught.value.hint
    assert "MB" in caught.value.hint


def test_a_fraction_of_a_byte_is_refused() -> None:
    with pytest.raises(InvalidDocument, match="whole number of B"):
        units.parse_size("1.5 B")


@pytest.mark.parametrize("text", ["9" * 5000 + " B", "1e999 GB", "1e99999999999 GB"])
def test_huge_numbers_are_refused_at_once(text: str) -> None:
    with pytest.raises(InvalidDocument):
        units.parse_size(text)


def test_a_bandwidth_is_not_a_size() -> None:
    with pytest.raises(InvalidDocument, match="not a unit of a size"):
        units.parse_size("4 Mbit/s")


@given(st.integers(min_value=0, max_value=1 << 62))
def test_sizes_read_back(nbytes: int) -> None:
    assert units.parse_size(units.format_size(nbytes)) == nbytes


@given(FINITE)
def test_bandwidths_read_back(value: float) -> None:
    assert units.parse_bandwidth(units.format_bandwidth(value)) == value


@given(FINITE)
def test_durations_read_back(value: float) -> None:
    assert units.parse_duration(units.format_duration(value)) == value


@given(
    st.decimals(min_value=0, max_value=10**6, places=6, allow_nan=False),
    st.sampled_from(list(units.BANDWIDTH.factors)),
)
def test_parsing_rounds_once(number: object, unit: str) -> None:
    exact = Fraction(str(number)) * units.BANDWIDTH.factors[unit]
    assert units.parse(f"{number} {unit}", units.BANDWIDTH) == float(exact)


@given(st.floats(min_value=1e-12, max_value=1e15))
def test_shown_values_are_short_and_near(value: float) -> None:
    shown = units.show_duration(value).replace("µs", "us")
    assert len(shown.split()[0]) <= 17
    assert math.isclose(units.parse_duration(shown.replace("e+", "e")), value, rel_tol=0.006)


def test_counts() -> None:
    assert [units.show_count(n, "request") for n in (0, 1, 2)] == ["0 requests", "1 request", "2 requests"]


def test_shown_values() -> None:
    assert units.show_size(1536) == "1.5 KiB"
    assert units.show_duration(0.000123) == "123 µs"
    assert units.show_bandwidth(12.5e6) == "100 Mbit/s"
    assert units.show_flops(8.18e9) == "8.18 GFLOP"
    assert units.show_duration(math.inf) == "∞ s"
    assert [units.show_number(n) for n in (0.12345, 12.34, 999.4, 1210.4, math.inf)] == [
        "0.123",
        "12.3",
        "999",
        "1,210",
        "∞",
    ]
    assert units.format_size(4 << 30) == "4 GiB"
    assert units.format_duration(0.002) == "2 ms"
