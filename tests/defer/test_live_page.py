"""The live page in a real browser, before a real dispatcher, one of whose agents is really killed."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from benchmarks.browser import Tab, chromium, missing, tab, wait_for
from benchmarks.screenshots import Stand, load, sign_in, stand

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing() or "a browser is there"),
]

MODEL = "tiny_residual"
TOKEN = "a-token-for-the-browser"
LOOKS = "Number(document.documentElement.dataset.looks ?? 0)"
MOVING = "document.querySelectorAll('.dots:not(.still)').length"
WAIT_MS = 60_000

CONTRAST = """() => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    probe.clearRect(0, 0, 1, 1);
    probe.fillStyle = colour;
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    const box = element.closest(".node")?.querySelector(".box");
    if (box) return rgba(getComputedStyle(box).fill);
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const unseen = ["title", "option", "noscript"];
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
    if (!own || !element.getClientRects().length || unseen.includes(element.tagName.toLowerCase())) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(rgba(colour)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([Math.round(ratio * 100) / 100, element.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}"""
"""The contrast of every text that is shown, the least first, after WCAG 2.2's definition of relative luminance."""

FOCUSED = """() => {
  const at = document.activeElement;
  const style = getComputedStyle(at);
  const box = at.querySelector(".box");
  return {
    name: at.id || at.dataset.device || at.value || at.textContent,
    seen: (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2)
      || (box !== null && parseFloat(getComputedStyle(box).strokeWidth) >= 4),
  };
}"""
"""Where the keyboard is, and whether that can be seen."""

SMALL = """() => [...document.querySelectorAll("button, select, .choices label, .node")]
  .filter((each) => each.getClientRects().length && each.getBoundingClientRect().height < 24)
  .map((each) => each.outerHTML.slice(0, 80))"""
"""What a finger has trouble with: WCAG 2.2 wants 24 pixels."""


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two agents that run a stage each and one that is spare, behind a token."""
    with stand(MODEL, tmp_path_factory.mktemp("page"), ("a", "b", "c"), stages=2, token=TOKEN) as running:
        yield running


def clean(shown: Tab, house: Stand) -> None:
    """Nothing on the console, and nobody but the dispatcher was asked for anything."""
    assert shown.errors == []
    own = house.page.removesuffix("live/")
    assert [url for url in shown.requests if not url.startswith((own, "data:"))] == []


def texts(shown: Tab, selector: str) -> list[str]:
    return shown.page.locator(selector).all_text_contents()


def device(shown: Tab, name: str) -> str:
    return shown.page.locator(f".node[data-device={name}]").get_attribute("aria-label") or ""


def overlapping(shown: Tab, count: int) -> list[tuple[int, int]]:
    """Devices whose boxes are drawn over each other, by number."""
    boxes = shown.page.evaluate(
        "[...document.querySelectorAll('.node .box')].map((each) => each.getBoundingClientRect().toJSON())"
    )
    assert len(boxes) == count
    return [
        (at, other)
        for at, one in enumerate(boxes)
        for other, two in enumerate(boxes[:at])
        if one["left"] < two["right"]
        and two["left"] < one["right"]
        and one["top"] < two["bottom"]
        and two["top"] < one["bottom"]
    ]


def test_it_draws_the_cluster_and_what_it_does(running: Browser, house: Stand) -> None:
    with tab(running) as shown, load(house, window=2):
        shown.page.goto(house.page)
        shown.page.get_by_role("dialog").wait_for()
        assert not any("state" in url for url in shown.requests)  # it does not ask to be refused
        sign_in(shown, house.page, TOKEN)
        assert sorted(texts(shown, ".node .name")) == ["a", "b", "c", "dispatcher"]
        assert shown.page.locator(".edge").count() == 3
        assert texts(shown, ".stage .name") == ["a", "b"]
        wait_for(shown, f"{LOOKS} > 3")
        wait_for(shown, f"{MOVING} === 3")
        wait_for(shown, "document.querySelector('#rate path.line').getAttribute('d').length > 20")
        assert re.match(
            r"results [\d.]+/s", shown.page.locator("#rate svg").get_attribute("aria-label") or ""
        )
        assert "p99" in (shown.page.locator("#latency svg").get_attribute("aria-label") or "")
        assert any("is deployed as" in text for text in texts(shown, "#happened li"))
        assert "stage 1" in device(shown, "a")
        clean(shown, house)


def test_a_wrong_token_is_asked_for_again(running: Browser, house: Stand) -> None:
    with tab(running) as shown:
        shown.page.goto(house.page)
        shown.page.get_by_role("textbox", name="Token").fill("not-the-token-that-is")
        shown.page.get_by_role("button", name="Use it").click()
        shown.page.get_by_text("That was not the token").wait_for()
        assert shown.page.evaluate("sessionStorage.getItem('token')") is None
        shown.page.get_by_role("button", name="Cancel").click()
        shown.page.get_by_text("shows nothing without its token").wait_for()
        assert shown.page.locator(".node").count() == 0
        shown.page.get_by_role("button", name="Token").click()
        shown.page.get_by_role("textbox", name="Token").fill(TOKEN)
        shown.page.keyboard.press("Enter")
        wait_for(shown, "document.querySelectorAll('.stage').length > 0")
        (said,) = shown.errors  # the browser's own word for the one refusal
        assert "401" in said


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_text_can_be_read(running: Browser, house: Stand, dark: bool) -> None:
    with tab(running, dark=dark) as shown:
        sign_in(shown, house.page, TOKEN)
        shown.page.locator("#without").get_by_label("a").check()
        shown.page.get_by_role("button", name="Predict").click()
        shown.page.locator("#answer table").wait_for(timeout=WAIT_MS)
        found = shown.page.evaluate(CONTRAST)
        assert len(found) > 40
        assert [each for each in found if each[0] < 4.5] == []
        clean(shown, house)


def test_the_keyboard_reaches_everything_and_is_seen(running: Browser, house: Stand) -> None:
    with tab(running) as shown:
        sign_in(shown, house.page, TOKEN)
        press = shown.page.keyboard.press
        shown.page.evaluate("document.activeElement.blur()")
        reached: list[str] = []
        while "predict" not in reached and len(reached) < 60:
            press("Tab")
            at = shown.page.evaluate(FOCUSED)
            assert at["seen"], f"the focus on {at['name']!r} is not seen"
            reached.append(at["name"])
        assert reached[0] == "To the stages"
        assert {"token", "a", "b", "c", "dispatcher", "Re-plan", "Drain", "predict"} <= set(reached)
        # A device is chosen, asked about and the answer left again without a mouse.
        shown.page.locator(".node[data-device=b]").focus()
        press("Enter")
        assert shown.page.locator("#without").get_by_label("b").is_checked()
        assert shown.page.evaluate(FOCUSED)["name"] == "b"
        shown.page.locator("#predict").focus()
        press("Enter")
        shown.page.locator("#answer table").wait_for(timeout=WAIT_MS)
        assert shown.page.locator(".edge.planned").count() >= 1
        assert texts(shown, ".node.gone .name") == ["b"]
        shown.page.locator("#forget").focus()
        press("Space")
        assert shown.page.locator(".edge.planned").count() == 0
        clean(shown, house)


def test_whoever_wants_less_motion_gets_none(running: Browser, house: Stand) -> None:
    with tab(running, calm=True) as shown, load(house, window=2):
        sign_in(shown, house.page, TOKEN)
        wait_for(shown, f"{MOVING} > 0")
        assert shown.page.evaluate("document.getAnimations().length") == 0
        clean(shown, house)


def test_a_phone_need_not_scroll_sideways_and_boxes_do_not_overlap(running: Browser, house: Stand) -> None:
    with tab(running, width=390, height=844, touch=True) as shown:
        sign_in(shown, house.page, TOKEN)
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert overlapping(shown, 4) == []
        assert shown.page.evaluate(SMALL) == []
        clean(shown, house)


@pytest.mark.parametrize("width", [390, 1120])
def test_any_number_of_devices_has_room(running: Browser, house: Stand, width: int) -> None:
    count = 2

    def more(route: Route) -> None:
        """The dispatcher's own answer, with other devices beside those that there are."""
        told = route.fetch().json()
        extra = [{**told["devices"][0], "name": f"a-device-with-a-long-name-{at}"} for at in range(count)]
        route.fulfill(json={**told, "devices": told["devices"] + extra})

    with tab(running, width=width) as shown:
        shown.page.route("**/live/state*", more)
        sign_in(shown, house.page, TOKEN)
        for count in (1, 2, 5, 8, 12):
            wait_for(shown, f"document.querySelectorAll('.node').length === {4 + count}")
            assert overlapping(shown, 4 + count) == []
            assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert shown.errors == []


def test_an_action_is_confirmed_and_its_outcome_told(running: Browser, house: Stand) -> None:
    with tab(running) as shown:
        sign_in(shown, house.page, TOKEN)
        shown.page.get_by_role("button", name="Re-plan").click()
        dialog = shown.page.get_by_role("dialog")
        assert MODEL in dialog.inner_text()
        dialog.get_by_role("button", name="Cancel").click()
        shown.page.get_by_role("button", name="Re-plan").click()
        dialog.get_by_role("button", name="Do it").click()
        shown.page.get_by_text(f"Under way: replan {MODEL}").wait_for(timeout=WAIT_MS)
        # The new plan serves, and the one before it can be returned to.
        shown.page.get_by_role("button", name="Roll back").wait_for(timeout=WAIT_MS)
        wait_for(shown, "document.querySelector('.state.ready') !== null")
        asked = [text for text in texts(shown, "#happened li") if "asked for on the live page" in text]
        assert len(asked) == 1  # what was cancelled was not asked
        clean(shown, house)


def test_a_killed_agent_is_seen_and_so_is_the_plan_that_takes_over(running: Browser, house: Stand) -> None:
    with tab(running) as shown, load(house, window=2):
        sign_in(shown, house.page, TOKEN)
        wait_for(shown, f"{LOOKS} > 2")
        used = texts(shown, ".stage .name")[0]
        shown.page.locator(".node[data-device=dispatcher]").focus()
        next(agent for agent in house.agents if agent.name == used).process.send_signal(signal.SIGKILL)
        shown.page.locator(f".node.lost[data-device={used}]").wait_for(timeout=WAIT_MS)
        assert "lost" in device(shown, used)
        shown.page.locator("#happened .error", has_text=f"agent {used} is lost").wait_for(timeout=WAIT_MS)
        assert shown.page.locator("#rate .event-line.error").count() >= 1
        elsewhere = (
            f"![...document.querySelectorAll('.stage .name')].some((each) => each.textContent === '{used}')"
        )
        wait_for(shown, f"{elsewhere} && document.querySelector('.state.ready') !== null && {MOVING} > 0")
        # A drawing made anew does not take the keyboard's place away.
        assert shown.page.evaluate(FOCUSED)["name"] == "dispatcher"
        clean(shown, house)


def test_without_a_token_nothing_can_be_done(running: Browser, house: Stand) -> None:
    def unasked(route: Route) -> None:
        route.fulfill(body=route.fetch().text().replace(" data-token", ""), content_type="text/html")

    def powerless(route: Route) -> None:
        told = route.fetch(headers={**route.request.headers, "Authorization": f"Bearer {TOKEN}"}).json()
        route.fulfill(json={**told, "actions": {}})

    with tab(running) as shown:
        shown.page.route("**/live/", unasked)
        shown.page.route("**/live/state*", powerless)
        sign_in(shown, house.page, "")
        assert shown.page.locator("#token").is_hidden()
        assert "--token-file" in shown.page.locator("#acts-note").inner_text()
        assert shown.page.locator("#buttons button").count() == 0
        assert shown.errors == []


def test_a_dispatcher_that_is_gone_is_said_and_not_drawn_as_alive(running: Browser, house: Stand) -> None:
    with tab(running) as shown:
        sign_in(shown, house.page, TOKEN)
        house.server.kill()  # the last test of the file: nobody needs it any more
        shown.page.get_by_text("No answer from the dispatcher since").wait_for(timeout=WAIT_MS)
        assert shown.page.evaluate("'stale' in document.documentElement.dataset")
