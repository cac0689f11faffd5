"""What the kernel says about this process, by the text of its files."""

from __future__ import annotations

import os
import time
from pathlib import Path

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
    assert machine.parse_meminfo("MemTotal: 9 kB\nMemAvailable: 2 kB\n", "MemAvailable") == 2048
    v1 = "cache 9\ninactive_file 1\nactive_file 2\ntotal_inactive_file 30\ntotal_active_file 40\n"
    assert machine.parse_cached(v1) == 70
    assert machine.parse_cached("anon 5\nfile 9\ninactive_file 3\nactive_file 4\n") == 7
    assert machine.parse_cached("") == 0


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_free_is_what_a_cgroup_leaves_and_what_it_would_give_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    group = tmp_path / ("memory/box" if version == 1 else "box")
    group.mkdir(parents=True)
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    (group / limit).write_text(f"{300 << 20}\n")
    (group / used).write_text(f"{250 << 20}\n")
    (group / "memory.stat").write_text(f"inactive_file {40 << 20}\nactive_file {2 << 20}\n")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    texts = {
        "self/cgroup": "3:memory:/box\n" if version == 1 else "0::/box\n",
        "meminfo": "MemAvailable: 900000 kB",
    }
    real = machine._read

    def read(path: Path) -> str | None:
        return texts[str(path.relative_to("/proc"))] if path.is_relative_to("/proc") else real(path)

    monkeypatch.setattr(machine, "_read", read)
    assert machine.available_bytes() == 92 << 20
    (group / used).write_text(f"{400 << 20}\n")  # the kernel is behind with reclaiming
    assert machine.available_bytes() == 0
    texts["meminfo"] = "MemAvailable: 7 kB"
    (group / used).write_text("0\n")
    assert machine.available_bytes() == 7 << 10
    (group / limit).write_text(f"{1 << 62}\n")
    texts["meminfo"] = ""
    assert machine.available_bytes() is None


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
