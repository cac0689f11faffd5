"""Encryption in plans: measured where connections have keys, counted once."""

from __future__ import annotations

import math

import msgspec
import pytest

from defer.documents import CostProfile, LinkProfile, decode, encode
from defer.errors import InvalidDocument
from defer.link_measuring import without_encryption
from defer.planning import make_plan
from defer.wishes import Rules
from node_agent.encryption import measure_encryption
from tests.defer.plan_fixtures import CLUSTER_TOML, a_chain, a_cluster, a_profile

LINK = '\n[[link]]\nbetween = ["desk", "jetson"]\nbandwidth = "100 Mbit/s"\ndelay = "0 ms"\n'


def with_keys(profile: CostProfile) -> CostProfile:
    return msgspec.structs.replace(profile, encryption={"desk": 10e-9, "jetson": 20e-9, "nano": 40e-9})


def test_a_profile_made_with_keys_makes_every_link_cost_its_encryption() -> None:
    rules = Rules(excluded=("nano",))
    chain, cluster, profile = a_chain(), a_cluster(CLUSTER_TOML + LINK), a_profile()
    plain = make_plan(chain, cluster, profile, rules=rules, codec="raw")
    coded = make_plan(chain, cluster, with_keys(profile), rules=rules, codec="raw")
    assert coded.latency_s - plain.latency_s == pytest.approx(1_004_000 * 30e-9)
    assert any(term.kind == "encrypt" for term in coded.terms)
    assert not any("encryption" in note for note in coded.notes)
    declared = CLUSTER_TOML.replace('memory = "4 GiB"', 'memory = "4 GiB"\nencryption = "100 MB/s"')
    said = make_plan(chain, a_cluster(declared + LINK), with_keys(profile), rules=rules, codec="raw")
    assert said.latency_s - plain.latency_s == pytest.approx(
        1_004_000 * (10e-9 + 10e-9)
    )  # the file's word counts


def test_a_profile_with_encryption_reads_back_and_is_checked() -> None:
    profile = with_keys(a_profile())
    assert decode(CostProfile, encode(profile), "profile.json") == profile
    for impossible in (-1.0, math.inf):
        with pytest.raises(InvalidDocument, match="cannot be"):
            msgspec.structs.replace(profile, encryption={"desk": impossible}).problems()


def test_what_a_probe_spent_on_encryption_is_taken_off_its_link() -> None:
    links = (
        LinkProfile.of("desk", "jetson", 10e6, 0.001),
        LinkProfile.of("jetson", "nano", 500e6, 0.001),
    )
    assert without_encryption(links, {}) == links
    slow, fast = without_encryption(links, {"desk": 10e-9, "jetson": 20e-9, "nano": 40e-9})
    assert 1 / slow.bytes_per_s == pytest.approx(1 / 10e6 - 30e-9)
    assert fast.bytes_per_s == pytest.approx(5e9)  # never less than a tenth of the probe
    assert (slow.delay_s, fast.delay_s) == (0.001, 0.001)


def test_encryption_is_measured_in_seconds_per_byte() -> None:
    assert 0 <= measure_encryption() < 1e-6
