"""Pictures of the live page in `docs/images`: `python -m benchmarks.screenshots`.

Four agents and a dispatcher on this machine serve a network; the page is shot at rest, under load,
while it answers a what-if, and after an agent was killed, in light and dark, and on a phone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

import models
import partitioner
from benchmarks.browser import Tab, chromium, missing, tab, wait_for
from benchmarks.palette import smaller
from defer.blocks import planning_chain
from defer.client import Client
from defer.documents.cluster import Cluster, loads_cluster
from defer.errors import DeferError, Internal
from defer.local_agents import LocalAgent, local_agents, read_line, stop
from defer.planning import make_plan, parse_placement

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES: Final = ("camera", "jetson", "nano", "pi")
SPEEDS: Final = (20, 25, 15, 10)
"""GFLOP/s of each that planning counts with; measuring would take longer, and find four equal ones."""

WIDTH: Final = 1120
START_S: Final = 240.0
LARGEST: Final = 200_000
"""Bytes of a picture at most."""
TOKEN: Final = "a-token-for-the-pictures"

LINKS: Final = """
[network]
bandwidth = "1 Gbit/s"
delay = "0.5 ms"

[[link]]
between = ["camera", "jetson"]
bandwidth = "300 Mbit/s"
delay = "1 ms"

[[link]]
between = ["jetson", "nano"]
bandwidth = "300 Mbit/s"
delay = "1 ms"

