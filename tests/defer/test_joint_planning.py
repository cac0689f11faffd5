"""Several models on one cluster: they share it, and what it cannot carry is refused."""

import json
from pathlib import Path

import msgspec
import pytest

import models
from defer import errors
from defer.documents import Plan
from defer.joint_planning import Job, plan_jobs
from tests.defer.cli_fixtures import failed, run
from tests.defer.plan_fixtures import CLUSTER_TOML, a_chain, a_cluster, a_device, a_profile


def a_job(name: str, rate: float, memory: int = 0) -> Job:
    devices = {each: a_device((0.02, 0.02, 0.02), memory_bytes=memory) for each in ("jetson", "nano")}
    return Job(name, a_chain(), rate, a_profile(**devices))


def test_two_equal_jobs_take_a_device_each() -> None:
    """60 ms of work each, 12 times a second: 72 % of a device, and together more than one could do."""
    found = plan_jobs([a_job("a", 12), a_job("b", 12)], a_cluster(), codec="raw")
    used = [{stage.device for stage in plan.stages} for plan in found.plans]
    assert used[0].isdisjoint(used[1])
    assert 0.72 <= found.utilisation < 1
    assert found.bound <= found.utilisation * (1 + 1e-9)
    assert found.growth >= 1
    assert any("beside b" in note for note in found.plans[0].notes)
    for plan in found.plans:
        plan.problems()
        assert plan.latency_s > 0.06


def test_what_the_cluster_cannot_carry_is_refused() -> None:
    with pytest.raises(
        errors.NoRoute, match=r"carries at most .* of the requested rates; used up: "
    ) as caught:
        plan_jobs([a_job("a", 30), a_job("b", 30)], a_cluster(), codec="raw")
    assert "(results)" not in caught.value.message


def test_the_least_memory_of_the_profiles_counts() -> None:
    with pytest.raises(errors.NoRoute):
        plan_jobs([a_job("a", 1), a_job("b", 1, memory=10 << 20)], a_cluster(), codec="raw")


def test_jobs_have_names_of_their_own() -> None:
    for jobs in ([], [a_job("a", 1), a_job("a", 2)]):
        with pytest.raises(errors.UsageError):
            plan_jobs(jobs, a_cluster())


def test_from_the_command_line(tmp_path: Path) -> None:
    for name in ("tiny_residual", "tiny_two_inputs"):
        models.save(name, tmp_path / f"{name}.onnx")
    (tmp_path / "cluster.toml").write_text(CLUSTER_TOML)
    residual, other = tmp_path / "tiny_residual.onnx", tmp_path / "tiny_two_inputs.onnx"
    words = ("jobs", "--cluster", tmp_path / "cluster.toml", "--job", f"{residual}=5")
    result = run(*words, "--job", f"{other}=2", "-o", tmp_path / "plans")
    assert result.exit_code == 0, result.output
    assert "is the busiest" in result.stdout
    assert Plan.load(tmp_path / "plans" / "tiny_residual.plan.json").model
    as_json = json.loads(run(*words, "--json").stdout)
    assert msgspec.convert({**as_json["plans"]["tiny_residual"]}, Plan).stages
    assert "carries at most" in failed(run(*words, "--job", f"{other}=1e9"), 69)
    assert "no model and rate" in failed(run(*words, "--job", "x.onnx"), 2)
    assert "names none of the jobs" in failed(run(*words, "--profile", "x.onnx=p.json"), 2)
