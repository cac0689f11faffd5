from __future__ import annotations

import pytest

from benchmarks.testbed import Device, Link, Spec, load, loads, uniform
from defer.errors import FileMissing, InvalidCluster, UnknownDevice

FULL = """
[testbed]
threads = 2
cfs_period = "20 ms"
declare = true

[network]
bandwidth = "100 Mbit/s"
delay = "2 ms"

[[device]]
name = "box"
count = 2
cpu = 0.2
memory = "512 MiB"

[[device]]
name = "relay"
computes = false
threads = 1
arguments = ["--log-level", "debug"]

[[medium]]
name = "air"
bandwidth = "8 Mbit/s"

[[link]]
between = ["dispatcher", "*"]
bandwidth = "1 Gbit/s"

[[link]]
between = ["box-*", "relay"]
medium = "air"

[[link]]
from = "box-1"
to = "box-2"
delay = "7 ms"
"""


def test_file_becomes_devices_and_directed_links() -> None:
    spec = loads(FULL)
    assert spec.names == ("dispatcher", "box-1", "box-2", "relay")
    assert spec.device("box-2") == Device("box-2", cpu=0.2, memory=512 << 20, threads=2)
    assert spec.device("relay") == Device(
        "relay", threads=1, computes=False, arguments=("--log-level", "debug")
    )
    assert spec.device("dispatcher") == Device("dispatcher", threads=2, computes=False, agent=False)
    assert (spec.period, spec.declare, spec.full_mesh, spec.media) == (0.02, True, True, {"air": 1e6})
    links = {(link.source, link.target): link for link in spec.links}
    assert len(links) == 12
    assert links["dispatcher", "box-1"] == Link("dispatcher", "box-1", 125e6, 0.002)
    assert links["relay", "dispatcher"] == Link("relay", "dispatcher", 125e6, 0.002)
    assert links["box-2", "relay"] == Link("box-2", "relay", None, 0.002, "air")
    assert links["box-1", "box-2"] == Link("box-1", "box-2", 12.5e6, 0.007)
    assert links["box-2", "box-1"] == Link("box-2", "box-1", 12.5e6, 0.002)


def test_without_mesh_only_what_links_join_may_talk() -> None:
    spec = loads(
        """
        network.mesh = false
        device = [{name = "a"}, {name = "b"}]
        link = [{between = ["dispatcher", "a"]}, {from = "a", to = "b"}]
        """
    )
    pairs = {(link.source, link.target) for link in spec.links}
    assert pairs == {("dispatcher", "a"), ("a", "dispatcher"), ("a", "b")}
    assert not spec.full_mesh


def test_dispatcher_may_share_a_computing_device() -> None:
    spec = loads('dispatcher.device = "a"\ndevice = [{name = "a"}, {name = "b"}]')
    assert spec.names == ("a", "b")
    assert spec.device("a").agent


@pytest.mark.parametrize(
    ("text", "place", "sentence"),
    [
        ("device = [", "bed.toml", "not TOML"),
        ('[[device]]\nname = "a"\ncpus = 1', "device[0]", "did you mean 'cpu'"),
        ('[[device]]\nname = "a"\nmemory = "4 GBit"', "device[0].memory", "not a unit"),
        ('[[device]]\nname = "a"\ncpu = 0', "device a", "not a number of cores"),
        ('[[device]]\nname = "a"\ncount = 0', "device[0].count", ">= 1"),
        ('[[device]]\nname = "../a"', "device ../a", "is not a name"),
        ('device = [{name = "a"}, {name = "a"}]', "device a", "there twice"),
        ("", "device", "no device computes"),
        ('device = [{name = "a"}]\nlink = [{between = ["a", "x"]}]', "link[0]", "no two devices match"),
        ('device = [{name = "a"}]\nlink = [{from = "a"}]', "link[0]", "say either"),
        ('device = [{name = "a"}]\nnetwork.bandwidth = "1 bit/s"', "bandwidth", "slower than 8 kbit/s"),
        ('device = [{name = "a"}]\nnetwork.delay = "1 min"', "delay", "not 0 to 10 s"),
        (
            'device = [{name = "a"}]\nnetwork.medium = "air"',
            "link dispatcher → a",
            "no medium is named 'air'",
        ),
        (
            'device = [{name = "a"}]\nnetwork = {medium = "m", bandwidth = "1 Mbit/s"}\n'
            'medium = [{name = "m", bandwidth = "1 Mbit/s"}]',
            "bandwidth",
            "has the medium's bandwidth",
        ),
        ('device = [{name = "a"}]\ntestbed.cfs_period = "1 h"', "testbed.cfs_period", "out of range"),
        ('device = [{name = "a"}]\ntestbed.delay_by = "magic"', "testbed.delay_by", "delays packets"),
        ('version = 9\ndevice = [{name = "a"}]', "bed.toml", "unknown version 9"),
    ],
)
def test_bad_file_gets_one_error_that_says_where(text: str, place: str, sentence: str) -> None:
    with pytest.raises(InvalidCluster) as caught:
        loads(text, "bed.toml")
    assert caught.value.where.startswith("bed.toml")
    assert place in caught.value.where
    assert sentence in caught.value.message
    assert caught.value.hint


def test_missing_file_and_unknown_device(tmp_path: object) -> None:
    with pytest.raises(FileMissing):
        load(f"{tmp_path}/none.toml")
    with pytest.raises(UnknownDevice):
        uniform(1).device("box-2")


def test_uniform_joins_everything_alike() -> None:
    spec = uniform(3, cpu=0.2, memory=1 << 30, bandwidth=1e6, delay=0.01)
    assert spec.names == ("dispatcher", "box-1", "box-2", "box-3")
    assert spec.full_mesh
    assert {(link.bandwidth, link.delay) for link in spec.links} == {(1e6, 0.01)}
    assert spec.device("dispatcher").cpu is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Spec((Device("a"),), ()),
        lambda: Spec((Device("a"),), (Link("a", "b"),), dispatcher="a"),
        lambda: Spec((Device("a"), Device("b")), (Link("a", "b"), Link("a", "b")), dispatcher="a"),
        lambda: Spec((Device("a", agent=False),), (), dispatcher="a"),
        lambda: uniform(250),
    ],
)
def test_spec_made_in_python_is_checked_as_well(make: object) -> None:
    with pytest.raises(InvalidCluster):
        make()  # type: ignore[operator]
