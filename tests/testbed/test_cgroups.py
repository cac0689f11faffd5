from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks.testbed import cgroups, owner
from benchmarks.testbed.cgroups import Group, Hierarchy
from defer.errors import MissingExtra

V1 = """\
30 24 0:26 / {root}/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / {root}/memory rw,relatime - cgroup cgroup rw,memory
32 24 0:28 / {root}/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "30 24 0:26 / {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(cgroups, "OWN", tmp_path / "cgroup")
    return tmp_path


def test_version_1_below_our_own_groups(machine: Path) -> None:
    (machine / "mountinfo").write_text(V1.format(root=machine))
    (machine / "cgroup").write_text("5:cpu,cpuacct:/\n4:memory:/jobs/7\n0::/\n")
    (machine / "memory/jobs/7").mkdir(parents=True)
    (machine / "unified").mkdir()
    found = cgroups.hierarchy()
    assert found.version == 1
    assert found.roots == {
        "cpu": machine / "cpu",
        "cpuacct": machine / "cpu",
        "memory": machine / "memory/jobs/7",
    }
    assert len(found.group("x").directories) == 2


def test_version_2_at_its_root(machine: Path) -> None:
    (machine / "mountinfo").write_text(V2.format(root=machine))
    (machine / "cgroup").write_text("0::/user.slice/session-1.scope\n")
    (machine / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = cgroups.hierarchy()
    assert found.version == 2
    assert found.group("x").directories == (machine / "x",)


def test_neither_is_an_error_that_says_what_to_do(machine: Path) -> None:
    (machine / "mountinfo").write_text(V2.format(root=machine))
    (machine / "cgroup").write_text("0::/\n")
    (machine / "cgroup.controllers").write_text("pids\n")
    with pytest.raises(MissingExtra) as caught:
        cgroups.hierarchy()
    assert "privileged" in caught.value.hint


@pytest.mark.parametrize(
    ("cores", "period", "quota", "expected"),
    [(0.2, 0.01, 2000, 10_000), (0.05, 0.01, 1000, 20_000), (2.5, 0.1, 250_000, 100_000)],
)
def test_a_share_is_a_quota_that_the_kernel_takes(
    tmp_path: Path, cores: float, period: float, quota: int, expected: int
) -> None:
    one = Group(1, dict.fromkeys(cgroups.CONTROLLERS, tmp_path))
    one.limit_cpu(cores, period)
    assert int((tmp_path / "cpu.cfs_quota_us").read_text()) == quota
    assert int((tmp_path / "cpu.cfs_period_us").read_text()) == expected
    two = Group(2, dict.fromkeys(cgroups.CONTROLLERS, tmp_path))
    two.limit_cpu(cores, period)
    assert (tmp_path / "cpu.max").read_text() == f"{quota} {expected}"


def test_version_2_delegates_limits_and_counts(tmp_path: Path) -> None:
    hierarchy = Hierarchy(2, dict.fromkeys(cgroups.CONTROLLERS, tmp_path))
    bed = hierarchy.group("bed")
    for directory in (tmp_path, tmp_path / "bed"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.subtree_control").write_text("")
    (tmp_path / "bed/memory.swap.max").write_text("max")
    bed.make(delegate=True)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    assert (tmp_path / "bed/cgroup.subtree_control").read_text() == "+cpu +memory"
    bed.limit_memory(1 << 20)
    assert (tmp_path / "bed/memory.max").read_text() == "1048576"
    assert (tmp_path / "bed/memory.swap.max").read_text() == "0"
    (tmp_path / "bed/cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    assert bed.cpu_seconds() == 2.5
    assert bed.entrances() == (str(tmp_path / "bed/cgroup.procs"),)


def test_clearing_what_is_gone_is_no_fault(tmp_path: Path) -> None:
    assert cgroups.clear(tmp_path / "never")


@pytest.mark.integration
def test_version_2_ends_a_group_with_all_below_it(able: None) -> None:
    """Where version 1 has the controllers, version 2 is often there without: enough to end processes by it."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    points = [Path(words[4]) for words in mounts if words[words.index("-") + 1] == "cgroup2"]
    if not points:
        pytest.skip("no control groups of version 2 are mounted here")
    bed = Group(2, dict.fromkeys(cgroups.CONTROLLERS, points[0] / owner.new_tag()))
    bed.make()
    below = bed.below("process-1")
    below.make()
    script = 'echo $$ > "$1"; trap "" TERM; setsid sleep 100 & echo; sleep 100'
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *below.entrances()], stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.pid in bed.pids()
        assert len(bed.pids()) >= 2
        assert bed.clear()
        assert process.wait(5) == -9
    assert not bed.paths["cpu"].exists()
