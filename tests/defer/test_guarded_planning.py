"""Lossy codecs: off without a budget, measured at the output, and together within what was allowed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

import models
import partitioner
import router
from defer.accuracy import Budget, deviation
from defer.block_runner import BlockRunner
from defer.calibration import generated
from defer.codec_costs import offered_codecs
from defer.codec_errors import error_table, plan_error, through
from defer.documents import CodecProfile, CostProfile, DeviceProfile, Plan, loads_cluster
from defer.errors import NoRoute, UsageError
from defer.guarded_planning import LOOKS, Wish, _Room, plan_within
from defer.parts import bound_inputs
from defer.planning import make_plan
from defer.wishes import Rules
from node_agent.codecs import CODECS, is_lossless

Arrays = dict[str, np.ndarray[Any, Any]]

CLUSTER = loads_cluster("""
version = 1
[[device]]
name = "a"
address = "127.0.0.1:7610"
[[device]]
name = "b"
address = "127.0.0.1:7620"
[[device]]
name = "c"
address = "127.0.0.1:7630"
[network]
bandwidth = "100 kbit/s"
delay = "1 ms"
""")
RATIOS = {"lz4": 1.2, "bfloat16": 2.0, "int8": 3.9, "int4": 7.0}
WISH = Wish("throughput")


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockRunner]:
    directory = tmp_path_factory.mktemp("guard")
    path = models.save("tiny_residual", directory / "model.onnx")
    chain = partitioner.coarsen(partitioner.analyze(path), 8)
    with BlockRunner(path, chain, directory / "parts", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def requests_(runner: BlockRunner) -> list[Arrays]:
    return generated(bound_inputs(runner.chain))


def a_profile(chain: partitioner.BlockChain) -> CostProfile:
    """Blocks so slow that the work is worth spreading, codecs that cost next to nothing."""
    blocks, boundaries = len(chain.blocks), len(chain.boundaries)
    quick = CodecProfile(encode_s=(1e-5,) * boundaries, decode_s=(1e-5,) * boundaries)
    device = DeviceProfile(
        fingerprint="f",
        engine="onnxruntime-cpu",
        method="measured",
        block_seconds=(0.02,) * blocks,
        codecs=dict.fromkeys(RATIOS, quick),
    )
    return CostProfile(
        model=chain.model,
        digest=chain.digest,
        positions=tuple(boundary.position for boundary in chain.boundaries),
        bindings=dict(chain.bindings),
        devices=dict.fromkeys("abc", device),
        # The results, ten numbers, travel raw whatever the codec.
        codecs={name: (*(ratio,) * blocks, 1.0) for name, ratio in RATIOS.items()},
        client=dict.fromkeys(RATIOS, quick),
    )


def whole_model(runner: BlockRunner, request: Arrays) -> Arrays:
    session = onnxruntime.InferenceSession(str(runner._model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, request), strict=True))


def lossy(plan: Plan) -> set[str]:
    return {transfer.codec for transfer in plan.transfers if not is_lossless(transfer.codec)}


def test_blocks_one_after_the_other_are_the_model(runner: BlockRunner, requests_: list[Arrays]) -> None:
    states = runner.states(requests_[0])
    assert len(states) == len(runner.chain.boundaries)
    exact = whole_model(runner, requests_[0])
    for name, value in exact.items():
        np.testing.assert_allclose(states[-1][name], value, rtol=1e-4, atol=1e-5)
    for boundary, state in enumerate(states):
        assert deviation("relative", states[-1], runner.run(state, boundary)) < 1e-6


def test_the_table_is_the_output_of_the_whole_model_with_one_tensor_changed(
    runner: BlockRunner, requests_: list[Arrays]
) -> None:
    """At boundary 0 that is the model run on decoded inputs, which ONNX Runtime can do by itself."""
    table = error_table(
        runner, requests_[:1], ("raw", "lz4", "int8", "int4", "bfloat16"), Budget("relative", 0.5)
    )
    assert set(table) == {"int8", "int4", "bfloat16"}
    assert all(len(row) == len(runner.chain.boundaries) for row in table.values())
    for codec, row in table.items():
        changed = {name: through(codec, array, array.dtype.name) for name, array in requests_[0].items()}
        expected = deviation("relative", whole_model(runner, requests_[0]), whole_model(runner, changed))
        assert row[0] == pytest.approx(expected, rel=0.05)
        assert row[0] > 0
    assert table["bfloat16"][0] < table["int8"][0] < table["int4"][0]


def test_codecs_that_decode_alike_have_one_error(runner: BlockRunner, requests_: list[Arrays]) -> None:
    table = error_table(runner, requests_[:1], ("int8", "int8-lz4", "int8-bitmap"), Budget("relative", 0.5))
    assert table["int8"] == table["int8-lz4"] == table["int8-bitmap"]


def test_without_a_budget_no_codec_changes_a_value(runner: BlockRunner) -> None:
    plan = make_plan(runner.chain, CLUSTER, a_profile(runner.chain), objective="throughput")
    assert lossy(plan) == set()
    assert plan.accuracy is None


@pytest.mark.parametrize("limit", [0.3, 0.05, 0.01, 1e-7])
@pytest.mark.parametrize("objective", ["throughput", "latency"])
def test_a_plan_keeps_its_budget_and_a_larger_budget_is_never_slower(
    runner: BlockRunner, requests_: list[Arrays], limit: float, objective: Any
) -> None:
    profile = a_profile(runner.chain)
    budget = Budget("relative", limit)
    plan = plan_within(runner, CLUSTER, profile, budget, requests_, "generated", Wish(objective))
    assert plan.accuracy is not None
    assert plan.accuracy.error <= limit
    assert plan.accuracy.error == plan_error(runner, requests_, plan, budget)
    assert (plan.accuracy.budget, plan.accuracy.requests) == (limit, len(requests_))
    exact = make_plan(runner.chain, CLUSTER, profile, objective=objective)
    assert plan.value <= exact.value * (1 + 1e-9)
    assert plan.bound <= plan.value * (1 + 1e-9)
    assert not plan.by_hand
    if limit == 1e-7:
        assert lossy(plan) == set()
    if limit == 0.3:
        assert lossy(plan)
        assert plan.value < 0.6 * exact.value
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan


def test_the_end_to_end_check_decides_not_the_sum_of_the_errors(
    runner: BlockRunner, requests_: list[Arrays]
) -> None:
    """What the pipeline really does is compared: each stage's partition on decoded tensors."""
    budget = Budget("relative", 0.05)
    plan = plan_within(runner, CLUSTER, a_profile(runner.chain), budget, requests_, "generated", WISH)
    assert lossy(plan)
    worst = 0.0
    for request in requests_:
        held: Arrays = dict(request)
        for number, transfer in enumerate(plan.transfers):
            kinds = runner.chain.tensors
            held = {
                name: through(transfer.codec, held[name], kinds[name].dtype)
                for name in runner.chain.boundaries[transfer.boundary].tensors
            }
            if number < len(plan.stages):
                held = runner.run(held, plan.stages[number].start, plan.stages[number].stop)
        worst = max(worst, deviation("relative", runner.states(request)[-1], held))
    assert plan.accuracy is not None
    assert worst == pytest.approx(plan.accuracy.error, rel=1e-3)


