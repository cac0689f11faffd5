"""Blocks that a device's compiling engine lacks an op of are planned elsewhere, and the plan says why."""

from __future__ import annotations

import msgspec
import pytest

import router
from defer.block_profiling import compiled_refusals
from defer.cutting_around import cut_around
from defer.documents.profile import CostProfile
from defer.errors import InvalidDocument
from defer.planning import make_plan, parse_placement
from defer.wishes import Rules, Tie
from tests.defer.plan_fixtures import a_chain, a_cluster, a_device, a_profile

WHY = "TensorRT 10.3.0 lacks Mystery 'middle': no importer registered for op: Mystery"


def measured(refused: tuple[str, ...] = ("", "", WHY), nano: tuple[str, ...] = ()) -> CostProfile:
    """A jetson that is faster at everything, but for what TensorRT refuses it."""
    jetson = msgspec.structs.replace(a_device((0.001, 0.001, 0.002)), unsupported=refused)
    return a_profile(
        jetson=jetson, nano=msgspec.structs.replace(a_device((0.08, 0.08, 0.08)), unsupported=nano)
    )


def placed(plan) -> dict[int, str]:
    return {block: stage.device for stage in plan.stages for block in range(stage.start, stage.stop)}


def test_the_block_goes_to_the_other_device_and_the_plan_names_the_op():
    chain, cluster = a_chain(), a_cluster()
    before = make_plan(chain, cluster, measured(refused=()))
    assert set(placed(before).values()) == {"jetson"}
    assert not any("kept off" in note for note in before.notes)
    plan = make_plan(chain, cluster, measured())
    assert placed(plan) == {0: "jetson", 1: "jetson", 2: "nano"}
    assert f"block 2 kept off jetson: {WHY}" in plan.notes


@pytest.mark.parametrize(("seconds", "taken"), [(0.002, "jetson"), (1.0, "nano")])
def test_an_agent_that_cuts_its_partitions_keeps_the_block_where_that_is_fastest(seconds, taken):
    profile = measured()
    devices = {
        "jetson": msgspec.structs.replace(
            a_device((0.001, 0.001, seconds)), unsupported=("", "", WHY), apart=True
        ),
        "nano": profile.devices["nano"],
    }
    profile = msgspec.structs.replace(profile, devices=devices)
    plan = make_plan(a_chain(), a_cluster(), profile, objective="throughput")
    assert placed(plan) == {0: "jetson", 1: "jetson", 2: taken}
    assert f"block 2 on jetson in parts, of which another engine runs some: {WHY}" in plan.notes


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_block_that_all_refuse_stays_and_the_plan_says_what_that_costs(objective):
    plan = make_plan(a_chain(), a_cluster(), measured(nano=("", "", WHY)), objective=objective)
    assert any("block 2 cannot be kept off jetson" in note and WHY in note for note in plan.notes)


def test_an_operators_pin_and_placement_stand():
    profile = measured()
    plan = make_plan(a_chain(), a_cluster(), profile, rules=Rules(pinned=(Tie(2, 3, "jetson"),)))
    assert placed(plan)[2] == "jetson"
    assert any("cannot be kept off jetson" in note for note in plan.notes)
    cluster = a_cluster()
    by_hand = make_plan(a_chain(), cluster, profile, placement=parse_placement("jetson=0:", cluster, 3))
    assert set(placed(by_hand).values()) == {"jetson"}
    assert not any("kept off" in note for note in by_hand.notes)


def test_stages_in_a_row_on_one_device_are_one():
    """So nothing leaves a device between them; where they need two engines, the agent cuts the one that they are."""
    cluster = a_cluster()
    placement = parse_placement("jetson=0:1,jetson=1:2,nano=2:", cluster, 3)
    plan = make_plan(a_chain(), cluster, measured(), placement=placement)
    assert [(stage.device, stage.start, stage.stop) for stage in plan.stages] == [
        ("jetson", 0, 2),
        ("nano", 2, 3),
    ]


def test_where_nothing_else_fits_a_slow_stage_is_better_than_no_plan():
    profile = measured()
    nano = msgspec.structs.replace(profile.devices["nano"], memory_bytes=1)
    profile = msgspec.structs.replace(profile, devices={**profile.devices, "nano": nano})
    plan = make_plan(a_chain(), a_cluster(), profile)
    assert set(placed(plan).values()) == {"jetson"}
    assert any("cannot be kept off jetson" in note for note in plan.notes)


def test_an_excluded_device_takes_nothing():
    pins = router.Pins(banned=("nano",))
    seconds = {"jetson": (1.0,) * 3, "nano": (1.0,) * 3}
    found, notes = cut_around(measured(), seconds, pins)
    assert not tuple(found.forbidden)
    assert len(notes) == 1


def test_refusals_matter_only_where_tensorrt_runs_other_blocks():
    assert compiled_refusals(("tensorrt", "onnxruntime-cpu"), ("", WHY)) == ("", WHY)
    assert compiled_refusals(("tensorrt+onnxruntime-cpu",), (WHY, WHY)) == (WHY, WHY)
    assert compiled_refusals(("tensorrt",), ("", "")) == ()
    assert compiled_refusals(("onnxruntime-cuda",), ("", WHY)) == ()


def test_the_profile_keeps_the_reasons(tmp_path):
    path = tmp_path / "profile.json"
    measured().save(path)
    assert CostProfile.load(path).devices["jetson"].unsupported == ("", "", WHY)
    with pytest.raises(InvalidDocument, match="1 values for 3 blocks"):
        measured(refused=(WHY,)).problems()
