"""The verbs that need no cluster: what they print, and one clear error for each mistake."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

import defer.cli
import models
from defer.cli import VERBS, group
from defer.cli.analyze import narrow_boundaries, sparkline
from defer.documents import BlocksDocument, Plan, schema
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and documents that the tests read and never change."""
    path = tmp_path_factory.mktemp("cli")
    for name in ("tiny_residual", "tiny_dynamic_batch", "tiny_two_inputs"):
        models.save(name, path / f"{name}.onnx")
    (path / "cluster.toml").write_text(CLUSTER_TOML)
    a_blocks_document().save(path / "blocks.json")
    a_profile().save(path / "profile.json")
    a_plan().save(path / "plan.json")
    return path


# ------------------------------------------------------------------------------------------------------ the group


def test_help_lists_every_verb() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for verb, (_, summary) in VERBS.items():
        assert f"  {verb} " in result.output
        assert summary.split()[0] in result.output


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"defer {defer.__version__}\n")


@pytest.mark.parametrize("verb", ["analyze", "partition", "plan", "schema", "doctor"])
def test_every_verb_explains_itself_with_examples(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert f"defer {verb}" in result.output
    assert "--json" in result.output


def test_a_mistyped_verb_is_suggested() -> None:
    assert "there is no command 'analize', did you mean 'analyze'?" in failed(run("analize"), 2)


def test_a_mistyped_option_is_one_line() -> None:
    assert "`defer plan --help`" in failed(run("plan", "--clutser", "x"), 2)


def test_errors_are_json_where_results_are(folder: Path) -> None:
    result = run("plan", "--blocks", folder / "blocks.json", "--cluster", folder / "missing.toml", "--json")
    assert result.exit_code == 66
    assert result.stdout == ""
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "file-missing"
    assert error["exit_code"] == 66
    assert error["where"].endswith("missing.toml")


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


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        ("analyze", "m.onnx"),
        ("partition", "m.onnx", "--parts", "2", "-o", "x"),
        ("plan", "m.onnx", "--cluster", "c"),
    ],
)
def test_without_the_planner_the_error_names_the_extra(words: tuple[str, ...], folder: Path) -> None:
    known = {"m.onnx": str(folder / "tiny_residual.onnx"), "c": str(folder / "cluster.toml")}
    result = python(WITHOUT_PLANNER, *(known.get(word, word) for word in words))
    assert result.returncode == 69, result.stderr
    assert 'pip install "defer-edge[planner]"' in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.integration
def test_without_the_planner_help_and_documents_still_work() -> None:
    assert "analyze" in python(WITHOUT_PLANNER, "--help").stdout
    assert json.loads(python(WITHOUT_PLANNER, "schema", "plan").stdout) == schema("plan")
    doctor = python(WITHOUT_PLANNER, "doctor", "--json")
    found = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert found["networkx"]["state"] == "missing"


@pytest.mark.integration
def test_help_imports_no_room_and_no_heavy_package() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from defer.cli import group; import defer;"
        "assert CliRunner().invoke(group, ['--help']).exit_code == 0;"
        "heavy = {'onnx', 'onnx_ir', 'networkx', 'scipy', 'onnxruntime', 'numpy', 'rich', 'zmq',"
        " 'partitioner', 'router', 'models', 'node_agent'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.integration
def test_an_interrupt_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-c",
        MAIN,
        "plan",
        "--blocks",
        "-",
        "--cluster",
        "cluster.toml",
        "-o",
        "plan.json",
    ]
    (tmp_path / "cluster.toml").write_text(CLUSTER_TOML)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    reading = Path(f"/proc/{process.pid}/wchan")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and "pipe" not in reading.read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert (out, err.decode().strip().splitlines()[-1]) == (b"", "error: interrupted")
    assert b"Traceback" not in err
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.toml"]


@pytest.mark.integration
def test_a_reader_that_leaves_is_no_error() -> None:
    result = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{MAIN}" schema plan | true'],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert result.stderr == ""


@pytest.mark.integration
def test_a_full_disk_behind_standard_output(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", MAIN, "schema", "plan"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=ROOT,
            check=False,
        )
    assert result.returncode == 74
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.integration
def test_a_traceback_is_shown_only_when_asked(folder: Path) -> None:
    words = ("plan", "--blocks", str(folder / "blocks.json"), "--cluster", str(folder / "missing.toml"))
    assert "Traceback" not in python(MAIN, *words).stderr
    assert "Traceback" in python(MAIN, *words, "--debug").stderr
    assert "Traceback" in python(MAIN, *words, env={**os.environ, "DEFER_DEBUG": "1"}).stderr


# -------------------------------------------------------------------------------------------------- analyze


