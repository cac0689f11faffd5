"""`defer analyze`, and broken models with every verb that reads one."""

import json
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from defer.cli.analyze import narrow_boundaries, sparkline
from defer.documents import BlocksDocument
from tests.defer.cli_fixtures import a_folder, failed, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_folder(tmp_path_factory.mktemp("cli"))


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
    assert "directory does not exist" in failed(run(*words, "-o", tmp_path / "none" / "x.json"), 74)
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
