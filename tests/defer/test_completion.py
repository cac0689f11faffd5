"""What Tab completes, and the scripts that ask for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from defer.cli import VERBS, group
from defer.cli.completion import SHELLS, VARIABLE
from tests.defer.cli_fixtures import ROOT, run

CLUSTER = """
[[device]]
name = "jetson"
address = "127.0.0.1:7700"
[[device]]
name = "nuc"
address = "127.0.0.1:7710"
"""


@pytest.fixture(autouse=True)
def asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "other.toml").write_text(CLUSTER.replace("jetson", "pi"))


def words(*line: str) -> list[str]:
    *before, incomplete = line
    found = SHELLS["bash"](group, {}, "defer", VARIABLE).get_completions(before, incomplete)
    return [item.value for item in found]


def kinds(*line: str) -> list[str]:
    *before, incomplete = line
    return [
        item.type for item in SHELLS["bash"](group, {}, "defer", VARIABLE).get_completions(before, incomplete)
    ]


def test_verbs_come_from_the_table_and_options_from_the_verb() -> None:
    assert words("") == list(VERBS)
    assert words("dis") == ["discover"]
    assert "--until-stdin-closes" in words("serve", "--until")
    assert words("--ver") == ["--version"]


def test_devices_come_from_the_cluster_file() -> None:
    assert words("plan", "m.onnx", "--exclude", "") == ["jetson", "nuc"]
    assert words("plan", "m.onnx", "--cluster", "other.toml", "--exclude", "p") == ["pi"]
    assert words("plan", "m.onnx", "--pin", "0:4=je") == ["0:4=jetson"]
    assert words("plan", "m.onnx", "--place", "nuc=0:3,j") == ["nuc=0:3,jetson="]
    assert words("plan", "m.onnx", "--cluster", "none.toml", "--exclude", "") == []


def test_names_and_files() -> None:
    assert "resnet50" in words("models", "build", "resn")
    assert words("schema", "cl") == ["cluster"]
    assert words("agent", "--engine", "au") == ["auto"]
    assert words("completion", "z") == ["zsh"]
    assert words("serve", "--objective", "th") == ["throughput"]
    assert kinds("serve", "--cluster", "") == ["file"]
    assert kinds("analyze", "m") == ["file"]
    assert words("undeploy", "--dispatcher", "127.0.0.1:1", "") == []  # nobody there: nothing, and soon


def test_each_shell_gets_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    for shell in SHELLS:
        printed = run("completion", shell)
        assert printed.exit_code == 0
        assert f"{VARIABLE}={shell}_complete" in printed.stdout
    assert run("completion", "tcsh").exit_code == 2


@pytest.mark.integration
@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_a_real_bash_completes(tmp_path: Path) -> None:
    command = tmp_path / "defer"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m defer "$@"\n')
    command.chmod(0o755)
    # `complete` with its options is bash's own; what it would show is what the function leaves in COMPREPLY.
    line = (
        'eval "$(defer completion bash)"; COMP_WORDS=(defer plan m.onnx --exclude je); COMP_CWORD=4; '
        '_defer_completion defer; echo "${COMPREPLY[@]}"; complete -p defer'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop(VARIABLE, None)
    done = subprocess.run(
        ["bash", "--norc", "-c", line],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.splitlines()[0] == "jetson", done.stderr
    assert "_defer_completion" in done.stdout
