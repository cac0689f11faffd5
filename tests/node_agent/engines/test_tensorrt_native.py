"""Our TensorRT engine on stand-ins for NVIDIA's libraries: cache, memory, order of work, what users get wrong."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from node_agent.engines import cuda as cuda_module
from node_agent.engines.choice import WithFallback
from node_agent.engines.cuda import Cuda
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.engines.tensorrt_build import Job, build
from node_agent.engines.tensorrt_native import TensorRt, cache_folder
from node_agent.errors import EngineMissingError, LoadFailedError, OutOfMemoryError, RunFailedError


@pytest.fixture
def builds():
    """Builds in this process, which is quick, and counts them."""
    jobs: list[Job] = []

    def run(job: Job, *, deadline_s: float, progress) -> None:
        import tensorrt

        jobs.append(job)
        build(job, tensorrt, lambda line: progress and progress(str(line["phase"]), float(line["fraction"])))

    run.jobs = jobs
    return run


@pytest.fixture
def driver(fake_tensorrt, fake_cuda):
    return fake_cuda()


@pytest.fixture
def engine(driver, builds):
    return TensorRt(build=builds)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(partition, x):
    session = OnnxRuntimeCpu().load(replace(partition, options={}))
    try:
        return session.run({"x": x})
    finally:
        session.close()


# ------------------------------------------------------------------------------------------------- the cache


def test_the_second_load_builds_nothing(engine, partition, builds):
    for _ in range(2):
        engine.load(partition).close()
    assert len(builds.jobs) == 1


def test_progress_of_a_build_reaches_whoever_loads(engine, partition):
    said = []
    engine.load(replace(partition, progress=lambda what, fraction: said.append((what, fraction)))).close()
    assert ("Building engine", 1.0) in said


@pytest.mark.parametrize(
    "change",
    ["graph", "shapes", "version", "device", "capability", "driver", "level"],
)
def test_whatever_an_engine_depends_on_builds_another(partition, builds, fake_tensorrt, fake_cuda, change):
    fake_cuda()
    TensorRt(build=builds).load(partition).close()
    changed = partition
    if change == "graph":
        import onnx

        model = onnx.load(partition.graph)
        model.doc_string = "another"
        partition.graph.write_bytes(model.SerializeToString())
    elif change == "shapes":
        changed = replace(partition, options={"dim.batch": "1:2:4"})
    elif change == "level":
        changed = replace(partition, options={"level": "5"})
    elif change == "version":
        fake_tensorrt(version="11.4.1.0")
    else:
        fake_cuda(
            **{
                "device": {"name": "Other"},
                "capability": {"capability": (8, 9)},
                "driver": {"driver": 13010},
            }[change]
        )
    TensorRt(build=builds).load(changed).close()
    assert len(builds.jobs) == 2


def test_an_engine_of_another_gpu_is_built_again_and_not_loaded(partition, builds, fake_tensorrt, fake_cuda):
    fake_cuda(name="Orin")
    TensorRt(build=builds).load(partition).close()
    fake_cuda(name="H200", capability=(9, 0))
    x = normal(2, 6)
    session = TensorRt(build=builds).load(partition)
    np.testing.assert_allclose(session.run({"x": x})["y"], reference(partition, x)["y"], rtol=1e-6)
    session.close()
    assert len(builds.jobs) == 2


def test_a_damaged_engine_is_built_again(engine, partition, builds):
    engine.load(partition).close()
    (file,) = cache_folder().glob("*.engine")
    file.write_bytes(file.read_bytes()[:-3])
    engine.load(partition).close()
    assert len(builds.jobs) == 2


def test_an_engine_that_tensorrt_refuses_is_built_again(engine, partition, builds, monkeypatch):
    """Whole on disk and of the right key, and refused all the same: a library was exchanged under us."""
    engine.load(partition).close()
    import tensorrt

    real, refused = tensorrt.Runtime.deserialize_cuda_engine, []

    def deserialize(self, data):
        if not refused:
            refused.append(data)
            return None
        return real(self, data)

    monkeypatch.setattr(tensorrt.Runtime, "deserialize_cuda_engine", deserialize)
    engine.load(partition).close()
    assert len(refused) == 1
    assert len(builds.jobs) == 2


def test_a_cache_that_cannot_be_written_is_one_clear_line(driver, partition, builds, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(LoadFailedError, match="engine cache") as caught:
        TensorRt(build=builds, folder=tmp_path / "file" / "engines").load(partition)
    assert "DEFER_ENGINE_CACHE" in caught.value.hint


def test_only_free_dimensions_get_a_profile(engine, make_partition, builds):
    engine.load(make_partition("embedding")).close()
    engine.load(make_partition("float32")).close()
    assert builds.jobs[0].shapes == {}
    assert builds.jobs[1].shapes == {"x": ((1, 6), (1, 6), (8, 6))}


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("DEFER_ENGINE_CACHE", "/a/b")
    assert cache_folder() == Path("/a/b")
    monkeypatch.delenv("DEFER_ENGINE_CACHE")
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/defer")
    assert cache_folder() == Path("/var/cache/defer/defer/engines")


def test_version_compatible_engines_are_asked_for_and_trusted(engine, partition, builds):
    engine.load(
        replace(partition, options={"version_compatible": "yes", "exclude_lean_runtime": "yes"})
    ).close()
    assert builds.jobs[0].version_compatible
    assert builds.jobs[0].exclude_lean_runtime


def test_a_lean_runtime_that_is_not_there(engine, partition):
    with pytest.raises(LoadFailedError, match=r"lean runtime /no/libnvinfer_lean\.so"):
        engine.load(replace(partition, options={"lean_runtime": "/no/libnvinfer_lean.so"}))


# ------------------------------------------------------------------------------------------- memory and order


@pytest.mark.parametrize("integrated", [False, True])
def test_nothing_is_left_on_the_device(partition, builds, fake_tensorrt, fake_cuda, integrated):
    driver = fake_cuda(integrated=integrated)
    session = TensorRt(build=builds).load(partition)
    session.run({"x": normal(3, 6)})
    assert driver.left != (0, 0, 0)
    session.close()
    assert driver.left == (0, 0, 0)


def test_nothing_is_allocated_while_requests_run(engine, partition, driver):
    session = engine.load(partition)
    held = driver.left
    for size in (1, 8, 3):
        session.run({"x": normal(size, 6)})
    assert driver.left == held
    session.close()


def test_shared_memory_is_never_copied(partition, builds, fake_tensorrt, fake_cuda):
    driver = fake_cuda(integrated=True)
    session = TensorRt(build=builds).load(partition)
    x = normal(4, 6)
    np.testing.assert_allclose(session.run({"x": x})["y"], reference(partition, x)["y"], rtol=1e-6)
    session.close()
    assert not [entry for entry in driver.log if entry[0] in ("to device", "to host")]


def test_copies_and_computation_have_streams_of_their_own_and_wait_for_each_other(engine, partition, driver):
    session = engine.load(partition)
    driver.log.clear()
    session.submit({"x": normal(2, 6)})
    session.submit({"x": normal(2, 6, seed=1)})
    kinds = [entry[0] for entry in driver.log]
    # Both requests are under way before anybody waits on the CPU.
    assert "synchronize" not in kinds
    upload = next(entry[2] for entry in driver.log if entry[0] == "to device")
    download = next(entry[2] for entry in driver.log if entry[0] == "to host")
    computing = {entry[2] for entry in driver.log if entry[0] == "wait"} - {download}
    assert len({upload, download, *computing}) == 3
    first = [entry[0] for entry in driver.log[: len(driver.log) // 2]]
    assert first == ["to device", "record", "wait", "record", "wait", "to host", "to host", "record"]
    session.collect()
    session.collect()
    session.close()


def test_computing_alone_copies_nothing(engine, partition, driver):
    session = engine.load(partition)
    session.run({"x": normal(2, 6)})
    driver.log.clear()
    assert len(session.compute_seconds({"x": normal(2, 6)}, 4)) == 4
    kinds = [entry[0] for entry in driver.log]
    assert kinds.count("to device") == 1  # the one run that puts the inputs there
    assert kinds.count("synchronize") == 1 + 4
    x = normal(3, 6, seed=5)
    np.testing.assert_allclose(session.run({"x": x})["y"], reference(partition, x)["y"], rtol=1e-6)
    session.close()


def test_results_come_in_the_order_of_submission(engine, partition):
    session = engine.load(replace(partition, options={"slots": "3"}))
    xs = [normal(2, 6, seed=seed) for seed in range(3)]
    for x in xs:
        session.submit({"x": x})
    with pytest.raises(RunFailedError, match="Every slot is in flight"):
        session.submit({"x": xs[0]})
    for x in xs:
        np.testing.assert_allclose(session.collect()["y"], reference(partition, x)["y"], rtol=1e-6)
    with pytest.raises(RunFailedError, match="No request is in flight"):
        session.collect()
    session.close()


def test_closing_waits_for_what_is_in_flight(engine, partition, driver):
    session = engine.load(partition)
    session.submit({"x": normal(2, 6)})
    session.close()
    assert driver.left == (0, 0, 0)
    with pytest.raises(RunFailedError, match="closed"):
        session.submit({"x": normal(2, 6)})


def test_a_request_that_fails_gives_its_slot_back(engine, partition, fake_tensorrt, monkeypatch):
    session = engine.load(partition)
    monkeypatch.setenv("FAKE_TENSORRT", "run-fails")
    for _ in range(5):
        with pytest.raises(RunFailedError, match="could not start"):
            session.run({"x": normal(2, 6)})
    monkeypatch.setenv("FAKE_TENSORRT", "")
    session.run({"x": normal(2, 6)})
    session.close()


# ------------------------------------------------------------------------------------- what a user gets wrong


def test_a_batch_beyond_the_profile_says_what_the_engine_was_built_for(engine, partition):
    session = engine.load(partition)
    with pytest.raises(
        RunFailedError, match=r"\[9, 6\] is outside what the engine was built for, \[1, 6\] to \[8, 6\]"
    ):
        session.run({"x": normal(9, 6)})
    session.close()


@pytest.mark.parametrize("memory", [100, 1300], ids=["weights", "scratch and buffers"])
def test_too_little_device_memory_is_counted_before_it_is_taken(
    partition, builds, fake_tensorrt, fake_cuda, memory
):
    driver = fake_cuda(memory=memory)
    with pytest.raises(OutOfMemoryError, match=r"needs .* MiB of device memory .* are free"):
        TensorRt(build=builds).load(partition)
    assert driver.left == (0, 0, 0)


def test_tensorrt_without_a_context(partition, builds, fake_tensorrt, fake_cuda):
    driver = fake_cuda()
    fake_tensorrt("no-context")
    with pytest.raises(LoadFailedError, match="execution context"):
        TensorRt(build=builds).load(partition)
    assert driver.left == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"speed": "fast"}, "no option speed"),
        ({"slots": "many"}, "no option slots=many"),
        ({"slots": "0"}, "at least 1"),
        ({"dim.batch": "9:1"}, "no range"),
    ],
)
def test_wrong_options(engine, partition, options, words):
    with pytest.raises(LoadFailedError, match=words):
        engine.load(replace(partition, options=options))


def test_a_driver_that_does_not_fit(partition, builds, fake_tensorrt, fake_cuda):
    fake_cuda(init=fake_cuda.results.CUDA_ERROR_SYSTEM_DRIVER_MISMATCH)
    info = TensorRt(build=builds).info()
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in info.missing
    assert "nvidia-smi" in info.missing
    session = WithFallback("tensorrt", TensorRt(build=builds), "onnxruntime-cpu", OnnxRuntimeCpu()).load(
        partition
    )
    assert session.engine == "onnxruntime-cpu"
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in session.notes[0]
    x = normal(2, 6)
    np.testing.assert_array_equal(session.run({"x": x})["y"], reference(partition, x)["y"])
    session.close()


def test_no_device(builds, fake_tensorrt, fake_cuda):
    fake_cuda(devices=0)
    missing = TensorRt(build=builds).info().missing
    assert "no CUDA device 0" in missing
    assert "\n" not in missing


def test_no_cuda_bindings(partition, builds, fake_tensorrt, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(EngineMissingError, match="CUDA cannot be used") as caught:
        TensorRt(build=builds).load(partition)
    assert "defer-edge[tensorrt]" in caught.value.hint


def test_no_tensorrt(partition, fake_cuda, monkeypatch):
    fake_cuda()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    info = TensorRt().info()
    assert "TensorRT cannot be imported" in info.missing
    assert "defer-edge[tensorrt]" in info.missing


def test_a_module_of_that_name_that_is_something_else(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", type(sys)("tensorrt"))
    assert "not NVIDIA's" in TensorRt().info().missing


def test_an_old_tensorrt(fake_tensorrt, fake_cuda):
    fake_cuda()
    fake_tensorrt(version="8.6.1")
    assert "too old" in TensorRt().info().missing


def test_what_it_says_of_itself(driver, builds):
    info = TensorRt(build=builds).info()
    assert (info.name, info.version) == ("tensorrt", "11.4.0.106")
    assert info.provider == "Fake GPU, compute capability 8.7"
    assert driver.left == (0, 0, 0)


def test_the_driver_library_is_looked_for_by_the_bindings_themselves():
    """Their own error type for a machine without a driver becomes ours."""

    class Bindings:
        def cuInit(self, flags):
            raise RuntimeError('"cuda" is an NVIDIA driver library and can only be found via system search.')

    with pytest.raises(EngineMissingError, match="driver library") as caught:
        Cuda(api=Bindings())
    assert caught.value.hint == cuda_module.DRIVER
