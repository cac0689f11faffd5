from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from defer.dispatcher.severed import cover

NAMES = st.sampled_from(["box-1", "box-2", "box-3", "box-4", "home"])
PAIRS = st.tuples(NAMES, NAMES).filter(lambda pair: pair[0] != pair[1])


@given(st.sets(PAIRS), st.booleans())
def test_without_those_devices_no_severed_link_is_left(severed: set[tuple[str, str]], other: bool) -> None:
    devices = cover(severed, "home", other=other)
    assert "home" not in devices
    assert all(devices & {*pair} for pair in severed)
    assert len(devices) <= len(severed)


def test_a_device_that_has_lost_several_links_goes_alone() -> None:
    assert cover({("box-1", "box-2"), ("box-3", "box-1"), ("box-1", "home")}, "home") == {"box-1"}


def test_either_end_of_a_link_may_go() -> None:
    assert cover({("box-1", "box-2")}, "home") == {"box-2"}
    assert cover({("box-1", "box-2")}, "home", other=True) == {"box-1"}