[[link]]
between = ["jetson", "pi"]
bandwidth = "200 Mbit/s"
delay = "1 ms"
"""


@dataclass(frozen=True, slots=True)
class Stand:
    """A dispatcher that serves on agents of this machine.

    Attributes:
        address: Of the dispatcher's api.
        page: Of the live page.
        model: The model's name.
        agents: The agents' processes.
        server: The dispatcher's process.
    """

    address: str
    page: str
    model: str
    agents: tuple[LocalAgent, ...]
    server: subprocess.Popen[str]


@contextmanager
def stand(
    model: str, work: Path, names: tuple[str, ...] = NAMES, *, stages: int = 0, token: str = ""
) -> Iterator[Stand]:
    """Agents, a dispatcher and a model on them, planned for throughput; all are gone when the block ends.

    Args:
        model: Name of a reference network.
        work: Scratch directory.
        names: Of the devices.
        stages: How many of them run a stage, all alike; 0 lets the planner decide.
        token: That the live page wants; empty for none.
    """
    path = models.save(model, work / f"{model}.onnx")
    with local_agents(list(names), work) as agents:
        text = f'[dispatcher]\nlisten = "127.0.0.1:0"\n{LINKS if names == NAMES else ""}' + "".join(
            f'[[device]]\nname = "{agent.name}"\naddress = "{agent.address}"\nspeed = "{speed} GFLOP/s"\n'
            for agent, speed in zip(agents, SPEEDS, strict=False)
        )
        (work / "cluster.toml").write_text(text)
        _plan(path, loads_cluster(text), names[:stages]).save(work / "plan.json")
        words = ["--cluster", work / "cluster.toml", "--model", path, "--plan", work / "plan.json"]
        words += ["--objective", "throughput", "--http", "127.0.0.1:0", "--json", "--until-stdin-closes"]
        command = [sys.executable, "-m", "defer", "serve", *map(str, words)]
        environment = {**os.environ, "XDG_CACHE_HOME": str(work), "XDG_STATE_HOME": str(work)}
        if token:
            environment["DEFER_HTTP_TOKEN"] = token
        server = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        try:
            ready: dict[str, str] = {}
            while "ready" not in ready:
                line = read_line(server, START_S)
                if not line:
                    raise Internal("the dispatcher did not start")
                ready = json.loads(line)
            yield Stand(ready["ready"], f"http://{ready['http']}/live/", model, agents, server)
        finally:
            stop([server])


def _plan(path: Path, cluster: Cluster, devices: tuple[str, ...]):  # type: ignore[no-untyped-def]
    chain = planning_chain(partitioner.analyze(path), 64, None)
    cuts = [0, *_even(chain, len(devices)), len(chain.blocks)]
    if not devices:
        return make_plan(chain, cluster, objective="throughput")
    text = ",".join(f"{name}={cuts[at]}:{cuts[at + 1]}" for at, name in enumerate(devices))
    placement = parse_placement(text, cluster, len(chain.blocks))
    return make_plan(chain, cluster, objective="throughput", placement=placement)


def _even(chain: partitioner.BlockChain, parts: int) -> list[int]:
    """Block numbers that cut the operations into about equal parts."""
    total, seen = sum(block.flops for block in chain.blocks), 0
    found: list[int] = []
    for number, block in enumerate(chain.blocks):
        seen += block.flops
        if len(found) < parts - 1 and seen >= total * (len(found) + 1) / parts:
            found.append(number + 1)
    return found


@contextmanager
def load(stand: Stand, window: int = 6) -> Iterator[None]:
    """Requests without a pause while the block runs; what fails after a kill is no matter."""
    done = threading.Event()

    def run() -> None:
        inputs = [models.example_inputs(stand.model, seed=seed) for seed in range(4)]
        with Client(stand.address) as client:
            while not done.is_set():
                try:
                    for _ in client.map(inputs, window=window):
                        if done.is_set():
                            return
                except DeferError:
                    done.wait(0.5)

    senders = [threading.Thread(target=run) for _ in range(2)]
    for sender in senders:
        sender.start()
    try:
        yield
    finally:
        done.set()
        for sender in senders:
            sender.join()


def sign_in(shown: Tab, address: str, token: str) -> None:
    """Open the page and give the token, as a user does."""
    shown.page.goto(address)
    if token:
        shown.page.get_by_role("textbox", name="Token").fill(token)
        shown.page.get_by_role("button", name="Use it").click()
    wait_for(shown, "document.querySelectorAll('.stage').length > 0")


def shoot(running: Browser, shown: Tab, path: Path) -> None:
    """One picture of the whole page."""
    shown.page.evaluate("scrollTo(0, 0)")
    path.write_bytes(smaller(shown.page.screenshot(full_page=True, animations="allow"), running))
    size = path.stat().st_size
    click.echo(f"{path} {size // 1000} kB")
    if size > LARGEST:
        raise SystemExit(f"{path} is too large to be kept in the repository")


@click.command()
@click.option("--model", default="mobilenet_v2", show_default=True, help="A reference network.")
@click.option("--seconds", default=45.0, show_default=True, help="Of load before the picture under load.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("docs/images"), show_default=True
)
def main(model: str, seconds: float, output: Path) -> None:
    """Take the pictures."""
    if why := missing():
        raise SystemExit(f"{why}; apt-get install chromium, pip install playwright")
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-pictures-")))
        here = stack.enter_context(stand(model, work, token=TOKEN))
        running = stack.enter_context(chromium())
        with tab(running, width=WIDTH) as light:
            sign_in(light, here.page, TOKEN)
            wait_for(light, "Number(document.documentElement.dataset.looks) > 8")
            wait_for(light, "document.querySelector('.dots:not(.still)') === null")
            shoot(running, light, output / "live-rest.png")
        with load(here):
            _under_load(running, here, seconds, output)


def _under_load(running: Browser, here: Stand, seconds: float, output: Path) -> None:
    with tab(running, width=WIDTH) as light:
        sign_in(light, here.page, TOKEN)
        light.page.wait_for_timeout(seconds * 1000)
        shoot(running, light, output / "live-load.png")
        light.page.emulate_media(color_scheme="dark")
        shoot(running, light, output / "live-load-dark.png")
        light.page.emulate_media(color_scheme="light")
        light.page.locator("#without").get_by_label("nano").check()
        light.page.get_by_role("button", name="Predict").click()
        light.page.locator("#answer table").wait_for(timeout=60_000)
        shoot(running, light, output / "live-what-if.png")
        light.page.get_by_role("button", name="Back to what is").click()
        victim = next(agent for agent in here.agents if agent.name == "nano")
        victim.process.send_signal(signal.SIGKILL)
        light.page.locator(".node.lost").wait_for(timeout=20_000)
        light.page.wait_for_timeout(4000)
        shoot(running, light, output / "live-kill.png")
        _refuse(light.errors)
    with tab(running, width=390, height=844, dark=True, touch=True) as phone:
        sign_in(phone, here.page, TOKEN)
        phone.page.wait_for_timeout(3000)
        shoot(running, phone, output / "live-phone.png")
        _refuse(phone.errors)


def _refuse(errors: list[str]) -> None:
    if errors:
        raise SystemExit(f"the page's console: {errors}")


if __name__ == "__main__":
    main()
