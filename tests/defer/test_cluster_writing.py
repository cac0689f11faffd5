"""The text of a cluster file that is written from findings: valid whatever an agent says of itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.cluster_writing import Findings, FoundDevice, FoundLink, cluster_text
from defer.documents.address import Address, parse_address
from defer.documents.cluster import loads_cluster
from defer.errors import AgentUnreachable, InvalidCluster
from defer.finding import checked, findings
from defer.greeting import Answered, Silent
from node_agent.messages import EngineInfo, Offer

GIB = 1024**3


def offer(memory: int = 4 * GIB, *engines: EngineInfo) -> Offer:
    return Offer(engines or (EngineInfo("onnxruntime-cpu", "1.22"),), memory, 4.0, 2, "f", 7701, 7702)


def device(name: str, address: str = "", **more: int) -> FoundDevice:
    return FoundDevice(name, address or f"127.0.0.1:{7700 + 10 * (ord(name[0]) % 50)}", offer(**more))


def test_what_was_found_is_what_the_file_says() -> None:
    links = (
        FoundLink("a", "b", 12.5e6, 0.002),
        FoundLink("b", "a", 12.4e6, 0.0021),
        FoundLink("a", "dispatcher", 1.25e6, 0.001),
        FoundLink("dispatcher", "a", 12.5e6, 0.001),
    )
    text = cluster_text(Findings((device("a"), device("b")), links, silent={"10.0.0.9:7700": "no answer"}))
    cluster = loads_cluster(text)
    assert cluster.names == ("a", "b", "dispatcher")
    assert cluster.device("a").memory_bytes == 4 * GIB
    rates = {(link.source, link.target): (link.bandwidth, link.delay) for link in cluster.directed_links()}
    assert rates["a", "b"] == rates["b", "a"] == (12.4e6, 0.0021)
    assert rates["a", "dispatcher"] == (1.25e6, 0.001)
    assert rates["dispatcher", "a"] == (12.5e6, 0.001)
    assert rates["b", "dispatcher"] == (None, None)
    assert "# 10.0.0.9:7700 did not answer: no answer" in text


def test_devices_that_cannot_talk_are_kept_apart() -> None:
    links = (
        FoundLink("a", "b", problem="no way"),
        FoundLink("b", "a", problem="no way"),
        FoundLink("dispatcher", "a", 1e6, 0.001),
        FoundLink("a", "dispatcher", 1e6, 0.001),
    )
    cluster = loads_cluster(cluster_text(Findings((device("a"), device("b")), links)))
    assert {(link.source, link.target) for link in cluster.directed_links()} == {
        ("a", "dispatcher"),
        ("dispatcher", "a"),
    }


@given(
    version=st.text(max_size=200),
    memory=st.integers(0, 2**60),
    rate=st.floats(1.0, 1e12),
    delay=st.floats(0.0, 100.0),
    problem=st.text(max_size=300),
)
def test_whatever_an_agent_says_the_file_is_valid(
    version: str, memory: int, rate: float, delay: float, problem: str
) -> None:
    named = FoundDevice("a", "[::1]:7700", offer(memory, EngineInfo(version, version)))
    links = (FoundLink("a", "dispatcher", rate, delay), FoundLink("dispatcher", "a", problem=problem or "x"))
    cluster = loads_cluster(cluster_text(Findings((named,), links, silent={version: problem})))
    [link] = cluster.directed_links()
    assert link.bandwidth == pytest.approx(rate, rel=0.01)
    assert link.delay == pytest.approx(delay, rel=0.01)
    assert cluster.device("a").memory_bytes in (None, memory // 2**20 * 2**20)


def answered(name: str, address: str, boot: str = "") -> Answered:
    return Answered(parse_address(address), name, boot or name, offer())


def test_the_dispatcher_listens_where_the_agents_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"10.0.0.2": "10.0.0.1", "10.0.0.3": "10.0.0.1", "10.1.0.2": "10.1.0.1"}
    monkeypatch.setattr("defer.finding.way_to", lambda address: ways[address.host])

    def door(*addresses: str) -> tuple[str, str]:
        found = findings([answered(f"d{n}", each) for n, each in enumerate(addresses)])
        checked(cluster_text(found))
        return found.listen, found.advertise

    assert door("127.0.0.1:7700") == ("127.0.0.1:7600", "")
    assert door("10.0.0.2:7700", "10.0.0.3:7700") == ("10.0.0.1:7600", "")
    assert door("10.0.0.2:7700", "10.0.0.3:7700", "10.1.0.2:7700") == ("0.0.0.0:7600", "10.0.0.1")
    assert door("10.0.0.2:7700", "127.0.0.1:7700") == ("0.0.0.0:7600", "10.0.0.1")


def test_one_name_is_one_agent() -> None:
    with pytest.raises(InvalidCluster, match="both called 'a'"):
        findings([answered("a", "127.0.0.1:7700", "1"), answered("a", "127.0.0.1:7710", "2")])
    both = findings([answered("a", "127.0.0.1:7700", "1"), answered("a", "127.0.0.1:7710", "1")])
    assert [(each.address, each.also) for each in both.devices] == [("127.0.0.1:7700", ("127.0.0.1:7710",))]
    device = loads_cluster(cluster_text(both)).device("a")
    assert (device.address, device.also) == ("127.0.0.1:7700", ("127.0.0.1:7710",))
    with pytest.raises(AgentUnreachable, match="nobody"):
        findings([Silent(Address("127.0.0.1", 7700), AgentUnreachable("nobody"))])
