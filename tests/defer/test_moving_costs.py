"""What moving tensors costs the devices goes into the router's codecs."""

from __future__ import annotations

import msgspec
import pytest

import router
from defer.documents.profile import CostProfile, DeviceProfile, LinkProfile
from defer.moving_costs import with_moving


def _profile(**rates: float) -> CostProfile:
    devices = {
        name: DeviceProfile(
            fingerprint="f", engine="e", method="measured", block_seconds=(1.0, 1.0), byte_s=rate
        )
        for name, rate in rates.items()
    }
    return CostProfile(model="m", digest="d", positions=(0, 1, 2), devices=devices)


def test_half_of_a_byte_is_paid_at_each_end_and_only_for_bytes_that_travel() -> None:
    half = router.CodecCost("half", 2.0, {"a": [1.0, 1.0, 1.0]}, {"a": [0.0, 0.0, 0.0]})
    raw, coded = with_moving((router.RAW, half), _profile(a=1e-3, b=4e-3), [100, 200, 0], ["a", "b", "sink"])
    assert raw.encode["a"] == pytest.approx([0.05, 0.1, 0.0])
    assert raw.decode["b"] == pytest.approx([0.2, 0.4, 0.0])
    assert raw.encode["sink"] == [0.0, 0.0, 0.0]
    assert coded.encode["a"] == pytest.approx([1.025, 1.05, 1.0])
    assert "b" not in coded.encode, "a device that cannot use a codec still cannot"


def test_without_a_measurement_nothing_is_added() -> None:
    assert with_moving((router.RAW,), None, [1, 2], ["a"]) == (router.RAW,)
    assert with_moving((router.RAW,), _profile(a=0.0), [1, 2, 3], ["a"]) == (router.RAW,)


def test_a_cut_is_paid_half_at_each_end_whatever_travels() -> None:
    profile = _profile(a=0.0)
    device = msgspec.structs.replace(profile.devices["a"], cut_seconds=(0.0, 0.5, 0.0))
    profile = msgspec.structs.replace(profile, devices={"a": device})
    raw, coded = with_moving((router.RAW, router.CodecCost("c", 2.0)), profile, [10, 10, 10], ["a", "b"])
    assert raw.encode["a"] == raw.decode["a"] == coded.encode["a"] == [0.0, 0.25, 0.0]
    assert raw.encode["b"] == [0.0, 0.0, 0.0]


def test_bytes_cost_what_they_were_measured_to_on_the_links_where_that_is_more() -> None:
    def link(source: str, target: str, sending: float, receiving: float) -> LinkProfile:
        made = LinkProfile.of(source, target, 1e6, 1e-3)
        return msgspec.structs.replace(made, send_byte_s=sending, receive_byte_s=receiving)

    links = (link("a", "b", 3e-3, 5e-3), link("b", "a", 1e-4, 0.0), link("home", "a", 1.0, 2e-3))
    profile = msgspec.structs.replace(_profile(a=1e-3, b=4e-3), links=links)
    kinds = {n: msgspec.structs.replace(known, fingerprint=n) for n, known in profile.devices.items()}
    profile = msgspec.structs.replace(profile, devices=kinds)
    (raw,) = with_moving((router.RAW,), profile, [100, 100, 100], ["a", "b"])
    assert raw.encode["a"][0] == pytest.approx(0.3), "over the link"
    assert raw.encode["b"][0] == pytest.approx(0.2), "within the device, which is more"
    assert raw.decode["a"][0] == pytest.approx(0.2), "what was not measured does not count"
    assert raw.decode["b"][0] == pytest.approx(0.5)


def test_boards_of_one_kind_pay_the_same_over_links_of_one_speed() -> None:
    """Else what a short probe scatters by makes boards differ that do not."""
    profile = _profile(a=0.0, b=0.0, c=0.0)

    def link(source: str, target: str, sending: float, bandwidth: float = 1e6) -> LinkProfile:
        made = LinkProfile.of(source, target, bandwidth, 1e-3)
        return msgspec.structs.replace(made, send_byte_s=sending, receive_byte_s=2 * sending)

    alike = (link("a", "b", 3e-3), link("b", "c", 4e-3, 1.3e6), link("c", "a", 9e-3))
    other = link("a", "home", 7e-3)
    fast = link("b", "a", 1e-3, 1e8)
    links = msgspec.structs.replace(profile, links=(*alike, other, fast))
    cut = msgspec.structs.replace(links.devices["a"], byte_s=1e-9)
    profile = msgspec.structs.replace(links, devices={**links.devices, "a": cut})
    (raw,) = with_moving((router.RAW,), profile, [100], ["a", "b", "c"])
    assert raw.encode["c"][0] == pytest.approx(0.4), "the median of a, b and c"
    assert raw.encode["a"][0] == pytest.approx(0.55), "half way between the links to boards and to home"
    assert raw.encode["b"][0] == pytest.approx(0.25), "half way between slow and fast links"
    assert raw.decode["b"][0] == pytest.approx(0.8)
