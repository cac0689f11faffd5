"""What every engine must do, asked of every engine that can run here.

ONNX Runtime's CPU is the real thing. `tensorrt (stand-in)` is our whole TensorRT engine on stand-ins for NVIDIA's
libraries: it proves our code (child build, cache, buffers, order of calls), not TensorRT. Where a GPU is, the real
engines join in.
"""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from node_agent.engines import in_parts as in_parts_module
from node_agent.engines import onnxruntime_providers, segments, tensorrt_native
from node_agent.engines.in_parts import Named
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.onnxruntime_providers import OnnxRuntimeProvider
from node_agent.engines.tensorrt_build import build
from node_agent.engines.tensorrt_native import TensorRt
from node_agent.engines.tensorrt_support import Support, ask
from node_agent.errors import EngineError, LoadFailedError, RunFailedError
from tests.node_agent.engines.test_bound import STAND_IN, Runtime

REAL = {
    "onnxruntime-cpu": OnnxRuntimeCpu,
    "onnxruntime-cuda": onnxruntime_providers.cuda,
    "onnxruntime-tensorrt": onnxruntime_providers.tensorrt,
    "onnxruntime-openvino": onnxruntime_providers.openvino,
    "tensorrt": TensorRt,
}
INSTALLED = [name for name, make in REAL.items() if not make().info().missing]
STAND_INS = ["tensorrt (stand-in)", "tensorrt (stand-in, shared memory)"]
IN_PARTS = ["tensorrt (stand-in, parts on the CPU)", "tensorrt (stand-in, parts on one device)"]
BOUND = "onnxruntime-cuda (stand-in)"


class Usual:
    """An engine that is told what requests will be like."""

    def __init__(self, engine):
        self.info, self._engine = engine.info, engine

    def load(self, partition):
        usual = {
            spec.name: tuple(size if isinstance(size, int) else 2 for size in spec.shape)
            for spec in partition.inputs
        }
        return self._engine.load(replace(partition, usual=usual))


def in_parts(where: str, monkeypatch) -> TensorRt:
    """TensorRT without the ops in the middle of the partitions here; all of it in this process, which is quick."""
    import tensorrt
    from google.protobuf.message import DecodeError

    def build_here(job, *, deadline_s, progress):
        try:
            build(job, tensorrt, lambda line: None)
        except DecodeError as error:
            raise LoadFailedError(f"{type(error).__name__}: {error}") from None

    def cut_here(partition, refused, folder):
        outputs = tuple(spec.name for spec in partition.outputs)
        answer = segments.cut(segments.Job(str(partition.graph), tuple(refused), outputs, str(folder)))
        return answer.segments, answer.outputs

    monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu,Not")

    def ask_here(graph):
        try:
            return ask(tensorrt, graph)
        except DecodeError as error:
            return Support(False, reason=str(error))

    monkeypatch.setattr(tensorrt_native, "ask_aside", ask_here)
    monkeypatch.setattr(in_parts_module, "cut_aside", cut_here)
    others = [Named("onnxruntime-cpu", OnnxRuntimeCpu())]
    if where == IN_PARTS[1]:
        others.insert(0, Named("onnxruntime-cuda", OnnxRuntimeProvider(STAND_IN)))
    return TensorRt(build=build_here, others=lambda: others)


# The stand-ins' builds are child processes all the same.
@pytest.fixture(
    params=[
        *INSTALLED,
        *(pytest.param(name, marks=pytest.mark.integration) for name in STAND_INS),
        *IN_PARTS,
        BOUND,
    ]
)
def engine(request, monkeypatch):
    if request.param in (*IN_PARTS, BOUND):
        runtime = Runtime()
        monkeypatch.setattr(onnxruntime_providers, "import_runtime", lambda: runtime)
        request.getfixturevalue("fake_tensorrt")
        driver = request.getfixturevalue("fake_cuda")()
        bound = request.param == BOUND
        yield Usual(OnnxRuntimeProvider(STAND_IN) if bound else in_parts(request.param, monkeypatch))
        assert driver.left == (0, 0, 0)
        return
    if request.param in STAND_INS:
        request.getfixturevalue("fake_tensorrt")
        request.getfixturevalue("fake_cuda")(integrated="shared" in request.param)
    yield REAL[request.param.split(" ")[0]]()


@pytest.fixture
def session(engine, partition):
    session = engine.load(partition)
    yield session
    session.close()


