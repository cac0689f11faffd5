"""The whole house on loopback: real agents as processes, a dispatcher, clients."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import models
import partitioner
from benchmarks.ports import free_ports
from defer import api, errors
from defer.admin import Admin
from defer.cli import group
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan
from defer.local_agents import LocalAgent, local_agents, read_line, stop
from defer.planning import make_plan, parse_placement
from node_agent.messages import Done

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


@pytest.fixture(scope="module")
def expected(model: Path) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True))


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[tuple[LocalAgent, ...]]:
    with local_agents(["a", "b"], tmp_path) as running:
        yield running


def cluster_text(agents: tuple[LocalAgent, ...], listen: str = "127.0.0.1:0") -> str:
    lines = [f'[dispatcher]\nlisten = "{listen}"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    return "\n".join(lines)


def two_stages(model: Path, cluster: Cluster) -> Plan:
    """The first half on a, the second on b, whatever would be fastest."""
    chain = partitioner.analyze(model)
    half = len(chain.blocks) // 2
    return make_plan(
        chain, cluster, placement=parse_placement(f"a=0:{half},b={half}:", cluster, len(chain.blocks))
    )


def quiet(_what: str, _fraction: float) -> None:
    pass


@pytest.fixture
def cluster(agents: tuple[LocalAgent, ...]) -> Cluster:
    return loads_cluster(cluster_text(agents))


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(cluster, tmp_path / "state") as running:
        running.connect(20)
        yield running


@pytest.fixture
def order(model: Path, cluster: Cluster) -> Order:
    return Order(MODEL, model, plan=two_stages(model, cluster), standby="none")


def check(client: Client, expected: Any, seeds: range, **more: Any) -> None:
    inputs = [models.example_inputs(MODEL, seed=seed) for seed in seeds]
    for given, outputs in zip(inputs, client.map(inputs, **more), strict=True):
        for name, array in expected(given).items():
            np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)


def test_two_stages_equal_the_whole_model(daemon: Daemon, order: Order, expected: Any) -> None:
    seen: list[str] = []
    outcome = daemon.deployments.bring_up(order, lambda what, _: seen.append(what))
    assert [stage.device for stage in outcome.deployment.plan.stages] == ["a", "b"]
    assert outcome.canary_s > 0
    assert "cutting the model" in seen
    assert "sending a canary through the pipeline" in seen
    with Client(str(daemon.address)) as client:
        check(client, expected, range(40))
        # An agent counts an item when it has let it go, which may be after the client has it.
        until(lambda: [stage.items for stage in client.status().deployments[0].stages] == [41, 41])
        status = client.status()
    (info,) = status.deployments
    assert (info.state, info.failed, info.waiting, info.in_flight) == ("ready", 0, 0, 0)
    assert info.answered == 41
    assert {device.state for device in status.devices} == {"alive"}


def test_a_replaced_deployment_leaves_no_gap_and_nothing_behind(
    daemon: Daemon, order: Order, expected: Any
) -> None:
    first = daemon.deployments.bring_up(order, quiet)
    with Client(str(daemon.address)) as client:
        failures: list[BaseException] = []

        def load() -> None:
            try:
                check(client, expected, range(300), window=4)
            except BaseException as error:  # told by the test below
                failures.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        second = daemon.deployments.bring_up(order, quiet)
        thread.join(60)
        assert not failures
        assert second.deployment.epoch > first.deployment.epoch
        until(lambda: list(daemon.deployments.served) == [second.deployment.epoch])
        assert epochs_on_agents(daemon) == {second.deployment.epoch}
        parts = daemon._state / "parts"
        assert any(parts.iterdir())
        daemon.deployments.take_down(MODEL, 5)
        until(lambda: not any(parts.iterdir()))  # perhaps what stands by was just being cut
        assert epochs_on_agents(daemon) == set()
        with pytest.raises(errors.NotReady, match="no model is deployed"):
            client.infer(models.example_inputs(MODEL))
    with pytest.raises(errors.UnknownModel, match="served: none"):
        daemon.deployments.take_down(MODEL, 5)


def epochs_on_agents(daemon: Daemon) -> set[int]:
    status = daemon.verbs.status()
    until(lambda: all(device.heard_s < 0.5 for device in daemon.verbs.status().devices))
    time.sleep(0.25)  # two heartbeats
    status = daemon.verbs.status()
    return {epoch for device in status.devices for epoch in device.epochs}


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def working(client: Client) -> list[str]:
    """Devices of the route that takes requests, in order."""
    ready = [each for each in client.status().deployments if each.state == "ready"]
    return [stage.device for each in ready for stage in each.stages]


def test_the_rest_takes_over_from_an_agent_that_is_killed_until_it_is_started_again(
    agents: tuple[LocalAgent, ...], daemon: Daemon, order: Order, expected: Any, tmp_path: Path
) -> None:
    daemon.deployments.bring_up(order, quiet)
    b = agents[1]
    with Client(str(daemon.address)) as client:
        check(client, expected, range(3))
        os.kill(b.process.pid, signal.SIGSTOP)  # so that requests are in flight when it dies
        until(lambda: stopped(b.process.pid))
        waiting = [client.submit(models.example_inputs(MODEL, seed=seed)) for seed in range(3)]
        time.sleep(0.1)
        b.process.kill()
        for seed, future in enumerate(waiting):
            for name, array in expected(models.example_inputs(MODEL, seed=seed)).items():
                np.testing.assert_allclose(future.result(20)[name], array, rtol=1e-4, atol=1e-5)
        assert working(client) == ["a"]
        check(client, expected, range(20))
        again = restart(b, tmp_path)
        try:
            until(lambda: working(client) == ["a", "b"])
            check(client, expected, range(20))
        finally:
            stop([again])


def test_without_any_agent_requests_end_at_their_deadline_and_new_ones_are_refused(
    agents: tuple[LocalAgent, ...], daemon: Daemon, order: Order
) -> None:
    daemon.deployments.bring_up(order, quiet)
    with Client(str(daemon.address)) as client:
        client.infer(models.example_inputs(MODEL))
        for agent in agents:
            os.kill(agent.process.pid, signal.SIGSTOP)
        waiting = client.submit(models.example_inputs(MODEL), timeout=8)
        for agent in agents:
            agent.process.kill()

        def refused() -> bool:
            try:
                client.infer(models.example_inputs(MODEL), timeout=0.2)
            except errors.NotReady as error:
                return "nothing can hold it without a, b" in str(error)
            except errors.DeadlineExceeded:
                return False
            raise AssertionError("nobody can have answered")

        until(refused)
        with pytest.raises(errors.DeadlineExceeded, match="nothing can hold it without a, b"):
            waiting.result(20)


def stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped."""
    stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def restart(agent: LocalAgent, tmp_path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "node_agent", "--name", agent.name, "--listen", agent.address]
    command += ["--threads", "1", "--store", str(tmp_path / agent.name), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "control" in read_line(process, 30)
    return process


def test_a_plan_for_another_model_and_a_device_that_does_not_run(
    daemon: Daemon, order: Order, cluster: Cluster, tmp_path: Path
) -> None:
    other = models.save("tiny_chain", tmp_path / "other.onnx")
    with pytest.raises(errors.InvalidDocument, match="plan is for another model"):
        daemon.deployments.bring_up(replace(order, model=other), quiet)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with pytest.raises(errors.InvalidModel):
        daemon.deployments.bring_up(Order("broken", broken), quiet)
    with Client(str(daemon.address)) as client:
        assert client.models() == ()


def test_what_a_crashed_dispatcher_served_is_served_by_the_next_under_a_higher_number(
    cluster: Cluster, order: Order, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    first = Daemon(cluster, state)
    first.start()
    first.connect(20)
    epoch = first.deployments.bring_up(order, quiet).deployment.epoch
    assert epochs_on_agents(first) == {epoch}
    with pytest.raises(errors.StateInUse, match="another dispatcher keeps its state"):
        Daemon(cluster, state).start()
    first.deployments.served.clear()  # as if it had been killed: nobody tells the agents
    first.close()
    with Daemon(cluster, state) as second:
        second.connect(20)
        (held,) = epochs_on_agents(second)
        assert held > epoch
        assert [info.epoch for info in second.verbs.models().models] == [held]


def test_a_second_dispatcher_of_the_same_address_and_one_that_is_starting(tmp_path: Path) -> None:
    port = free_ports(3)
    cluster = loads_cluster(
        f'[dispatcher]\nlisten = "127.0.0.1:{port}"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'
    )
    with Daemon(cluster, tmp_path, held=True) as daemon, Admin(f"127.0.0.1:{port}") as admin:
        with pytest.raises(errors.PortInUse, match="a dispatcher already runs on 127"):
            Daemon(cluster, tmp_path).start()
        with pytest.raises(errors.NotReady, match="starting"):
            admin.ask(api.Undeploy(0, "x", 1), Done, timeout=20)
        daemon.let_go()
        with pytest.raises(errors.UnknownModel):
            admin.ask(api.Undeploy(0, "x", 1), Done, timeout=20)


def test_an_agent_where_a_dispatcher_should_be_is_named(agents: tuple[LocalAgent, ...]) -> None:
    with pytest.raises(errors.DispatcherUnreachable, match=r"the agent 'a' listens at .*, not a dispatcher"):
        Admin(agents[0].address).open()


def test_a_port_in_use_and_an_agent_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        cluster = loads_cluster(
            f'[dispatcher]\nlisten = "127.0.0.1:{port}"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'
        )
        with pytest.raises(errors.PortInUse, match="in use by another process"):
            Daemon(cluster, tmp_path).start()
    cluster = loads_cluster(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'
    )
    with Daemon(cluster, tmp_path) as daemon, pytest.raises(errors.AgentUnreachable, match="agent 'a'"):
        daemon.connect(0.2)


# ------------------------------------------------------------------------------------------ through the command line


def defer(*words: object) -> Any:
    return CliRunner(env={"COLUMNS": "160"}).invoke(  # a narrow table shortens words
        group, [str(word) for word in words], standalone_mode=False, catch_exceptions=True
    )


@pytest.fixture
def serving(agents: tuple[LocalAgent, ...], model: Path, tmp_path: Path) -> Iterator[str]:
    """`defer serve` as a process; it ends with exit code 0."""
    (tmp_path / "cluster.toml").write_text(cluster_text(agents))
    command = [
        sys.executable,
        "-m",
        "defer",
        "serve",
        "--cluster",
        tmp_path / "cluster.toml",
        "--model",
        model,
    ]
    command += ["--name", "m", "--json", "--save-plan", tmp_path / "plan.json", "--state", tmp_path / "state"]
    command += ["--save-profile", tmp_path / "profile.json", "--plot", tmp_path / "plan.svg"]
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with (tmp_path / "serve.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    try:
        steps = []
        while "ready" not in (step := json.loads(read_line(process, 60) or "{}")):
            assert step, (tmp_path / "serve.log").read_text()
            steps.append(step["progress"])
        assert any("measuring block" in each for each in steps)
        assert any("measuring beside the others" in each for each in steps), "they share this machine"
        yield step["ready"]
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        assert code == 0, (tmp_path / "serve.log").read_text()


def test_the_verbs(serving: str, model: Path, expected: Any, tmp_path: Path) -> None:
    for name in ("plan.json", "profile.json", "plan.svg"):
        assert (tmp_path / name).stat().st_size > 0
    inputs = models.example_inputs(MODEL, seed=3)
    np.savez(tmp_path / "in.npz", **inputs)
    ran = defer(
        "infer", tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--dispatcher", serving, "--repeat", 3
    )
    assert ran.exit_code == 0, ran.exception
    assert "3 requests" in ran.output
    with np.load(tmp_path / "out.npz") as outputs:
        for name, array in expected(inputs).items():
            np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)

    deployed = defer(
        "deploy",
        model,
        "--name",
        "second",
        "--profile",
        tmp_path / "profile.json",
        "--dispatcher",
        serving,
        "--json",
    )
    assert deployed.exit_code == 0, deployed.exception
    told = json.loads(deployed.output)
    assert (told["model"]["name"], told["uploaded_bytes"]) == ("second", model.stat().st_size)

    several = defer("infer", "--random", "--dispatcher", serving)
    assert isinstance(several.exception, errors.UnknownModel)
    picked = defer(
        "infer",
        "--random",
        "--dispatcher",
        serving,
        "--model",
        "second",
        "--repeat",
        20,
        "--window",
        4,
        "--json",
    )
    assert json.loads(picked.output)["requests"] == 20

    shown = defer("status", "--dispatcher", serving)
    assert "second: ready" in shown.output
    assert "alive" in shown.output
    status = json.loads(defer("status", "--dispatcher", serving, "--json").output)
    assert {each["name"] for each in status["models"]} == {"m", "second"}

    assert defer("undeploy", "second", "--dispatcher", serving).exit_code == 0
    assert isinstance(defer("undeploy", "second", "--dispatcher", serving).exception, errors.UnknownModel)
    assert defer("infer", "--random", "--dispatcher", serving).exit_code == 0


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["infer"], errors.UsageError, "give one of FILE"),
        (["infer", "none.npy"], errors.FileMissing, "no such file"),
        (["infer", "--input", "x"], errors.UsageError, "is not NAME=FILE.npy"),
        (["infer", "--random", "-o", "out.txt"], errors.UsageError, "neither .npz nor .npy"),
        (["infer", "--random", "-o", "foreign.npz"], errors.OutputExists, "is no .npz file"),
        (["infer", "--random", "--dim", "N=0"], errors.UsageError, "is not NAME=SIZE"),
        (["status", "--dispatcher", "127.0.0.1:1"], errors.DispatcherUnreachable, "no dispatcher"),
        (["undeploy", "m", "--dispatcher", "nowhere"], errors.InvalidCluster, "has no"),
        (["serve", "--cluster", "none.toml"], errors.FileMissing, "no such file"),
    ],
)
def test_mistakes_are_one_error(
    words: list[str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign.npz").write_text("my notes")
    ran = defer(*words)
    assert isinstance(ran.exception, kind), ran.exception
    assert says in str(ran.exception)


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        (["--listen", "0.0.0.0:7600"], errors.PermissionDenied, "needs keys"),
        (["--listen", "127.0.0.1:65535"], errors.UsageError, "no room for the two data ports"),
        (["--plan", "plan.json"], errors.UsageError, "need --model"),
        (["--standby", "files"], errors.UsageError, "--standby needs --model"),
        (["--model", "none.onnx"], errors.FileMissing, "no such file"),
        (["--wait", "0.2", "--listen", "127.0.0.1:0"], errors.AgentUnreachable, "agent 'a' did not answer"),
    ],
)
def test_mistakes_of_serve(
    words: list[str], kind: type[Exception], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cluster.toml").write_text('[[device]]\nname = "a"\naddress = "127.0.0.1:1"\n')
    ran = defer("serve", "--cluster", "cluster.toml", *words)
    assert isinstance(ran.exception, kind), ran.exception
    assert says in str(ran.exception)


def test_arrays_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.npy").write_bytes(b"not an array")
    np.save("pickled.npy", np.array([object()]), allow_pickle=True)
    for name in ("bad.npy", "pickled.npy"):
        ran = defer("infer", name)
        assert isinstance(ran.exception, errors.InvalidDocument), ran.exception


def test_random_inputs_fit_any_signature() -> None:
    from defer.cli.infer import random_inputs
    from node_agent.messages import TensorSpec

    info = api.ModelInfo(
        "m",
        "ready",
        inputs=(
            TensorSpec("f", "float16", ("N", 2)),
            TensorSpec("i", "int64", ("N",)),
            TensorSpec("b", "bool", ()),
            TensorSpec("h", "bfloat16", (3,)),
        ),
    )
    arrays = random_inputs(info, 0, 5)
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "f": ("float16", (5, 2)),
        "i": ("int64", (5,)),
        "b": ("bool", ()),
        "h": ("uint16", (3,)),
    }
    assert random_inputs(info, 0, 5, {"N": 7})["f"].shape == (7, 2)
    with pytest.raises(errors.UsageError, match="no free dimension 'M'"):
        random_inputs(info, 0, 5, {"M": 7})


def test_a_client_needs_none_of_the_planners_packages() -> None:
    heavy = "onnx onnx_ir networkx scipy onnxruntime partitioner router models"
    code = "import defer, sys; defer.Client, defer.AsyncClient; import defer.cli.infer, defer.cli.status;"
    code += f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
