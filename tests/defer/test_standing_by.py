"""A stage's agent is killed under load: a plan that stood by, loaded, takes over, and nothing is loaded for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import models
import partitioner
from defer.api import StandbyInfo
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import Cluster, loads_cluster
from defer.local_agents import LocalAgent, local_agents
from defer.planning import make_plan, parse_placement

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"
LONG_S = 60.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[tuple[LocalAgent, ...]]:
    with local_agents(["a", "b", "c"], tmp_path) as running:
        yield running


@pytest.fixture
def cluster(agents: tuple[LocalAgent, ...]) -> Cluster:
    lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
    lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
    return loads_cluster("\n".join(lines))


@pytest.fixture
def daemon(cluster: Cluster, tmp_path: Path) -> Iterator[Daemon]:
    with Daemon(cluster, tmp_path / "state") as running:
        running.connect(20)
        yield running


def two_stages(model: Path, cluster: Cluster, **more: Any) -> Order:
    chain = partitioner.analyze(model)
    half, count = len(chain.blocks) // 2, len(chain.blocks)
    plan = make_plan(chain, cluster, placement=parse_placement(f"a=0:{half},b={half}:", cluster, count))
    return Order(MODEL, model, plan=plan, **more)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def prepared(client: Client) -> dict[str, StandbyInfo]:
    return {info.lost: info for info in client.status().standby}


def loads(client: Client) -> dict[str, int]:
    return {device.name: device.loads for device in client.status().devices if device.state == "alive"}


class Load:
    """Requests, one after the other, each compared with the whole model."""

    def __init__(self, client: Client, model: Path) -> None:
        self._client = client
        self._session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LONG_S)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                given = models.example_inputs(MODEL, seed=self.done)
                wanted = self._session.run(None, given)
                outputs = self._client.infer(given, timeout=LONG_S)
                for name, array in zip(self._names, wanted, strict=True):
                    np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)
                self.done += 1
        except BaseException as error:  # told by the test
            self.failures.append(error)


def test_what_stands_by_takes_over_and_nothing_is_loaded(
    agents: tuple[LocalAgent, ...],
    daemon: Daemon,
    cluster: Cluster,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[list[int]] = []
    put = daemon.deployments.kept.put

    def note(order: Any, plan: Any, opened: Any) -> None:
        kept.append([made.epoch for made in opened])
        put(order, plan, opened)

    monkeypatch.setattr(daemon.deployments.kept, "put", note)
    first = daemon.deployments.bring_up(two_stages(model, cluster), lambda _w, _f: None).deployment.epoch
    with Client(str(daemon.address)) as client, Load(client, model) as load:
        until(lambda: {each.by for each in prepared(client).values()} == {"loaded"})
        assert prepared(client).keys() == {"a", "b"}
        ahead = prepared(client)["b"]
        assert ahead.epoch > first
        assert "b" not in ahead.devices
        before, events = loads(client), daemon.log.last
        agents[1].process.kill()
        until(lambda: "took-over" in [event.kind for event in daemon.log.since(events, 500)])
        done = load.done
        until(lambda: load.done > done + 20)
        noted = list(daemon.log.since(events, 500))
        took = next(at for at, event in enumerate(noted) if event.kind == "took-over")
        assert noted[took].epoch == ahead.epoch
        assert "mended" not in [event.kind for event in noted]
        # Whatever is loaded later is what is to stand by for the next loss.
        stood = [at for at, event in enumerate(noted) if event.kind == "standby-loaded"]
        assert all(at > took for at in stood)
        if not stood:
            after = loads(client)
            assert {name: after[name] for name in after} == {name: before[name] for name in after}
        ready = [each.epoch for each in client.status().deployments if each.state == "ready"]
        assert ready == [ahead.epoch]
        until(lambda: kept and kept[-1] == [ahead.epoch])  # what a restart takes over
    assert not load.failures


def test_it_gives_way_to_another_version_and_goes_with_its_model(
    daemon: Daemon, cluster: Cluster, model: Path
) -> None:
    order = two_stages(model, cluster)
    daemon.deployments.bring_up(order, lambda _w, _f: None)
    with Client(str(daemon.address)) as client:
        until(lambda: prepared(client) and {each.by for each in prepared(client).values()} == {"loaded"})
        old = {each.epoch for each in prepared(client).values()}
        daemon.deployments.bring_up(order, lambda _w, _f: None)
        until(lambda: not old & daemon.deployments.served.keys())
        until(lambda: {each.by for each in prepared(client).values()} == {"loaded"})
        assert not old & {each.epoch for each in prepared(client).values()}
        # Whatever needs the memory gets it.
        assert daemon.deployments.clear_standbys()
        assert daemon.deployments.in_service().keys() == daemon.deployments.served.keys()
        daemon.deployments.resume_standbys()
        daemon.recovery.look()
        until(lambda: {each.by for each in prepared(client).values()} == {"loaded"})
        daemon.deployments.take_down(MODEL, 5)
        assert daemon.deployments.served == {}
        assert client.status().standby == ()


def test_without_room_or_where_files_are_to_do_nothing_stands_by(tmp_path: Path, model: Path) -> None:
    weights = partitioner.analyze(model).weight_bytes
    words = ("--memory", f"{weights + (weights >> 2)}")
    with local_agents(["a", "b"], tmp_path, arguments={"a": words, "b": words}) as agents:
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        cluster = loads_cluster("\n".join(lines))
        with Daemon(cluster, tmp_path / "state") as daemon:
            daemon.connect(20)
            daemon.deployments.bring_up(two_stages(model, cluster), lambda _w, _f: None)
            with Client(str(daemon.address)) as client:
                until(lambda: all(each.reason for each in prepared(client).values()))
                assert {each.by for each in prepared(client).values()} == {"files"}
                assert all("stay free" in each.reason for each in prepared(client).values())
                events = daemon.log.since(0, 500)
                assert "standby-refused" in [event.kind for event in events]
                assert "standby-loaded" not in [event.kind for event in events]
