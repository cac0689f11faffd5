"""ONNX Runtime with buffers and streams of ours: the real runtime and bindings, on memory that plays a GPU's."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from node_agent.engines import onnxruntime_providers
from node_agent.engines.base import Partition, overlapping
from node_agent.engines.onnxruntime_bound import BoundSession, bindable
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.onnxruntime_providers import OnnxRuntimeProvider, Provider
from node_agent.errors import LoadFailedError, RunFailedError
from node_agent.messages import TensorSpec

STAND_IN = Provider("onnxruntime-cuda", "CPUExecutionProvider", "It is there.", binds=True, memory="cpu")
"""CUDA's provider on a machine without: the CPU's computes, and the stand-in for the driver copies."""


class Runtime:
    """The real runtime; takes the option that only CUDA's provider knows, and the one that forbids the CPU's."""

    RunOptions = onnxruntime.RunOptions
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
    get_available_providers = staticmethod(onnxruntime.get_available_providers)
    __version__ = onnxruntime.__version__

    def __init__(self, all_on_the_gpu: bool = True) -> None:
        self.all_on_the_gpu = all_on_the_gpu
        self.asked: list[dict[str, str]] = []

    class SessionOptions(onnxruntime.SessionOptions):
        alone = False

        def add_session_config_entry(self, name: str, value: str) -> None:
            if name == "session.disable_cpu_ep_fallback":
                self.alone = True
            else:
                super().add_session_config_entry(name, value)

    def InferenceSession(self, path, sess_options, providers, **more):
        assert more == ({"enable_fallback": 0} if sess_options.alone else {})
        ((name, options),) = providers
        unknown = set(options) - {"user_compute_stream"}
        if unknown:
            raise RuntimeError(f"Invalid option {min(unknown)}")
        self.asked.append(options)
        if sess_options.alone and not self.all_on_the_gpu:
            raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")
        return onnxruntime.InferenceSession(path, sess_options, providers=[name])


@pytest.fixture
def fixed(partition) -> Partition:
    shapes = {"x": (3, 6), "y": (3, 4), "s": (3,)}

    def bound(specs):
        return tuple(TensorSpec(spec.name, spec.dtype, shapes[spec.name]) for spec in specs)

    return replace(partition, inputs=bound(partition.inputs), outputs=bound(partition.outputs))


@pytest.fixture
def runtime(monkeypatch) -> Iterator[Runtime]:
    runtime = Runtime()
    monkeypatch.setattr(onnxruntime_providers, "import_runtime", lambda: runtime)
    yield runtime
    gc.collect()


@pytest.fixture
def engine(runtime):
    return OnnxRuntimeProvider(STAND_IN)


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 6)).astype(np.float32)


def reference(partition: Partition, x: np.ndarray):
    session = OnnxRuntimeCpu().load(replace(partition, options={}))
    try:
        return session.run({"x": x})
    finally:
        session.close()


def check(made, partition, x) -> None:
    wanted = reference(partition, x)
    assert set(made) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-6)


@pytest.mark.parametrize("integrated", [False, True])
def test_two_runs_are_in_flight_on_streams_of_their_own(engine, runtime, fixed, fake_cuda, integrated):
    driver = fake_cuda(integrated=integrated)
    session = engine.load(fixed)
    assert isinstance(session, BoundSession)
    assert overlapping(session) is session
    driver.log.clear()
    for seed in range(2):
        session.submit({"x": normal(seed)})
    kinds = [entry[0] for entry in driver.log]
    assert "synchronize" not in kinds
    if integrated:
        assert not {"to device", "to host"} & set(kinds)
    else:
        upload = next(entry[2] for entry in driver.log if entry[0] == "to device")
        download = next(entry[2] for entry in driver.log if entry[0] == "to host")
        computing = {entry[2] for entry in driver.log if entry[0] == "wait"} - {download}
        assert computing == {int(runtime.asked[0]["user_compute_stream"])}
        assert len({upload, download, *computing}) == 3
    with pytest.raises(RunFailedError, match="Every slot"):
        session.submit({"x": normal(9)})
    for seed in range(2):
        check(session.collect(), fixed, normal(seed))
    check(session.run({"x": normal(5), "more": normal(6)}), fixed, normal(5))
    session.close()
    assert driver.left == (0, 0, 0)


def test_a_missing_input_is_one_clear_line(engine, fixed, fake_cuda):
    driver = fake_cuda()
    session = engine.load(fixed)
    with pytest.raises(RunFailedError, match="'x' is missing"):
        session.run({})
    with pytest.raises(RunFailedError, match="ONNX Runtime failed"):
        session.run({"x": normal(0)[:, :5]})
    check(session.run({"x": normal(1)}), fixed, normal(1))
    session.close()
    with pytest.raises(RunFailedError, match="closed"):
        session.submit({"x": normal(0)})
    assert driver.left == (0, 0, 0)


def test_unusual_requests_run_by_themselves_and_in_their_place(engine, partition, fake_cuda):
    driver = fake_cuda()
    session = engine.load(replace(partition, usual={"x": (3, 6)}))
    assert isinstance(session, BoundSession)
    feeds = [normal(0), normal(1)[:2], normal(2)]
    for x in feeds:
        session.submit({"x": x})
    for x in feeds:
        check(session.collect(), partition, x)
    session.submit({"x": normal(3)[:1]})
    session.close()
    assert driver.left == (0, 0, 0)


@pytest.mark.parametrize(
    "change", ["free", "one slot", "own stream", "no device", "no memory", "ops on the CPU", "no bindings"]
)
def test_elsewhere_it_runs_as_ever(engine, runtime, fixed, partition, fake_cuda, monkeypatch, change):
    driver = fake_cuda(
        devices=0 if change == "no device" else 1, memory=10 if change == "no memory" else 1 << 20
    )
    runtime.all_on_the_gpu = change != "ops on the CPU"
    given = {
        "free": partition,
        "one slot": replace(fixed, options={"slots": "1"}),
        "own stream": replace(fixed, options={"user_compute_stream": "0"}),
    }.get(change, fixed)
    if change == "no bindings":
        monkeypatch.undo()
        monkeypatch.setattr(onnxruntime_providers, "import_runtime", lambda: runtime)
        monkeypatch.setitem(sys.modules, "cuda", None)
    session = engine.load(given)
    assert overlapping(session) is None
    check(session.run({"x": normal(0)}), fixed, normal(0))
    session.close()
    gc.collect()
    assert driver.left == (0, 0, 0)


def test_what_is_wrong_with_the_model_is_said_once(engine, fixed, fake_cuda, tmp_path):
    driver = fake_cuda()
    Path(tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(LoadFailedError, match="cannot run an op"):
        engine.load(replace(fixed, graph=tmp_path / "broken.onnx"))
    assert driver.left == (0, 0, 0)


@pytest.mark.parametrize("slots", ["0", "many", "-1"])
def test_slots_are_a_number(engine, fixed, slots):
    with pytest.raises(LoadFailedError, match="slots"):
        engine.load(replace(fixed, options={"slots": slots}))


def test_what_can_be_bound(fixed, partition):
    assert bindable(fixed) == ""
    assert "free dimension" in bindable(partition)
    assert bindable(replace(partition, usual={"x": (3, 6)})) == ""
    counted = (TensorSpec("y", "float32", ("found", 4)),)
    assert "depend on values" in bindable(replace(partition, usual={"x": (3, 6)}, outputs=counted))
    assert "not declared" in bindable(replace(fixed, outputs=()))
    assert "bfloat16" in bindable(replace(fixed, outputs=(TensorSpec("y", "bfloat16", (1,)),)))
    assert "string" in bindable(replace(fixed, inputs=(TensorSpec("x", "string", (1,)),)))
