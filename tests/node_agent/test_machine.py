"""What the kernel says about this process, by the text of its files."""

from __future__ import annotations

import os
import time

import pytest

from node_agent import machine, quantities


def test_cgroup_files_are_read_by_the_kernels_rules() -> None:
    assert machine.parse_cgroup_paths("4:memory:/a\n3:cpu,cpuacct:/b\n0::/c\nodd\n") == {
        "memory": "/a",
        "cpu": "/b",
        "cpuacct": "/b",
        "": "/c",
    }
    assert machine.parse_cpu_max("max 100000\n") is None
    assert machine.parse_cpu_max("20000 100000\n") == pytest.approx(0.2)
    assert machine.parse_quota("-1\n", "100000\n") is None
    assert machine.parse_quota("2000\n", "10000\n") == pytest.approx(0.2)
    assert machine.parse_memory("max\n") is None
    assert machine.parse_memory("9223372036854771712\n") is None
    assert machine.parse_memory("4294967296\n") == 4 << 30
    assert machine.parse_meminfo("MemTotal:  1000 kB\nMemFree: 1 kB\n") == 1_024_000
    assert machine.parse_meminfo("") == 0


def test_this_machine_has_cores_and_memory() -> None:
    assert 0 < machine.cores() <= (os.cpu_count() or 1)
    assert 1 << 20 < machine.resident_bytes() < machine.memory_bytes()
    assert machine.cpu_model()
    assert "python" in machine.software()


@pytest.mark.parametrize(("share", "threads"), [(0.2, 1), (1.0, 1), (1.6, 2), (8.0, 8)])
def test_threads_follow_the_share(share: float, threads: int) -> None:
    assert machine.default_threads(share) == threads


def test_a_fingerprint_changes_with_what_changes_times() -> None:
    engine = {"name": "e", "version": "1"}
    base = machine.fingerprint(1.0, 1, engine)
    assert base == machine.fingerprint(1.0, 1, dict(engine))
    others = [
        machine.fingerprint(0.5, 1, engine),
        machine.fingerprint(1.0, 2, engine),
        machine.fingerprint(1.0, 1, {**engine, "version": "2"}),
    ]
    assert len({base, *others}) == 4


def test_sizes_and_addresses() -> None:
    assert quantities.parse_size("4 GiB") == 4 << 30
    assert quantities.parse_size("1.5kb") == 1500
    assert quantities.parse_size("17") == 17
    for text in ("", "4 GB!", "four", "0", "-1", "4 parsecs"):
        with pytest.raises(ValueError, match="is not a size"):
            quantities.parse_size(text)
    assert quantities.parse_address("127.0.0.1:0") == ("127.0.0.1", 0)
    assert quantities.parse_address("[::1]:7700") == ("::1", 7700)
    for text in ("host", ":7700", "host:", "host:http", "host:65534"):
        with pytest.raises(ValueError, match="is not HOST:PORT"):
            quantities.parse_address(text)
    assert quantities.parse_endpoint("h:1") == quantities.parse_endpoint("tcp://h:1") == "tcp://h:1"
    assert quantities.parse_endpoint("[::1]:1") == "tcp://[::1]:1"
    with pytest.raises(ValueError, match="port 0"):
        quantities.parse_endpoint("h:0")


def test_under_a_quota_work_is_timed_by_what_it_takes_of_the_share() -> None:
    assert machine.work_clock(2.0, 2) is time.perf_counter
    for threads in (1, 2):
        clock = machine.work_clock(0.25, threads)
        begun, processor = clock(), time.thread_time()
        while time.thread_time() - processor < 0.02:
            pass
        assert clock() - begun >= 4 * 0.02
        begun = clock()
        assert clock() - begun < 0.02, "looking takes next to nothing"
