"""Tensors between convolutions are handed over in blocks of channels: where, and whether results stay what they are."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import models
import partitioner
from defer.agents import AgentPool
from defer.client import Client
from defer.deployer import Deployment, common_channel_block, layout_of
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.sampling import reference_of
from defer.documents.cluster import Cluster, loads_cluster
from defer.documents.plan import Plan, PlanStage, PlanTransfer
from defer.hops import DISPATCHER, Layout, Part, Place, in_channel_blocks, lay_out, parts_of
from defer.local_agents import LocalAgent, local_agents
from defer.parts import bound_inputs, write_parts
from defer.planning import make_plan, parse_placement
from node_agent.engines import engine_named
from node_agent.engines.base import Partition
from node_agent.engines.in_blocks import Turned, load
from node_agent.engines.onnxruntime_cpu import NAME
from node_agent.messages import EngineInfo, FileRef, HopSpec, Offer, TensorSpec
from node_agent.samples import samples

BLOCK = engine_named(NAME).channel_block()
native = pytest.mark.skipif(not BLOCK, reason="ONNX Runtime computes on plain tensors here")

EMPTY = Plan(
    model="m",
    digest="0",
    positions=(),
    objective="latency",
    latency_s=1.0,
    period_s=1.0,
    bound=1.0,
    optimal=True,
    stages=(),
    transfers=(),
)


def pieces(name: str, folder: Path, count: int):
    """A network in parts of equally many ops, and the plan that says so."""
    model = models.save(name, folder / "m.onnx")
    chain = partitioner.analyze(model)
    ends = sorted({round(len(chain.blocks) * i / count) for i in range(count + 1)})
    cuts = [chain.boundaries[end].position for end in ends[1:-1]]
    return chain, write_parts(model, chain, cuts, folder / "parts"), plan(chain, ends)


def plan(chain: partitioner.BlockChain, ends: list[int], coded: Collection[int] = ()) -> Plan:
    """Stages between these boundaries, each on a device of its own; what crosses those in `coded` is encoded."""
    stages = tuple(
        PlanStage(
            device=f"d{number}",
            start=start,
            stop=stop,
            ops=(chain.boundaries[start].position, chain.boundaries[stop].position),
            weight_bytes=1,
            flops=1,
            seconds=1.0,
        )
        for number, (start, stop) in enumerate(itertools.pairwise(ends))
    )
    names = ["home", *(stage.device for stage in stages), "home"]
    transfers = tuple(
        PlanTransfer(
            boundary=end,
            path=path,
            codec="lz4" if end in coded else "raw",
            nbytes=1,
            seconds=0.0,
            tensors=chain.boundaries[end].tensors,
        )
        for end, path in zip(ends, itertools.pairwise(names), strict=True)
    )
    return msgspec.structs.replace(EMPTY, positions=tuple(ends), stages=stages, transfers=transfers)


@native
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "densenet121", "inception_v3"])
def test_networks_in_parts_give_what_they_give_in_plain(name: str, tmp_path: Path) -> None:
    chain, written, made = pieces(name, tmp_path, 5)
    parts = in_channel_blocks(made, [each.part for each in written], BLOCK)
    assert sum(bool(spec.channel_block) for part in parts for spec in part.outputs) >= 3
    feeds = samples(bound_inputs(chain))
    plain, blocks = dict(feeds), dict(feeds)
    for each, part in zip(written, parts, strict=True):
        graph = each.files[part.graph]
        for values, described in ((plain, each.part), (blocks, part)):
            session = load(engine_named(NAME), NAME, Partition(graph, described.inputs, described.outputs))
            values.update(session.run({spec.name: values[spec.name] for spec in described.inputs}))
            assert not isinstance(session._inner, Turned)
            session.close()
    for spec in chain.outputs:
        scale = np.abs(plain[spec.name]).max()
        np.testing.assert_allclose(blocks[spec.name] / scale, plain[spec.name] / scale, atol=1e-5)


def part(
    name: str, inputs: Sequence[str], outputs: Sequence[str], convolved: Sequence[str], channels: int = 32
) -> Part:
    described = [
        tuple(TensorSpec(each, "float32", ("batch", channels, 4, 4)) for each in names)
        for names in (inputs, outputs)
    ]
    return Part(FileRef(name * 64, 10, ".onnx"), (), *described, described[0], tuple(convolved))


def chosen(
    parts: Sequence[Part], tensors: Sequence[Sequence[str]], coded: Collection[int] = (), block: int = 16
) -> set[str]:
    """What is handed over in blocks, by whoever makes it and by whoever reads it alike."""
    transfers = tuple(
        PlanTransfer(
            boundary=number,
            path=("d", "e"),
            codec="lz4" if number in coded else "raw",
            nbytes=1,
            seconds=0.0,
            tensors=tuple(names),
        )
        for number, names in enumerate(tensors)
    )
    made = in_channel_blocks(msgspec.structs.replace(EMPTY, transfers=transfers), parts, block)
    written = {spec.name for each in made for spec in each.outputs if spec.channel_block}
    assert written == {spec.name for each in made for spec in each.inputs if spec.channel_block}
    assert {s.channel_block for each in made for s in (*each.inputs, *each.outputs)} <= {0, block}
    return written


def test_what_is_handed_over_in_channel_blocks() -> None:
    first = part("a", ["x"], ["t", "u"], ["x", "t", "u"])
    second = part("b", ["t"], ["v"], ["t", "v"])
    third = part("c", ["u", "v"], ["y"], ["u", "v", "y"])
    parts, tensors = [first, second, third], [["x"], ["t", "u"], ["u", "v"], ["y"]]
    assert chosen(parts, tensors) == {"t", "u", "v"}
    # A codec knows plain tensors: what it encodes on any hop is plain on all.
    assert chosen(parts, tensors, coded=[1]) == {"v"}
    assert chosen(parts, tensors, coded=[2]) == {"t"}
    # Whoever reads it otherwise has it plain, and so has everybody.
    assert chosen([first, second, replace(third, convolved=("v", "y"))], tensors) == {"t", "v"}
    assert chosen([first, replace(second, convolved=()), third], tensors) == {"u"}
    # The dispatcher is handed results, and keeps them plain.
    assert chosen(parts, [*tensors[:3], ["y", "v"]]) == {"t", "u"}
    assert chosen(parts, tensors, block=32) == {"t", "u", "v"}
    odd = [
        part("a", ["x"], ["t", "u"], ["x", "t", "u"], 24),
        part("b", ["t"], ["v"], ["t", "v"], 24),
        part("c", ["u", "v"], ["y"], ["u", "v", "y"], 24),
    ]
    assert chosen(odd, tensors) == set()
    assert chosen(odd, tensors, block=8) == {"t", "u", "v"}


def test_kept_hops_say_what_they_said() -> None:
    """A dispatcher that starts again lays the same hops out."""
    parts = [part("a", ["x"], ["t"], ["t"]), part("b", ["t"], ["y"], ["t", "y"])]
    made = plan_of_two()
    places = {name: Place(name, f"tcp://{name}:1", f"tcp://{name}:2") for name in ("d0", "d1")}
    home = Place(DISPATCHER, "tcp://home:1", "tcp://home:2")
    layout = lay_out(made, parts, places, home, 16)
    assert [spec.channel_block for spec in layout.hops["d1"][0].inputs] == [16]
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(layout.hops), type=dict[str, tuple[HopSpec, ...]])
    assert lay_out(made, parts_of(kept), places, home) == layout


def test_a_reference_is_handed_what_the_pipeline_is_handed_beside_which_it_runs() -> None:
    """A lossy cut is plain; without loss it could be in blocks, and would be another partition on each side of it."""
    lossy = plan_of_two("raw", "float16", "raw")
    exact = reference_of(lossy)
    assert exact is not None
    parts = [part("a", ["x"], ["t"], ["t"]), part("b", ["t"], ["y"], ["t", "y"])]
    pool, cluster = devices({"d0": {}, "d1": {}})
    home = Place(DISPATCHER, "tcp://home:1", "tcp://home:2")
    layout = layout_of(pool, cluster, lossy, parts, home)
    beside = cast(Deployment, SimpleNamespace(layout=layout))

    def hops(of: Layout) -> list[tuple[Any, ...]]:
        return [(spec.inputs, spec.outputs) for specs in of.hops.values() for spec in specs]

    assert hops(layout_of(pool, cluster, exact, parts, home, beside)) == hops(layout)
    assert hops(layout_of(pool, cluster, exact, parts, home)) != hops(layout)


@pytest.mark.parametrize(
    ("described", "common"),
    [
        ({"a": {}, "b": {}}, 16),
        ({"a": {}, "b": {"channel_block": 8}}, 0),
        ({"a": {}, "b": {"channel_block": 0}}, 0),
        ({"a": {}, "b": {"channel_block": 0, "computes": False}}, 16),
        ({"a": {}, "b": {"away": True}}, 16),
        ({"a": {"away": True}}, 0),
        ({"a": {}, "b": {"options": {"layout": "plain"}}}, 0),
        ({"a": {}, "b": {"options": {"layout": "blocks", "optimization": "all"}}}, 16),
        ({"a": {}, "b": {"options": {"optimization": "basic"}}}, 0),
        ({"a": {}, "b": {"options": {"onnxruntime-cpu.layout": "plain"}}}, 0),
        ({"a": {}, "b": {"options": {"tensorrt.parts": "no"}}}, 16),
        ({"a": {}, "b": {"engine": NAME}}, 16),
        ({"a": {}, "b": {"engine": "tensorrt"}}, 0),
    ],
)
def test_in_blocks_of_how_many_channels(described: dict[str, dict[str, Any]], common: int) -> None:
    assert common_channel_block(*devices(described)) == common


def devices(described: dict[str, dict[str, Any]]) -> tuple[AgentPool, Cluster]:
    """A cluster, and a pool to which its devices are connected, as far as they are not away."""
    known, text = {}, ['[dispatcher]\nlisten = "127.0.0.1:0"']
    for number, (name, more) in enumerate(described.items()):
        options = "".join(f'"{key}" = "{value}"\n' for key, value in more.get("options", {}).items())
        computes = str(more.get("computes", True)).lower()
        text.append(
            f'[[device]]\nname = "{name}"\naddress = "127.0.0.1:{7700 + 3 * number}"\ncomputes = {computes}\n'
            f'engine = "{more.get("engine", "auto")}"\n[device.engine_options]\n{options}'
        )
        if not more.get("away"):
            engines = (EngineInfo("tensorrt", missing="No."), EngineInfo(NAME))
            offer = Offer(engines, 1, 1.0, 1, "f", 7701, 7702, channel_block=more.get("channel_block", 16))
            known[name] = SimpleNamespace(offer=offer, state="alive")
    return cast(AgentPool, SimpleNamespace(liveness=known.get)), loads_cluster("\n".join(text))


def plan_of_two(*codecs: str) -> Plan:
    stages = tuple(
        PlanStage(device=f"d{n}", start=n, stop=n + 1, ops=(n, n + 1), weight_bytes=1, flops=1, seconds=1.0)
        for n in range(2)
    )
    paths = [("home", "d0"), ("d0", "d1"), ("d1", "home")]
    transfers = tuple(
        PlanTransfer(boundary=n, path=path, codec=codec, nbytes=1, seconds=0.0, tensors=(name,))
        for n, (path, name, codec) in enumerate(zip(paths, "xty", codecs or ("raw",) * 3, strict=True))
    )
    return msgspec.structs.replace(EMPTY, stages=stages, transfers=transfers)


def network(path: Path) -> Path:
    """Four residual blocks of 32 channels."""
    random, nodes, weights = np.random.default_rng(2), [], []

    def convolution(read: str, name: str, inputs: int = 32) -> str:
        weight = random.standard_normal((32, inputs, 3, 3)).astype(np.float32) / 12
        weights.append(numpy_helper.from_array(weight, f"{name}.w"))
        nodes.append(helper.make_node("Conv", [read, f"{name}.w"], [name], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
        return f"{name}.relu"

    at = convolution("x", "stem", 3)
    for number in range(4):
        inner = convolution(convolution(at, f"b{number}.1"), f"b{number}.2")
        nodes.append(helper.make_node("Add", [at, inner], [f"b{number}"]))
        at = f"b{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [at], ["y"]))
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32, 1, 1])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@contextmanager
def served(
    folder: Path,
    names: Sequence[str],
    more: str = "",
    stages: Sequence[str] = ("a", "b", "c"),
    again: Callable[[list[str]], None] | None = None,
) -> Iterator[tuple[Daemon, dict[str, LocalAgent]]]:
    """The network on the first devices, with agents on all; `more` stands with the last device in the cluster file.

    When the block ends, the dispatcher is closed, and `again` is called with the cluster file's lines.
    """
    model = network(folder / "m.onnx")
    chain = partitioner.analyze(model, {"x": (1, 3, 16, 16)})
    with local_agents(names, folder) as agents:
        lines = [
            '[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "1 Gbit/s"\ndelay = "0.1 ms"',
            *(f'[[device]]\nname = "{a.name}"\naddress = "{a.address}"\nspeed = "1 GFLOP/s"' for a in agents),
        ]
        cluster = loads_cluster("\n".join([*lines, more]))
        ends = [round(len(chain.blocks) * n / len(stages)) for n in range(len(stages) + 1)]
        words = ",".join(
            f"{name}={a}:{b}" for name, (a, b) in zip(stages, itertools.pairwise(ends), strict=True)
        )
        made = make_plan(chain, cluster, placement=parse_placement(words, cluster, len(chain.blocks)))
        with Daemon(cluster, folder / "state") as daemon:
            daemon.connect(30)
            order = Order("m", model, made, shapes={"x": (1, 3, 16, 16)}, standby="none")
            daemon.deployments.bring_up(order, lambda _what, _fraction: None)
            yield daemon, {agent.name: agent for agent in agents}
            daemon.close()
        if again is not None:
            again(lines)


def same_as_whole(daemon: Daemon, folder: Path, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((2, 3, 16, 16)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(folder / "m.onnx"), providers=["CPUExecutionProvider"])
    with Client(str(daemon.address), timeout=60) as client:
        np.testing.assert_allclose(client.infer({"x": x})["y"], session.run(None, {"x": x})[0], atol=1e-5)


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """For each deployment, in blocks of how many channels stages are handed tensors by stages."""
    found: list[set[int]] = []

    def note(*arguments: Any) -> Layout:
        layout = lay_out(*arguments)
        hops = [hop for specs in layout.hops.values() for hop in specs if hop.hop]
        found.append({spec.channel_block for hop in hops for spec in hop.inputs})
        return layout

    monkeypatch.setattr("defer.deployer.lay_out", note)
    monkeypatch.setattr("defer.dispatcher.restoring.lay_out", note)
    return found


@native
@pytest.mark.integration
def test_agents_hand_each_other_blocks_and_a_lost_one_is_replaced(
    tmp_path: Path, handed: list[set[int]]
) -> None:
    with served(tmp_path, "abcd") as (daemon, agents):
        assert handed[0] == {BLOCK}
        same_as_whole(daemon, tmp_path, 1)
        agents["b"].process.kill()
        same_as_whole(daemon, tmp_path, 2)
        assert all(blocks <= {BLOCK} for blocks in handed)


@pytest.mark.integration
def test_one_device_that_wants_them_plain(tmp_path: Path, handed: list[set[int]]) -> None:
    with served(tmp_path, "abc", 'engine_options = { layout = "plain" }') as (daemon, _):
        assert handed == [{0}]
        same_as_whole(daemon, tmp_path, 1)


@native
@pytest.mark.integration
def test_an_engine_of_another_kind_turns_them(
    tmp_path: Path, handed: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a device that joins later: what was laid out before stays as it is."""
    monkeypatch.setattr("defer.deployer.common_channel_block", lambda *_: BLOCK // 2)
    with served(tmp_path, "abc") as (daemon, _):
        assert handed == [{BLOCK // 2}]
        same_as_whole(daemon, tmp_path, 1)


@native
@pytest.mark.integration
def test_a_dispatcher_that_starts_again_says_what_holds_then(tmp_path: Path, handed: list[set[int]]) -> None:
    def restored(cluster: Cluster) -> None:
        with Daemon(cluster, tmp_path / "state") as daemon:
            daemon.connect(30)
            deadline = time.monotonic() + 30
            while not any(each.state == "ready" for each in daemon.verbs.status().deployments):
                assert time.monotonic() < deadline, daemon.log.since(0)
                time.sleep(0.02)
            same_as_whole(daemon, tmp_path, 3)

    def again(lines: list[str]) -> None:
        restored(loads_cluster("\n".join(lines)))
        assert handed == [{BLOCK}, {BLOCK}]
        restored(loads_cluster("\n".join([*lines, 'engine_options = { layout = "plain" }'])))
        assert handed == [{BLOCK}, {BLOCK}, {0}]

    with served(tmp_path, "abc", again=again) as (daemon, _):
        same_as_whole(daemon, tmp_path, 1)