def expected(x: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    weight = random.standard_normal((6, 4)).astype(x.dtype)
    bias = random.standard_normal(4).astype(x.dtype)
    y = np.maximum(x.astype(np.float64) @ weight + bias, 0)
    return {"y": y, "s": y.sum(1)}


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_the_cpu_is_always_asked():
    assert "onnxruntime-cpu" in INSTALLED


def test_says_what_it_is(engine):
    info = engine.info()
    assert info.name
    assert info.version
    assert info.provider
    assert not info.missing


def test_gives_every_output_by_name_with_its_type_and_shape(session):
    x = normal(3, 6)
    made = session.run({"x": x})
    assert set(made) == {"y", "s"} == {spec.name for spec in session.outputs}
    for name, array in made.items():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_allclose(array, expected(x)[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 8, 3])
def test_takes_any_batch_in_range_in_any_order(session, batch):
    for size in (batch, 5, batch):
        x = normal(size, 6, seed=size)
        made = session.run({"x": x})
        assert made["y"].shape == (size, 4)
        assert made["s"].shape == (size,)
        np.testing.assert_allclose(made["y"], expected(x)["y"], rtol=1e-5, atol=1e-5)


def test_float16_stays_float16(engine, make_partition):
    session = engine.load(make_partition("float16"))
    try:
        x = normal(2, 6, dtype="float16")
        made = session.run({"x": x})
        assert made["y"].dtype == np.float16
        np.testing.assert_allclose(made["y"].astype(np.float64), expected(x)["y"], rtol=4e-3, atol=4e-3)
    finally:
        session.close()


def test_integers_and_truth_values(engine, make_partition):
    session = engine.load(make_partition("embedding"))
    try:
        ids = np.array([8, 0, 3, 3, 1])
        mask = np.array([True, False, True, False, False])
        made = session.run({"ids": ids, "mask": mask})
        table = np.random.default_rng(4).standard_normal((9, 3)).astype(np.float32)
        np.testing.assert_array_equal(made["rows"], table[ids])
        np.testing.assert_array_equal(made["kept"], ~mask)
    finally:
        session.close()


def test_results_belong_to_the_caller(session):
    first = session.run({"x": normal(2, 6, seed=1)})
    kept = {name: array.copy() for name, array in first.items()}
    for seed in range(2, 6):
        session.run({"x": normal(2, 6, seed=seed)})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
    first["y"][:] = 7  # writable


def test_inputs_may_be_read_only_and_are_not_kept(session):
    x = normal(2, 6)
    x.flags.writeable = False
    first = session.run({"x": x})
    x.flags.writeable = True
    x[:] = 0
    second = session.run({"x": normal(2, 6)})
    np.testing.assert_array_equal(first["y"], second["y"])


def test_an_input_that_is_not_contiguous(session):
    x = np.asfortranarray(normal(4, 6))
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x)["y"], rtol=1e-5, atol=1e-5)


def test_wanted_outputs_only(engine, partition):
    session = engine.load(replace(partition, outputs=partition.outputs[1:]))
    try:
        assert set(session.run({"x": normal(2, 6)})) == {"s"}
    finally:
        session.close()


def test_no_outputs_named_means_all(engine, partition):
    session = engine.load(replace(partition, outputs=()))
    try:
        assert [(spec.name, spec.dtype) for spec in session.outputs] == [("y", "float32"), ("s", "float32")]
    finally:
        session.close()


@pytest.mark.parametrize(
    "inputs",
    [{}, {"x": np.zeros((2, 5), np.float32)}, {"x": np.zeros((6,), np.float32)}],
    ids=["missing", "wrong size", "wrong rank"],
)
def test_a_wrong_request_fails_and_the_next_one_works(session, inputs):
    with pytest.raises(RunFailedError) as caught:
        session.run(inputs)
    assert str(caught.value)
    x = normal(2, 6)
    np.testing.assert_allclose(session.run({"x": x})["y"], expected(x)["y"], rtol=1e-5, atol=1e-5)


def test_refuses_what_is_no_model(engine, partition):
    partition.graph.write_bytes(b"not a model")
    with pytest.raises(LoadFailedError) as caught:
        engine.load(partition)
    assert str(partition.graph.parent) not in str(caught.value), "users know nothing of the store"
    assert "\n" not in str(caught.value)


def test_refuses_names_that_are_not_there(engine, partition):
    wrong = replace(partition, outputs=(*partition.outputs, replace_name(partition.outputs[0], "absent")))
    with pytest.raises(LoadFailedError, match="absent"):
        engine.load(wrong)


def replace_name(spec, name):
    return type(spec)(name, spec.dtype, spec.shape)


def test_refuses_an_option_that_it_does_not_have(engine, partition):
    with pytest.raises(EngineError) as caught:
        engine.load(replace(partition, options={"no_such_option": "1"}))
    assert "no_such_option" in f"{caught.value} {caught.value.hint}"


def test_close_twice_is_closing_once(engine, partition):
    session = engine.load(partition)
    session.close()
    session.close()


def test_sessions_run_side_by_side(engine, partition):
    """Each session has one thread at a time; several sessions may run at once."""
    sessions = [engine.load(partition) for _ in range(3)]
    failures: list[BaseException] = []

    def work(session, seed: int) -> None:
        try:
            for turn in range(20):
                x = normal(1 + turn % 5, 6, seed=100 * seed + turn)
                np.testing.assert_allclose(session.run({"x": x})["y"], expected(x)["y"], rtol=1e-5, atol=1e-5)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(each, seed)) for seed, each in enumerate(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for session in sessions:
        session.close()
    assert not failures
