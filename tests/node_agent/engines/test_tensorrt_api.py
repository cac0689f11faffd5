"""Every call of our TensorRT and CUDA code exists, with that many arguments, in the real bindings of each version.

The surfaces in `api/` were read from NVIDIA's own wheels by `api/generate.py`; where a wheel is at hand
(`DEFER_TENSORRT_BINDINGS` names its tensorrt.so) it is read again and must say the same.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import pytest

import node_agent.engines

API = Path(__file__).parent / "api"
CODE = Path(node_agent.engines.__file__).parent
VERSIONS = sorted(API.glob("tensorrt-*.json"))

OWNERS = {
    "trt": "",
    "tensorrt": "",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "error": "ParserError",
    "machine": "Runtime",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
}
"""TensorRT's class by the name that our code gives a variable of it."""

OWN = {
    "tensorrt_build.py": {
        "trt",
        "builder",
        "network",
        "parser",
        "config",
        "profile",
        "tensor",
        "cache",
        "error",
    },
    "tensorrt_native.py": {"trt", "tensorrt", "machine"},
    "tensorrt_session.py": {"engine", "_engine", "context", "_context"},
    "tensorrt_versions.py": {"trt"},
    "tensorrt_support.py": {"trt", "builder", "network", "parser"},
}
"""Which of these names mean TensorRT's objects in which file."""

NOT_ITS = {"code", "hint", "__version__", "ILogger", "IProgressMonitor", "name", "strerror"}
"""Attributes of our own errors, and base classes, which are looked up below."""


def surface(path: Path) -> dict[str, list[str] | str]:
    return json.loads(path.read_text())["members"]


def owner_of(node: ast.expr) -> str | None:
    """The variable that an attribute is looked up on."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
        return node.attr
    return None


def uses(file: str) -> set[tuple[str, int | None]]:
    """(member, positional arguments or None if it is not called) of everything a file takes from TensorRT."""
    tree = ast.parse((CODE / file).read_text())
    calls = {id(node.func): len(node.args) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: set[tuple[str, int | None]] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute) and owner_of(base) is None:
            dotted.append(base.attr)
            base = base.value
        name = owner_of(base)
        if name not in OWN[file] or not dotted:
            continue
        member = ".".join([part for part in (OWNERS[name], *reversed(dotted)) if part])
        arguments = calls.get(id(node))
        if member.endswith(".__init__") and arguments is not None:
            arguments -= 1  # called on the class, with self
        found.add((member, arguments))
    return found


def all_uses() -> set[tuple[str, int | None]]:
    return {use for file in OWN for use in uses(file)}


def accepts(signatures: list[str], arguments: int) -> bool:
    for signature in signatures:
        inside = re.sub(r"\[[^\]]*\]|<[^>]*>", "", signature[signature.index("(") + 1 : -1])
        parameters = [
            part for part in inside.split(",") if part.strip() and not part.strip().startswith("self")
        ]
        required = [part for part in parameters if "=" not in part]
        if len(required) <= arguments <= len(parameters):
            return True
    return False


def test_there_are_surfaces_of_both_major_versions():
    majors = {path.name.split("-")[1].split(".")[0] for path in VERSIONS}
    assert majors == {"10", "11"}


def test_the_scan_finds_the_calls_that_matter():
    members = {member for member, _ in all_uses()}
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse_from_file",
        "Runtime.deserialize_cuda_engine",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address",
        "ICudaEngine.device_memory_size_v2",
        "IBuilderConfig.progress_monitor",
        "OnnxParser.supports_model_v2",
    } <= members


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_every_call_exists_with_that_many_arguments(path):
    members = surface(path)
    wrong = []
    for member, arguments in sorted(all_uses(), key=str):
        if member.split(".")[-1] in NOT_ITS and member not in members:
            continue
        described = members.get(member)
        if described is None:
            wrong.append(f"{member} does not exist")
        elif described == "class" and arguments is not None:
            signatures = members[f"{member}.__init__"]
            if not accepts(list(signatures), arguments):
                wrong.append(f"{member}({arguments} arguments): {signatures}")
        elif isinstance(described, list) and arguments is not None and not accepts(described, arguments):
            wrong.append(f"{member}({arguments} arguments): {described}")
    assert not wrong


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_what_we_override_is_called_as_we_declare_it(path):
    members = surface(path)
    assert accepts(list(members["IProgressMonitor.phase_start"]), 3)
    assert accepts(list(members["IProgressMonitor.step_complete"]), 2)
    assert accepts(list(members["IProgressMonitor.phase_finish"]), 1)
    assert accepts(list(members["ILogger.log"]), 2)
    for name in ("ERROR", "INTERNAL_ERROR"):
        assert f"ILogger.Severity.{name}" in members


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_the_version_table_names_flags_that_exist(path):
    from node_agent.engines.tensorrt_versions import dialect

    version = path.stem.removeprefix("tensorrt-")
    flag = dialect(version).network_flag
    members = surface(path)
    assert not flag or f"NetworkDefinitionCreationFlag.{flag}" in members
    weak = {f"BuilderFlag.{name}" for name in ("FP16", "INT8", "BF16", "FP8")}
    assert (weak & set(members) == weak) == version.startswith("10.")


@pytest.mark.parametrize("path", VERSIONS, ids=lambda path: path.stem)
def test_every_type_of_ours_has_its_name_there(path):
    from node_agent.engines import tensorrt_session

    members = surface(path)
    assert all(f"DataType.{name}" in members for name in tensorrt_session._TYPES)


def test_every_cuda_call_exists_with_that_many_arguments():
    members = surface(next(API.glob("cuda-bindings-*.json")))
    tree = ast.parse((CODE / "cuda.py").read_text())
    called = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "_call":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                called[name.value] = len(node.args) - 1
    assert len(called) > 20
    for name, arguments in called.items():
        assert accepts(list(members[name]), arguments), (name, arguments, members[name])
    text = (CODE / "cuda.py").read_text()
    constants = {name.split(".")[-1] for name in members}
    assert all(name in constants for name in re.findall(r"\bCU_[A-Z_]+\b", text))


def test_the_stand_ins_invent_nothing(fake_tensorrt, fake_cuda):
    """What the stand-ins offer is in the real bindings, so that code which runs on them cannot rely on a dream."""
    text = (Path(__file__).parent / "fakes" / "tensorrt.py").read_text()
    stands_for = {
        "_Network": "INetworkDefinition",
        "_Profile": "IOptimizationProfile",
        "_Config": "IBuilderConfig",
        "_TimingCache": "ITimingCache",
        "_ParserError": "ParserError",
        "_Engine": "ICudaEngine",
        "_Context": "IExecutionContext",
    }
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ClassDef):
            continue
        name = stands_for.get(node.name, node.name)
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                for path in VERSIONS:
                    assert f"{name}.{each.name}" in surface(path), f"{name}.{each.name} in {path.name}"


@pytest.mark.skipif(
    not os.environ.get("DEFER_TENSORRT_BINDINGS") or shutil.which("cc") is None,
    reason="DEFER_TENSORRT_BINDINGS names no tensorrt.so, or there is no C compiler",
)
def test_the_surface_on_file_is_what_the_wheel_says():
    spec = importlib.util.spec_from_file_location("generate", API / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    extension = Path(os.environ["DEFER_TENSORRT_BINDINGS"])
    info = next(extension.parent.parent.glob("tensorrt_*.dist-info")).name.removesuffix(".dist-info")
    known = next(path for path in VERSIONS if json.loads(path.read_text())["distribution"] == info)
    assert generate.tensorrt_surface(generate.load_tensorrt(extension)) == surface(known)
