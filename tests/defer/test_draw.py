"""Drawings: well-formed, complete, and no text on top of another or outside the page, however long the names."""

import itertools
import re
import xml.etree.ElementTree as ET

import msgspec
import pytest

from defer.documents import Plan, PlanAlternative, PlanStage, PlanTransfer
from defer.draw import plan_svg
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


PLANS = [
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
