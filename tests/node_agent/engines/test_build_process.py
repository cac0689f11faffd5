"""A build happens in a child: its progress arrives, its deadline holds, and each way to fail has one sentence."""

from __future__ import annotations

import pytest

from node_agent.engines.build_process import run_build
from node_agent.engines.tensorrt_build import Job
from node_agent.errors import LoadFailedError, OutOfMemoryError

pytestmark = pytest.mark.integration


@pytest.fixture
def job(partition, tmp_path, fake_tensorrt):
    shapes = {"x": ((1, 6), (1, 6), (8, 6))}
    return Job(str(partition.graph), str(tmp_path / "engine"), shapes, str(tmp_path / "timings"))


def test_progress_arrives_and_the_engine_is_there(job, tmp_path):
    said: list[tuple[str, float]] = []
    run_build(job, progress=lambda what, fraction: said.append((what, fraction)))
    assert (tmp_path / "engine").stat().st_size > 0
    assert ("parse", 0.0) in said
    fractions = [fraction for what, fraction in said if what == "Building engine"]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert not any(what == "Timing kernels" for what, _ in said)  # inner phases are not ours to show


def test_kernel_timings_are_kept_and_used_again(job, tmp_path):
    run_build(job)
    first = (tmp_path / "timings").read_bytes()
    run_build(job)
    second = (tmp_path / "timings").read_bytes()
    assert second.startswith(first)
    assert len(second) > len(first)


def test_damaged_timings_start_afresh(job, tmp_path):
    (tmp_path / "timings").write_bytes(b"damaged")
    run_build(job)
    assert not (tmp_path / "timings").read_bytes().startswith(b"damaged")


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("parse-error", LoadFailedError, ["Mystery 'middle'", "no importer"]),
        ("no-kernel", LoadFailedError, ["Could not find any implementation"]),
        ("oom", OutOfMemoryError, ["out of memory"]),
        ("killed", OutOfMemoryError, ["killed", "memory"]),
        ("crash", LoadFailedError, ["signal 11"]),
    ],
)
def test_each_failure_is_one_clear_line(job, fake_tensorrt, tmp_path, mode, kind, words):
    fake_tensorrt(mode)
    with pytest.raises(kind) as caught:
        run_build(job)
    text = str(caught.value)
    assert "\n" not in text
    assert "part" in text
    assert all(word in text for word in words), text
    assert not (tmp_path / "engine").exists()


def test_the_deadline_ends_the_child(job, fake_tensorrt):
    fake_tensorrt("hang")
    with pytest.raises(LoadFailedError, match="longer than 3 s") as caught:
        run_build(job, deadline_s=3.0)
    assert "build_deadline" in caught.value.hint
    # tests/conftest.py fails this test if the child is still there


def test_a_version_that_is_too_old(job, fake_tensorrt):
    fake_tensorrt(version="8.6.1")
    with pytest.raises(LoadFailedError, match="too old"):
        run_build(job)


@pytest.mark.parametrize("version", ["10.3.0", "10.16.1.11", "11.4.0.106"])
def test_networks_are_strongly_typed_in_every_version(job, fake_tensorrt, version):
    """The stand-in refuses any other flags than that version's."""
    fake_tensorrt(version=version)
    run_build(job)


def test_a_module_that_is_missing(job, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    job = Job(job.graph, job.engine, module="no_such_module")
    with pytest.raises(LoadFailedError, match="no_such_module"):
        run_build(job)
