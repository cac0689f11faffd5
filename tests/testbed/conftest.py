from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.testbed import AgentPlace, Options, owner
from benchmarks.testbed.capabilities import abilities, missing

HERE = Path(__file__).parent


def _lacking() -> str:
    if not sys.platform.startswith("linux"):
        return "the testbed needs Linux"
    lacking = missing(abilities())
    return "; ".join(f"{one.name}: {one.detail} ({one.fix})" for one in lacking)


@pytest.fixture(scope="session")
def able() -> None:
    """Skips where this machine cannot make a testbed, with what is missing."""
    if lacking := _lacking():
        pytest.skip(f"no testbed on this machine: {lacking}")


@pytest.fixture
def clean(able: None) -> None:
    """A machine that can, without what a killed run has left."""
    owner.reap()


def stand_in(place: AgentPlace) -> list[str]:
    script = str(HERE / "stand_in.py")
    words = [sys.executable, "-I", script, place.device.name, place.host, str(place.port)]
    return [*words, *place.device.arguments]


@pytest.fixture
def options() -> Options:
    return Options(agent_command=stand_in, start_timeout=20)


@pytest.fixture
def empty() -> Options:
    return Options(agents=False)


@pytest.fixture
def near() -> Callable[[Callable[[], float], float, float], None]:
    """Checks that a measurement comes near to a figure; a busy machine gets three tries, a wrong rate fails all."""

    def check(measure: Callable[[], float], least: float, most: float) -> None:
        seen = []
        for _ in range(3):
            seen.append(measure())
            if least <= seen[-1] <= most:
                return
        pytest.fail(f"measured {seen}, expected {least} to {most}")

    return check
