"""A partition of which TensorRT lacks ops: parts on several engines, and what passes between them on the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from node_agent.engines import onnxruntime_providers, unsupported
from node_agent.engines.base import overlapping
from node_agent.engines.choice import WithFallback
from node_agent.engines.in_parts import Named
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.onnxruntime_providers import OnnxRuntimeProvider
from node_agent.engines.segmented import DeviceChain, HostChain
from node_agent.engines.tensorrt_build import build
from node_agent.engines.tensorrt_native import TensorRt
from node_agent.errors import LoadFailedError, RunFailedError
from tests.node_agent.engines.test_bound import STAND_IN, Runtime

CPU = Named("onnxruntime-cpu", OnnxRuntimeCpu())


def build_here(job, *, deadline_s: float, progress) -> None:
    import tensorrt

    build(job, tensorrt, lambda line: None)


@pytest.fixture
def driver(fake_tensorrt, fake_cuda, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    return fake_cuda()


@pytest.fixture
def usual(partition):
    return replace(partition, usual={"x": (3, 6)})


@pytest.fixture
def on_cuda(monkeypatch):
    runtime = Runtime()
    monkeypatch.setattr(onnxruntime_providers, "import_runtime", lambda: runtime)
    return TensorRt(
        build=build_here, others=lambda: [Named("onnxruntime-cuda", OnnxRuntimeProvider(STAND_IN)), CPU]
    )


@pytest.fixture
def on_cpu():
    return TensorRt(build=build_here, others=lambda: [CPU])


def normal(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)


def check(made, partition, x) -> None:
    session = OnnxRuntimeCpu().load(replace(partition, options={}))
    wanted = session.run({"x": x})
    session.close()
    assert set(made) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(made[name], value, rtol=1e-6)


def test_the_op_that_tensorrt_lacks_runs_on_the_cpu_and_the_rest_stays(driver, on_cpu, usual):
    session = WithFallback("tensorrt", on_cpu, "onnxruntime-cpu", OnnxRuntimeCpu()).load(usual)
    assert session.engine == "tensorrt+onnxruntime-cpu"
    (note,) = session.notes
    assert note.startswith("3 parts, Relu on onnxruntime-cpu: TensorRT 11.4.0.106 lacks Relu")
    assert isinstance(session._inner._inner, HostChain)
    assert overlapping(session) is None
    for rows in (3, 1, 8):
        check(session.run({"x": normal(rows)}), usual, normal(rows))
    with pytest.raises(RunFailedError, match="outside what the engine was built for"):
        session.run({"x": normal(9)})
    with pytest.raises(RunFailedError, match="'x' is missing"):
        session.run({})
    session.close()
    assert driver.left == (0, 0, 0)


def test_on_one_device_nothing_comes_back_in_between(driver, on_cuda, usual):
    session = on_cuda.load(usual)
    assert session.engine == "tensorrt+onnxruntime-cuda"
    chain = session._inner
    assert isinstance(chain, DeviceChain)
    assert overlapping(session) is not None
    driver.log.clear()
    for seed in range(2):
        session.submit({"x": normal(3, seed)})
    kinds = [entry[0] for entry in driver.log]
    # Of each request one input goes to the device, and what is wanted of all of it comes back.
    assert kinds.count("to device") == 2
    assert kinds.count("to host") == 2 * len(usual.outputs)
    assert "synchronize" not in kinds
    with pytest.raises(RunFailedError, match="Every slot"):
        session.submit({"x": normal(3)})
    for seed in range(2):
        check(session.collect(), usual, normal(3, seed))
    session.close()
    assert driver.left == (0, 0, 0)


def test_a_part_waits_on_the_device_for_the_one_before(driver, on_cuda, usual):
    session = on_cuda.load(usual)
    driver.log.clear()
    session.run({"x": normal(3)})
    recorded: list[int] = []
    waited: list[int] = []
    for kind, event, *_ in driver.log:
        (recorded if kind == "record" else waited if kind == "wait" else []).append(event)
    computed = [slot for part, streamed in session._inner._parts for slot in streamed._free]
    used = [slot.computed for slot in computed if slot.computed in recorded]
    assert len(used) == 3
    # Its own download waits for each part; the first two are waited for by the part after them too.
    assert [waited.count(event) for event in used] == [2, 2, 1]
    session.close()


def test_requests_of_other_shapes_keep_their_place(driver, on_cuda, usual):
    session = on_cuda.load(usual)
    for rows in (3, 2):
        session.submit({"x": normal(rows, rows)})
    assert driver.left != (0, 0, 0)
    for rows in (3, 2):
        check(session.collect(), usual, normal(rows, rows))
    check(session.run({"x": normal(5)}), usual, normal(5))
    session.submit({"x": normal(3)})
    session.close()
    assert driver.left == (0, 0, 0)


def test_a_part_that_fails_gives_every_slot_back(driver, on_cuda, usual, monkeypatch):
    session = on_cuda.load(usual)
    monkeypatch.setenv("FAKE_TENSORRT", "run-fails")
    for _ in range(5):
        with pytest.raises(RunFailedError, match="could not start"):
            session.run({"x": normal(3)})
    monkeypatch.setenv("FAKE_TENSORRT", "")
    chain = session._inner
    last = chain._parts[-1][1]
    monkeypatch.setattr(last, "_start", lambda slot, stream: (_ for _ in ()).throw(RunFailedError("late")))
    for _ in range(5):
        with pytest.raises(RunFailedError, match="late"):
            session.run({"x": normal(3)})
    monkeypatch.undo()
    with pytest.raises(RunFailedError, match="No request"):
        session.collect()
    session.close()
    assert driver.left == (0, 0, 0)


def test_each_result_fails_for_itself(driver, on_cuda, usual, monkeypatch):
    session = on_cuda.load(usual)
    real, lost = driver.cuEventSynchronize, []

    def synchronize(event):
        if not lost:
            lost.append(event)
            return (type(driver.cuInit(0)[0])["CUDA_ERROR_NO_DEVICE"],)
        return real(event)

    for seed in range(2):
        session.submit({"x": normal(3, seed)})
    monkeypatch.setattr(driver, "cuEventSynchronize", synchronize)
    with pytest.raises(RunFailedError, match="CUDA_ERROR_NO_DEVICE"):
        session.collect()
    check(session.collect(), usual, normal(3, 1))
    check(session.run({"x": normal(3, 2)}), usual, normal(3, 2))
    session.close()
    assert driver.left == (0, 0, 0)


@pytest.mark.parametrize("change", ["parts=no", "no sizes", "every op", "no onnx", "nothing takes over"])
def test_where_it_cannot_be_cut_the_cpu_takes_all_of_it(driver, usual, partition, monkeypatch, change):
    from node_agent.engines import segments

    others = [] if change == "nothing takes over" else [CPU]
    engine = TensorRt(build=build_here, others=lambda: others)
    given = {"parts=no": replace(usual, options={"parts": "no"}), "no sizes": partition}.get(change, usual)
    if change == "every op":
        monkeypatch.setenv("FAKE_TENSORRT_LACKS", "MatMul,Add,Relu,ReduceSum")
    if change == "no onnx":
        monkeypatch.setattr(segments, "find_spec", lambda name: None)
    with pytest.raises(LoadFailedError) as caught:
        engine.load(given)
    said = {
        "no sizes": "sizes of its usual requests are not known",
        "every op": "nothing to cut",
        "no onnx": "onnx package",
        "nothing takes over": "runs nowhere",
    }.get(change)
    assert said is None or said in str(caught.value)
    assert "does not take partition" in str(caught.value)
    session = WithFallback("tensorrt", engine, "onnxruntime-cpu", OnnxRuntimeCpu()).load(given)
    assert session.engine == "onnxruntime-cpu"
    check(session.run({"x": normal(2)}), partition, normal(2))
    session.close()
    assert driver.left == (0, 0, 0)


def test_what_has_another_reason_is_not_cut(driver, on_cpu, usual, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "")
    monkeypatch.setenv("FAKE_TENSORRT", "no-kernel")
    with pytest.raises(LoadFailedError, match="Could not find any implementation"):
        on_cpu.load(usual)


def test_a_block_in_parts_still_says_which_op_is_lacking(driver, usual):
    assert "lacks Relu" in unsupported("tensorrt", "tensorrt+onnxruntime-cpu", usual)