def test_advice_under_a_budget_names_it_where_it_binds(runner: BlockRunner, requests_: list[Arrays]) -> None:
    wish = Wish("throughput", advice=True)
    plan = plan_within(
        runner, CLUSTER, a_profile(runner.chain), Budget("relative", 0.01), requests_, "generated", wish
    )
    assert plan.advice is not None
    assert "error bound" in plan.advice.binding
    assert plan.advice.what_ifs
    best = plan.advice.what_ifs[0]
    assert best.value == pytest.approx(plan.value * (1 - best.gain))
    raw = next(each for each in plan.advice.what_ifs if each.change == "codec raw everywhere")
    assert raw.gain < 0


def test_every_route_of_a_plan_with_replicas_keeps_the_budget(
    runner: BlockRunner, requests_: list[Arrays]
) -> None:
    budget = Budget("relative", 0.05)
    wish = Wish("throughput", rules=Rules(replicas=True))
    plan = plan_within(runner, CLUSTER, a_profile(runner.chain), budget, requests_, "generated", wish)
    assert len(plan.shares) > 1
    errors = [plan_error(runner, requests_, leg, budget) for _, leg in plan.legs]
    assert plan.accuracy is not None
    assert plan.accuracy.error == max(errors) <= 0.05


def test_top1_budget(runner: BlockRunner, requests_: list[Arrays]) -> None:
    plan = plan_within(
        runner, CLUSTER, a_profile(runner.chain), Budget("top1", 0.01), requests_, "generated", WISH
    )
    assert plan.accuracy is not None
    assert (plan.accuracy.metric, plan.accuracy.error) == ("top1", 0.0)


