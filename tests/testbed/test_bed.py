"""Beds of stand-in agents, measured from inside of their devices. Needs root."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest

from benchmarks.testbed import Device, Link, Options, Spec, Testbed, measure, uniform
from benchmarks.testbed.agents import AgentPlace
from benchmarks.testbed.layout import SEGMENT
from defer.errors import AgentUnreachable, DeadlineExceeded, UnknownDevice, UsageError

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.usefixtures("clean")]

Near = Callable[[Callable[[], float], float, float], None]
PAYLOAD = SEGMENT / 1514
MBIT = 125_000.0


def ask(bed: Testbed, source: str, target: str, timeout: float = 3.0) -> int | None:
    """Process id that the stand-in agent of a device answers with; None when nothing comes."""
    program = (
        "import socket, sys\n"
        "c = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))\n"
        "print(c.recv(99).decode())"
    )
    host, _, port = bed.agents[target].address.rpartition(":")
    done = bed.run(
        [sys.executable, "-ISc", program, host, port, str(timeout)], source, timeout=20, capture=True
    )
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip() else None


def test_agents_run_in_devices_and_are_reached_by_their_cluster_file(options: Options) -> None:
    with Testbed(uniform(2), options) as bed:
        cluster = tomllib.loads(bed.cluster_file.read_text())
        addresses = {one["name"]: one.get("address") for one in cluster["device"]}
        assert addresses == {
            "dispatcher": None,
            "box-1": bed.agents["box-1"].address,
            "box-2": bed.agents["box-2"].address,
        }
        for source, target in [("dispatcher", "box-1"), ("box-1", "box-2"), ("box-2", "box-2")]:
            assert ask(bed, source, target) == bed.agents[target].pid
        words = bed.run(["sh", "-c", "echo $DEFER_CLUSTER $OMP_NUM_THREADS; exit 3"], capture=True, timeout=9)
        assert (words.returncode, words.stdout.split()) == (3, [str(bed.cluster_file), "1"])


def test_devices_have_no_way_out_and_the_machine_none_in(empty: Options) -> None:
    def machine() -> list[str]:
        words = [["ip", "-o", "addr"], ["ip", "route"]]
        return [
            subprocess.run(w, capture_output=True, text=True, timeout=9, check=True).stdout for w in words
        ]

    before = machine()
    with Testbed(uniform(1), empty) as bed:
        assert machine() == before
        routes = bed.run(["ip", "route"], "box-1", capture=True, timeout=9).stdout.splitlines()
        links = bed.run(["ip", "-o", "link"], "box-1", capture=True, timeout=9).stdout
    assert [route.split()[0] for route in routes] == [bed.address("dispatcher")]
    assert [line.split()[1].partition("@")[0].rstrip(":") for line in links.splitlines()] == ["lo", "eth0"]


@pytest.mark.parametrize("delay", [0.0, 0.004])
def test_bandwidth_is_that_of_the_file(empty: Options, near: Near, delay: float) -> None:
    with Testbed(uniform(2, bandwidth=20 * MBIT, delay=delay), empty) as bed, measure.serving(bed, "box-2"):
        least, most = (part * 20 * MBIT * PAYLOAD for part in (0.85, 1.15))
        near(lambda: measure.rate(bed, "box-1", "box-2", 2_000_000), least, most)
        sent = bed.bytes_sent("box-1", "box-2")
        assert 2_000_000 <= sent < 3 * 2_000_000 * 1.2
        assert bed.bytes_sent("box-2", "box-1") < sent / 5
        bed.set_link("box-1", "box-2", bandwidth=80 * MBIT)
        near(lambda: measure.rate(bed, "box-1", "box-2", 6_000_000), 4 * least, 4 * most)


def test_delay_is_that_of_the_file_and_can_change(empty: Options, near: Near) -> None:
    with Testbed(uniform(2, delay=0.01), empty) as bed, measure.serving(bed, "box-2"):

        def trip() -> float:
            return median(measure.round_trips(bed, "box-1", "box-2"))

        near(trip, 0.02, 0.02 * 1.2 + 0.001)
        bed.set_link("box-1", "box-2", delay=0.03, both=False)
        near(trip, 0.04, 0.04 * 1.2 + 0.001)
        bed.set_link("box-1", "box-2", delay=0.0)
        near(trip, 0.0, 0.001)


def test_first_delay_can_come_while_the_bed_lives(empty: Options, near: Near) -> None:
    with Testbed(uniform(2), empty) as bed, measure.serving(bed, "box-2"):
        near(lambda: median(measure.round_trips(bed, "box-1", "box-2")), 0.0, 0.001)
        bed.set_link("box-1", "box-2", delay=0.005)
        near(lambda: median(measure.round_trips(bed, "box-1", "box-2")), 0.01, 0.01 * 1.2 + 0.001)


def test_pairs_on_one_medium_share_it(empty: Options, near: Near) -> None:
    plain = uniform(4)
    links = tuple(Link(link.source, link.target, medium="air") for link in plain.links)
    pairs = [("box-1", "box-2"), ("box-3", "box-4")]
    rate = 20 * MBIT
    spec = Spec(plain.devices, links, media={"air": rate})
    with Testbed(spec, empty) as bed, measure.serving(bed, "box-2"), measure.serving(bed, "box-4"):

        def larger_and_sum() -> tuple[float, float]:
            both = measure.rates(bed, pairs, 1_000_000)
            return max(both), sum(both)

        near(lambda: larger_and_sum()[1], 0.85 * rate * PAYLOAD, 1.15 * rate * PAYLOAD)
        near(lambda: larger_and_sum()[0], 0.4 * rate, 0.65 * rate)  # neither starves the other
        near(lambda: measure.rate(bed, *pairs[0], 1_000_000), 0.85 * rate * PAYLOAD, 1.15 * rate * PAYLOAD)
        bed.set_medium("air", 3 * rate)
        near(lambda: measure.rate(bed, *pairs[1], 3_000_000), 2.5 * rate * PAYLOAD, 3.5 * rate * PAYLOAD)
        with pytest.raises(UsageError):
            bed.set_link(*pairs[0], bandwidth=1e6)


def test_only_devices_that_a_link_joins_reach_each_other(options: Options) -> None:
    devices = (Device("dispatcher", computes=False, agent=False), Device("a"), Device("b"))
    links = tuple(Link(*pair) for pair in [("dispatcher", "a"), ("a", "dispatcher"), ("a", "b"), ("b", "a")])
    with Testbed(Spec(devices, links), options) as bed:
        assert ask(bed, "dispatcher", "a") == bed.agents["a"].pid
        assert ask(bed, "b", "a") == bed.agents["a"].pid
        assert ask(bed, "dispatcher", "b") is None
        with pytest.raises(UsageError):
            bed.cut("dispatcher", "b")


def test_cut_loses_everything_until_healed(options: Options) -> None:
    with Testbed(uniform(2, delay=0.001), options) as bed:
        bed.cut("box-1", "box-2")
        assert ask(bed, "box-1", "box-2", timeout=0.5) is None
        assert ask(bed, "dispatcher", "box-2") == bed.agents["box-2"].pid
        bed.heal("box-1", "box-2")
        assert ask(bed, "box-1", "box-2") == bed.agents["box-2"].pid
        bed.cut("box-2")
        assert ask(bed, "dispatcher", "box-2", timeout=0.5) is None
        assert ask(bed, "dispatcher", "box-1") == bed.agents["box-1"].pid
        bed.heal("box-2")
        assert ask(bed, "dispatcher", "box-2") == bed.agents["box-2"].pid


def test_cpu_share(empty: Options, near: Near) -> None:
    with Testbed(uniform(1, cpu=0.25), empty) as bed:
        before = bed.cpu_seconds("box-1")
        near(lambda: measure.cpu_share(bed, "box-1", 0.8), 0.2, 0.3)
        assert 0.1 < bed.cpu_seconds("box-1") - before < 3
        assert bed.cpu_seconds("dispatcher") < 0.1


def test_memory_limit_ends_what_exceeds_it_and_nobody_else(options: Options) -> None:
    spec = uniform(2, memory=64 << 20)
    with Testbed(spec, options) as bed:
        assert measure.eat(bed, "dispatcher", 128 << 20) == 0
        assert measure.eat(bed, "box-1", 16 << 20) == 0
        assert measure.eat(bed, "box-1", 128 << 20) == -9
        assert bed.agents["box-2"].process.poll() is None
        assert ask(bed, "dispatcher", "box-2") == bed.agents["box-2"].pid
        assert 0 < bed.memory_bytes("box-2") <= 64 << 20


def test_killed_stopped_and_restarted_devices(options: Options) -> None:
    with Testbed(uniform(2), options) as bed:
        before = bed.agents["box-1"]
        bed.kill("box-1")
        assert before.process.poll() == -9
        assert ask(bed, "dispatcher", "box-1", timeout=0.5) is None
        after = bed.restart("box-1")
        assert (after.address, after.pid != before.pid) == (before.address, True)
        assert ask(bed, "box-2", "box-1") == after.pid
        bed.stop("box-1")
        assert ask(bed, "dispatcher", "box-1", timeout=0.5) is None
        bed.cont("box-1")
        assert ask(bed, "dispatcher", "box-1") == after.pid
        with pytest.raises(UsageError):
            bed.restart("dispatcher")
        with pytest.raises(UnknownDevice):
            bed.kill("box-3")


def test_two_beds_at_once_do_not_meet(options: Options) -> None:
    with Testbed(uniform(1), options) as one, Testbed(uniform(1), options) as other:
        assert not set(one.layout.namespaces) & set(other.layout.namespaces)
        assert ask(one, "dispatcher", "box-1") == one.agents["box-1"].pid
        assert ask(other, "dispatcher", "box-1") == other.agents["box-1"].pid
        other.kill("box-1")
        assert ask(one, "dispatcher", "box-1") == one.agents["box-1"].pid
        assert ask(other, "dispatcher", "box-1", timeout=0.5) is None


def test_a_bed_in_another_thread(options: Options) -> None:
    seen: list[int | None] = []

    def own() -> None:
        with Testbed(uniform(1), options) as bed:
            seen.extend([ask(bed, "dispatcher", "box-1"), bed.agents["box-1"].pid])

    thread = threading.Thread(target=own)
    thread.start()
    thread.join(30)
    assert len(seen) == 2
    assert seen[0] == seen[1]


def test_a_command_beyond_its_time_ends_with_all_its_children(empty: Options) -> None:
    with Testbed(uniform(1), empty) as bed:
        begin = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            bed.run(["sh", "-c", "sleep 100 & sleep 100"], "box-1", timeout=0.3)
        assert time.monotonic() - begin < 10
        listing = bed.run(["sh", "-c", "cat /proc/[0-9]*/cgroup"], capture=True, timeout=9).stdout
        assert f"{bed.layout.tag}/device-box-1/" not in listing


@pytest.mark.parametrize(("word", "said"), [("--broken", "the store is on fire"), ("--mute", "not ready")])
def test_an_agent_that_does_not_start_is_one_error(
    word: str, said: str, options: Options, tmp_path: Path
) -> None:
    devices = (Device("dispatcher", computes=False, agent=False), Device("a"), Device("b", arguments=(word,)))
    spec = Spec(devices, (Link("a", "b"),))
    with pytest.raises(AgentUnreachable, match="'b'") as caught:
        Testbed(spec, Options(options.agents, options.agent_command, tmp_path / "kept", 3)).__enter__()
    assert said in caught.value.message
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["a.log", "a.out", "b.log", "b.out"]
    assert "serving" in (tmp_path / "kept/a.log").read_text()


def test_bed_outside_of_its_block_says_so(empty: Options) -> None:
    bed = Testbed(uniform(1), empty)
    for use in (lambda: bed.cpu_seconds("box-1"), lambda: bed.cut("box-1"), lambda: bed.run(["true"])):
        with pytest.raises(UsageError, match="not running"):
            use()


def test_an_agents_command_line_is_that_of_a_real_one() -> None:
    from benchmarks.testbed import node_agent_command

    device = Device("box", threads=3, arguments=("--more",))
    command = node_agent_command(AgentPlace(device, "198.18.0.2", Path("/stores/box")))
    assert command[1:5] == ["-m", "node_agent", "--name", "box"]
    assert "198.18.0.2:7610" in command
    assert command[-1] == "--more"


def test_real_agents_start_with_the_limits_of_their_devices() -> None:
    with Testbed(uniform(2, cpu=0.5, memory=256 << 20)) as bed:
        assert set(bed.agents) == {"box-1", "box-2"}
        for name, agent in bed.agents.items():
            assert agent.address == f"{bed.address(name)}:7610"
            assert bed.cpu_seconds(name) > 0
        bed.kill("box-1")
        assert bed.restart("box-1").process.poll() is None


def test_check_and_run_on_the_command_line(tmp_path: Path) -> None:
    program = "import sys; from defer.cli.testbed import command; sys.exit(command(standalone_mode=False))"

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
        )

    checked = call("check", "--json")
    assert checked.returncode == 0
    assert json.loads(checked.stdout)["ready"] is True
    assert "htb" in call("check").stdout
    file = tmp_path / "bed.toml"
    file.write_text('[[device]]\nname = "box"\ncount = 2\n')
    run = ("run", "--no-agents", str(file))
    assert call(*run, "--", "sh", "-c", "exit 7").returncode == 7
    assert call(*run, "--", "sh", "-c", "kill -9 $$").returncode == 137
    done = call(*run, "--json", "--", "sh", "-c", "echo words; cat $DEFER_CLUSTER >&2; exit 4")
    figures = json.loads(done.stdout)
    assert (done.returncode, figures["exit_code"]) == (4, 4)
    assert [one["name"] for one in figures["devices"]] == ["dispatcher", "box-1", "box-2"]
    assert len(figures["links"]) == 6
    assert "words" in done.stderr
    assert '"box-2"' in done.stderr
