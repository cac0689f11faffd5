"""Plans with an order of their own: better where branches allow it, never worse, and the partitions still agree."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import models
import partitioner
import router
from defer import costs
from defer.blocks import regroup
from defer.branches import GAIN, Branches, branches_of
from defer.client import Client
from defer.costs import make_costs
from defer.dispatcher.bringup import Order
from defer.dispatcher.daemon import Daemon
from defer.documents import (
    Cluster,
    CodecProfile,
    CostProfile,
    DeviceProfile,
    Plan,
    decode,
    encode,
    loads_cluster,
)
from defer.errors import InvalidDocument, NoRoute, UsageError
from defer.local_agents import local_agents
from defer.op_graphs import Shares, op_graph
from defer.parts import write_parts
from defer.planning import make_plan
from defer.replanning import replan
from tests.defer.cli_fixtures import run as cli

WIDTH = 128


def branchy(lengths: Sequence[int], joins: Sequence[int] = ()) -> onnx.ModelProto:
    """Branches of square products from one input, wide inside and narrow at their ends, added up.

    Args:
        lengths: Products of each branch.
        joins: Per branch, the earlier one whose middle it starts from; -1 = the input.
    """
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array((rng.normal(size=(WIDTH, WIDTH)) / 12).astype(np.float32), "w")]
    nodes, ends, middles = [], [], []
    for branch, length in enumerate(lengths):
        join = joins[branch] if branch < len(joins) else -1
        at = middles[join] if 0 <= join < branch else "x"
        for number in range(length):
            out = f"b{branch}_{number}"
            nodes.append(helper.make_node("MatMul", [at, "w"], [out], name=out))
            at = out
            if number == length // 2:
                middles.append(at)
        nodes.append(helper.make_node("ReduceMean", [at], [f"end{branch}"], name=f"end{branch}", axes=[0]))
        ends.append(f"end{branch}")
    nodes.append(helper.make_node("Sum", ends, ["y"], name="y"))
    shape = [WIDTH, WIDTH]
    graph = helper.make_graph(
        nodes,
        "branchy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDTH])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def cluster_text(speeds: Sequence[str], bandwidth: str, memory: str = "4 GiB") -> str:
    """Devices with links to each other and to a dispatcher that computes nothing."""
    lines = ['version = 1\n[dispatcher]\ndevice = "desk"\n[[device]]\nname = "desk"\ncomputes = false']
    for number, speed in enumerate(speeds):
        lines.append(
            f'[[device]]\nname = "d{number}"\naddress = "127.0.0.1:{7000 + 10 * number}"\n'
            f'memory = "{memory}"\nspeed = "{speed}"'
        )
    lines.append(f'[network]\nbandwidth = "{bandwidth}"\ndelay = "0.1 ms"')
    return "\n".join(lines)


def cluster_of(speeds: Sequence[str], bandwidth: str, memory: str = "4 GiB") -> Cluster:
    return loads_cluster(cluster_text(speeds, bandwidth, memory))


def in_memory(model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]] | None = None) -> Branches:
    return Branches(
        lambda: partitioner.flow(model, shapes),
        lambda order: partitioner.analyze(model, shapes, order=order),
    )


def check_partitions(model: onnx.ModelProto, plan: Plan) -> None:
    """The plan's partitions, chained, give the whole model's bits."""
    x = np.random.default_rng(1).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    values = {"x": x}
    for part in partitioner.split(model, plan.cuts, order=plan.order):
        values |= run(partitioner_proto(part), values)
    assert values["y"].tobytes() == run(model, {"x": x})["y"].tobytes()


def partitioner_proto(part: partitioner.Partition) -> onnx.ModelProto:
    import onnx_ir as ir

    return ir.to_proto(part.model)


def run(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    feeds = {value.name: values[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, feeds), strict=True))


SHORT = (2, 3, 3, 4)  # no two of them beside each other, and no beginning, are half of the work
PAIR = cluster_of(["2 GFLOP/s"] * 2, "60 Mbit/s")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("branches") / "branchy.onnx"
    onnx.save(branchy(SHORT), path)
    return path


@pytest.fixture(scope="module")
def own(model: Path) -> Plan:
    return throughput(model)


def throughput(model: Path, cluster: Cluster = PAIR, profile: CostProfile | None = None) -> Plan:
    chain = partitioner.analyze(model)
    if profile is not None:
        chain = regroup(chain, profile.positions)
    return make_plan(chain, cluster, profile, objective="throughput", branches=branches_of(model, {}))


def test_an_order_of_its_own_beats_every_order_of_the_branches(model: Path, own: Plan) -> None:
    """Six products on each device, and between them only the input and the ends of branches; by hand."""
    chain = partitioner.analyze(model)
    single = make_plan(chain, PAIR, objective="throughput")
    product, mean = 2 * WIDTH**3 / 2e9, WIDTH**2 / 2e9
    assert single.order == ()
    assert math.isclose(single.period_s, 7 * product + 2 * mean + costs.STATIC_OVERHEAD, rel_tol=1e-3)
    assert math.isclose(own.period_s, 6 * product + 2 * mean + costs.STATIC_OVERHEAD, rel_tol=1e-3)
    assert own.period_s < 0.9 * single.period_s
    assert any("order of this plan's own" in note for note in own.notes)
    # Brute force: no permutation of whole branches has a better plan.
    branches = [[op for op, block in enumerate(chain.blocks) if block.name[:-2].endswith(f"b{b}") or
                 block.name == f"end{b}"] for b in range(len(SHORT))]  # fmt: skip
    rest = [op for op in range(len(chain.blocks)) if not any(op in branch for branch in branches)]
    for permutation in itertools.permutations(branches):
        order = [op for branch in permutation for op in branch] + rest
        other = make_plan(partitioner.analyze(model, order=order), PAIR, objective="throughput")
        assert own.period_s <= other.period_s * (1 + 1e-9)


def test_its_partitions_are_the_whole_model(model: Path, own: Plan) -> None:
    check_partitions(onnx.load(model), own)


def test_the_prediction_is_that_of_its_own_chain(model: Path, own: Plan) -> None:
    """Planning by hand on the re-ordered chain tells the same figures: nothing is judged by the graph search."""
    chain = regroup(partitioner.analyze(model, order=own.order), own.positions)
    placed = make_plan(
        chain,
        PAIR,
        objective="throughput",
        placement=tuple(router.Stage(stage.device, stage.start, stage.stop) for stage in own.stages),
    )
    assert math.isclose(placed.period_s, own.period_s)
    assert [stage.memory_bytes for stage in placed.stages] == [stage.memory_bytes for stage in own.stages]
    assert [transfer.tensors for transfer in placed.transfers] == [t.tensors for t in own.transfers]


def test_latency_placements_and_models_without_branches_keep_the_models_order(model: Path) -> None:
    chain = partitioner.analyze(model)
    looked: list[str] = []

    def flow() -> partitioner.Flow:
        looked.append("at the model")
        return partitioner.flow(model)

    branches = Branches(flow, lambda order: partitioner.analyze(model, order=order))
    halves = (router.Stage("d0", 0, 8), router.Stage("d1", 8, len(chain.blocks)))
    assert make_plan(chain, PAIR, branches=branches).order == ()
    assert make_plan(chain, PAIR, objective="throughput", placement=halves, branches=branches).order == ()
    alone = cluster_of(["2 GFLOP/s"], "60 Mbit/s")
    assert make_plan(chain, alone, objective="throughput", branches=branches).order == ()
    assert looked == []
    straight = branchy((7,))
    plan = make_plan(
        partitioner.analyze(straight), PAIR, objective="throughput", branches=in_memory(straight)
    )
    assert plan.order == ()


def test_measured_blocks_are_shared_out_over_their_ops(model: Path) -> None:
    """Two ops a block: a device that was measured slow stays slow in the new order, and no second is lost."""
    chain = regroup(partitioner.analyze(model), (0, 3, 5, 7, 9, 11, 14, 17))
    flow = partitioner.flow(model)
    shares = Shares(chain, flow)
    seconds = (0.02, 0.02, 0.01, 0.02, 0.01, 0.03, 0.01)  # 10 ms a product
    per_op = shares.seconds(seconds)
    for block, whole in zip(chain.blocks, seconds, strict=True):
        assert math.isclose(per_op[block.start : block.stop].sum(), whole)
    # A product does 2 * 128 operations an element and moves 3 arrays; the mean behind it does one and reads one.
    ratio = (2 * WIDTH * WIDTH**2 + 4 * 12 * WIDTH**2) / (WIDTH**2 + 4 * 4 * (WIDTH**2 + WIDTH))
    assert math.isclose(per_op[0] / per_op[2], ratio, rel_tol=1e-2)
    assert np.isinf(shares.seconds([math.inf, *seconds[1:]])[:3]).all()
    device = DeviceProfile(
        fingerprint="f",
        engine="onnxruntime",
        method="measured",
        block_seconds=seconds,
        block_resident=(200_000,) * 7,
        stage_overhead_s=0.001,
        codecs={"lz4": CodecProfile(encode_s=(0.001,) * 8, decode_s=(0.001,) * 8)},
    )
    profile = CostProfile(
        model=chain.model,
        digest=chain.digest,
        positions=tuple(boundary.position for boundary in chain.boundaries),
        devices={"d0": device, "d1": device},
        codecs={"lz4": (1.0,) * 8},
    )
    slow = cluster_of(["2 GFLOP/s"] * 2, "15 Mbit/s")
    plan = throughput(model, slow, profile)
    single = make_plan(chain, slow, profile, objective="throughput")
    assert plan.order
    assert plan.period_s < GAIN * single.period_s
    assert math.isclose(sum(stage.seconds for stage in plan.stages), sum(seconds) + 0.002, rel_tol=1e-9)
    assert {transfer.codec for transfer in plan.transfers} == {"raw"}
    assert (plan.method, plan.digest) == ("measured", chain.digest)
    check_partitions(onnx.load(model), plan)


def test_a_graph_of_ops_counts_each_tensor_once(model: Path) -> None:
    flow = partitioner.flow(model)
    chain = partitioner.analyze(model)
    built, kinds = op_graph(Shares(chain, flow), flow, make_costs(chain, PAIR, None), 0.5)
    given = next(tensor for tensor in built.tensors if tensor.producer == 0)
    assert given.consumers == tuple(op + 1 for op, reads in enumerate(flow.reads) if "x" in reads)
    assert len(given.consumers) == len(SHORT)
    assert given.seconds == 4 * WIDTH * WIDTH
    assert len(built.tensors) == len(chain.blocks)  # the input, and what every op but the last makes
    (kind,) = kinds
    assert (kind.count, kind.seconds[0]) == (2, 0.0)
    assert math.isclose(sum(kind.seconds), chain.flops / 2e9)
    assert kind.transfer == 0.5 / 7.5e6


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=5),
    st.lists(st.integers(-1, 3), max_size=5),
    st.lists(st.sampled_from(["1 GFLOP/s", "2 GFLOP/s", "3 GFLOP/s"]), min_size=2, max_size=3),
    st.sampled_from(["20 Mbit/s", "60 Mbit/s", "200 Mbit/s"]),
    st.sampled_from(["34 MiB", "4 GiB"]),
)
def test_never_worse_and_always_the_same_bits(
    lengths: list[int], joins: list[int], speeds: list[str], bandwidth: str, memory: str
) -> None:
    network, devices = branchy(lengths, joins), cluster_of(speeds, bandwidth, memory)
    chain = partitioner.analyze(network)
    try:
        single = make_plan(chain, devices, objective="throughput")
    except NoRoute:
        return
    plan = make_plan(chain, devices, objective="throughput", branches=in_memory(network))
    assert plan == make_plan(chain, devices, objective="throughput", branches=in_memory(network))
    if not plan.order:
        assert plan == single
        return
    assert plan.period_s < GAIN * single.period_s
    check_partitions(network, plan)


def test_a_plan_keeps_its_order_in_its_file(own: Plan) -> None:
    assert own.order
    assert decode(Plan, encode(own), "plan.json") == own
    with pytest.raises(InvalidDocument, match="each of the ops 0 to 16 once"):
        decode(Plan, encode(msgspec.structs.replace(own, order=(0, *own.order[1:-1], 0))), "plan.json")


def test_partitions_are_written_in_the_plans_order(model: Path, own: Plan, tmp_path: Path) -> None:
    chain = partitioner.analyze(model)
    written = write_parts(model, chain, own.cuts, tmp_path / "store", order=own.order)
    parts = partitioner.split(model, own.cuts, order=own.order)
    assert [[spec.name for spec in each.part.outputs] for each in written] == [
        [spec.name for spec in part.outputs] for part in parts
    ]
    own.save(tmp_path / "plan.json")
    result = cli("partition", model, "--plan", tmp_path / "plan.json", "-o", tmp_path / "parts")
    assert result.exit_code == 0, result.stderr
    values = {"x": np.ones((WIDTH, WIDTH), np.float32)}
    for number in range(len(parts)):
        values |= run(onnx.load(tmp_path / "parts" / f"partition_0{number}.onnx"), values)
    assert values["y"].tobytes() == run(onnx.load(model), {"x": values["x"]})["y"].tobytes()


def test_the_command_line_plans_with_an_order(model: Path, own: Plan, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(cluster_text(["2 GFLOP/s"] * 2, "60 Mbit/s"))
    words = ("--cluster", tmp_path / "c.toml", "--objective", "throughput", "-o", tmp_path / "plan.json")
    result = cli("plan", model, *words)
    assert result.exit_code == 0, result.stderr
    assert Plan.load(tmp_path / "plan.json").order == own.order


def test_a_plan_with_an_order_is_weighed_in_its_own_blocks(model: Path, own: Plan) -> None:
    chain = partitioner.analyze(model)
    with pytest.raises(UsageError, match="order of the ops of its own"):
        replan(own, chain, PAIR, objective="throughput")
    known = branches_of(model, {})
    kept = replan(own, chain, PAIR, objective="throughput", branches=known)
    assert not kept.change
    assert kept.plan.order == own.order
    assert kept.plan.period_s == pytest.approx(own.period_s)
    # From the model's own order, what other ops a device needs is counted op by op.
    straight = make_plan(chain, PAIR, objective="throughput")
    found = replan(straight, chain, PAIR, objective="throughput", branches=known)
    assert found.change
    assert found.plan.order == own.order
    sizes = partitioner.flow(model).weight_bytes
    assert 0 < found.moved_bytes < sum(sizes)


@pytest.mark.integration
def test_agents_serve_a_plan_with_an_order(model: Path, tmp_path: Path) -> None:
    with local_agents(["d0", "d1"], tmp_path) as agents:
        lines = ['[dispatcher]\nlisten = "127.0.0.1:0"\n[network]\nbandwidth = "60 Mbit/s"\ndelay = "0.1 ms"']
        lines += [
            f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\nspeed = "2 GFLOP/s"'
            for agent in agents
        ]
        cluster = loads_cluster("\n".join(lines))
        plan = throughput(model, cluster)
        assert plan.order
        assert len(plan.stages) == 2
        with Daemon(cluster, tmp_path / "state") as daemon:
            daemon.connect(20)
            daemon.deployments.bring_up(Order("branchy", model, plan=plan), lambda _what, _fraction: None)
            with Client(str(daemon.address)) as client:
                for seed in range(5):
                    x = np.random.default_rng(seed).normal(size=(WIDTH, WIDTH)).astype(np.float32)
                    expected = run(onnx.load(model), {"x": x})["y"]
                    np.testing.assert_allclose(client.infer({"x": x})["y"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet50", "bert_base"])
def test_zoo_models_without_wide_branches_keep_their_order(name: str) -> None:
    network = models.build(name)
    shapes = {key: array.shape for key, array in models.example_inputs(name).items()}
    chain = partitioner.coarsen(partitioner.analyze(network, shapes), 64)
    devices = cluster_of(["10 GFLOP/s", "20 GFLOP/s", "20 GFLOP/s", "30 GFLOP/s"], "300 Mbit/s")
    single = make_plan(chain, devices, objective="throughput")
    assert make_plan(chain, devices, objective="throughput", branches=in_memory(network, shapes)) == single
