"""`defer replan` from the command line: what it says, writes, and refuses."""

import json
from pathlib import Path

import pytest

from defer.documents import Plan
from tests.defer.cli_fixtures import a_folder, failed, run
from tests.defer.plan_fixtures import CLUSTER_TOML


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    a_folder(tmp_path)
    assert run(*words(tmp_path, "plan"), "-o", tmp_path / "running.json").exit_code == 0
    return tmp_path


def words(folder: Path, verb: str) -> list[object]:
    given = ["--blocks", folder / "blocks.json", "--cluster", folder / "cluster.toml"]
    return [verb, *given, "--profile", folder / "profile.json"]


def test_nothing_changed(folder: Path) -> None:
    result = run(*words(folder, "replan"), "--running", folder / "running.json")
    assert result.exit_code == 0, result.output
    assert "Kept: a new plan gains 0.0%" in result.stdout
    assert "nothing needs applying" in result.stderr


def test_a_device_is_gone(folder: Path) -> None:
    text = CLUSTER_TOML[: CLUSTER_TOML.index("[[link]]")]
    start, stop = text.index('[[device]]\nname = "nano"'), text.index('[[device]]\nname = "desk"')
    (folder / "cluster.toml").write_text(text[:start] + text[stop:])
    given = (*words(folder, "replan"), "--running", folder / "running.json")
    result = run(*given, "--json", "-o", folder / "new.json")
    found = json.loads(result.stdout)
    assert found["change"]
    assert "can no longer run" in found["reason"]
    assert [stage["device"] for stage in found["plan"]["stages"]] == ["jetson"]
    assert Plan.load(folder / "new.json").stages[0].device == "jetson"
    said = run(*given, "-o", folder / "again.json")
    assert "to load in" in said.stdout
    assert f"`defer deploy MODEL --plan {folder / 'again.json'} --name NAME` applies it" in said.stderr
    assert "-o FILE writes it" in run(*given).stderr


def test_a_measured_plan_is_not_weighed_by_guesses(folder: Path) -> None:
    given = ["replan", "--blocks", folder / "blocks.json", "--running", folder / "running.json", "--cluster"]
    text = failed(run(*given, folder / "cluster.toml"), 2)
    assert "was made from measurements" in text
    assert "give it with --profile" in text
    static = [*words(folder, "plan")[:-2], "-o", folder / "static.json"]
    assert run(*static).exit_code == 0
    given[given.index(folder / "running.json")] = folder / "static.json"
    assert run(*given, folder / "cluster.toml").exit_code == 0


def test_what_is_refused(folder: Path) -> None:
    given = (*words(folder, "replan"), "--running", folder / "running.json")
    assert "only raise the throughput" in failed(run(*given, "--replicas"), 2)
    assert "needs the model" in failed(run(*given, "--max-error", "0.01"), 2)
    assert "no meaning without" in failed(run(*given, "--calibration", "x.npz"), 2)
    assert "'zip' is unknown" in failed(run(*given, "--codec", "zip"), 2)
    assert "not a duration" in failed(run(*given, "--horizon", "long"), 2)
    assert "nowhere.json" in failed(run(*words(folder, "replan"), "--running", folder / "nowhere.json"), 66)


def test_an_excluded_device_is_named(folder: Path) -> None:
    used = Plan.load(folder / "running.json").stages[0].device
    result = run(*words(folder, "replan"), "--running", folder / "running.json", "--exclude", used)
    assert result.exit_code == 0, result.output
    assert f"can no longer run: device {used!r} is excluded" in result.stdout


def test_objective_and_bounds_are_those_of_the_running_plan(folder: Path) -> None:
    wide = ["--objective", "throughput", "--max-latency", "10 s"]
    assert run(*words(folder, "plan"), *wide, "-o", folder / "wide.json").exit_code == 0
    given = (*words(folder, "replan"), "--running", folder / "wide.json", "--json")
    found = json.loads(run(*given).stdout)
    assert not found["change"]
    assert found["plan"]["objective"] == "throughput"
    assert found["plan"]["limits"] == {"latency": 10.0}
    assert json.loads(run(*given, "--objective", "latency").stdout)["plan"]["objective"] == "latency"
