"""The agent's process: start, shipping, restart, drain, and what it says when it cannot start."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from onnx import helper

from benchmarks.ports import free_ports
from node_agent import messages as m
from tests.node_agent.harness import (
    ENCODER,
    ROOT,
    AgentProcess,
    Driver,
    identity,
    model_bytes,
    ref,
    spec,
    value,
)

pytestmark = pytest.mark.integration

Start = Callable[..., AgentProcess]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node_agent.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env=ENVIRONMENT,
        cwd=ROOT,
    )


def a_hop(driver: Driver, graph: bytes | None = None, **more: object) -> m.HopSpec:
    if graph is None:
        return m.HopSpec(0, m.PeerRef("test"), driver.peer)
    tensors = {"inputs": (spec("x", "n"),), "outputs": (spec("y", "n"),), "send": ("y",)}
    return m.HopSpec(0, m.PeerRef("test"), driver.peer, graph=ref(graph), **{**tensors, **more})


def test_listening_beyond_this_machine_must_be_asked_for(tmp_path: Path) -> None:
    done = run("--listen", "0.0.0.0:0", "--store", str(tmp_path / "s"))
    assert done.returncode == 77
    assert "--insecure" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    port = free_ports(3) + 1
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        done = run("--listen", f"127.0.0.1:{port - 1}", "--store", str(tmp_path / "s"))
    assert done.returncode == 69
    assert f"Port {port} on 127.0.0.1 is in use" in done.stderr
    assert f"takes the ports {port - 1} to {port + 1}" in done.stderr
    assert "--listen" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--memory", "lots"], 2, "is not a size"),
        (["--listen", "here"], 78, "is not HOST:PORT"),
        (["--dial", "tcp://x"], 78, "is not HOST:PORT"),
        (["--name", "a b"], 2, "is not a name"),
        (["--memory", "9" * 400], 2, "is not a size"),
        (["--drain-timeout", "nan"], 2, "not a finite number"),
        (["--advertise", "10.0.0.5"], 2, "it needs --dial"),
        (["--engine", "abacus"], 69, "'abacus' is unknown"),
        (["--listen", "192.0.2.1:0", "--insecure"], 78, "Cannot listen on 192.0.2.1"),
        (["--store", "/proc/nothing"], 73, "cannot be used as a file store"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    store = [] if "--store" in arguments else ["--store", str(tmp_path / "s")]
    done = run(*arguments, *store)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.splitlines()[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    told = json.loads(run(*arguments, *store, "--json").stderr)["error"]
    assert (told["exit_code"], words in told["message"]) == (code, True)


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "Examples:" in shown.stdout
    assert "--dial" in shown.stdout
    assert "protocol version 1" in run("--version").stdout


def test_the_ready_line_tells_people_and_programs_where_it_is(start_agent: Start, tmp_path: Path) -> None:
    agent = start_agent("one")
    assert agent.ready["name"] == "one"
    assert agent.ready["pid"] == agent.process.pid
    assert len({agent.control, agent.data, agent.fetch}) == 3
    code, _ = agent.end()
    assert code == 0
    told = AgentProcess.__new__(AgentProcess)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "node_agent.cli",
            "--listen",
            "127.0.0.1:0",
            "--name",
            "n",
            "--store",
            str(tmp_path / "t"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
    )
    told.name, told.process = "n", process
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Agent n is ready: control 127.0.0.1:")
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0


def test_files_are_shipped_once_and_survive_a_kill(driver: Driver, start_agent: Start) -> None:
    agent = start_agent("one")
    link = driver.control(agent)
    data = os.urandom(3 * m.CHUNK_BYTES + 17)
    file = ref(data, ".bin")
    for offset in range(0, 2 * m.CHUNK_BYTES, m.CHUNK_BYTES):
        link.ask(m.Chunk, file, offset, payload=data[offset : offset + m.CHUNK_BYTES])
    agent.end(signal.SIGKILL)
    agent = start_agent("one")
    link = driver.control(agent)
    assert link.ask(m.Want, (file,)).offsets == (2 * m.CHUNK_BYTES,)
    assert link.ship(data, suffix=".bin") == m.CHUNK_BYTES + 17
    assert link.ship(data, suffix=".bin") == 0
    agent.end(signal.SIGKILL)
    link = driver.control(start_agent("one"))
    assert link.ship(data, suffix=".bin") == 0


def test_shipping_and_loading_go_wrong_in_clear_words(driver: Driver, start_agent: Start) -> None:
    link = driver.control(start_agent("one", "--memory", "1 MiB", "--store-limit", "10 kB"))
    good, other = ref(b"content", ".bin"), ref(b"x" * 20_000, ".bin")
    faults = [
        link.ask(m.Chunk, good, 0, payload=b"CONTENT"),
        link.ask(m.Chunk, good, 3, payload=b"tent"),
        link.ask(m.Chunk, other, 0, payload=b"x"),
        link.load(1, a_hop(driver, b"missing")),
        link.load(2, msgspec.structs.replace(a_hop(driver, b"x"), graph=m.FileRef("a" * 64, 2 << 20))),
    ]
    codes = ["corrupt-file", "wrong-offset", "store-full", "missing-file", "out-of-memory"]
    assert [fault.code for fault in faults] == codes
    assert all(fault.message.endswith(".") for fault in faults)
    link.ship(b"not onnx")
    assert link.load(3, a_hop(driver, b"not onnx")).code == "load-failed"


def test_a_full_disk_is_told_and_leaves_nothing(driver: Driver, tmp_path: Path) -> None:
    """The kernel itself refuses: the agent may write files of at most 64 KiB."""
    program = textwrap.dedent("""
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
        from node_agent.cli import main
        main()
    """)
    agent = AgentProcess("one", tmp_path / "s", program=[sys.executable, "-c", program])
    try:
        link = driver.control(agent)
        data = os.urandom(100_000)
        fault = link.ask(m.Chunk, ref(data, ".bin"), 0, payload=data)
        assert fault.code == "disk-full"
        assert "--store" in fault.hint
        assert [path.name for path in (tmp_path / "s").iterdir()] == ["defer-store-1"]
        assert link.ship(b"small") == 5
    finally:
        assert agent.end()[0] == 0


def test_sigterm_finishes_what_is_queued_and_leaves_nothing(driver: Driver, start_agent: Start) -> None:
    agent = start_agent("one")
    link = driver.control(agent)
    graph = identity()
    link.ship(graph)
    assert isinstance(link.load(1, a_hop(driver, graph)), m.Loaded)
    first, _ = driver.dial(agent.data)
    for request in range(20):
        driver.send(first, 1, request, 0, {"x": np.full(100_000, request, np.float32)})
    # The results wait for credit, which comes only after the agent began to drain.
    link.beat(lambda beat: beat.progress == 20)
    agent.process.terminate()
    link.beat(lambda beat: beat.state == "draining")
    results = [driver.result() for _ in range(20)]
    # A short run in the thread that received the item may overtake results of the run thread.
    assert sorted(header.request for header, _ in results) == list(range(20))
    assert {len(frames[0]) for _, frames in results} == {400_000}
    assert agent.ended() == (0, "")


def test_an_agent_asked_to_drain_says_when_it_is_done_and_takes_no_load(
    driver: Driver, start_agent: Start
) -> None:
    link = driver.control(start_agent("one"))
    assert isinstance(link.ask(m.Drain), m.Done)
    assert link.load(1, a_hop(driver)).code == "draining"
    assert link.ask(m.StatusRequest).state == "draining"


def test_an_agent_that_hangs_ends_after_its_patience(
    driver: Driver, start_agent: Start, tmp_path: Path
) -> None:
    """An engine that never returns: the age of its item shows, heartbeats go on, the process still ends."""
    (tmp_path / "sleepy.py").write_text(
        textwrap.dedent("""
        import time
        from node_agent import engines
        from node_agent.engines.onnxruntime_cpu import OnnxRuntimeCpu

        class Sleepy(OnnxRuntimeCpu):
            def load(self, partition):
                inner = super().load(partition)
                class Session:
                    outputs = inner.outputs
                    def run(self, inputs):
                        time.sleep(3600)
                    close = inner.close
                return Session()

        engines.register("onnxruntime-cpu", "sleepy:Sleepy")
        """)
    )
    agent = AgentProcess(
        "one",
        tmp_path / "s",
        "--drain-timeout",
        "0.3",
        program=[
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sleepy; from node_agent.cli import main; main()",
        ],
    )
    try:
        link = driver.control(agent)
        graph = identity()
        link.ship(graph)
        assert isinstance(link.load(1, a_hop(driver, graph)), m.Loaded)
        first, _ = driver.dial(agent.data)
        driver.send(first, 1, 1, 0, {"x": np.ones(1, np.float32)})
        beat = link.beat(lambda beat: beat.item_age_s > 0.3)
        assert beat.progress == 0
    finally:
        code, stderr = agent.end()
    assert code == 75
    assert "hangs in its engine" in stderr


def test_a_slow_load_does_not_stop_heartbeats_or_shipping(driver: Driver, start_agent: Start) -> None:
    """Three hundred megabytes of weights: files, status and heartbeats go on meanwhile."""
    size = 4096
    names = [f"w{n}" for n in range(4)]
    nodes = [
        helper.make_node("MatMul", ["x" if n == 0 else f"h{n}", f"w{n}"], ["y" if n == 3 else f"h{n + 1}"])
        for n in range(4)
    ]
    weights = {name: np.full((size, size), 1 / size, np.float32) for name in names}
    graph = model_bytes(nodes, [value("x", "n", size)], [value("y", "n", size)], weights)
    link = driver.control(start_agent("one"))
    link.ship(graph)
    link.heartbeats.clear()
    link.ids += 1
    load = link.ids
    tensors = {"inputs": (spec("x", 1, size),), "outputs": (spec("y", "n", size),)}
    link.say(m.Load(load, 1, "test", (a_hop(driver, graph, **tensors),)))
    assert isinstance(link.ask(m.StatusRequest), m.AgentStatus)
    assert isinstance(link.answer(load), m.Loaded)
    began = min(when for when, _ in link.heartbeats)
    ended = max(when for when, _ in link.heartbeats)
    assert len(link.heartbeats) >= (ended - began) / m.HEARTBEAT_S * 0.5
    assert link.progress


def test_peers_of_other_versions(driver: Driver, start_agent: Start) -> None:
    """One newer with a range that overlaps is spoken to, on control and data sockets; one apart is refused."""
    agent = start_agent("one")
    newer = msgspec.msgpack.encode([*msgspec.to_builtins(m.Greeting(1, 2, "new")), "a field of version 2"])
    made = driver.socket(zmq.DEALER)
    made.connect(agent.data)
    made.send(newer)
    assert driver.header(made) == m.Greeting(1, 1, "one", inline=True)
    assert isinstance(driver.header(made), m.Credit)
    _, (refusal,) = driver.dial(agent.data, m.Greeting(2, 3, "future"))
    assert refusal.code == "incompatible-version"
    control = driver.control(agent)
    fault = control.ask(m.Hello, 2, 3, "future", "dispatcher")
    assert fault.code == "incompatible-version"
    assert "Update" in fault.hint
    code, stderr = agent.end()
    assert code == 0
    assert "future speaks protocol versions 2 to 3" in stderr


def test_hostile_bytes_on_every_port_harm_nobody(driver: Driver, start_agent: Start) -> None:
    agent = start_agent("one")
    link = driver.control(agent)
    link.load(1, a_hop(driver))
    first, _ = driver.dial(agent.data)
    random = np.random.default_rng(0)
    real = [ENCODER.encode(m.Item(1, 1, 0, -1, ())), ENCODER.encode(m.Hello(1, 1, 1, "x", "dispatcher"))]
    for endpoint in (agent.control, agent.data, agent.fetch):
        hostile = driver.socket(zmq.DEALER)
        hostile.connect(endpoint)
        for _ in range(300):
            data = bytearray(real[int(random.integers(2))])
            for _ in range(int(random.integers(1, 6))):
                data[int(random.integers(len(data)))] = int(random.integers(256))
            hostile.send_multipart(
                [bytes(data), *(random.bytes(10) for _ in range(int(random.integers(0, 4))))]
            )
        hostile.send_multipart([b""] * 5000)
        hostile.send(b"\x91" * 100_000)
        hostile.close(1000)
    assert isinstance(link.ask(m.StatusRequest), m.AgentStatus)
    driver.send(first, 1, 7, 0, {"x": np.ones(3, np.float32)})
    assert driver.result()[0].request == 7
    code, stderr = agent.end()
    assert code == 0
    assert len(stderr.splitlines()) < 20, "a hostile peer must not fill the log"


def test_a_dispatcher_that_comes_back_finds_the_agent_again(driver: Driver, start_agent: Start) -> None:
    api = driver.socket(zmq.ROUTER)
    port = api.bind_to_random_port("tcp://127.0.0.1")
    start_agent("nat", "--dial", f"127.0.0.1:{port}")
    assert b"register" in api.recv_multipart()[-1]
    api.close(0)
    time.sleep(0.3)
    again = driver.socket(zmq.ROUTER)
    again.bind(f"tcp://127.0.0.1:{port}")
    assert again.poll(15_000)
    assert b"register" in again.recv_multipart()[-1]


def test_the_agent_needs_neither_planner_nor_engine(tmp_path: Path) -> None:
    """Without onnx, networkx, scipy and onnxruntime it starts, offers what is missing, and can relay."""
    program = textwrap.dedent("""
        import sys
        for name in ("onnx", "onnx_ir", "networkx", "scipy", "onnxruntime"):
            sys.modules[name] = None
        from node_agent.cli import main
        main()
    """)
    agent = AgentProcess("bare", tmp_path / "s", program=[sys.executable, "-c", program])
    context = zmq.Context()
    driver = Driver(context)
    try:
        link = driver.control(agent)
        offer = link.hello().offer
        assert offer is not None
        assert "defer-edge[cpu]" in offer.engines[0].missing
        assert isinstance(link.load(1, a_hop(driver)), m.Loaded)
        fault = link.load(2, a_hop(driver, b"graph"))
        assert fault.code == "engine-missing"
        assert "defer-edge[cpu]" in fault.hint
    finally:
        for each in driver.sockets:
            each.close(0)
        context.term()
        code, stderr = agent.end()
    assert code == 0
    assert "can only relay" in stderr
