"""How tests call the command line, and the files that they give it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

import defer.cli
import models
from defer.cli import group
from tests.defer.plan_fixtures import CLUSTER_TOML, a_blocks_document, a_plan, a_profile

ROOT = Path(defer.cli.__file__).parents[2]


def run(*words: object) -> Result:
    return CliRunner().invoke(group, [str(word) for word in words])


def failed(result: Result, code: int) -> str:
    """The one line and the hint of a failed command; checks that there is nothing else."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert "Traceback" not in result.stderr
    if len(lines) == 2:
        assert lines[1].startswith("hint:  ")
    return result.stderr


def a_folder(path: Path) -> Path:
    """Models and documents that tests read and never change."""
    for name in ("tiny_residual", "tiny_dynamic_batch", "tiny_two_inputs"):
        models.save(name, path / f"{name}.onnx")
    (path / "cluster.toml").write_text(CLUSTER_TOML)
    a_blocks_document().save(path / "blocks.json")
    a_profile().save(path / "profile.json")
    a_plan().save(path / "plan.json")
    return path


def python(code: str, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, **options
    )


MAIN = "from defer.cli import main; main()"

WITHOUT_PLANNER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("onnx", "onnx_ir", "networkx", "scipy", "onnxruntime"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from defer.cli import main
main()
"""


def planned(folder: Path, *words: object) -> Result:
    return run("plan", "--blocks", folder / "blocks.json", "--cluster", folder / "cluster.toml", *words)
