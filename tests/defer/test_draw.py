"""Drawings: well-formed, complete, and no text on top of another or outside the page, however long the names."""

import itertools
import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from defer.documents import Plan, PlanAlternative, PlanStage, PlanTransfer
from defer.documents.plan import PlanAdvice, PlanDevice, PlanLink, PlanShare, PlanWhatIf
from defer.draw import plan_svg
from defer.draw_page import DARK, plan_page
from defer.draw_text import plan_text
from defer.draw_words import shortened
from tests.defer.plan_fixtures import a_plan

SVG = "{http://www.w3.org/2000/svg}"


def a_pipeline(stages: int, *, name: str = "device", tensor: str = "t", alternatives: int = 8) -> Plan:
    devices = [f"{name}-{i}" for i in range(stages)]
    ends = ["desk", *devices, "desk"]
    return msgspec.structs.replace(
        a_plan(),
        positions=tuple(range(stages + 1)),
        stages=tuple(
            PlanStage(
                device=d,
                start=i,
                stop=i + 1,
                ops=(i, i + 1),
                weight_bytes=10**6 * i,
                flops=10**9,
                seconds=0.01 * (i + 1),
            )
            for i, d in enumerate(devices)
        ),
        transfers=tuple(
            PlanTransfer(
                boundary=i,
                path=(ends[i], ends[i + 1]),
                codec="lz4" if i % 2 else "raw",
                nbytes=10**6,
                seconds=0.005,
                tensors=(f"{tensor}{i}", f"{tensor}{i}b"),
                wire_bytes=10**5,
            )
            for i in range(stages + 1)
        ),
        bottleneck=f"device {devices[-1]}",
        alternatives={
            f"{name}-{i}": PlanAlternative(latency_s=0.1 * (i + 1), period_s=0.1) for i in range(alternatives)
        },
    )


def with_loads(plan: Plan, idle: int = 0) -> Plan:
    """The plan with its cluster: devices that it does not use beside those that it does."""
    names = [*plan.devices, *(f"idle-{i}" for i in range(idle))]
    hops = [hop for each in plan.transfers for hop in itertools.pairwise(each.path)]
    return msgspec.structs.replace(
        plan,
        device_loads=tuple(PlanDevice(name=name, memory_bytes=1 << 30, busy_s=0.01) for name in names),
        link_loads=(
            *(
                PlanLink(source=a, target=b, bytes_per_s=1e7, wire_bytes=10**5, busy_s=0.01)
                for a, b in dict.fromkeys(hops)
            ),
            *(PlanLink(source=a, target=b, bytes_per_s=1e7) for a, b in itertools.pairwise(names[-idle:])),
        ),
    )


PLANS = [
    *(pytest.param(with_loads(a_pipeline(n), 2), id=f"{n} stages, 2 idle") for n in (1, 3, 8)),
    pytest.param(with_loads(a_pipeline(2), 40), id="40 idle"),
    pytest.param(with_loads(a_pipeline(20)), id="20 stages in a cluster"),
    pytest.param(with_loads(a_pipeline(8, name="a-device-with-a-very-long-name-" * 2)), id="long names"),
    *(pytest.param(a_pipeline(n), id=f"{n} stages") for n in range(1, 9)),
    pytest.param(a_pipeline(8, name="a-device-with-a-very-long-name-" * 2), id="long devices"),
    pytest.param(a_pipeline(3, tensor="/model/encoder/layer.11/attention/self/" * 5), id="long tensors"),
    pytest.param(a_pipeline(2, name="<&\"'>"), id="markup in names"),
    pytest.param(a_plan(), id="relay"),
    pytest.param(
        msgspec.structs.replace(a_plan(), objective="throughput", alternatives={}), id="no alternative"
    ),
]


def texts(svg: str) -> list[tuple[float, float, float, float]]:
    """Boxes of all texts: left, top, right, bottom, by a generous width per character."""
    boxes = []
    for element in ET.fromstring(svg).iter(f"{SVG}text"):
        size = float(element.get("font-size", "13"))
        width = len(element.text or "") * size * 0.57
        x, y = float(element.get("x", "0")), float(element.get("y", "0"))
        left = x - width if element.get("text-anchor") == "end" else x
        boxes.append((left, y - size * 0.8, left + width, y + size * 0.2))
    return boxes


@pytest.mark.parametrize("plan", PLANS)
def test_texts_keep_their_room(plan: Plan) -> None:
    svg = plan_svg(plan)
    root = ET.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    boxes = texts(svg)
    assert len(boxes) > 4 * len(plan.stages)
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert top >= 0
        assert right <= width
        assert bottom <= height
    for one, two in itertools.combinations(boxes, 2):
        apart = one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
        assert apart, (one, two)


