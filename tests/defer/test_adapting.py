"""A real dispatcher and real agents: a device that becomes slow is left, and taken again when it is fast again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import models
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.documents.profile import CostProfile
from defer.live.watcher import Watcher
from defer.local_agents import LocalAgent, _wait_ready, stop
from defer.planning import make_plan, parse_placement
from partitioner import analyze

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

MODEL = "tiny_residual"
DEADLINE_S = 120.0
"""For whatever must happen; it takes seconds on a machine with nothing else to do."""

SETTINGS = """
[dispatcher]
listen = "127.0.0.1:0"
replan_after = "1 s"
replan_pause = "1 s"
[network]
bandwidth = "100 Mbit/s"
delay = "1 ms"
"""


@contextmanager
def slow_agents(names: str, tmp_path: Path, *more: str) -> Iterator[list[LocalAgent]]:
    running = []
    try:
        for name in names:
            command = [sys.executable, "-m", "tests.defer.slow_agent", str(tmp_path / f"{name}.slow")]
            command += ["--name", name, "--listen", "127.0.0.1:0", "--threads", "1", "--json"]
            command += ["--store", str(tmp_path / name), "--until-stdin-closes", *more]
            with (tmp_path / f"{name}.log").open("w") as log:
                running.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                        start_new_session=True,
                    )
                )
        yield [_wait_ready(name, process, tmp_path) for name, process in zip(names, running, strict=True)]
    finally:
        stop(running)


@contextmanager
def dispatcher(agents: list[LocalAgent], tmp_path: Path, settings: str = SETTINGS) -> Iterator[Daemon]:
    text = settings + "".join(
        f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\n' for agent in agents
    )
    with Daemon(loads_cluster(text), tmp_path / "state") as daemon:
        daemon.connect(30)
        yield daemon


class Load:
    """Requests, one after the other, each compared with the whole model; in a thread of its own."""

    def __init__(self, daemon: Daemon, model: Path) -> None:
        self.answers = 0
        self.error: BaseException | None = None
        self._daemon, self._model = daemon, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            inputs = models.example_inputs(MODEL, seed=1)
            whole = onnxruntime.InferenceSession(str(self._model), providers=["CPUExecutionProvider"])
            (expected,) = whole.run(None, inputs)
            with Client(str(self._daemon.address)) as client:
                while not self._stop.is_set():
                    (got,) = client.infer(inputs, timeout=60).values()
                    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
                    self.answers += 1
                    self._stop.wait(0.02)
        except BaseException as error:
            self.error = error


def until(what: Callable[[], bool], load: Load | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert load is None or load.error is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def serving(daemon: Daemon) -> set[str]:
    """Devices of what serves."""
    ready = [info.epoch for info in daemon.verbs.models().models if info.state == "ready"]
    return {
        stage.device
        for epoch in ready
        if epoch in daemon.deployments.served
        for stage in daemon.deployments.served[epoch].deployment.plan.stages
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save(MODEL, tmp_path_factory.mktemp("model") / f"{MODEL}.onnx")


def test_a_device_that_becomes_slow_is_left_without_losing_a_request(model: Path, tmp_path: Path) -> None:
    with slow_agents("ab", tmp_path) as agents, dispatcher(agents, tmp_path) as daemon:
        daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        with Load(daemon, model) as load:
            until(lambda: load.answers > 5, load)
            (used,) = serving(daemon)
            other = "b" if used == "a" else "a"
            (tmp_path / f"{used}.slow").write_text("sleep 0.1")
            until(lambda: serving(daemon) == {other}, load)
            answers = load.answers
            until(lambda: load.answers > answers + 5, load)
        kinds = [event.kind for event in daemon.log.since(0)]
        assert "replan-failed" not in kinds
        (drift,) = [event for event in daemon.log.since(0) if event.kind == "drift" and event.device == used][
            :1
        ]
        assert f"{MODEL}: {used} takes" in drift.text
        replanned = [event for event in daemon.log.since(0) if event.kind == "replanned"]
        assert f"runs on {other}" in replanned[0].text
        assert "changed: gains" in replanned[0].text
        assert not {"stage-hangs", "route-lost"} & set(kinds)
        believed = {str(each.subject): each.factor for each in daemon.adapting.believed()}
        assert believed[used] > 10
        # It is timed again although it runs nothing, and not thought slow for ever.
        (tmp_path / f"{used}.slow").unlink()
        with Load(daemon, model) as load:
            until(lambda: used not in {str(each.subject) for each in daemon.adapting.believed()}, load)


def test_devices_that_share_the_requests_share_them_on_when_one_becomes_slow(
    model: Path, tmp_path: Path
) -> None:
    order = Order(MODEL, model, objective="throughput", replicas=True)

    def shares() -> dict[str, float]:
        """The part of the requests that each device is to get."""
        plan = daemon.deployments.orders[MODEL].plan
        assert plan is not None
        found: dict[str, float] = {}
        for fraction, leg in plan.legs:
            for stage in leg.stages:
                found[stage.device] = found.get(stage.device, 0.0) + fraction
        return found

    with slow_agents("abc", tmp_path) as agents, dispatcher(agents, tmp_path) as daemon:
        daemon.deployments.bring_up(order, lambda _what, _fraction: None)
        before = shares()
        assert len(before) >= 2
        slow = max(before, key=lambda name: before[name])
        with Load(daemon, model) as load:
            until(lambda: load.answers > 5, load)
            (tmp_path / f"{slow}.slow").write_text("sleep 0.1")
            until(lambda: shares().get(slow, 0.0) < 0.05, load)
            others = {name: share for name, share in shares().items() if name != slow}
            assert len(others) == 2
            assert min(others.values()) > 0.2
            answers = load.answers
            until(lambda: load.answers > answers + 5, load)
        kinds = [event.kind for event in daemon.log.since(0)]
        assert not {"replan-failed", "route-lost"} & set(kinds)


def test_a_plan_that_was_given_is_kept_unless_the_file_says_otherwise(model: Path, tmp_path: Path) -> None:
    with slow_agents("ab", tmp_path) as agents:
        with dispatcher(agents, tmp_path / "measuring") as daemon:
            outcome = daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
            assert isinstance(outcome.profile, CostProfile)
            profile = outcome.profile
        cluster = daemon.cluster
        chain = analyze(model)
        placed = parse_placement("a=0:", cluster, len(chain.blocks))
        plan = make_plan(chain, cluster, profile, placement=placed)
        order = Order(MODEL, model, plan, profile, given=True)
        (tmp_path / "a.slow").write_text("sleep 0.1")
        with dispatcher(agents, tmp_path / "kept") as daemon:
            daemon.deployments.bring_up(order, lambda _what, _fraction: None)
            with Load(daemon, model) as load:
                until(lambda: load.answers > 30, load)
            assert daemon.adapting.believed() == ()
            assert serving(daemon) == {"a"}
        every = SETTINGS.replace("[network]", 'replan = "every"\n[network]')
        with dispatcher(agents, tmp_path / "replaced", every) as daemon:
            daemon.deployments.bring_up(order, lambda _what, _fraction: None)
            with Load(daemon, model) as load:
                until(lambda: serving(daemon) == {"b"}, load)


def test_a_slow_stage_is_not_taken_for_a_dead_one(model: Path, tmp_path: Path) -> None:
    """A run that takes thousands of times longer than planned, from one to the next, with the processor busy."""
    settings = SETTINGS.replace("[network]", 'replan = "never"\n[network]')
    with slow_agents("a", tmp_path) as agents, dispatcher(agents, tmp_path, settings) as daemon:
        daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        with Load(daemon, model) as load:
            until(lambda: load.answers > 5, load)
            (tmp_path / "a.slow").write_text("spin 0.7")
            answers = load.answers
            until(lambda: load.answers > answers + 3, load)
            kinds = {event.kind for event in daemon.log.since(0)}
            assert not kinds & {"stage-hangs", "route-lost", "agent-lost"}


def test_readiness_says_whether_a_model_answers(model: Path, tmp_path: Path) -> None:
    settings = SETTINGS.replace("[network]", 'canary = "0.2 s"\nreplan = "never"\n[network]')
    with slow_agents("a", tmp_path) as agents, dispatcher(agents, tmp_path, settings) as daemon:
        watcher = Watcher(daemon)
        daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        done = daemon.verbs.status().devices[0].progress
        until(lambda: daemon.verbs.status().devices[0].progress > done + 1)
        assert watcher.ready().status == 200
        (tmp_path / "a.slow").write_text("fail 0")
        until(lambda: watcher.ready().status == 503)
        assert "told to fail" in str(watcher.ready().body)
        (tmp_path / "a.slow").unlink()
        until(lambda: watcher.ready().status == 200)
        kinds = [event.kind for event in daemon.log.since(0)]
        assert kinds.index("canary-failed") < kinds.index("canary-passes")


def test_a_device_that_joins_is_measured_and_taken_where_that_pays(model: Path, tmp_path: Path) -> None:
    settings = SETTINGS.replace("[network]", "join = true\n[network]")
    with slow_agents("a", tmp_path) as agents, dispatcher(agents, tmp_path, settings) as daemon:
        daemon.deployments.bring_up(Order(MODEL, model), lambda _what, _fraction: None)
        (tmp_path / "a.slow").write_text("sleep 0.1")
        with Load(daemon, model) as load:
            until(lambda: "a" in {str(each.subject) for each in daemon.adapting.believed()}, load)
            # With two threads it is another kind of device, and cannot take over what was measured of the first.
            dial = ["--dial", f"tcp://{daemon.address}", "--threads", "2"]
            with slow_agents("b", tmp_path, *dial):
                until(lambda: serving(daemon) == {"b"}, load)
                answers = load.answers
                until(lambda: load.answers > answers + 5, load)
                kinds = [event.kind for event in daemon.log.since(0)]
                told = ["device-joined", "device-measured", "replanned"]
                assert [kind for kind in kinds if kind in told][:3] == told
                kept = daemon.deployments.orders[MODEL].profile
                assert kept is not None
                assert set(kept.devices) == {"a", "b"}
                (tmp_path / "a.slow").unlink()
            until(lambda: serving(daemon) == {"a"}, load)  # it has gone again