def test_a_lossy_codec_by_name_needs_a_budget_and_must_keep_it(
    runner: BlockRunner, requests_: list[Arrays]
) -> None:
    profile = a_profile(runner.chain)
    with pytest.raises(UsageError, match="changes values"):
        make_plan(runner.chain, CLUSTER, profile, codec="int4")
    last = len(runner.chain.blocks)
    stages = (router.Stage("a", 0, last // 2), router.Stage("b", last // 2, last))
    wish = Wish("throughput", placement=stages, codec="int4")
    with pytest.raises(NoRoute, match="no plan keeps the error budget"):
        plan_within(runner, CLUSTER, profile, Budget("relative", 1e-6), requests_, "generated", wish)


def test_codecs_that_bring_nothing_are_not_planned_with(runner: BlockRunner) -> None:
    """Planning takes time with the square of their number."""
    profile = a_profile(runner.chain)
    free = {name: [0.0] * len(profile.positions) for name in CODECS}
    offered = offered_codecs(len(profile.positions), CLUSTER, profile, "auto", "sink", free)
    assert [codec.name for codec in offered] == ["raw", "int4"]
    limited = {**free, "int4": [float("inf")] + [0.0] * (len(profile.positions) - 1)}
    offered = offered_codecs(len(profile.positions), CLUSTER, profile, "auto", "sink", limited)
    assert [codec.name for codec in offered] == ["raw", "int4", "int8"]
    unknown = msgspec.structs.replace(profile, codecs={"newer": profile.codecs["lz4"]})
    assert [c.name for c in offered_codecs(len(profile.positions), CLUSTER, unknown, "auto", "s")] == ["raw"]


def test_a_nan_in_a_calibration_request_is_no_crash(runner: BlockRunner, requests_: list[Arrays]) -> None:
    spoiled = {name: array.copy() for name, array in requests_[0].items()}
    next(iter(spoiled.values())).flat[0] = np.nan
    table = error_table(runner, [spoiled], ("int8",), Budget("relative", 0.1))
    assert table["int8"][0] == 0.0  # such a tensor goes raw


@given(
    limit=st.floats(1e-4, 0.5),
    factor=st.floats(0.2, 4.0),
    power=st.floats(0.7, 1.6),
    most=st.floats(0.0, 20.0),
)
def test_the_room_for_errors_is_found_from_both_sides(
    limit: float, factor: float, power: float, most: float
) -> None:
    """Whatever the check finds of what the errors promise, as long as more of the one is more of the other."""

    def found(promised: float) -> float:
        return limit * factor * (promised / limit) ** power

    room = _Room(limit)
    widest = most * limit  # what the errors add up to where nothing bounds them
    for _ in range(LOOKS):
        promised = min(room.next, widest)
        room.tried(promised, found(promised))
        if room.narrow:
            break
    best = min(widest, limit * (1 / factor) ** (1 / power))
    if found(widest) <= limit:
        assert room.kept == math.inf
    else:
        assert found(room.kept) <= limit
        assert found(room.refused) > limit
        assert room.kept >= 0.85 * best