@pytest.mark.parametrize("plan", PLANS)
def test_everything_of_the_plan_is_in_the_drawing(plan: Plan) -> None:
    root = ET.fromstring(plan_svg(plan))
    tips = [element.text or "" for element in root.iter(f"{SVG}title")]
    for stage in plan.stages:
        assert any(f"on {stage.device}:" in tip for tip in tips)
    for transfer in plan.transfers:
        assert any(tip.startswith(" → ".join(transfer.path)) and transfer.tensors[0] in tip for tip in tips)
    shown = " ".join(element.text or "" for element in root.iter(f"{SVG}text"))
    assert shown.count("bottleneck") >= 1 + any(f"device {s.device}" == plan.bottleneck for s in plan.stages)


@pytest.mark.parametrize("plan", PLANS)
def test_a_drawing_needs_nothing_else(plan: Plan) -> None:
    svg = plan_svg(plan)
    assert "<script" not in svg
    assert "href" not in svg
    assert re.findall(r"https?://[^\"' ]+", svg) == ["http://www.w3.org/2000/svg"]


@pytest.mark.parametrize("plan", PLANS)
def test_the_terminal_shows_the_same(plan: Plan) -> None:
    text = plan_text(plan)
    for stage in plan.stages:
        assert shortened(stage.device, 60) in text
    assert text.count("▼") == len(plan.transfers)
    assert "◀" in text or "link" in plan.bottleneck


def test_a_bottleneck_link_is_marked_where_it_is() -> None:
    plan = msgspec.structs.replace(
        a_plan(), bottleneck="link desk -> nano"
    )  # second hop of the relayed transfer
    lines = [line for line in plan_text(plan).splitlines() if "◀" in line]
    assert len(lines) == 1
    assert "via desk" in lines[0]


def test_what_is_not_proven_is_not_called_so() -> None:
    unproven = msgspec.structs.replace(a_plan(), optimal=False, bound=0.08)
    assert "at most 25.0% above the best" in plan_text(unproven)
    assert "proven" not in plan_text(unproven)
    assert "placed by hand" in plan_text(msgspec.structs.replace(a_plan(), by_hand=True))


def test_shortening_keeps_both_ends() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcdefghij", 7) == "abcd…ij"
    assert len(shortened("x" * 100, 20)) == 20


def test_the_cluster_shows_every_device_and_link() -> None:
    plan = with_loads(a_pipeline(3), 2)
    tips = [element.text or "" for element in ET.fromstring(plan_svg(plan)).iter(f"{SVG}title")]
    for name in ("desk", "device-0", "device-2", "idle-1"):
        assert any(tip.startswith(f"{name}: ") for tip in tips)
    assert any(tip.startswith("device-0 → device-1: 97.7 KiB per request; 80 Mbit/s") for tip in tips)
    crowd = plan_svg(with_loads(a_pipeline(2), 40))
    assert "and 31 more devices" in crowd


def test_a_shared_medium_is_marked_as_the_bottleneck_on_its_links() -> None:
    links = (PlanLink(source="jetson", target="desk", bytes_per_s=1e7, wire_bytes=5, medium="air"),)
    plan = msgspec.structs.replace(a_plan(), bottleneck="medium air", link_loads=links)
    assert len([line for line in plan_text(plan).splitlines() if "◀" in line]) == 1


@pytest.mark.parametrize("plan", PLANS)
def test_a_page_is_whole_by_itself(plan: Plan) -> None:
    advice = PlanAdvice(binding=("<memory>",), what_ifs=(PlanWhatIf(change="a & b", value=0.05, gain=0.5),))
    page = plan_page(msgspec.structs.replace(plan, advice=advice))
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert "href" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]
    assert "&lt;memory&gt;" in page
    assert "a &amp; b" in page


def test_every_colour_of_a_drawing_has_one_for_the_dark() -> None:
    used = set()
    for plan in (with_loads(a_pipeline(20), 3), a_plan()):
        used |= set(re.findall(r'(?:fill|stroke)="(#[0-9a-f]+)"', plan_svg(plan)))
    assert used <= DARK.keys()


def test_routes_of_replicas_are_listed() -> None:
    plan = a_plan()
    share = PlanShare(fraction=0.25, stages=plan.stages, transfers=plan.transfers)
    other = PlanShare(fraction=0.75, stages=plan.stages, transfers=plan.transfers)
    text = plan_text(msgspec.structs.replace(plan, shares=(other, share)))
    assert "dealt to 2 routes" in text
    assert "75.0%  jetson 0–1 → (desk) → nano 2–2" in text


def test_values_are_in_the_unit_of_what_was_made_least() -> None:
    plan = msgspec.structs.replace(a_plan(), objective="energy", energy_j=0.25, cost=0.002)
    assert "0.002 ¤ · 250 mJ" in plan_text(plan)
    assert "250 mJ per request; the whole model on" in plan_text(plan)
