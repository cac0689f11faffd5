"""Announcements by real multicast DNS, on loopback and between network namespaces, and what is believed of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defer.discovery import Announced, _read, browse
from defer.documents.address import Address
from defer.documents.cluster import Cluster
from defer.errors import MissingExtra
from defer.local_agents import local_agents
from node_agent.announcing import AGENT, DISPATCHER, Announcement, announcing
from node_agent.errors import PackageMissingError
from node_agent.quantities import is_name
from tests.defer.cli_fixtures import failed, run

GROUP = "224.0.0.251"


def multicast_works() -> bool:
    """Whether a datagram to the group of multicast DNS comes back over loopback."""
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as hears,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as says,
        ):
            hears.bind(("", 0))
            hears.settimeout(2)
            here = socket.inet_aton("127.0.0.1")
            hears.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton(GROUP) + here)
            says.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, here)
            says.sendto(b"x", (GROUP, hears.getsockname()[1]))
            return hears.recv(1) == b"x"
    except OSError:
        return False


over_loopback = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not multicast_works(), reason="multicast does not come back over loopback on this machine"
    ),
]


def heard(name: str, seconds: float = 8.0) -> Announced | None:
    """What loopback says of `name`, as soon as it says anything."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for each in browse(1.0, interfaces=["127.0.0.1"]):
            if each.name == name:
                return each
    return None


class TestOverLoopback:
    pytestmark = over_loopback

    def test_what_is_announced_is_heard_and_taken_back(self) -> None:
        boot = os.urandom(8).hex()
        name = f"box-{boot[:4]}"
        with announcing(Announcement(AGENT, name, "127.0.0.1", 7701, boot, keys=True)):
            assert heard(name) == Announced("agent", name, (Address("127.0.0.1", 7701),), keys=True)
        deadline = time.monotonic() + 10
        while any(each.name == name for each in browse(1.0, interfaces=["127.0.0.1"])):
            assert time.monotonic() < deadline

    def test_init_finds_agents_that_announce_themselves(self, tmp_path: Path) -> None:
        ours = f"edge-{os.urandom(3).hex()}"
        written = tmp_path / "cluster.toml"
        with local_agents([ours], tmp_path, arguments={ours: ["--announce"]}) as [agent]:
            assert heard(ours) is not None
            listed = run("discover", "--seconds", 2, "--json")
            assert [agent.address] in [each["addresses"] for each in json.loads(listed.stdout)]
            result = run("init", "--no-links", "-o", written, "--wait", 3, "--json")
        assert result.exit_code == 0, result.output
        assert Cluster.load(written).device(ours).address == agent.address


@contextmanager
def two_namespaces() -> Iterator[tuple[str, str]]:
    """Two network namespaces joined by a cable, 10.99.7.1 and 10.99.7.2."""
    left, right = (f"dd{os.getpid()}{side}" for side in "lr")
    lines = [
        f"netns add {left}",
        f"netns add {right}",
        f"-n {left} link add eth0 type veth peer name eth0 netns {right}",
        *(
            f"-n {space} {what}"
            for number, space in enumerate((left, right), 1)
            for what in (
                f"addr add 10.99.7.{number}/24 dev eth0",
                "link set eth0 up",
                "link set lo up",
                "route add 224.0.0.0/4 dev eth0",
            )
        ),
    ]
    try:
        for line in lines:
            subprocess.run(["ip", *line.split()], check=True, capture_output=True, timeout=20)
        yield left, right
    finally:
        for space in (left, right):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True, timeout=20)


def may_make_namespaces() -> bool:
    try:
        with two_namespaces():
            return True
    except (OSError, subprocess.SubprocessError):
        return False


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("ip") is None, reason="there is no `ip` command")
def test_agents_are_found_across_a_network_and_trusted_for_nothing(tmp_path: Path) -> None:
    if not may_make_namespaces():
        pytest.skip("this user may not make network namespaces")
    with two_namespaces() as (left, right):

        def inside(space: str, *words: str) -> list[str]:
            return ["ip", "netns", "exec", space, sys.executable, "-m", *words]

        command = inside(right, "node_agent", "--name", "far", "--listen", "10.99.7.2:7700", "--insecure")
        command += ["--announce", "--store", str(tmp_path / "far"), "--json", "--until-stdin-closes"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as agent:
            try:
                assert agent.stdout is not None
                assert b"far" in agent.stdout.readline()
                written = tmp_path / "cluster.toml"
                init = inside(left, "defer", "init", "-o", str(written), "--json")
                # Found, and for all that an address beyond this machine: keys, or --insecure.
                without = subprocess.run(init, capture_output=True, text=True, timeout=60, check=False)
                assert without.returncode == 77, without.stderr
                assert not written.exists()
                done = subprocess.run(
                    [*init, "--insecure"], capture_output=True, text=True, timeout=60, check=False
                )
                assert done.returncode == 0, done.stderr
            finally:
                assert agent.stdin is not None
                agent.stdin.close()
                agent.wait(20)
    cluster = Cluster.load(written)
    assert cluster.device("far").address == "10.99.7.2:7700"
    assert cluster.dispatcher.listen == "10.99.7.1:7600"
    assert all(link.bandwidth for link in cluster.directed_links())


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(MissingExtra) as told:
        browse(0.1)
    assert "defer-edge[discovery]" in told.value.hint
    with (
        pytest.raises(PackageMissingError) as said,
        announcing(Announcement(DISPATCHER, "dispatcher", "127.0.0.1", 7600, "b")),
    ):
        pass
    assert "defer-edge[discovery]" in said.value.hint
    assert "defer-edge[discovery]" in failed(run("discover", "--seconds", 0.1), 69)


@given(
    name=st.text(min_size=1, max_size=63).filter(is_name),
    port=st.integers(1, 65533),
    keys=st.booleans(),
)
def test_every_name_can_be_announced(name: str, port: int, keys: bool) -> None:
    told = Announcement(AGENT, name, "127.0.0.1", port, "0123456789abcdef", keys)
    assert len(told.instance.removesuffix(f".{AGENT}").encode()) <= 63
    assert all(len(key) + 1 + len(value) <= 255 for key, value in told.text.items())
    read = _read(AGENT, told.instance, ["127.0.0.1"], port, dict(told.text))
    assert read is not None
    assert (read.keys, read.addresses) == (keys, (Address("127.0.0.1", port),))
    assert read.name == name or len(name.encode()) >= 240


@given(
    instance=st.text(max_size=80),
    addresses=st.lists(st.one_of(st.text(max_size=40), st.ip_addresses().map(str)), max_size=4),
    text=st.dictionaries(st.sampled_from([b"name", b"keys", b"v"]), st.none() | st.binary(max_size=255)),
)
def test_whatever_is_announced_is_read_or_dropped(
    instance: str, addresses: list[str], text: dict[bytes, bytes | None]
) -> None:
    read = _read(AGENT, instance, addresses, 7700, text)
    if read is not None:
        assert read.addresses
        assert not read.name or is_name(read.name)
