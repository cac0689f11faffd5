"""Batches of queued requests: asked for, planned, laid out, and run by real agents with the results of single runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import partitioner
from defer.batching import make_batching, parse_batching, with_batching
from defer.client import Client
from defer.dispatcher.ahead import batching_as
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.questions import Foreseen
from defer.documents.base import decode, encode
from defer.documents.cluster import loads_cluster
from defer.documents.plan import Plan, PlanBatching
from defer.errors import InvalidDocument, UsageError
from defer.hops import Part, Place, lay_out
from defer.local_agents import local_agents
from defer.planning import make_plan, parse_placement
from defer.replanning import replan
from node_agent.messages import FileRef, TensorSpec

WIDTH = 512


def save_model(path: Path, *, batch: int | str = "n") -> Path:
    """Two layers whose weights are read for each run: a batch reads them once."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 23 for name in "uv"}
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, WIDTH])],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_what_is_typed() -> None:
    assert parse_batching(None, None) is None
    assert parse_batching("8,4", "2ms") == PlanBatching(sizes=(4, 8), delay_s=0.002)
    assert parse_batching("8", None) == PlanBatching(sizes=(8,))
    for sizes, delay in (("1", None), ("a", None), ("2,1000", None), ("", None), (None, "2ms"), ("4", "1h")):
        with pytest.raises(UsageError):
            parse_batching(sizes, delay)
    assert make_batching((), 0.0) is None
    with pytest.raises(UsageError, match="increase"):
        make_batching((4, 2), 0.0)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    chain = partitioner.analyze(save_model(tmp_path / "m.onnx"))
    cluster = loads_cluster(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        '[[device]]\nname = "a"\naddress = "127.0.0.1:1"\n[[device]]\nname = "b"\naddress = "127.0.0.1:5"\n'
    )
    return make_plan(chain, cluster, placement=parse_placement("a=0:2,b=2:", cluster, len(chain.blocks)))


def test_a_plan_carries_it_and_a_wrong_one_is_refused(plan: Plan) -> None:
    free: Any = [SimpleNamespace(name="x", shape=("n", 4))]
    fixed: Any = [SimpleNamespace(name="x", shape=(1, 4))]
    wanted = PlanBatching(sizes=(4, 8), delay_s=0.002)
    batched = with_batching(plan, free, wanted)
    assert decode(Plan, encode(batched), "the plan").batching == wanted
    assert with_batching(plan, fixed, None) is plan
    with pytest.raises(UsageError, match=r"cannot be batched: input 'x' is \[1, 4\]"):
        with_batching(plan, fixed, wanted)
    wrong = with_batching(plan, free, PlanBatching(sizes=(8, 4)))
    with pytest.raises(InvalidDocument, match="increase"):
        decode(Plan, encode(wrong), "the plan")


def test_plans_made_later_batch_as_the_one_before(plan: Plan, tmp_path: Path) -> None:
    wanted = PlanBatching(sizes=(4,))
    batched = with_batching(plan, (), wanted)
    chain = partitioner.analyze(save_model(tmp_path / "m.onnx"))
    cluster = loads_cluster(
        '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"\n'
        '[[device]]\nname = "b"\naddress = "127.0.0.1:5"\n'
    )
    found = replan(batched, chain, cluster, None)
    assert found.change
    assert found.plan.batching == wanted
    order = Order("m", tmp_path / "m.onnx", plan=batched)
    assert batching_as(order, Foreseen(plan, ())).plan == batched
    assert batching_as(Order("m", tmp_path / "m.onnx"), Foreseen(plan, ())).plan == plan


def test_every_stage_may_batch_and_the_first_one_waits(plan: Plan) -> None:
    batched = with_batching(plan, (), PlanBatching(sizes=(4, 32), delay_s=0.002))
    tensors = (TensorSpec("x", "float32", ("n", WIDTH)),)
    part = Part(FileRef("ab" * 32, 1), (), tensors, tensors, tensors)
    places = {name: Place(name, f"tcp://{name}:1", f"tcp://{name}:2") for name in "ab"}
    layout = lay_out(batched, [part, part], places, Place("@dispatcher", "tcp://d:1", "tcp://d:2"))
    (first,), (second,) = layout.hops["a"], layout.hops["b"]
    assert (first.batch, first.batch_delay_s) == ((4, 32), 0.002)
    assert (second.batch, second.batch_delay_s) == ((4, 32), 0.0)
    assert min(first.credit, second.credit) >= 64
    (alone,) = lay_out(plan, [part, part], places, Place("@dispatcher", "tcp://d:1", "tcp://d:2")).hops["a"]
    assert (alone.batch, alone.batch_delay_s) == ((), 0.0)
    assert alone.credit <= 32


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with local_agents(["a", "b"], tmp_path) as agents:
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"']
        lines += [f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"' for agent in agents]
        with Daemon(loads_cluster("\n".join(lines)), tmp_path / "state") as running:
            running.connect(20)
            yield running


@pytest.mark.integration
def test_batched_results_are_those_of_single_runs(daemon: Daemon, tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx")
    chain = partitioner.analyze(path)
    placement = parse_placement("a=0:2,b=2:", daemon.cluster, len(chain.blocks))
    plan = make_plan(chain, daemon.cluster, placement=placement)
    wanted = PlanBatching(sizes=(4, 8), delay_s=0.02)
    made = daemon.deployments.bring_up(
        Order("m", path, plan=plan, batching=wanted, standby="none"), lambda _what, _fraction: None
    )
    assert made.deployment.plan.batching == wanted
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(1)
    inputs = [random.standard_normal((1 + number % 2, WIDTH)).astype(np.float32) for number in range(64)]
    with Client(str(daemon.address)) as client:
        futures = [client.submit({"x": x}) for x in inputs]
        for x, future in zip(inputs, futures, strict=True):
            (expected,) = session.run(None, {"x": x})
            np.testing.assert_allclose(future.result(20)["y"], expected, rtol=1e-3, atol=1e-4)
        # A result is with its client before the stage has counted it.
        deadline = time.monotonic() + 20
        while (info := client.status().deployments[0]).stages[0].items < 65 and time.monotonic() < deadline:
            time.sleep(0.02)
    for stage in info.stages:
        assert any("batch" in note for note in stage.engine_notes)
    first = info.stages[0]
    assert first.items == 65
    if "batches up to" in " ".join(first.engine_notes):  # it does where batches are cheaper on this machine
        assert first.runs < first.items


@pytest.mark.integration
def test_a_model_with_a_fixed_batch_is_refused_before_anything_is_loaded(
    daemon: Daemon, tmp_path: Path
) -> None:
    path = save_model(tmp_path / "fixed.onnx", batch=1)
    with pytest.raises(UsageError, match="cannot be batched"):
        daemon.deployments.bring_up(
            Order("m", path, batching=PlanBatching(sizes=(4,)), standby="none"), lambda _what, _fraction: None
        )
