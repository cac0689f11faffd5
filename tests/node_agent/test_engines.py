"""ONNX Runtime behind the engine interface; measuring and loading on top of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from node_agent import engines
from node_agent import messages as m
from node_agent.codecs import CODECS
from node_agent.engines.base import Partition
from node_agent.errors import EngineMissingError, LoadFailedError, MissingFileError, RunFailedError
from node_agent.loader import Loader
from node_agent.measure import BlockTimer
from node_agent.samples import sample
from node_agent.store import FileStore
from tests.node_agent.harness import affine, identity, model_bytes, ref, reshaped, spec, value

ENGINE = "onnxruntime-cpu"


def put(store: FileStore, data: bytes) -> m.FileRef:
    file = ref(data)
    store.write(file, 0, data)
    return file


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore.open(tmp_path / "store")


def load(path: Path, data: bytes, inputs: Any = (), outputs: Any = (), **options: str) -> Any:
    file = path / "model.onnx"
    file.write_bytes(data)
    return engines.engine_named("auto").load(Partition(file, inputs, outputs, 1, options))


def test_a_partition_runs_on_read_only_views(tmp_path: Path) -> None:
    data, w = affine("x", "y", 8, 0)
    x = np.frombuffer(np.ones((3, 8), np.float32).tobytes(), np.float32).reshape(3, 8)
    session = load(tmp_path, data, (spec("x", "n", 8),), (spec("y", "n", 8),), optimization="none")
    np.testing.assert_allclose(session.run({"x": x})["y"], np.maximum(x @ w, 0), atol=1e-5)
    session.close()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"),
        (TensorProto.FLOAT8E4M3FNUZ, "float8_e4m3fnuz"),
        (TensorProto.FLOAT8E5M2, "float8_e5m2"),
        (TensorProto.FLOAT8E5M2FNUZ, "float8_e5m2fnuz"),
    ],
)
def test_types_without_a_numpy_type_pass_as_raw_bits(tmp_path: Path, kind: int, dtype: str) -> None:
    """Exact values go from float32 to the type and back, in two partitions with raw bits between."""
    x = np.array([0.5, 1, -2, 0], np.float32)
    down = model_bytes(
        [helper.make_node("Cast", ["x"], ["h"], to=kind)], [value("x", "n")], [value("h", "n", kind=kind)], {}
    )
    up = model_bytes(
        [helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)],
        [value("h", "n", kind=kind)],
        [value("y", "n")],
        {},
    )
    first = load(tmp_path, down, (spec("x", "n"),), (spec("h", "n", dtype=dtype),))
    bits = first.run({"x": x})["h"]
    assert bits.dtype.kind == "u"
    second = load(tmp_path, up, (spec("h", "n", dtype=dtype),))
    np.testing.assert_array_equal(second.run({"h": bits})["y"], x)
    assert load(tmp_path, down).outputs[0].dtype == dtype


def test_what_the_engine_refuses_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(LoadFailedError, match=r"on this device cannot run an op of the model: Protobuf"):
        load(tmp_path, b"not onnx")
    with pytest.raises(LoadFailedError, match="no input 'z'"):
        load(tmp_path, identity(), (spec("z", 1),))
    with pytest.raises(LoadFailedError, match="no output 'z'"):
        load(tmp_path, identity(), (), (spec("z", 1),))
    with pytest.raises(LoadFailedError, match="no option speed=high") as caught:
        load(tmp_path, identity(), speed="high")
    assert "optimization=" in caught.value.hint
    with pytest.raises(RunFailedError, match="op Reshape: input_shape_size") as failed:
        load(tmp_path, reshaped()).run({"x": np.ones(3, np.float32), "shape": np.array([2, 2])})
    assert ".h:" not in str(failed.value)


def test_a_missing_engine_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (info,) = [info for info in engines.inventory() if info.name == ENGINE]
    assert 'pip install "defer-edge[cpu]"' in info.missing
    with pytest.raises(EngineMissingError, match="No engine is installed") as caught:
        engines.engine_named("auto")
    assert "defer-edge[cpu]" in caught.value.hint
    with pytest.raises(EngineMissingError, match="'gpu-9000' is unknown"):
        engines.engine_named("gpu-9000")


def test_the_engine_reports_to_nobody_and_leaves_no_files(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry keeps its events under the home and the temporary directory."""
    code = "from node_agent.engines.onnxruntime_cpu import import_runtime; import_runtime()"
    hidden = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=hidden | places, check=True, timeout=60)
    assert list(tmp_path.rglob("*")) == []


