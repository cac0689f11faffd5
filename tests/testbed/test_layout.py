from __future__ import annotations

import re

import pytest

from benchmarks.testbed import Link, Spec, loads, uniform
from benchmarks.testbed import layout as lines
from benchmarks.testbed.clusterfile import cluster_toml
from benchmarks.testbed.layout import Layout
from defer.documents.cluster import loads_cluster


def test_addresses_are_for_benchmarks_and_unique() -> None:
    spec = uniform(200 - 1)
    for subnet in (0, 255, 256, 511):
        layout = Layout(spec, "dtb-1-2-3", subnet)
        names = layout.spec.names
        addresses = {layout.address(name) for name in names}
        assert len(addresses) == len({layout.mac(name) for name in names}) == len(names)
        assert all(re.fullmatch(r"198\.1[89]\.\d{1,3}\.\d{1,3}", one) for one in addresses)


def test_every_link_has_a_class_of_its_own() -> None:
    layout = Layout(uniform(30), "t", 0)
    classes = {layout.classid(link.source, link.target) for link in layout.spec.links}
    assert len(classes) == len(layout.spec.links)
    assert all(0xFF < int(one.removeprefix("1:"), 16) < 0xFFFF for one in classes)


def test_classes_of_a_medium_cannot_exceed_it_by_their_own_rates() -> None:
    plain = uniform(3)
    links = tuple(Link(link.source, link.target, medium="air") for link in plain.links)
    layout = Layout(Spec(plain.devices, links, media={"air": 1.2e6}), "t", 0)
    made = [one for one in lines.shaping_lines(layout, netem=False) if "parent 1:10 classid" in one]
    own = [int(found[1]) for one in made if (found := re.search(r" rate (\d+)bps", one))]
    assert len(own) == 12
    assert sum(own) <= 1.2e6
    assert all(" ceil 1200000bps" in one for one in made)


def test_delay_is_the_kernels_or_a_detour() -> None:
    layout = Layout(uniform(2, bandwidth=1e6, delay=0.0015), "t", 0)
    link = layout.spec.links[0]
    assert "netem delay 1500us" in lines.queue_line(layout, link, cut=False, netem=True)
    assert "netem" not in lines.queue_line(layout, link, cut=True, netem=True)
    assert "netem" not in lines.queue_line(layout, link, cut=False, netem=False)
    assert layout.mac("box-1") in lines.neighbour_line(layout, link, detour=False)
    assert "02:de:01:00:01:02" in lines.neighbour_line(layout, link, detour=True)


@pytest.mark.parametrize(("rate", "segments"), [(1e5, 2), (12.5e6, 4), (1e12, 45)])
def test_slow_links_get_no_long_super_packets(rate: float, segments: int) -> None:
    assert lines.aggregate_line([Link("a", "b", rate), Link("a", "c")], {}).endswith(f" {segments}")


def test_cluster_file_is_one_that_defer_reads() -> None:
    cluster = loads_cluster(cluster_toml(Layout(uniform(2, bandwidth=1e6), "t", 0)))
    assert cluster.names == ("dispatcher", "box-1", "box-2")
    assert [device.address for device in cluster.agents] == ["198.18.0.2:7610", "198.18.0.3:7610"]
    assert cluster.dispatcher_host == "198.18.0.1"
    assert not cluster.links
    cluster.check_serving()


def test_cluster_file_tells_what_cannot_be_measured() -> None:
    text = """
    testbed.declare = %s
    network = {mesh = false, bandwidth = "100 Mbit/s", delay = "2 ms"}
    device = [{name = "a"}, {name = "b", computes = false}]
    medium = [{name = "air", bandwidth = "8 Mbit/s"}]
    link = [{between = ["dispatcher", "a"]}, {from = "a", to = "b", medium = "air"}]
    """
    for declared in (False, True):
        cluster = loads_cluster(cluster_toml(Layout(loads(text % str(declared).lower()), "t", 0)))
        links = {(one.source, one.target): one for one in cluster.directed_links()}
        assert set(links) == {("dispatcher", "a"), ("a", "dispatcher"), ("a", "b")}
        assert links["a", "b"].medium == "air"
        assert links["dispatcher", "a"].bandwidth == (12.5e6 if declared else None)
        assert links["a", "b"].bandwidth == (1e6 if declared else None)
        assert links["a", "b"].delay == (0.002 if declared else None)
        assert not cluster.device("b").computes
