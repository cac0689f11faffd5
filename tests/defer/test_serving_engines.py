"""Precision and engines through the whole house: real agents, a dispatcher, a client."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

import models
import partitioner
from defer.cli import group
from defer.client import Client
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.errors import DeferError
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement

pytestmark = pytest.mark.integration

MODEL = "tiny_residual"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., tuple[str, Path]]]:
    """Serves the model in two stages with what a test says of each device; the address and the model's file."""
    model = models.save(MODEL, tmp_path / f"{MODEL}.onnx")
    count = itertools.count()
    with local_agents(["a", "b"], tmp_path) as agents:

        def start(**devices: str) -> tuple[str, Path]:
            text = (
                '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
            )
            for agent in agents:
                more = devices.get(agent.name, "")
                text += f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\n{more}\n'
            cluster = loads_cluster(text)
            chain = partitioner.analyze(model)
            half = len(chain.blocks) // 2
            placement = parse_placement(
                f"a=0:{half},b={half}:{len(chain.blocks)}", cluster, len(chain.blocks)
            )
            plan = make_plan(chain, cluster, None, placement=placement)
            daemon = stack.enter_context(Daemon(cluster, tmp_path / f"state-{next(count)}"))
            daemon.connect(20)
            daemon.deployments.bring_up(Order(MODEL, model, plan=plan, standby="none"), lambda *_: None)
            return str(daemon.address), model

        with ExitStack() as stack:
            yield start


def whole(model: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def error(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    return max(
        float(np.linalg.norm(got[name] - expected[name]) / np.linalg.norm(expected[name]))
        for name in expected
    )


def test_each_device_computes_in_its_own_precision(serve):
    address, model = serve(a='precision = "fp16"', b='precision = "int8"')
    with Client(address) as client:
        for seed in range(3):
            feeds = models.example_inputs(MODEL, seed=seed)
            got, expected = client.infer(feeds), whole(model, feeds)
            assert {name: array.dtype for name, array in got.items()} == {
                name: array.dtype for name, array in expected.items()
            }
            assert 1e-6 < error(got, expected) < 0.15
        (deployment,) = client.status().deployments
        assert [stage.precision for stage in deployment.stages] == ["fp16", "int8"]


def test_two_narrow_devices_exchange_narrow_tensors(serve):
    """Half the bytes cross of what crosses to a wide device, and results keep the model's type."""
    crossed = {}
    for kind in ("fp32", "fp16"):
        address, model = serve(a='precision = "fp16"', b=f'precision = "{kind}"')
        with Client(address) as client:
            for seed in range(3):
                feeds = models.example_inputs(MODEL, seed=seed)
                got, expected = client.infer(feeds), whole(model, feeds)
                assert {array.dtype.name for array in got.values()} == {"float32"}
                assert error(got, expected) < 0.01
            crossed[kind] = client.status().deployments[0].stages[1].bytes_in
    chain = partitioner.analyze(model)
    wide = chain.boundaries[len(chain.blocks) // 2].nbytes
    # Three requests, and perhaps one of the dispatcher's own.
    assert crossed["fp32"] in (3 * wide, 4 * wide)
    assert crossed["fp16"] in (3 * wide / 2, 4 * wide / 2)


def test_an_engine_that_a_device_lacks_falls_back_and_status_says_why(serve):
    address, model = serve(a='engine = "tensorrt"')
    feeds = models.example_inputs(MODEL, seed=1)
    with Client(address) as client:
        assert error(client.infer(feeds), whole(model, feeds)) < 1e-5
        status = client.status()
        first, second = status.deployments[0].stages
        assert first.engine == second.engine == "onnxruntime-cpu"
        assert first.engine_notes[0].startswith("tensorrt failed: TensorRT cannot be imported")
        assert second.engine_notes == ()
        for device in status.devices:
            assert "tensorrt" in device.missing
            assert device.clock_offset_s is not None
            assert abs(device.clock_offset_s) < 5
    shown = CliRunner().invoke(group, ["status", "--dispatcher", address])
    assert shown.exit_code == 0, shown.output
    assert "onnxruntime-cpu" in shown.output
    assert "stage 1 on a, engine onnxruntime-cpu: tensorrt failed" in shown.output
    # Of two that are alike a plan takes either: here both lack what they are asked for.
    address, model = serve(a='engine = "tensorrt"', b='engine = "tensorrt"')


def test_whoever_deploys_hears_at_once_that_an_engine_fell_back(serve):
    address, model = serve(a='engine = "tensorrt"', b='engine = "tensorrt"')  # whichever the plan takes
    asked = ["deploy", str(model), "--name", "again", "--dispatcher", address]
    deployed = CliRunner().invoke(group, asked)
    assert deployed.exit_code == 0, deployed.output
    assert ", engine onnxruntime-cpu: tensorrt failed" in deployed.stdout
    told = CliRunner().invoke(group, [*asked, "--json"])
    notes = json.loads(told.stdout)["engine_notes"]
    assert {(note["model"], note["engine"]) for note in notes} == {("again", "onnxruntime-cpu")}


def test_options_reach_the_engine_and_a_wrong_one_is_one_clear_error(serve):
    address, model = serve(a='engine_options = { optimization = "none" }')
    feeds = models.example_inputs(MODEL, seed=1)
    with Client(address) as client:
        assert error(client.infer(feeds), whole(model, feeds)) < 1e-5
    with pytest.raises(DeferError, match="no option speed=fast") as caught:
        serve(a='engine_options = { speed = "fast" }')
    assert "optimization=" in caught.value.hint


def test_a_profile_names_the_engine_that_really_ran(tmp_path):
    """`--engine` of a device asks; what a device lacks runs on another, and the measured costs say on which."""
    with local_agents(["c"], tmp_path) as (agent,):
        text = '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        text += (
            f'[[device]]\nname = "c"\naddress = "{agent.address}"\nengine = "tensorrt"\nprecision = "fp16"\n'
        )
        cluster = loads_cluster(text)
        model = models.save(MODEL, tmp_path / "m.onnx")
        with Daemon(cluster, tmp_path / "state") as daemon:
            daemon.connect(20)
            outcome = daemon.deployments.bring_up(Order(MODEL, model, standby="none"), lambda *_: None)
        profile = outcome.profile
    assert profile is not None
    assert profile.devices["c"].engine == "onnxruntime-cpu"
    chain = partitioner.analyze(model)
    wide = [boundary.nbytes for boundary in chain.boundaries]
    narrow = profile.devices["c"].crossing_bytes
    assert narrow[0] == wide[0]
    assert narrow[-1] == wide[-1]
    assert any(2 * one == other for one, other in zip(narrow, wide, strict=False))