def a_load(epoch: int, *files: m.FileRef, **more: Any) -> m.Load:
    hops = tuple(
        m.HopSpec(
            number,
            m.PeerRef("p"),
            m.PeerRef("n"),
            graph=file,
            inputs=(spec("x", 4),),
            outputs=(spec("y", 4),),
            **more,
        )
        for number, file in enumerate(files)
    )
    return m.Load(1, epoch, "model", hops)


def test_epochs_share_a_partition_and_the_last_one_frees_it(store: FileStore) -> None:
    loader = Loader(store, ENGINE, 1)
    file = put(store, identity())
    told: list[tuple[str, float]] = []
    seconds, resident, engine, notes = loader.load(a_load(1, file), lambda *what: told.append(what))
    assert seconds > 0
    assert resident >= 0
    assert (engine, notes) == (ENGINE, ())
    assert told == [("loading partition of hop 0", 0.0)]
    loader.load(a_load(2, file, file), lambda *_: None)
    (one,) = loader.sessions(1).values()
    assert list(loader.sessions(2).values()) == [one, one]
    loader.release(1)
    np.testing.assert_array_equal(loader.sessions(2)[0].run({"x": np.ones(4, np.float32)})["y"], np.ones(4))
    loader.release(2)
    loader.load(a_load(3, file), lambda *_: None)
    assert loader.sessions(3)[0] is not one


def test_a_load_that_fails_half_way_holds_nothing(store: FileStore) -> None:
    loader = Loader(store, ENGINE, 1)
    good, bad = put(store, identity()), put(store, b"not onnx")
    with pytest.raises(LoadFailedError):
        loader.load(a_load(1, good, bad), lambda *_: None)
    with pytest.raises(KeyError):
        loader.sessions(1)
    with pytest.raises(MissingFileError, match="has not been shipped"):
        loader.load(a_load(1, m.FileRef("a" * 64, 5, ".onnx")), lambda *_: None)
    wrong = put(store, identity("x", "z"))
    with pytest.raises(LoadFailedError, match="no output 'y'"):
        loader.load(a_load(1, wrong), lambda *_: None)


def test_a_partition_that_does_not_warm_up_is_refused(store: FileStore) -> None:
    file = put(store, affine("x", "y", 4, 0)[0])
    hop = m.HopSpec(
        0,
        m.PeerRef("p"),
        m.PeerRef("n"),
        graph=file,
        inputs=(spec("x", "n", 5),),
        outputs=(spec("y", "n", 4),),
        warm_up=(spec("x", 1, 5),),
    )
    with pytest.raises(LoadFailedError, match="Hop 0 does not run"):
        Loader(store, ENGINE, 1).load(m.Load(1, 1, "m", (hop,)), lambda *_: None)


def test_blocks_are_measured_on_what_the_ones_before_produced(store: FileStore) -> None:
    timer = BlockTimer(store, Loader(store, ENGINE, 1), 1)
    (one, w1), (two, w2) = affine("x", "h", 16, 1), affine("h", "y", 16, 2)
    first, second = put(store, one), put(store, two)
    inputs = (spec("x", 4, 16),)
    got = timer.measure(m.Measure(1, "s", first, (), inputs, ("h",), repeats=3, budget_s=60))
    assert len(got.seconds) == 3
    assert min(got.seconds) > 0
    assert got.load_seconds > 0
    assert got.item_s > 0
    assert got.byte_s >= 0
    (stats,) = (each for each in got.outputs if each.name == "h")
    assert (stats.name, stats.dtype, stats.shape, stats.nbytes) == ("h", "float32", (4, 16), 256)
    # A codec that cannot take this tensor is not on offer for it.
    assert {"raw", "lz4"} <= set(stats.codecs) <= set(CODECS)
    assert stats.codecs["raw"][0] == 256
    held = timer._held
    assert set(held) == {"h"}
    np.testing.assert_allclose(held["h"], np.maximum(sample(inputs[0]) @ w1, 0), atol=1e-5)
    timer.measure(m.Measure(2, "s", second, (), (spec("h", 4, 16),), ("y",), budget_s=0))
    expected = np.maximum(np.maximum(sample(inputs[0]) @ w1, 0) @ w2, 0)
    np.testing.assert_allclose(timer._held["y"], expected, atol=1e-5)
    again = timer.measure(m.Measure(3, "other", second, (), (spec("h", 4, 16),), (), budget_s=0))
    assert len(again.seconds) == 1, "the budget stops the repeats, not the first"
    assert timer._held == {}


def test_made_up_inputs_are_the_same_everywhere() -> None:
    for dtype in ("float32", "float16", "int64", "bool", "bfloat16", "float8_e5m2", "complex64"):
        one = spec("x", 3, "n", dtype=dtype)
        assert sample(one).shape == (3, 1)
        assert sample(one).tobytes() == sample(one).tobytes()
    assert set(np.unique(sample(spec("ids", 100, dtype="int64")))) == {0, 1}
