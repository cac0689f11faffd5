"""Planning against figures computed by hand, and every way in which a plan cannot exist."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defer import costs, errors
from defer.blocks import regroup
from defer.documents import BlocksDocument, CostProfile, LinkProfile, Plan, decode, encode
from defer.planning import make_plan, parse_placement
from tests.defer.plan_fixtures import CLUSTER_TOML, a_chain, a_cluster, a_device, a_plan, a_profile


def close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12)


def test_a_chain_survives_its_document() -> None:
    document = BlocksDocument.from_chain(a_chain())
    assert decode(BlocksDocument, encode(document), "blocks.json").to_chain() == a_chain()


def test_static_costs_by_hand() -> None:
    """6 GFLOP on 200 GFLOP/s; 1 MB in and 4 kB out over the assumed links."""
    plan = make_plan(a_chain(), a_cluster())
    (stage,) = plan.stages
    assert (stage.device, stage.start, stage.stop, stage.ops) == ("jetson", 0, 3, (0, 9))
    assert stage.weight_bytes == 3_010_000  # the shared weight once
    assert stage.flops == 6_000_000_000
    assert close(stage.seconds, 0.030 + costs.STATIC_OVERHEAD)
    into = 1_000_000 / costs.DEFAULT_BANDWIDTH + costs.DEFAULT_DELAY
    out = 4_000 / costs.DEFAULT_BANDWIDTH + costs.DEFAULT_DELAY
    assert close(plan.transfers[0].seconds, into)
    assert close(plan.latency_s, into + 0.030 + costs.STATIC_OVERHEAD + out)
    assert close(plan.period_s, 0.030 + costs.STATIC_OVERHEAD)
    assert (plan.bottleneck, plan.method, plan.optimal) == ("device jetson", "static", True)
    assert plan.bound == plan.latency_s
    assert any("assumed" in note for note in plan.notes)
    assert (plan.source, plan.sink, plan.cuts) == ("desk", "desk", ())


def test_measured_costs_by_hand() -> None:
    """Jetson is fast except for the last block; the way between costs 250 kB at 12.5 MB/s and 2 ms.

    In ms: jetson alone 81 + 60.5 + 1.32; with nano 81 + 30.5 + 22 + 5.5 + 1.32, and with lz4 between them 8 less.
    """
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    assert [(s.device, s.start, s.stop) for s in plan.stages] == [("jetson", 0, 2), ("nano", 2, 3)]
    assert [t.codec for t in plan.transfers] == ["raw", "lz4", "raw"]
    middle = plan.transfers[1]
    assert (middle.path, middle.nbytes, middle.wire_bytes) == (("jetson", "nano"), 250_000, 125_000)
    assert close(middle.seconds, 0.001 + 0.002 + 125_000 / 12.5e6 + 0.001)
    into = 0.001 + 1_000_000 / 12.5e6
    out = 0.001 + 4_000 / 12.5e6
    assert close(plan.latency_s, into + 0.0305 + middle.seconds + 0.0055 + out)
    assert close(math.fsum(term.seconds for term in plan.terms), plan.latency_s)
    assert close(plan.alternatives["jetson"].latency_s, into + 0.0605 + out)
    assert plan.method == "measured"
    assert plan.notes == ()


def test_parts_add_up_to_the_latency() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    parts = [stage.seconds for stage in plan.stages] + [transfer.seconds for transfer in plan.transfers]
    assert close(math.fsum(parts), plan.latency_s)


def test_throughput_divides_the_work() -> None:
    profile = a_profile(jetson=a_device((0.2, 0.2, 0.2)), nano=a_device((0.2, 0.2, 0.2)))
    alone = make_plan(a_chain(), a_cluster(), profile, objective="latency")
    full = make_plan(a_chain(), a_cluster(), profile, objective="throughput")
    assert len(alone.stages) == 1
    assert len(full.stages) == 2
    assert full.period_s < alone.period_s
    assert close(full.period_s, 0.4005) or close(
        full.period_s, 0.4015
    )  # overhead, and 1 ms of codec if lz4 is used


def test_the_same_inputs_give_the_same_plan() -> None:
    assert make_plan(a_chain(), a_cluster(), a_profile()) == make_plan(a_chain(), a_cluster(), a_profile())


def test_a_plan_is_a_valid_document() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile())
    assert decode(Plan, encode(plan), "plan.json") == plan


# --------------------------------------------------------------------------------------------------------- limits


def test_memory_of_the_file_and_of_the_agent_both_hold() -> None:
    small = a_device((0.010, 0.020, 0.030), memory_bytes=40 << 20)
    plan = make_plan(
        a_chain(weight_bytes=8 << 20), a_cluster(), a_profile(jetson=small, nano=a_device((1.0, 1.0, 1.0)))
    )
    held = {stage.device: stage.memory_bytes for stage in plan.stages}
    assert held.get("jetson", 0) <= 40 << 20
    assert "nano" in held
    roomy = make_plan(
        a_chain(weight_bytes=8 << 20),
        a_cluster(),
        a_profile(jetson=a_device((0.01, 0.02, 0.03)), nano=a_device((1.0, 1.0, 1.0))),
    )
    assert [stage.device for stage in roomy.stages] == ["jetson"]


def test_what_is_reserved_is_weights_activations_queues_and_runtime() -> None:
    plan = make_plan(a_chain(), a_cluster(), placement=parse_placement("jetson=0:2,nano=2:", a_cluster(), 3))
    weights = 2 * (1_010_000 + 1_000_000)  # static: a second copy in the engine's own layout
    queues = 2 * 250_000
    assert plan.stages[0].memory_bytes == weights + 2_000_000 + queues + costs.RUNTIME_MEMORY


def test_a_model_that_fits_nowhere_names_the_memory() -> None:
    text = CLUSTER_TOML.replace("4 GiB", "36 MiB").replace("2 GiB", "36 MiB")
    with pytest.raises(errors.NoRoute, match=r"needs .*MiB.*memory") as caught:
        make_plan(a_chain(weight_bytes=100 << 20), a_cluster(text))
    assert caught.value.exit_code == 69
    assert caught.value.hint


def test_a_cluster_without_a_way_names_the_device_that_cannot_be_reached() -> None:
    text = CLUSTER_TOML + "[network]\nmesh = false\n"
    with pytest.raises(errors.NoRoute, match="cannot be reached"):
        make_plan(a_chain(), a_cluster(text))


def test_nothing_is_relayed_by_a_dispatcher_without_an_agent() -> None:
    """Through desk would be faster than the declared link, but nobody there forwards frames."""
    cluster = a_cluster(CLUSTER_TOML.replace("100 Mbit/s", "100 kbit/s"))
    placement = parse_placement("jetson=0:2,nano=2:", cluster, 3)
    plan = make_plan(a_chain(), cluster, placement=placement)
    assert [transfer.path for transfer in plan.transfers] == [
        ("desk", "jetson"),
        ("jetson", "nano"),
        ("nano", "desk"),
    ]
    assert all("(" not in term.where for term in plan.terms)
    with_agent = a_cluster(
        CLUSTER_TOML.replace("100 Mbit/s", "100 kbit/s").replace(
            '"desk"\ncomputes', '"desk"\naddress = "127.0.0.1:7630"\ncomputes'
        )
    )
    relayed = make_plan(a_chain(), with_agent, placement=placement)
    assert relayed.transfers[1].path == ("jetson", "desk", "nano")


def test_too_few_stages_are_named() -> None:
    text = CLUSTER_TOML.replace("4 GiB", "80 MiB").replace("2 GiB", "80 MiB")
    with pytest.raises(errors.NoRoute, match="stage"):
        make_plan(a_chain(weight_bytes=8 << 20), a_cluster(text), max_stages=1)


# ------------------------------------------------------------------------------------------------------- placement


def test_a_placement_overrides() -> None:
    cluster = a_cluster()
    plan = make_plan(
        a_chain(), cluster, a_profile(), placement=parse_placement("nano=0:1, jetson=1:", cluster, 3)
    )
    assert [(s.device, s.start, s.stop) for s in plan.stages] == [("nano", 0, 1), ("jetson", 1, 3)]
    assert plan.by_hand


@pytest.mark.parametrize(
    ("text", "error", "what"),
    [
        ("jetson", errors.UsageError, "is not a placement"),
        ("jetson=0", errors.UsageError, "is not a placement"),
        ("jetson=a:b", errors.UsageError, "is not a placement"),
        ("=0:3", errors.UsageError, "is not a placement"),
        ("nona=0:3", errors.UnknownDevice, "no device 'nona'"),
        ("desk=0:3", errors.UnknownDevice, "computes nothing"),
        ("jetson=0:2", errors.UsageError, "blocks 2:3 are not placed"),
        ("jetson=0:2,nano=1:3", errors.UsageError, "do not follow on block 2"),
        ("jetson=0:4", errors.UsageError, "do not follow"),
        ("jetson=0:0,nano=0:3", errors.UsageError, "do not follow"),
    ],
)
def test_placements_that_cannot_be(text: str, error: type[errors.DeferError], what: str) -> None:
    cluster = a_cluster()
    with pytest.raises(error, match=what) as caught:
        make_plan(a_chain(), cluster, placement=parse_placement(text, cluster, 3))
    assert caught.value.hint


def test_a_placement_that_does_not_fit_names_the_limit() -> None:
    cluster = a_cluster(CLUSTER_TOML.replace("2 GiB", "33 MiB"))
    with pytest.raises(errors.NoRoute, match=r"memory|MiB"):
        make_plan(a_chain(), cluster, placement=parse_placement("jetson=0:1,nano=1:3", cluster, 3))


# ---------------------------------------------------------------------------------------------------- codecs, links


def test_raw_is_raw() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile(), codec="raw")
    assert {transfer.codec for transfer in plan.transfers} == {"raw"}


def test_a_forced_codec_travels_between_stages_and_nowhere_else() -> None:
    slow_codec = a_profile(
        jetson=a_device((0.01, 0.02, 0.03), codec_s=5.0), nano=a_device((0.04, 0.08, 0.005), codec_s=5.0)
    )
    cluster = a_cluster()
    placement = parse_placement("jetson=0:2,nano=2:", cluster, 3)
    free = make_plan(a_chain(), cluster, slow_codec, placement=placement)
    assert [t.codec for t in free.transfers] == ["raw", "raw", "raw"]
    forced = make_plan(a_chain(), cluster, slow_codec, placement=placement, codec="lz4")
    assert [t.codec for t in forced.transfers] == ["raw", "lz4", "raw"]
    unmeasured = make_plan(a_chain(), cluster, placement=placement, codec="lz4")
    assert [t.codec for t in unmeasured.transfers] == ["raw", "lz4", "raw"]


def test_the_cluster_file_may_name_the_codec() -> None:
    text = CLUSTER_TOML + '[network]\ncodec = "raw"\n'
    assert {t.codec for t in make_plan(a_chain(), a_cluster(text), a_profile()).transfers} == {"raw"}


def test_a_codec_that_nobody_measured_is_named() -> None:
    with pytest.raises(errors.NoRoute, match="codec 'zip' was not measured") as caught:
        make_plan(a_chain(), a_cluster(), a_profile(), codec="zip")
    assert "lz4" in caught.value.hint


def test_a_declared_link_goes_before_a_measured_one_and_the_way_back_stands_in() -> None:
    link = LinkProfile.of("jetson", "nano", 1.0, 9.0)  # declared in the file: never used
    profile = CostProfile(
        model="small",
        digest="ab" * 32,
        positions=(0, 3, 5, 9),
        bindings={"batch": 1},
        devices=a_profile().devices,
        links=(*a_profile().links, link),
    )
    made = costs.make_costs(a_chain(), a_cluster(), profile)
    links = {(link.source, link.target): link for link in made.problem.cluster.links}
    assert (links["jetson", "nano"].bandwidth, links["jetson", "nano"].delay) == (12.5e6, 0.002)
    assert (links["desk", "nano"].bandwidth, links["desk", "nano"].delay) == (
        12.5e6,
        0.001,
    )  # from nano → desk
    assert made.notes == ()


def test_a_device_that_was_not_measured_is_left_out_and_said_so() -> None:
    text = CLUSTER_TOML.replace('speed = "50 GFLOP/s"\n', "")
    plan = make_plan(a_chain(), a_cluster(text), a_profile(jetson=a_device((9.0, 9.0, 9.0))))
    assert {stage.device for stage in plan.stages} == {"jetson"}
    assert any("nano is left out" in note for note in plan.notes)


def test_a_declared_speed_stands_in_beside_measured_devices() -> None:
    plan = make_plan(a_chain(), a_cluster(), a_profile(jetson=a_device((9.0, 9.0, 9.0))))
    assert {stage.device for stage in plan.stages} == {"nano"}
    assert plan.method == "mixed"


def test_no_measured_device_at_all() -> None:
    text = CLUSTER_TOML.replace('speed = "50 GFLOP/s"\n', "").replace('speed = "200 GFLOP/s"\n', "")
    with pytest.raises(errors.NoRoute, match="no device of the cluster can compute"):
        make_plan(a_chain(), a_cluster(text), a_profile(other=a_device((1.0, 1.0, 1.0))))


# --------------------------------------------------------------------------------------------- profile and regroup


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"digest": "cd" * 32}, "another model"),
        ({"positions": (0, 3, 9)}, "2 blocks, the chain has 3"),
        ({"bindings": {"batch": 8}}, "batch = 8"),
    ],
)
def test_a_profile_of_something_else_is_refused(change: dict[str, object], what: str) -> None:
    fields = {name: getattr(a_profile(), name) for name in a_profile().__struct_fields__}
    with pytest.raises(errors.InvalidDocument, match=what) as caught:
        make_plan(a_chain(), a_cluster(), CostProfile(**{**fields, **change}))
    assert "measures again" in caught.value.hint


def test_regrouping_keeps_what_adds_up() -> None:
    chain = a_chain()
    coarse = regroup(chain, (0, 5, 9))
    assert [(b.start, b.stop, b.flops) for b in coarse.blocks] == [
        (0, 5, 3_000_000_000),
        (5, 9, 3_000_000_000),
    ]
    assert coarse.blocks[0].weights == ("w0", "w.shared", "w1")
    assert coarse.blocks[0].weight_bytes == 2_010_000
    assert coarse.blocks[0].activation_bytes == 2_000_000
    assert coarse.blocks[0].name == "block0..block1"
    assert [b.position for b in coarse.boundaries] == [0, 5, 9]
    assert coarse.weight_bytes_of(0, 2) == chain.weight_bytes


def test_regrouping_to_the_same_is_the_same() -> None:
    assert regroup(a_chain(), (0, 3, 5, 9)) == a_chain()


@pytest.mark.parametrize("positions", [(), (0,), (0, 4, 9), (0, 5), (3, 9), (0, 5, 5, 9), (0, 5, 3, 9)])
def test_positions_of_another_model_are_refused(positions: tuple[int, ...]) -> None:
    with pytest.raises(errors.InvalidDocument, match="do not fit the model"):
        regroup(a_chain(), positions)


@settings(deadline=None)  # the machine may be busy with other things
@given(st.lists(st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)), min_size=3, max_size=3))
def test_no_placement_beats_the_plan(times: list[tuple[float, float]]) -> None:
    """All six ways to place three blocks on two devices, each device once, against the planner's choice."""
    jetson, nano = (tuple(column) for column in zip(*times, strict=True))
    profile = a_profile(jetson=a_device(jetson), nano=a_device(nano))
    cluster, chain = a_cluster(), a_chain()
    plan = make_plan(chain, cluster, profile)
    texts = ["jetson=0:", "nano=0:"]
    texts += [
        f"{a}=0:{cut},{b}={cut}:" for cut in (1, 2) for a, b in (("jetson", "nano"), ("nano", "jetson"))
    ]
    others = [
        make_plan(chain, cluster, profile, placement=parse_placement(text, cluster, 3)) for text in texts
    ]
    assert close(plan.latency_s, min(other.latency_s for other in others))
    assert plan.optimal


def test_a_plan_names_its_devices_once() -> None:
    assert a_plan().devices == ("desk", "jetson", "nano")
    assert a_plan().cuts == (5,)
    assert a_plan().best_alternative == ("jetson", 0.2)