def test_analyze_prints_blocks_and_writes_the_document(folder: Path, tmp_path: Path) -> None:
    result = run("analyze", folder / "tiny_residual.onnx", "--blocks", 6, "-o", tmp_path / "blocks.json")
    assert result.exit_code == 0, result.stderr
    document = BlocksDocument.load(tmp_path / "blocks.json")
    assert len(document.blocks) <= 6
    for block in document.blocks:
        assert block.name.split("..")[0] in result.stdout
    assert "bytes alive along the model" in result.stdout
    as_json = run("analyze", folder / "tiny_residual.onnx", "--blocks", 6, "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "blocks.json").read_text())


def test_analyze_binds_dimensions(folder: Path) -> None:
    result = run("analyze", folder / "tiny_dynamic_batch.onnx", "--input", "input=2,7,16", "--json")
    assert result.exit_code == 0, result.stderr
    assert set(json.loads(result.stdout)["bindings"].values()) == {2, 7}


def test_a_missing_dimension_is_named(folder: Path) -> None:
    message = failed(run("analyze", folder / "tiny_dynamic_batch.onnx"), 65)
    assert "length" in message
    assert "hint" in message


@pytest.mark.parametrize(
    ("shape", "code", "what"),
    [
        ("inptu=1,3,16,16", 65, "inptu"),
        ("input=1,3,16", 65, "input"),
        ("input=1,4,16,16", 65, "input"),
        ("input=1,x,16,16", 2, "is not a shape"),
        ("input=0,3,16,16", 2, "is not a shape"),
        ("1,3,16,16", 2, "no name"),
    ],
)
def test_wrong_inputs_are_named(folder: Path, shape: str, code: int, what: str) -> None:
    assert what in failed(run("analyze", folder / "tiny_residual.onnx", "--input", shape), code)


def test_an_input_given_twice(folder: Path) -> None:
    words = ("--input", "input=1,3,16,16", "--input", "input=1,3,16,16")
    assert "given twice" in failed(run("analyze", folder / "tiny_residual.onnx", *words), 2)


def broken_models(folder: Path, tmp_path: Path) -> dict[str, tuple[Path, int, str]]:
    whole = (folder / "tiny_residual.onnx").read_bytes()
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="frob")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    unknown = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    contents = {
        "text": (b"this is not a model\n", 65, "text.onnx"),
        "empty": (b"", 65, "empty.onnx"),
        "truncated": (whole[: len(whole) // 2], 65, "truncated.onnx"),
        "unknown-op": (unknown, 65, "Frobnicate"),
    }
    found = {}
    for name, (data, code, what) in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(data)
        found[name] = (path, code, what)
    found["missing"] = (tmp_path / "missing.onnx", 66, "missing.onnx")
    found["folder"] = (tmp_path, 65, tmp_path.name)
    return found


@pytest.mark.parametrize("name", ["text", "empty", "truncated", "unknown-op", "missing", "folder"])
@pytest.mark.parametrize("verb", ["analyze", "partition", "plan"])
def test_broken_models_have_one_error(folder: Path, tmp_path: Path, name: str, verb: str) -> None:
    path, code, what = broken_models(folder, tmp_path)[name]
    more = {
        "analyze": (),
        "partition": ("--parts", 2, "-o", tmp_path / "parts"),
        "plan": ("--cluster", folder / "cluster.toml"),
    }[verb]
    result = run(verb, path, *more)
    if name == "folder":
        code = result.exit_code  # whichever of the file's errors: it is one line all the same
        assert code in (65, 66, 74)
    assert what in failed(result, code)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("verb", ["analyze", "plan"])
def test_outputs_that_cannot_be_written(folder: Path, tmp_path: Path, verb: str) -> None:
    words = ["analyze", folder / "tiny_residual.onnx"]
    if verb == "plan":
        words = ["plan", "--blocks", folder / "blocks.json", "--cluster", folder / "cluster.toml"]
    assert "no space left" in failed(run(*words, "-o", "/dev/full"), 74)
    assert "no such file or directory" in failed(run(*words, "-o", tmp_path / "none" / "x.json"), 66)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "--force" in failed(run(*words, "-o", notes), 73)
    assert notes.read_text() == "mine"
    assert run(*words, "-o", notes, "--force").exit_code == 0
    assert notes.read_text() != "mine"


def test_narrow_boundaries_are_valleys() -> None:
    assert narrow_boundaries([9, 5, 7, 8, 3, 3, 9, 1]) == {1, 4}
    assert narrow_boundaries([4, 4, 4]) == set()
    assert narrow_boundaries([4, 4]) == set()


def test_a_sparkline_keeps_the_narrow_places() -> None:
    line = sparkline([100] * 500 + [1] + [100] * 500, width=50)
    assert len(line) == 50
    assert line.count("▁") == 1
    assert set(sparkline([0, 0])) == {"▁"}


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


def planned(folder: Path, *words: object) -> Result:
    return run("plan", "--blocks", folder / "blocks.json", "--cluster", folder / "cluster.toml", *words)


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
    as_json = planned(folder, "--profile", folder / "profile.json", "--json")
    assert json.loads(as_json.stdout) == json.loads((tmp_path / "plan.json").read_text())


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
        (("--codec", "zip", "--profile", "PROFILE"), 69, "codec 'zip'"),
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
    failed(run("models", "build", "tiny_chain", "-o", tmp_path / "none" / "a.onnx"), 66)
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
