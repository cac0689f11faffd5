"""A share of the simulation's schedules, and proof that its checks would find what somebody might break."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.simulation.__main__ import play, replay
from benchmarks.simulation.bugs import BUGS

ROOT = Path(__file__).parents[2]


SCHEDULES = 10_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_schedule_breaks_a_promise() -> None:
    """By its command, so that what it says replays; a minute on two cores that have nothing else to do."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.simulation",
        "--schedules",
        str(SCHEDULES),
        "--seed",
        "20000",
        "--json",
        "-",
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (row,) = json.loads(ran.stdout)["rows"]
    assert row["schedules"] == SCHEDULES
    assert row["broken"] == 0
    assert row["results"] > row["requests"] / 2


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    # Seeds among which the rarest are found soon; they find most of the others as well.
    tally = play([*range(4215, 4300), *range(3000, 6000)], bug, first=True)
    assert tally.broken, f"{bug} was not found in {tally.schedules} schedules"


def test_a_seed_gives_the_same_history_again() -> None:
    assert replay(7) == replay(7)


def test_the_product_is_itself_again_afterwards() -> None:
    import time

    from node_agent import link, plane, receiver
    from node_agent.data_loop import DataLoop

    play(range(1))
    assert receiver.send is link.send
    assert plane.time is time
    assert plane.DataLoop is DataLoop


def test_hash_seeds_do_not_change_a_replay() -> None:
    command = [sys.executable, "-m", "benchmarks.simulation", "--replay", "11"]
    said = {
        subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
