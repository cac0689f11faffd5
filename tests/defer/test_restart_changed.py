"""Between two starts of a dispatcher a device was taken out of the cluster file, or a model's files are gone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import models
import partitioner
from benchmarks.ports import free_ports
from defer import api
from defer.cli.state_options import state_place
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.withdrawal import Withdrawal
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan
from defer.errors import Cancelled, DeferError
from defer.local_agents import local_agents
from defer.model_files import model_files
from defer.planning import make_plan, parse_placement
from node_agent.messages import Chunk, Want
from tests.defer.test_restart import agent_again

MODEL = "tiny_residual"


def a_cluster(port: int, *devices: tuple[str, str], more: str = "") -> Cluster:
    lines = [
        f'[dispatcher]\nlisten = "127.0.0.1:{port}"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"'
    ]
    lines += [f'[[device]]\nname = "{name}"\naddress = "{address}"\n{more}' for name, address in devices]
    return loads_cluster("\n".join(lines))


def until(condition: Callable[[], object], daemon: Daemon, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (daemon.verbs.models(), daemon.log.since(0))
        time.sleep(0.02)


def where(daemon: Daemon) -> dict[str, tuple[str, ...]]:
    """Per model that is ready, the devices of its stages."""
    return {
        each.model: tuple(stage.device for stage in each.stages)
        for each in daemon.verbs.status().deployments
        if each.state == "ready"
    }


def kinds(daemon: Daemon, *wanted: str) -> list[str]:
    return [event.kind for event in daemon.log.since(0) if event.kind in wanted]


def told_of_files(daemon: Daemon) -> int:
    """How often it was told that a model could not be mended because its file is gone."""
    told = [event.text for event in daemon.log.since(0) if event.kind == "not-mended"]
    return sum("is not there any more" in text for text in told)


def info_of(daemon: Daemon) -> api.ModelInfo:
    (info,) = daemon.verbs.models().models
    return info


def split(model: Path, cluster: Cluster) -> Plan:
    chain = partitioner.analyze(model)
    half = len(chain.blocks) // 2
    placement = parse_placement(f"a=0:{half},b={half}:", cluster, len(chain.blocks))
    return make_plan(chain, cluster, placement=placement)


@pytest.mark.integration
def test_a_device_that_the_cluster_has_no_more_is_planned_around_at_once(tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    inputs = models.example_inputs(MODEL, seed=1)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    expected = dict(
        zip([each.name for each in session.get_outputs()], session.run(None, inputs), strict=True)
    )
    port = free_ports(3)
    with local_agents(["a", "b"], tmp_path) as agents:
        a, b = ((agent.name, agent.address) for agent in agents)
        both, one = a_cluster(port, a, b), a_cluster(port, a)
        plan = msgspec.structs.replace(split(model, both), objective="throughput")
        with Daemon(both, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            for name in ("own", "given"):
                order = Order(
                    name, model, plan, objective="throughput", given=name == "given", standby="none"
                )
                daemon.deployments.bring_up(order, lambda _what, _fraction: None)
            assert where(daemon) == {"own": ("a", "b"), "given": ("a", "b")}
        with Daemon(one, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            until(lambda: where(daemon) == {"own": ("a",), "given": ("a",)}, daemon)
            reasons = [event.text for event in daemon.log.since(0) if event.kind == "not-restored"]
            assert all("the cluster has no b any more" in text for text in reasons)
            assert not kinds(daemon, "not-mended", "model-stuck")
            orders = daemon.deployments.orders
            assert {order.objective for order in orders.values()} == {"throughput"}
            with Client(str(daemon.address)) as client:
                for name in orders:
                    outputs = client.infer(inputs, model=name, timeout=30)
                    for output, value in expected.items():
                        np.testing.assert_allclose(outputs[output], value, rtol=1e-3, atol=1e-5)
        with Daemon(both, tmp_path / "state") as daemon:  # what was given is followed again
            daemon.connect(10.0)
            until(lambda: where(daemon) == {"own": ("a",), "given": ("a", "b")}, daemon)
        nothing = a_cluster(port, a, more='memory = "1 KiB"')
        with Daemon(nothing, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            daemon.deployments.take_down("own", 0.0)
            until(lambda: "nothing can hold it" in info_of(daemon).reason, daemon)
            time.sleep(1.0)  # several pauses
            assert kinds(daemon, "not-mended", "model-stuck") == ["model-stuck"]


@pytest.mark.integration
def test_a_device_that_had_joined_and_may_not_any_more_is_planned_around(tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    port = free_ports(3)
    arguments = {"b": ["--dial", f"tcp://127.0.0.1:{port}"]}
    with local_agents(["a"], tmp_path) as (agent,):
        alone = a_cluster(port, (agent.name, agent.address))
        dispatcher = msgspec.structs.replace(alone.dispatcher, join=True)
        with (
            local_agents(["b"], tmp_path, arguments=arguments),
            Daemon(msgspec.structs.replace(alone, dispatcher=dispatcher), tmp_path / "state") as daemon,
        ):
            daemon.connect(10.0)
            until(lambda: "b" in daemon.cluster.names, daemon)
            order = Order("m", model, split(model, daemon.cluster), standby="none")
            daemon.deployments.bring_up(order, lambda _what, _fraction: None)
        with Daemon(alone, tmp_path / "state") as daemon:
            daemon.connect(10.0)
            until(lambda: where(daemon) == {"m": ("a",)}, daemon)
            assert not kinds(daemon, "not-mended", "model-stuck")


def deploy(
    daemon: Daemon,
    name: str,
    model: Path,
    on_progress: Callable[[str, float], None] = lambda _what, _fraction: None,
    withdrawal: Withdrawal | None = None,
) -> None:
    files = model_files(model)
    daemon.verbs.want(Want(0, tuple(each.file for each in files)))
    for each, path in files.items():
        daemon.verbs.chunk(Chunk(0, each.file, 0), path.read_bytes())
    order = api.Deploy(0, name, tuple(files), standby="none")
    daemon.verbs.deploy(order, on_progress, withdrawal)


@pytest.mark.integration
def test_what_was_given_up_leaves_nothing_behind(tmp_path: Path) -> None:
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    other = models.save(MODEL, tmp_path / "other.onnx", seed=9)
    state = tmp_path / "state"

    def lie() -> set[Path]:
        return {path for name in ("parts", "files", "models") for path in (state / name).rglob("*")}

    with local_agents(["a"], tmp_path) as (agent,):
        cluster = a_cluster(free_ports(3), (agent.name, agent.address))
        with Daemon(cluster, state) as daemon:
            daemon.connect(10.0)
            deploy(daemon, "m", model)
            before = lie()
            for moment in ("measur", "load", "canary"):
                withdrawal, seen = Withdrawal(), set[Path]()

                def give_up(
                    what: str, _: float, moment: str = moment, withdrawal: Withdrawal = withdrawal
                ) -> None:
                    if moment in what:
                        seen.update(lie())  # noqa: B023
                        withdrawal.withdraw()

                with pytest.raises(Cancelled):
                    deploy(daemon, "n", other, give_up, withdrawal)
                assert len(seen) > len(before), "something was there by then"
                until(lambda: lie() == before, daemon)
            deploy(daemon, "m", other)  # what is replaced goes as well
            until(lambda: len(lie()) == len(before), daemon)


@pytest.mark.integration
def test_models_of_a_relative_state_survive_and_those_whose_files_are_gone_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    port, state = free_ports(3), Path("state")
    with local_agents(["a"], tmp_path) as (agent,):
        cluster = a_cluster(port, (agent.name, agent.address))
        with Daemon(cluster, state) as daemon:
            daemon.connect(10.0)
            deploy(daemon, "m", model)
        with Daemon(cluster, state) as daemon:
            daemon.connect(10.0)
            until(lambda: info_of(daemon).state == "ready", daemon)
            assert daemon.deployments.orders["m"].model.is_file()
            assert not kinds(daemon, "files-missing")
            with pytest.raises(DeferError):  # what fails leaves nothing behind
                daemon.verbs.deploy(api.Deploy(0, "n", (), standby="none"), lambda _what, _fraction: None)
            assert daemon.deployments.orders["m"].model.is_file()
        shutil.move("state", "moved")
        with Daemon(cluster, Path("moved")) as daemon:
            daemon.connect(10.0)
            until(lambda: info_of(daemon).state == "ready", daemon)
            agent.process.kill()
            agent.process.wait(10)
            until(lambda: info_of(daemon).state == "lost", daemon)
            with agent_again(agent, tmp_path):
                until(lambda: info_of(daemon).state == "ready", daemon)
                shutil.rmtree("moved/models")
                shutil.rmtree("moved/parts")
            until(lambda: info_of(daemon).state == "lost", daemon)
            until(lambda: "is not there any more" in info_of(daemon).reason, daemon)
            with agent_again(agent, tmp_path):
                until(lambda: told_of_files(daemon), daemon)
                time.sleep(1.0)  # several pauses
                assert told_of_files(daemon) == 1
                assert "is not there any more" in info_of(daemon).reason
        with agent_again(agent, tmp_path), Daemon(cluster, Path("moved")) as daemon:
            assert kinds(daemon, "files-missing") == ["files-missing"]


def test_a_state_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", "home")
    cluster = a_cluster(7600, ("a", "127.0.0.1:7700"))
    with ExitStack() as stack:
        asked = state_place(cluster, "stD", stack, none=False)
        usual = state_place(cluster, None, stack, none=False)
    assert asked.folder == tmp_path / "stD"
    assert usual.folder == tmp_path / "home" / "defer" / "dispatcher-7600"
