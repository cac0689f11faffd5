"""The other verbs that need no cluster: what they print, and one clear error for each mistake."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import models
from defer.documents import Plan, schema
from tests.defer.cli_fixtures import MAIN, ROOT, a_folder, failed, planned, python, run
from tests.defer.plan_fixtures import CLUSTER_TOML


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_folder(tmp_path_factory.mktemp("cli"))


# ------------------------------------------------------------------------------------------------- partition


def chained(directory: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the manifest promises: run the partitions in order and keep a dict."""
    manifest = json.loads((directory / "manifest.json").read_text())
    tensors = dict(inputs)
    for part in manifest["partitions"]:
        session = onnxruntime.InferenceSession(
            str(directory / part["file"]), providers=["CPUExecutionProvider"]
        )
        names = [tensor["name"] for tensor in part["outputs"]]
        feed = {tensor["name"]: tensors[tensor["name"]] for tensor in part["inputs"]}
        tensors.update(zip(names, session.run(names, feed), strict=True))
    return {tensor["name"]: tensors[tensor["name"]] for tensor in manifest["outputs"]}


@pytest.mark.parametrize("name", ["tiny_residual", "tiny_two_inputs"])
def test_partitions_compute_the_model(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / f"{name}.onnx"
    result = run("partition", path, "--parts", 3, "-o", tmp_path / "parts")
    assert result.exit_code == 0, result.stderr
    assert sorted(entry.name for entry in (tmp_path / "parts").glob("*.onnx")) == [
        f"partition_0{i}.onnx" for i in range(3)
    ]
    inputs = models.example_inputs(name)
    whole = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in whole.get_outputs()]
    expected = dict(zip(names, whole.run(names, inputs), strict=True))
    got = chained(tmp_path / "parts", inputs)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-4, atol=1e-5)


def test_a_plan_cuts_where_it_says(folder: Path, tmp_path: Path) -> None:
    model = folder / "tiny_residual.onnx"
    (tmp_path / "c.toml").write_text(CLUSTER_TOML)
    words = (
        "plan",
        model,
        "--cluster",
        tmp_path / "c.toml",
        "--place",
        "jetson=0:2,nano=2:",
        "-o",
        tmp_path / "plan.json",
    )
    assert run(*words).exit_code == 0
    plan = Plan.load(tmp_path / "plan.json")
    by_plan = run("partition", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "a", "--json")
    by_hand = run("partition", model, "--at", plan.cuts[0], "-o", tmp_path / "b", "--json")
    assert by_plan.exit_code == by_hand.exit_code == 0
    assert json.loads(by_plan.stdout)["partitions"] == json.loads(by_hand.stdout)["partitions"]


def test_freezing_fixes_the_shapes(folder: Path, tmp_path: Path) -> None:
    model = folder / "tiny_dynamic_batch.onnx"
    shapes = ("--input", "input=2,7,16")
    free = run("partition", model, "--parts", 2, *shapes, "-o", tmp_path / "free", "--json")
    frozen = run("partition", model, "--parts", 2, *shapes, "--freeze", "-o", tmp_path / "frozen", "--json")
    assert [
        any(isinstance(dim, str) for dim in t["shape"])
        for t in json.loads(free.stdout)["partitions"][0]["inputs"]
    ] == [True]
    assert json.loads(frozen.stdout)["partitions"][0]["inputs"][0]["shape"] == [2, 7, 16]


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        ((), 2, "give one of --parts, --plan and --at"),
        (("--parts", "2", "--at", "3"), 2, "give one of"),
        (("--parts", "0"), 2, "--parts"),
        (("--parts", "9999"), 2, "9999"),
        (("--at", "3,x"), 2, "not a list of positions"),
        (("--at", "9999"), 2, "9999"),
        (("--at", "3,2"), 2, "2"),
        (("--parts", "2", "--freeze"), 2, "needs the shapes"),
        (("--plan", "PLAN"), 65, "another model"),
    ],
)
def test_mistakes_in_partitioning(
    folder: Path, tmp_path: Path, words: tuple[str, ...], code: int, what: str
) -> None:
    given = [str(folder / "plan.json") if word == "PLAN" else word for word in words]
    result = run("partition", folder / "tiny_residual.onnx", *given, "-o", tmp_path / "parts")
    assert what in failed(result, code)
    assert not (tmp_path / "parts").exists()


