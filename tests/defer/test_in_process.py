"""A dispatcher in the process that asks: real agents, and everything that `defer serve` promises."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import defer
import models
from defer import errors
from defer.documents.cluster import Cluster, loads_cluster
from defer.local_agents import LocalAgent, local_agents

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalAgent, ...]]:
    with local_agents(["a", "b"], tmp_path_factory.mktemp("agents")) as running:
        yield running


@pytest.fixture
def cluster(agents: tuple[LocalAgent, ...]) -> Cluster:
    lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    return loads_cluster("\n".join(lines))


def inputs(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(array.shape).astype(array.dtype)
        for name, array in models.example_inputs(MODEL).items()
    }


def expected(model: Path, given: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, given)[0]


def test_a_model_is_deployed_asked_and_taken_down(cluster: Cluster, model: Path) -> None:
    steps: list[str] = []
    with defer.Dispatcher(cluster) as dispatcher:
        with pytest.raises(errors.NotReady):
            dispatcher.client().infer(inputs())
        plan = dispatcher.deploy(
            model, objective="throughput", on_progress=lambda what, _: steps.append(what)
        )
        assert plan.objective == "throughput"
        assert steps
        with dispatcher.client() as client:
            assert [info.name for info in client.models()] == [MODEL]
            assert client.status().models[0].state == "ready"
            for seed in range(3):
                (found,) = client.infer(inputs(seed)).values()
                np.testing.assert_allclose(found, expected(model, inputs(seed)), rtol=1e-5, atol=1e-5)
            outputs = list(client.map((inputs(seed) for seed in range(20)), window=6))
            for seed, each in enumerate(outputs):
                np.testing.assert_allclose(
                    next(iter(each.values())), expected(model, inputs(seed)), rtol=1e-5, atol=1e-5
                )
        with defer.Client(dispatcher.address) as other:  # it is a dispatcher for others as well
            assert list(other.infer(inputs())) == list(outputs[0])

        async def ask() -> int:
            async with dispatcher.async_client() as client:
                return len([each async for each in client.map([inputs()] * 5, window=2)])

        assert asyncio.run(ask()) == 5
        dispatcher.undeploy(MODEL)
        with pytest.raises(errors.NotReady), dispatcher.client() as client:
            client.infer(inputs())
    with pytest.raises(errors.NotReady):
        dispatcher.client()


def test_what_is_wrong_is_said_and_nothing_is_left(cluster: Cluster, model: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.FileMissing):
        defer.Dispatcher(tmp_path / "none.toml")
    with pytest.raises(errors.NotReady):
        defer.Dispatcher(cluster).deploy(model)
    with defer.Dispatcher(cluster) as dispatcher:
        with pytest.raises(errors.UsageError):
            dispatcher.start()
        with pytest.raises(errors.FileMissing):
            dispatcher.deploy(tmp_path / "none.onnx")
        with pytest.raises(errors.UsageError):
            dispatcher.deploy(model, name="a b")
        with pytest.raises(errors.UsageError):
            dispatcher.deploy(model, inputs={"x": (0, 3)})
        with pytest.raises(errors.UsageError):
            dispatcher.deploy(model, max_error="lots")
        plan = dispatcher.deploy(model)
        with pytest.raises(errors.UsageError, match="latency"):
            dispatcher.deploy(model, plan=plan, objective="throughput")
        again = dispatcher.deploy(model, plan=plan)
        assert (again.cuts, again.objective) == (plan.cuts, "latency")
        with pytest.raises(errors.UnknownModel):
            dispatcher.undeploy("another")
        with pytest.raises(errors.PortInUse):
            defer.Dispatcher(cluster, listen=dispatcher.address).start()
    gone = loads_cluster('[[device]]\nname = "gone"\naddress = "127.0.0.1:1"\n')
    with pytest.raises(errors.AgentUnreachable):
        defer.Dispatcher(gone, listen="127.0.0.1:0", wait=0.3).start()


def test_a_state_brings_models_and_durable_answers_back(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    name = os.urandom(16)
    with defer.Dispatcher(cluster, state=tmp_path / "state") as dispatcher:
        dispatcher.deploy(model)
        with pytest.raises(errors.StateInUse):
            defer.Dispatcher(cluster, state=tmp_path / "state").start()
        with dispatcher.client() as client:
            first = client.submit(inputs(), durable=True, request=name).result(20)
    with defer.Dispatcher(cluster, state=tmp_path / "state") as dispatcher, dispatcher.client() as client:
        again = client.recall(name)
        assert first.keys() == again.keys()
        assert all(np.array_equal(first[key], again[key]) for key in first)
        (found,) = client.infer(inputs(1)).values()
        np.testing.assert_allclose(found, expected(model, inputs(1)), rtol=1e-5, atol=1e-5)


def test_without_a_state_nothing_is_durable(cluster: Cluster, model: Path) -> None:
    with defer.Dispatcher(cluster) as dispatcher, dispatcher.client() as client:
        dispatcher.deploy(model)
        with pytest.raises(errors.DeferError):
            client.infer(inputs(), durable=True)


def test_requests_in_flight_end_before_it_does(cluster: Cluster, model: Path) -> None:
    with defer.Dispatcher(cluster) as dispatcher:
        dispatcher.deploy(model)
        client = dispatcher.client()
        futures = [client.submit(inputs(seed)) for seed in range(50)]
    assert all(future.exception(10) is None for future in futures)
    client.close()


def test_a_program_that_forgets_to_close_it_ends_all_the_same(
    cluster: Cluster, agents: tuple[LocalAgent, ...], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        + "".join(f'[[device]]\nname = "{each.name}"\naddress = "{each.address}"\n' for each in agents)
    )
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, defer, numpy as np\n"
        "dispatcher = defer.Dispatcher(sys.argv[1])\n"
        "dispatcher.start()\n"
        "dispatcher.deploy(sys.argv[2])\n"
        "client = dispatcher.client()\n"
        "info = client.models()[0]\n"
        "x = {spec.name: np.zeros(spec.shape, np.float32) for spec in info.inputs}\n"
        "client.submit(x).result(20)\n"
        "print('asked', flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program), str(file), str(model)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.strip() == "asked", done.stderr
    assert done.returncode == 0, done.stderr


def test_it_can_live_in_a_thread_that_is_not_the_main_one(cluster: Cluster, model: Path) -> None:
    told: list[object] = []

    def work() -> None:
        try:
            with defer.Dispatcher(cluster) as dispatcher, dispatcher.client() as client:
                dispatcher.deploy(model)
                told.append(client.infer(inputs()))
        except BaseException as error:
            told.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert isinstance(told[0], dict), told
