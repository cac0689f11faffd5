"""Children import what this process would, whatever lies in the working directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from node_agent.interpreter import python


@pytest.mark.parametrize("way", [["-m", "json.tool", "--help"], ["-c", "import json.tool"]])
def test_a_users_files_are_no_modules(
    way: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text("raise SystemExit('a file of the user was imported')")
    monkeypatch.chdir(tmp_path)
    assert subprocess.run([sys.executable, *way], capture_output=True, check=False).returncode != 0
    subprocess.run([*python(), *way], capture_output=True, check=True)


def test_where_this_process_takes_them_children_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert python() == (sys.executable,)