def test_a_directory_of_somebody_else_is_not_touched(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    failed(run("partition", folder / "tiny_residual.onnx", "--parts", 2, "-o", tmp_path), 73)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


# ----------------------------------------------------------------------------------------------------- plan


def test_plan_draws_explains_and_writes(folder: Path, tmp_path: Path) -> None:
    result = planned(
        folder,
        "--profile",
        folder / "profile.json",
        "--explain",
        "-o",
        tmp_path / "plan.json",
        "--plot",
        tmp_path / "plan.svg",
    )
    assert result.exit_code == 0, result.stderr
    plan = Plan.load(tmp_path / "plan.json")
    assert [stage.device for stage in plan.stages] == ["jetson", "nano"]
    assert "1 jetson" in result.stdout
    assert "jetson -> nano" in result.stdout
    assert "propagation" in result.stdout
    assert (tmp_path / "plan.svg").read_text().startswith("<svg")
    as_json = planned(folder, "--profile", folder / "profile.json", "--explain", "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "plan.json").read_text())


def test_plan_under_wishes(folder: Path, tmp_path: Path) -> None:
    profile = ("--profile", folder / "profile.json")
    pinned = planned(folder, *profile, "--pin", "0:=nano", "--json")
    assert [stage["device"] for stage in json.loads(pinned.stdout)["stages"]] == ["nano"]
    excluded = planned(folder, *profile, "--exclude", "jetson", "--forbid", "0=jetson", "--json")
    assert "jetson" not in {stage["device"] for stage in json.loads(excluded.stdout)["stages"]}
    bounded = planned(
        folder,
        *profile,
        "--objective",
        "throughput",
        "--max-latency",
        "200 ms",
        "--max-period",
        "90 ms",
        "--json",
    )
    found = json.loads(bounded.stdout)
    assert found["latency_s"] <= 0.2
    assert found["limits"] == {"latency": 0.2, "period": 0.09}
    assert found["value"] == found["period_s"]
    weighted = planned(folder, *profile, "--objective", "weighted", "--weights", "latency=2,cost=1", "--json")
    found = json.loads(weighted.stdout)
    assert found["value"] == pytest.approx(2 * found["latency_s"])


def test_plans_side_by_side(folder: Path) -> None:
    result = planned(
        folder,
        "--profile",
        folder / "profile.json",
        "--compare",
        "throughput",
        "--compare",
        folder / "plan.json",
    )
    assert result.exit_code == 0
    table = result.stdout[result.stdout.index("made least") :]
    assert table.splitlines()[0].split() == ["made", "least", "latency", "throughput", "latency"]


def test_a_plan_as_a_page_and_as_an_image(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert planned(folder, "--plot", tmp_path / "plan.html").exit_code == 0
    assert (tmp_path / "plan.html").read_text().startswith("<!doctype html>")
    assert "names no kind of drawing" in failed(planned(folder, "--plot", tmp_path / "plan.gif"), 2)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    message = failed(planned(folder, "--plot", tmp_path / "plan.png"), 69)
    assert "write a .svg or .html file" in message
    monkeypatch.undo()
    pytest.importorskip("resvg_py")
    assert planned(folder, "--plot", tmp_path / "plan.png").exit_code == 0
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_codec_is_refused_with_those_known(folder: Path) -> None:
    assert "shuffle-lz4" in failed(planned(folder, "--codec", "zip"), 2)


def test_plan_to_standard_output_is_only_the_plan(folder: Path) -> None:
    result = planned(folder, "-o", "-")
    assert json.loads(result.stdout)["kind"] == "plan"


def test_plan_from_a_model_with_a_profile_of_its_blocks(folder: Path) -> None:
    result = run(
        "plan",
        folder / "tiny_residual.onnx",
        "--cluster",
        folder / "cluster.toml",
        "--max-blocks",
        4,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    assert len(json.loads(result.stdout)["positions"]) <= 5


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("--place", "nona=0:3"), 78, "no device 'nona'"),
        (("--place", "jetson=0:2"), 2, "are not placed"),
        (("--objective", "beauty"), 2, "beauty"),
        (("--codec", "zip", "--profile", "PROFILE"), 2, "'zip' is unknown"),
        (("--max-latency", "50"), 2, "has no unit"),
        (("--max-cost", "cheap"), 2, "not a bound"),
        (("--objective", "weighted"), 2, "needs weights"),
        (("--pin", "jetson"), 2, "which blocks and which device"),
        (("--pin", "0:9=jetson"), 2, "no blocks 0:9"),
        (("--exclude", "pi"), 78, "no device 'pi'"),
        (("--replicas",), 2, "only raise the throughput"),
        (("--place", "jetson=0:", "--pin", "0=jetson"), 2, "placed by hand and tied"),
        (("--max-latency", "1 us"), 69, "latency bound"),
        (("--compare", "nowhere.json"), 66, "nowhere.json"),
        (("--profile", "PLAN"), 65, "this is a plan document"),
        (("--profile", "missing.json"), 66, "missing.json"),
        (("--input", "x=1"), 2, "no meaning"),
        (("model.onnx",), 2, "not both"),
    ],
)
def test_mistakes_in_planning(folder: Path, words: tuple[str, ...], code: int, what: str) -> None:
    known = {"PROFILE": str(folder / "profile.json"), "PLAN": str(folder / "plan.json")}
    assert what in failed(planned(folder, *(known.get(word, word) for word in words)), code)


def test_a_model_or_blocks_are_needed(folder: Path) -> None:
    assert "give a model" in failed(run("plan", "--cluster", folder / "cluster.toml"), 2)


def test_a_cluster_with_a_typo(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CLUSTER_TOML.replace("memory", "memroy"))
    message = failed(run("plan", "--blocks", folder / "blocks.json", "--cluster", tmp_path / "c.toml"), 78)
    assert "did you mean 'memory'?" in message


def test_a_drawing_overwrites_only_drawings(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photo.svg").write_bytes(b"\x89PNG")
    assert "not an SVG" in failed(planned(folder, "--plot", tmp_path / "photo.svg"), 73)
    for _ in range(2):
        assert planned(folder, "--plot", tmp_path / "plan.svg").exit_code == 0


# ----------------------------------------------------------------------------------------- models, schema, doctor


def test_models_are_listed() -> None:
    listed = json.loads(run("models", "list", "--json").stdout)
    assert [each["name"] for each in listed] == list(models.NAMES)
    assert "resnet50" in run("models", "list").stdout


def test_a_model_is_built_as_the_seed_says(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = run(
            "models", "build", "tiny_chain", "-o", tmp_path / f"{name}.onnx", "--seed", seed, "--json"
        )
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["bytes"] == (tmp_path / f"{name}.onnx").stat().st_size
    contents = [(tmp_path / f"{name}.onnx").read_bytes() for name in "abc"]
    assert contents[0] == contents[1] != contents[2]
    onnx.checker.check_model(onnx.load(tmp_path / "a.onnx"))


def test_external_weights_lie_beside(tmp_path: Path) -> None:
    assert run("models", "build", "tiny_chain", "-o", tmp_path / "a.onnx", "--external").exit_code == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_mistakes_in_building(tmp_path: Path) -> None:
    assert "tiny_chian" in failed(run("models", "build", "tiny_chian", "-o", tmp_path / "a.onnx"), 65)
    failed(run("models", "build", "tiny_chain", "-o", tmp_path / "none" / "a.onnx"), 74)
    (tmp_path / "a.txt").write_text("mine")
    failed(run("models", "build", "tiny_chain", "-o", tmp_path / "a.txt"), 73)
    assert (tmp_path / "a.txt").read_text() == "mine"
    failed(run("models", "build", "tiny_chain", "-o", "/dev/full"), 73)
    assert not Path("/dev/full").is_file()


@pytest.mark.parametrize("name", ["cluster", "blocks", "profile", "plan"])
def test_schemas_are_printed(name: str) -> None:
    assert json.loads(run("schema", name).stdout) == schema(name)


def test_an_unknown_schema_lists_the_known() -> None:
    assert "cluster, blocks, profile, plan" in failed(run("schema", "plans"), 2)


@pytest.mark.integration
def test_doctor_finds_this_installation_good() -> None:
    result = run("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = {check["name"]: check for check in json.loads(result.stdout)["checks"]}
    assert {"python", "cores", "memory", "loopback", "store", "engine onnxruntime"} <= found.keys()
    for package in ("defer", "partitioner", "router", "node_agent", "models"):
        assert found[f"package {package}"]["state"] == "good"
    assert "package router" in run("doctor").stdout


@pytest.mark.integration
@pytest.mark.parametrize("shadow", ["models.py", "router/__init__.py", "models/notes.txt"])
def test_doctor_names_what_shadows_a_package(tmp_path: Path, shadow: str) -> None:
    path = tmp_path / shadow
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "defer").symlink_to(ROOT / "defer")  # as if only this package had been found here
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; {MAIN}"
    result = python(code, "doctor")
    if shadow == "models/notes.txt":  # a folder without __init__.py hides nothing that is installed
        assert result.returncode == 0
        return
    assert result.returncode == 70
    assert str(path) in result.stdout.replace("\n", "").replace(" ", "") or str(path) in result.stderr
    assert "move" in result.stderr
