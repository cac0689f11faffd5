"""The dispatcher is killed and started again: agents keep what they hold, clients carry on, nothing durable is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import models
import partitioner
from benchmarks.ports import free_ports
from defer import api, errors
from defer.admin import Admin
from defer.client import Client
from defer.documents.cluster import Cluster
from defer.local_agents import LocalAgent, local_agents, read_line
from defer.planning import make_plan, parse_placement

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


@pytest.fixture(scope="module")
def expected(model: Path) -> Callable[[int], dict[str, np.ndarray]]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda seed: dict(
        zip(names, session.run(None, models.example_inputs(MODEL, seed=seed)), strict=True)
    )


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[tuple[LocalAgent, ...]]:
    with local_agents(["a", "b"], tmp_path) as running:
        yield running


def write_cluster(agents: tuple[LocalAgent, ...], path: Path, port: int) -> Path:
    lines = [
        f'[dispatcher]\nlisten = "127.0.0.1:{port}"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"'
    ]
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    path.write_text("\n".join(lines))
    return path


def two_stages(model: Path, cluster: Path, path: Path) -> Path:
    """A plan with the first half on a and the second on b, whatever would be fastest."""
    chain, described = partitioner.analyze(model), Cluster.load(cluster)
    count, half = len(chain.blocks), len(chain.blocks) // 2
    placement = parse_placement(f"a=0:{half},b={half}:", described, count)
    make_plan(chain, described, placement=placement).save(path)
    return path


class Dispatchers:
    """`defer serve` as a process, killed and started again with the same command."""

    def __init__(self, cluster: Path, port: int, folder: Path, *words: object) -> None:
        self.address = f"127.0.0.1:{port}"
        self._folder = folder
        self._command = [sys.executable, "-m", "defer", "serve", "--cluster", cluster, "--json"]
        # What stands by would be loaded, sometime, and these tests count what is.
        still = ["--standby", "none"] if "--model" in words else []
        self._command += ["--state", folder / "state", *still, *words]
        self._process: subprocess.Popen[str] | None = None
        self.steps: list[str] = []
        self.ready: dict[str, Any] = {}

    def start(self) -> None:
        env = os.environ | {"XDG_CACHE_HOME": str(self._folder / "cache")}
        with (self._folder / "serve.log").open("a") as log:
            self._process = subprocess.Popen(
                [str(word) for word in self._command], stdout=subprocess.PIPE, stderr=log, text=True, env=env
            )
        self.steps = []
        while "ready" not in (step := json.loads(read_line(self._process, 60) or "{}")):
            assert step, (self._folder / "serve.log").read_text()
            self.steps.append(step["progress"])
        self.ready = step

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(40)
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def dispatchers(*words: object) -> Iterator[Dispatchers]:
    made = Dispatchers(*words)  # type: ignore[arg-type]
    try:
        made.start()
        yield made
    finally:
        made.kill(signal.SIGTERM)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def loads(client: Client) -> dict[str, int]:
    return {device.name: device.loads for device in client.status().devices}


def devices_of(client: Client) -> list[tuple[str, ...]]:
    """Per deployment that is ready, the devices of its stages."""
    deployments = client.status().deployments
    return [tuple(stage.device for stage in each.stages) for each in deployments if each.state == "ready"]


@contextmanager
def agent_again(agent: LocalAgent, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent that was killed, at the address and with the store that it had."""
    command = [sys.executable, "-m", "node_agent", "--name", agent.name, "--listen", agent.address, "--json"]
    command += ["--threads", "1", "--store", str(folder / agent.name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def same(outputs: Any, wanted: dict[str, np.ndarray]) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)


def test_killed_under_load_it_comes_back_with_everything(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path
) -> None:
    port = free_ports(3)
    cluster = write_cluster(agents, tmp_path / "cluster.toml", port)
    sent: dict[int, tuple[bytes, Future[Any]]] = {}
    plain: list[Any] = []
    stop = threading.Event()

    def durable() -> None:
        with Client(serving.address, timeout=60) as client:
            for seed in range(1, 10_000):
                if stop.is_set():
                    break
                name = os.urandom(16)
                sent[seed] = (
                    name,
                    client.submit(models.example_inputs(MODEL, seed=seed), durable=True, request=name),
                )
            for _, future in sent.values():
                future.result(60)

    def ordinary() -> None:
        with Client(serving.address, timeout=60) as client:
            while not stop.is_set():
                plain.append(client.infer(models.example_inputs(MODEL, seed=0)))

    plan = two_stages(model, cluster, tmp_path / "plan.json")
    with dispatchers(cluster, port, tmp_path, "--model", model, "--plan", plan) as serving:
        with Client(serving.address) as client:
            before, (info,) = loads(client), client.models()
            assert before == {"a": 1, "b": 1}
        epochs = [info.epoch]
        threads = [threading.Thread(target=durable), threading.Thread(target=ordinary)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            most, some = len(sent), len(plain)
            until(lambda most=most, some=some: len(sent) > most + 20 and len(plain) > some + 5)  # type: ignore[misc]
            serving.kill()
            serving.start()
            assert serving.ready["restored"] == [MODEL]
            assert serving.steps == ["connecting the agents"]
            with Client(serving.address) as client:
                epochs.append(client.models()[0].epoch)
        stop.set()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive()
        assert epochs == sorted(set(epochs)), "each process has higher numbers than all before"
        with Client(serving.address) as client:
            assert loads(client) == before, "no agent has loaded anything"
            for seed, (name, future) in sent.items():
                wanted = expected(seed)
                same(future.result(0), wanted)
                same(client.recall(name), wanted)  # whoever asks again gets it, and it does not run again
        for outputs in plain:
            same(outputs, expected(0))


def test_whoever_only_asks_again_gets_the_answer(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path
) -> None:
    port = free_ports(3)
    cluster = write_cluster(agents, tmp_path / "cluster.toml", port)
    with dispatchers(cluster, port, tmp_path, "--model", model) as serving:
        for agent in agents:  # so that the request cannot be answered before the kill
            os.kill(agent.process.pid, signal.SIGSTOP)
        try:
            with Client(serving.address, timeout=60) as client:
                client.submit(models.example_inputs(MODEL, seed=4), durable=True, request=b"4" * 16)
            serving.kill()
        finally:
            for agent in agents:
                os.kill(agent.process.pid, signal.SIGCONT)
        serving.start()
        with Client(serving.address, timeout=60) as client:
            same(client.recall(b"4" * 16), expected(4))
            with pytest.raises(errors.RequestFailed, match="nothing is known"):
                client.recall(b"5" * 16)
            with pytest.raises(errors.UsageError, match="16 bytes"):
                client.recall(b"5")


@pytest.mark.slow
def test_a_stop_in_order_keeps_what_was_deployed_and_not_what_the_command_line_asked_for(
    agents: tuple[LocalAgent, ...], model: Path, expected: Any, tmp_path: Path
) -> None:
    port = free_ports(3)
    cluster = write_cluster(agents, tmp_path / "cluster.toml", port)
    with dispatchers(cluster, port, tmp_path, "--model", model, "--name", "first") as serving:
        deploy = [
            sys.executable,
            "-m",
            "defer",
            "deploy",
            model,
            "--name",
            "second",
            "--dispatcher",
            serving.address,
        ]
        subprocess.run([str(word) for word in deploy], check=True, capture_output=True, timeout=60)
        serving.kill(signal.SIGTERM)
        words = ("--model", model, "--name", "first", "--standby", "none")
        serving._command = [word for word in serving._command if word not in words]
        serving.start()
        with Client(serving.address) as client:
            assert [info.name for info in client.models()] == ["second"]
            same(client.infer(models.example_inputs(MODEL, seed=2)), expected(2))
        assert (tmp_path / "state" / "dispatcher.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_model_waits_for_its_own_agents_only(model: Path, expected: Any, tmp_path: Path) -> None:
    port = free_ports(3)
    with local_agents(["a"], tmp_path) as (a,), local_agents(["b"], tmp_path) as (b,):
        cluster = write_cluster((a, b), tmp_path / "cluster.toml", port)
        chain, described = partitioner.analyze(model), Cluster.load(cluster)
        for name in ("a", "b"):
            placement = parse_placement(f"{name}=0:", described, len(chain.blocks))
            make_plan(chain, described, placement=placement).save(tmp_path / f"{name}.json")
        inputs = models.example_inputs(MODEL, seed=3)
        with dispatchers(cluster, port, tmp_path, "--wait", "20") as serving:
            for name in ("a", "b"):
                words = [
                    sys.executable,
                    "-m",
                    "defer",
                    "deploy",
                    model,
                    "--name",
                    f"on-{name}",
                    "--standby",
                    "none",
                ]
                words += ["--plan", tmp_path / f"{name}.json", "--dispatcher", serving.address]
                subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=60)
            serving.kill()
            b.process.kill()
            b.process.wait(10)
            started = threading.Thread(target=serving.start)
            started.start()
            try:
                seen: dict[str, set[tuple[str, str]]] = {"on-a": set(), "on-b": set()}
                answered, refused = False, ""
                while started.is_alive():
                    with Client(serving.address, connect_timeout=30) as client:
                        found = {info.name: info for info in client.models()}
                        assert found.keys() == {"on-a", "on-b"}, "they are known before they are back"
                        for name, info in found.items():
                            seen[name].add((info.state, info.reason))
                        if (
                            not answered
                            and found["on-a"].state == "ready"
                            and "waits for" in found["on-b"].reason
                        ):
                            same(client.infer(inputs, model="on-a", timeout=60), expected(3))
                            try:  # on a busy machine it may be planned anew by now
                                same(client.infer(inputs, model="on-b", timeout=60), expected(3))
                            except errors.NotReady as error:
                                refused = str(error)
                            with Admin(serving.address) as admin:
                                told = admin.ask(api.GetEvents(0), api.Events, timeout=10).events
                            kinds = {event.kind for event in told}
                            answered = True
                    time.sleep(0.05)
            finally:
                started.join(60)
            assert answered
            assert not refused or "coming back" in refused
            assert any("waits for b" in reason for _, reason in seen["on-b"])
            assert "agents-awaited" in kinds
            assert "waiting for b" in serving.steps
            with Client(serving.address) as client:  # ready is said when it is on what is left
                same(client.infer(inputs, model="on-b", timeout=60), expected(3))
                assert sorted(devices_of(client)) == [("a",), ("a",)]


@pytest.mark.slow
def test_a_plan_that_helps_out_does_not_take_the_place_of_the_one_that_was_asked_for(
    model: Path, expected: Any, tmp_path: Path
) -> None:
    port = free_ports(3)
    with local_agents(["a"], tmp_path) as (a,), local_agents(["b"], tmp_path) as (b,):
        cluster = write_cluster((a, b), tmp_path / "cluster.toml", port)
        plan = two_stages(model, cluster, tmp_path / "plan.json")
        words = ["--model", model, "--plan", plan, "--wait", "2"]
        with dispatchers(cluster, port, tmp_path, *words) as serving, Client(serving.address) as client:
            assert devices_of(client) == [("a", "b")]
            serving.kill()
            b.process.kill()
            b.process.wait(10)
            serving.start()
            until(lambda: devices_of(client) == [("a",)])
            with agent_again(b, tmp_path) as again:
                until(lambda: devices_of(client) == [("a", "b")])
                serving.kill()
                again.kill()
                again.wait(10)
            serving.start()
            until(lambda: devices_of(client) == [("a",)])
            serving.kill()  # what helps out is what is kept as served, and the plan of the command line beside it
            with agent_again(b, tmp_path):
                serving.start()
                until(lambda: devices_of(client) == [("a", "b")])
                same(client.infer(models.example_inputs(MODEL, seed=3), timeout=60), expected(3))


def ask(address: str, *words: object) -> None:
    """A verb of an admin."""
    command = [sys.executable, "-m", "defer", *words, "--dispatcher", address]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=60)


@pytest.mark.slow
def test_what_was_promoted_or_deployed_last_stays_with_the_same_command(
    model: Path, expected: Any, tmp_path: Path
) -> None:
    port, inputs = free_ports(3), models.example_inputs(MODEL, seed=3)
    other = models.save(MODEL, tmp_path / "other.onnx", seed=9)
    session = onnxruntime.InferenceSession(str(other), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    new = dict(zip(names, session.run(None, inputs), strict=True))
    with local_agents(["a"], tmp_path) as agents:
        cluster = write_cluster(agents, tmp_path / "cluster.toml", port)
        words = ("--model", model, "--name", "m", "--objective", "throughput")
        with dispatchers(cluster, port, tmp_path, *words) as serving, Client(serving.address) as client:
            address = serving.address
            beside = ("--version", "2", "--canary", "0.5", "--standby", "none")
            ask(address, "deploy", other, "--name", "m", *beside)
            ask(address, "rollout", "promote", "m")
            for number, told in ((signal.SIGKILL, False), (signal.SIGTERM, True), (signal.SIGKILL, False)):
                serving.kill(number)
                serving.start()
                assert ("not_served" in serving.ready) == told, serving.ready
                same(client.infer(inputs, model="m", timeout=60), new)
            ask(address, "rollout", "rollback", "m")
            same(client.infer(inputs, model="m", timeout=60), expected(3))
            ask(address, "rollout", "promote", "m", "2")
            ask(address, "undeploy", "m@")
            assert [info.name for info in client.models()] == ["m", "m@2"]
            serving.kill()
            serving.start()
            assert "requests for m take m@2" in serving.ready["not_served"]
            ask(address, "undeploy", "m")
            serving.kill()
            serving.start()  # nothing of the name is there: the command line's is
            same(client.infer(inputs, model="m", timeout=60), expected(3))
            ask(address, "undeploy", "m")
            ask(address, "deploy", other, "--name", "m", "--standby", "none")
            for number in (signal.SIGKILL, signal.SIGTERM):
                serving.kill(number)
                serving.start()
                assert "replaced by a deploy on" in serving.ready["not_served"]
                same(client.infer(inputs, model="m", timeout=60), new)
