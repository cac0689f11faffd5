"""The distribution as users get it: what the wheel holds, and what runs where the planner is not installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = {"defer", "partitioner", "router", "node_agent", "models"}
PLANNER = ("onnx", "onnx_ir", "networkx", "scipy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a built wheel."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    [built] = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def edge_box(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with the wheel, its base dependencies and the extra `cpu`, and nothing else.

    The dependencies are linked from this environment instead of downloaded; which ones is read from the wheel's own
    metadata, so that a dependency that is used but not declared is missed there as it would be on an edge box.
    """
    root = tmp_path_factory.mktemp("edge")
    venv.create(root, with_pip=False, symlinks=True)
    [site] = root.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for distribution in _closure({"cpu"}):
        for top in {
            file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")
        }:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (site / top).exists():
                (site / top).symlink_to(source)
    return root / "bin" / "python"


def _closure(extras: set[str]) -> list[importlib.metadata.Distribution]:
    """Distributions that `defer-edge` needs with these extras, and what those need."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [(importlib.metadata.distribution("defer-edge"), extras)]
    while waiting:
        distribution, wanted = waiting.pop()
        for text in distribution.requires or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is not None and not any(marker.evaluate({"extra": extra}) for extra in wanted | {""}):
                continue
            if requirement.name not in found:
                found[requirement.name] = importlib.metadata.distribution(requirement.name)
                waiting.append((found[requirement.name], set(requirement.extras)))
    return list(found.values())


@contextmanager
def edge_agent(python: Path, store: Path) -> Iterator[str]:
    """An agent that runs on the edge box; yields its control address."""
    command = [str(python), "-I", "-m", "node_agent", "--name", "box", "--listen", "127.0.0.1:0", "--json"]
    process = subprocess.Popen([*command, "--store", str(store)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["control"].removeprefix("tcp://")
    finally:
        process.terminate()
        code = process.wait(20)
        process.stdout.close()
        assert code == 0


def run(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": ""}
    return subprocess.run(
        [str(python), "-I", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )


def test_wheel_holds_exactly_the_five_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        scripts = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES
    assert {name for name in names if name.endswith("py.typed")} == {
        f"{package}/py.typed" for package in PACKAGES
    }
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    assert {line.split(" = ")[0] for line in scripts.splitlines() if " = " in line} == {
        "defer",
        "defer-agent",
    }


def test_edge_box_has_no_planner(edge_box: Path) -> None:
    probe = f"import importlib.util as u; print([m for m in {PLANNER!r} if u.find_spec(m)])"
    assert run(edge_box, "-c", probe).stdout.strip() == "[]"


@pytest.mark.integration
def test_agent_and_client_run_without_the_planner(edge_box: Path, tmp_path: Path) -> None:
    """An agent on the edge box serves a model that a dispatcher elsewhere deploys; a client there asks for it."""
    import models

    model = models.save("tiny_residual", tmp_path / "tiny_residual.onnx")
    with edge_agent(edge_box, tmp_path / "store") as address:
        cluster = tmp_path / "cluster.toml"
        cluster.write_text(
            f'[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "box"\naddress = "{address}"\n'
        )
        command = [
            sys.executable,
            "-m",
            "defer",
            "serve",
            "--cluster",
            str(cluster),
            "--model",
            str(model),
            "--json",
        ]
        serve = subprocess.Popen(
            [*command, "--state", str(tmp_path / "state")], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            assert serve.stdout is not None
            lines = iter(serve.stdout.readline, "")
            ready = next(event["ready"] for event in map(json.loads, lines) if "ready" in event)
            answer = run(edge_box, "-m", "defer", "infer", "--dispatcher", ready, "--random", "--json")
            assert answer.returncode == 0, answer.stderr
            assert json.loads(answer.stdout)["outputs"]
        finally:
            serve.terminate()
            code = serve.wait(30)
            serve.stdout.close()
            assert code == 0


@pytest.mark.parametrize(
    "verb", [("analyze", "m.onnx"), ("models", "list"), ("plan", "m.onnx", "--cluster", "c")]
)
def test_missing_planner_is_named(edge_box: Path, verb: tuple[str, ...]) -> None:
    done = run(edge_box, "-m", "defer", *verb)
    if verb[0] == "models" and done.returncode == 0:
        return  # listing names needs no onnx
    assert done.returncode == 69
    assert 'pip install "defer-edge[planner]"' in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_engine_is_named_by_the_agent(edge_box: Path, tmp_path: Path) -> None:
    """Hiding the engine leaves an agent that starts and says what is missing."""
    blocked = tmp_path / "onnxruntime.py"
    blocked.write_text("raise ModuleNotFoundError(\"No module named 'onnxruntime'\", name='onnxruntime')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from node_agent.engines import inventory; print([e.missing for e in inventory()])"
    )
    done = run(edge_box, "-c", code)
    assert "defer-edge[cpu]" in done.stdout, done.stderr
