"""Engines inside the agent: which one a name stands for, what is told of it, and whole agents as processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from node_agent import agent as agent_module
from node_agent import engines, probe
from node_agent import messages as m
from node_agent.agent import AgentConfig, default_engine, make_offer
from node_agent.engines.choice import Fastest, WithFallback
from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu
from node_agent.errors import EngineMissingError, LoadFailedError
from node_agent.loader import Loader
from node_agent.measure import BlockTimer
from node_agent.store import FileStore
from tests.node_agent.harness import AgentProcess, arrays_of, identity, model_bytes, ref, spec, spin, value

FAKES = Path(__file__).parent / "fakes"
CPU = m.EngineInfo("onnxruntime-cpu", "1")
GPU = m.EngineInfo("tensorrt", "11", "Orin")
GONE = m.EngineInfo("tensorrt", missing="TensorRT cannot be imported.")


@pytest.fixture
def known(monkeypatch):
    """The registry, to be changed by a test."""
    table = dict(engines._KNOWN)
    monkeypatch.setattr(engines, "_KNOWN", table)
    return table


class Another(OnnxRuntimeCpu):
    """A second engine that is there."""

    def info(self):
        return m.EngineInfo("another", "2")


@pytest.fixture
def another(known, monkeypatch):
    monkeypatch.setitem(sys.modules, "another_engine", type(sys)("another_engine"))
    sys.modules["another_engine"].Another = Another
    known["another"] = "another_engine:Another"


def test_auto_is_the_only_engine_where_there_is_one():
    assert isinstance(engines.engine_named("auto"), OnnxRuntimeCpu)


def test_auto_tries_where_there_are_several(another, partition):
    engine = engines.engine_named("auto")
    assert isinstance(engine, Fastest)
    session = engine.load(partition)
    assert session.engine in ("another", "onnxruntime-cpu")
    assert len(session.notes) == 1
    session.close()


def test_an_engine_by_name_falls_back(partition):
    engine = engines.engine_named("tensorrt")
    assert isinstance(engine, WithFallback)
    session = engine.load(partition)
    assert session.engine == "onnxruntime-cpu"
    assert session.notes[0].startswith("tensorrt failed: TensorRT cannot be imported")
    session.close()


def test_unknown_names_list_what_there_is():
    with pytest.raises(EngineMissingError, match="'abacus' is unknown") as caught:
        engines.engine_named("abacus")
    assert "tensorrt" in caught.value.hint


def test_the_inventory_says_of_each_engine_that_it_is_there_or_why_not(another):
    infos = engines.inventory()
    assert {info.name for info in infos} == set(engines.names())
    present = [info.name for info in infos if not info.missing]
    assert present == [info.name for info in infos[: len(present)]]
    assert set(present) == {"onnxruntime-cpu", "another"}
    assert engines.inventory("another")[0].name == "another"


def test_of_the_missing_the_reference_is_the_one_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert engines.inventory()[0].name == "onnxruntime-cpu"
    assert "defer-edge[cpu]" in engines.inventory()[0].missing


def test_a_library_that_breaks_costs_one_engine_and_not_the_agent(known, monkeypatch, partition):
    broken = type(sys)("broken_engine")

    class Broken:
        def info(self):
            raise OSError("libsomething.so: undefined symbol\n at line two")

    broken.Broken = Broken
    monkeypatch.setitem(sys.modules, "broken_engine", broken)
    known["broken"] = "broken_engine:Broken"
    (info,) = [each for each in engines.inventory() if each.name == "broken"]
    assert info.missing == (
        "It broke when it was asked: OSError: libsomething.so: undefined symbol at line two. Install it again."
    )
    assert isinstance(engines.engine_named("auto"), OnnxRuntimeCpu)


@pytest.mark.parametrize(
    ("asked", "infos", "means"),
    [
        ("auto", (CPU, GONE), "onnxruntime-cpu"),
        ("auto", (GPU, CPU), "auto"),
        ("auto", (GONE,), "auto"),
        ("tensorrt", (CPU, GONE), "tensorrt"),
    ],
)
def test_what_auto_stands_for(asked, infos, means):
    assert default_engine(asked, infos) == means


def test_block_times_of_another_set_of_engines_are_not_reused(tmp_path):
    def fingerprint(engine, *infos):
        return make_offer(AgentConfig("a", tmp_path, engine=engine), infos, (1, 2)).fingerprint

    assert fingerprint("auto", CPU, GONE) == fingerprint("onnxruntime-cpu", CPU, GONE)
    assert fingerprint("auto", GPU, CPU) != fingerprint("auto", CPU, GONE)
    assert fingerprint("tensorrt", GPU, CPU) != fingerprint("auto", GPU, CPU)


def test_a_load_tells_what_runs_it_and_why(tmp_path):
    store = FileStore.open(tmp_path / "store")
    data = identity()
    store.write(ref(data), 0, data)
    hop = m.HopSpec(
        0,
        m.PeerRef("a"),
        m.PeerRef("b"),
        graph=ref(data),
        inputs=(spec("x", "n"),),
        outputs=(spec("y", "n"),),
        warm_up=(spec("x", 3),),
    )
    loader = Loader(store, "auto", 1)
    _, _, engine, notes = loader.load(m.Load(1, 1, "m", (hop,), engine="onnxruntime-cuda"), lambda *_: None)
    assert engine == "onnxruntime-cpu"
    assert "CUDAExecutionProvider" in notes[0]
    loader.release(1)


# --------------------------------------------------------------------------------------------- whole agents


def a_hop(driver, graph: bytes) -> m.HopSpec:
    return m.HopSpec(
        0,
        m.PeerRef("test"),
        driver.peer,
        graph=ref(graph),
        inputs=(spec("x", "n"),),
        outputs=(spec("y", "n"),),
        send=("y",),
        warm_up=(spec("x", 3),),
    )


def served(driver, agent, graph: bytes | None = None, **load) -> tuple[m.Loaded, m.AgentStatus]:
    """Loads a partition that gives back what is not negative, has one request run, and checks its result."""
    link = driver.control(agent)
    graph = graph or identity()
    link.ship(graph)
    loaded = link.load(1, a_hop(driver, graph), **load)
    assert isinstance(loaded, m.Loaded), loaded
    first, _ = driver.dial(agent.data)
    x = np.arange(5, dtype=np.float32)
    driver.send(first, 1, 1, 0, {"x": x})
    header, frames = driver.result()
    np.testing.assert_array_equal(arrays_of(header, frames)["y"], x)
    return loaded, link.ask(m.StatusRequest)


@pytest.mark.integration
def test_an_agent_whose_engine_is_missing_serves_on_another_and_says_so(driver, start_agent):
    agent = start_agent("one", "--engine", "tensorrt")
    loaded, status = served(driver, agent)
    assert loaded.engine == "onnxruntime-cpu"
    assert "tensorrt failed" in loaded.notes[0]
    (hop,) = status.hops
    assert hop.engine == "onnxruntime-cpu"
    assert hop.notes == loaded.notes
    code, stderr = agent.end()
    assert code == 0
    assert "Engine tensorrt cannot run here, onnxruntime-cpu does." in stderr
    assert "Traceback" not in stderr


@pytest.mark.integration
def test_status_tells_the_clock_and_only_the_sensors_that_are_there(driver, start_agent):
    link = driver.control(start_agent("one"))
    status = link.ask(m.StatusRequest)
    assert status.wall_s > 1.6e9
    assert all(isinstance(value, float) for value in status.sensors.values())


@pytest.mark.parametrize(
    ("asked", "infos", "integrated", "offered"),
    [
        ("auto", (GPU, CPU), False, 1 << 20),
        ("tensorrt", (GPU, CPU), False, 1 << 20),
        ("onnxruntime-cpu", (GPU, CPU), False, 8 << 30),
        ("auto", (CPU, GONE), False, 8 << 30),
        ("tensorrt", (CPU, GONE), False, 8 << 30),
        ("auto", (GPU, CPU), True, 8 << 30),
    ],
)
def test_an_agent_offers_no_more_memory_than_its_gpu_has(
    asked, infos, integrated, offered, fake_cuda, monkeypatch
):
    driver = fake_cuda(memory=1 << 20, integrated=integrated)
    monkeypatch.setattr(agent_module.machine, "memory_bytes", lambda: 9 << 30)
    monkeypatch.setattr(agent_module.machine, "resident_bytes", lambda: 1 << 30)
    config = AgentConfig("a", Path("store"), engine=asked)
    assert make_offer(config, infos, (1, 2)).memory_bytes == offered
    assert make_offer(replace(config, memory_bytes=5), infos, (1, 2)).memory_bytes == 5
    assert driver.left == (0, 0, 0)


@pytest.mark.parametrize(("machine_has", "agent_takes", "offered"), [(60, 65, 1), (0, 65, 0), (100, 65, 35)])
def test_what_an_agent_takes_itself_is_not_offered(machine_has, agent_takes, offered, monkeypatch):
    monkeypatch.setattr(agent_module.machine, "memory_bytes", lambda: machine_has)
    monkeypatch.setattr(agent_module.machine, "resident_bytes", lambda: agent_takes)
    assert make_offer(AgentConfig("a", Path("store")), (CPU,), (1, 2)).memory_bytes == offered


def test_a_gpu_of_which_nothing_is_known_limits_nothing(fake_cuda, monkeypatch):
    fake_cuda(devices=0)
    monkeypatch.setattr(agent_module.machine, "memory_bytes", lambda: 9 << 30)
    monkeypatch.setattr(agent_module.machine, "resident_bytes", lambda: 1 << 30)
    assert make_offer(AgentConfig("a", Path("store")), (GPU, CPU), (1, 2)).memory_bytes == 8 << 30


@pytest.mark.integration
@pytest.mark.parametrize("lacking", [False, True])
def test_the_tensorrt_engine_inside_a_real_agent_on_stand_ins(driver, tmp_path, monkeypatch, lacking):
    """Child build, cache and buffers behind a real agent's sockets; NVIDIA's libraries are played."""
    program = textwrap.dedent(f"""
        import os, sys
        sys.path.insert(0, {str(FAKES)!r})
        os.environ["PYTHONPATH"] = {str(FAKES)!r} + os.pathsep + os.environ["PYTHONPATH"]
        import cuda_driver
        from node_agent.engines import cuda
        driver = cuda_driver.FakeDriver()
        cuda.driver_api = lambda: driver
        from node_agent.cli import main
        main()
    """)
    monkeypatch.setenv("DEFER_ENGINE_CACHE", str(tmp_path / "engines"))
    if lacking:
        monkeypatch.setenv("FAKE_TENSORRT_LACKS", "Relu")
    names = ["x", "a", "b", "y"]
    nodes = [
        helper.make_node(op, [source], [target])
        for op, source, target in zip(("Abs", "Relu", "Abs"), names, names[1:], strict=False)
    ]
    graph = model_bytes(nodes, [value("x", "n")], [value("y", "n")], {})
    agent = AgentProcess(
        "one", tmp_path / "s", "--engine", "tensorrt", program=[sys.executable, "-c", program]
    )
    try:
        loaded, status = served(driver, agent, graph)
        engine = "tensorrt+onnxruntime-cpu" if lacking else "tensorrt"
        assert loaded.engine == status.hops[0].engine == engine
        assert status.hops[0].notes == loaded.notes
        assert [note.startswith("3 parts, Relu on onnxruntime-cpu") for note in loaded.notes] == lacking * [
            True
        ]
        assert len(list((tmp_path / "engines").glob("*.engine"))) == 1 + lacking
        assert not list((tmp_path / "engines").glob(".*"))
    finally:
        code, stderr = agent.end()
    assert code == 0, stderr


@pytest.mark.integration
def test_the_probe_of_a_container_hears_a_heart_and_not_only_a_port(start_agent):
    address = start_agent("one").control.removeprefix("tcp://")
    assert probe.check(address, 10.0) == ""
    assert subprocess.run([sys.executable, "-m", "node_agent.probe", address], check=False).returncode == 0
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        assert probe.check(f"127.0.0.1:{port}", 0.3) == f"no heartbeat from 127.0.0.1:{port} within 0.3 s"
        done = subprocess.run(
            [sys.executable, "-m", "node_agent.probe", f"127.0.0.1:{port}", "--timeout", "0.3"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "no heartbeat" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.integration
def test_a_worker_that_hangs_fails_the_probe(driver, start_agent):
    agent = start_agent("one", "--drain-timeout", "0")
    link = driver.control(agent)
    graph = spin()
    link.ship(graph)
    hop = m.HopSpec(
        0,
        m.PeerRef("test"),
        driver.peer,
        graph=ref(graph),
        inputs=(m.TensorSpec("n", "int64", ()),),
        outputs=(spec("y", 64, 64),),
        send=("y",),
    )
    assert isinstance(link.load(1, hop), m.Loaded)
    first, _ = driver.dial(agent.data)
    turns = np.array(30_000_000, np.int64)
    driver.send(first, 1, 1, 0, {"n": turns})
    link.beat(lambda beat: beat.item_age_s > 0.5)
    assert "an item is in work for" in probe.check(agent.control.removeprefix("tcp://"), 10.0, oldest_s=0.3)
    agent.process.kill()


@pytest.mark.integration
def test_a_service_manager_is_told(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        path = str(tmp_path / "n")
        manager.bind(path)
        manager.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        agent = AgentProcess("one", tmp_path / "s")
        try:
            said = [manager.recv(4096).decode()]
            while len({line.split("\n")[0] for line in said}) < 2 or len(said) < 4:
                said.append(manager.recv(4096).decode())
        finally:
            code, _ = agent.end()
        manager.setblocking(False)
        while "STOPPING=1" not in said:
            said.append(manager.recv(4096).decode())
    assert code == 0
    assert any(text.startswith("READY=1\nSTATUS=Agent one is ready") for text in said)
    assert said.count("WATCHDOG=1") >= 2


def test_options_name_the_engine_that_they_are_for():
    options = {
        "tensorrt.slots": "4",
        "tensorrt.dim.batch": "1:2:3",
        "onnxruntime-cuda.device_id": "1",
        "dim.n": "2",
    }
    assert engines.options_of("tensorrt", options) == {"slots": "4", "dim.batch": "1:2:3", "dim.n": "2"}
    assert engines.options_of("onnxruntime-cpu", options) == {"dim.n": "2"}
    assert engines.options_of("auto", options) == options


def test_auto_gives_each_engine_its_own_options(another, partition):
    told = {}

    class Telling(Another):
        def load(self, partition):
            told.update(partition.options)
            return super().load(partition)

    sys.modules["another_engine"].Another = Telling
    options = {"another.fast": "yes", "onnxruntime-cpu.optimization": "none", "tensorrt.slots": "4"}
    engines.engine_named("auto").load(replace(partition, options=options)).close()
    assert told == {"fast": "yes"}


def test_auto_takes_no_option_of_nobody(another, partition):
    for key in ("fast", "abacus.fast", "another.", "dim.batch"):
        with pytest.raises(LoadFailedError, match="names no engine") as caught:
            engines.engine_named("auto").load(replace(partition, options={key: "yes"}))
        assert "ENGINE.OPTION" in caught.value.hint


def test_a_mistyped_engine_among_the_options_is_suggested(another, partition):
    with pytest.raises(LoadFailedError, match="'tensort'; did you mean 'tensorrt'") as caught:
        engines.engine_named("auto").load(replace(partition, options={"tensort.slots": "2"}))
    assert "another" in caught.value.hint


def test_the_reference_has_nothing_to_fall_back_to_and_is_not_asked():
    assert engines.options_of("onnxruntime-cpu", {"fallback": "no", "optimization": "none"}) == {
        "optimization": "none"
    }
    assert engines.options_of("tensorrt", {"fallback": "no"}) == {"fallback": "no"}


def test_an_engine_that_refuses_its_options_is_not_taken(another, partition):
    options = {"onnxruntime-cpu.optimization": "wrong"}
    session = engines.engine_named("auto").load(replace(partition, options=options))
    assert session.engine == "another"
    assert "no option optimization=wrong" in session.notes[0]
    session.close()


def test_options_for_other_engines_are_no_error_where_only_the_cpu_is(partition, tmp_path):
    store = FileStore.open(tmp_path / "store")
    data = partition.graph.read_bytes()
    graph = ref(data)
    store.write(graph, 0, data)
    options = {"tensorrt.workspace": "1024", "onnxruntime-cpu.optimization": "basic"}
    inputs = (m.TensorSpec("x", "float32", (2, 6)),)
    loader = Loader(store, "onnxruntime-cpu", 1)
    got = BlockTimer(store, loader, 1).measure(m.Measure(1, "s", graph, (), inputs, (), 1, options=options))
    assert got.seconds
