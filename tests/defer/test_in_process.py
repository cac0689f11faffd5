"""A dispatcher in the process that asks: real agents, and everything that `defer serve` promises."""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import defer
import models
from defer import errors
from defer.documents.cluster import Cluster, loads_cluster
from defer.local_agents import LocalAgent, local_agents
from defer.serving import brief_state

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
        for wrong in (
            {"objective": "fast"},
            {"replicas": True},
            {"replicas": True, "objective": "cost"},
            {"replicas": True, "objective": "latency", "plan": plan},
            {"batch": 4},
            {"batch": ("a",)},
            {"batch_delay_s": -1},
            {"standby": "y"},
            {"sample": 2.0},
            {"on_progress": 5},
            {"calibration": str(model)},
            {"max_error": 7.0},
        ):
            with pytest.raises(errors.UsageError):
                dispatcher.deploy(model, **wrong)
        with pytest.raises(errors.FileMissing):
            dispatcher.deploy(model, max_error=0.01, calibration=tmp_path / "none.npz")
        with pytest.raises(ZeroDivisionError):
            dispatcher.deploy(model, on_progress=lambda *_: 1 / 0)  # the caller's own
        with pytest.raises(errors.UsageError):
            dispatcher.close(-1.0)
        again = dispatcher.deploy(model, plan=plan)
        assert (again.cuts, again.objective) == (plan.cuts, "latency")
        with pytest.raises(errors.UnknownModel):
            dispatcher.undeploy("another")
        with pytest.raises(errors.PortInUse):
            defer.Dispatcher(cluster, listen=dispatcher.address).start()
    with pytest.raises(errors.UsageError):
        dispatcher.start()  # once
    for wait in (0, -1, float("nan"), float("inf"), "x"):
        with pytest.raises(errors.UsageError):
            defer.Dispatcher(cluster, wait=wait)
    with pytest.raises(errors.UsageError):
        defer.Dispatcher(cluster, state="nats://127.0.0.1:4222/t")
    gone = loads_cluster('[[device]]\nname = "gone"\naddress = "127.0.0.1:1"\n')
    with pytest.raises(errors.AgentUnreachable):
        defer.Dispatcher(gone, listen="127.0.0.1:0", wait=0.3).start()


def test_a_state_brings_models_and_durable_answers_back(
    cluster: Cluster, model: Path, tmp_path: Path
) -> None:
    name = os.urandom(16)
    kept = msgspec.structs.replace(cluster.dispatcher, state=str(tmp_path / "state"))
    cluster = msgspec.structs.replace(cluster, dispatcher=kept)
    with defer.Dispatcher(cluster) as dispatcher:
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


def test_durable_requests_of_a_thread_that_drives(
    cluster: Cluster, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defer.dispatcher.shell.COMPANY_S", 0.0)

    def ask(client: defer.Client) -> None:
        for seed in range(12):
            (found,) = client.infer(inputs(seed), durable=seed % 2 == 0).values()
            np.testing.assert_allclose(found, expected(model, inputs(seed)), rtol=1e-5, atol=1e-5)

    with defer.Dispatcher(cluster, state=tmp_path / "state") as dispatcher, dispatcher.client() as client:
        dispatcher.deploy(model)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(ask, client).result(60)


def test_without_a_state_nothing_is_durable(cluster: Cluster, model: Path) -> None:
    with defer.Dispatcher(cluster) as dispatcher, dispatcher.client() as client:
        dispatcher.deploy(model)
        with pytest.raises(errors.DeferError):
            client.infer(inputs(), durable=True)


def test_what_agents_offer_now_counts_and_not_what_a_profile_says(cluster: Cluster, model: Path) -> None:
    with defer.Dispatcher(cluster) as dispatcher:
        dispatcher.deploy(model, name="before")
        daemon = dispatcher._daemon
        assert daemon is not None
        profile = daemon.deployments.orders["before"].profile
        assert profile is not None
        small = {
            name: msgspec.structs.replace(each, memory_bytes=1) for name, each in profile.devices.items()
        }
        # A plan for one byte each would be refused: nothing fits.
        plan = dispatcher.deploy(model, profile=msgspec.structs.replace(profile, devices=small))
        assert plan.stages
        again = daemon.deployments.orders[MODEL].profile
        assert again is not None
        assert again.devices == profile.devices


def test_devices_may_share_the_requests(cluster: Cluster, model: Path) -> None:
    with defer.Dispatcher(cluster) as dispatcher, dispatcher.client() as client:
        plan = dispatcher.deploy(model, objective="throughput", replicas=True)
        assert {stage.device for _, leg in plan.legs for stage in leg.stages} == {"a", "b"}
        assert len(plan.shares) == 2
        found = client.map((inputs(seed) for seed in range(40)), window=8)
        for seed, each in enumerate(found):
            np.testing.assert_allclose(
                next(iter(each.values())), expected(model, inputs(seed)), rtol=1e-5, atol=1e-5
            )
        assert all(each.progress for each in client.status().devices)


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
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("asked", "", 0)


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


def test_a_state_that_was_left_behind_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    old, held, young = (tmp_path / f"defer-serve-{name}" for name in ("old", "held", "young"))
    for folder in (old, held, young):
        folder.mkdir()
        (folder / "lock").write_text("")
    for folder in (old, held):
        os.utime(folder, (1, 1))
    with (held / "lock").open() as file, ExitStack() as stack:
        fcntl.flock(file, fcntl.LOCK_EX)
        made = brief_state(stack)
        child = os.fork()
        if child == 0:
            stack.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert {each.name for each in tmp_path.iterdir()} == {held.name, young.name, made.name}
    assert not made.exists()


def test_the_threads_that_failed_are_told_of(cluster: Cluster, model: Path) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    with defer.Dispatcher(cluster) as dispatcher:
        client = dispatcher.client()
        dispatcher._running().shell._loop.enqueue(fail)
        with pytest.raises(errors.DeferError):
            client.infer(inputs())
        client.close()
        with pytest.raises(errors.Internal, match="broken"):
            dispatcher.deploy(model)
