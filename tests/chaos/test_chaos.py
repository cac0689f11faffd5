from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.chaos import clock, model
from benchmarks.chaos.faults import BACK_S, KINDS, LASTS_S, ON_LINKS, OUT, Fault, plan
from benchmarks.chaos.history import Asked, Ran, judge, read_agent, read_client
from benchmarks.testbed import owner
from benchmarks.testbed.capabilities import abilities, missing

NAMES = [f"box-{number}" for number in range(8)]


@pytest.mark.parametrize("seed", range(20))
def test_a_seed_decides_faults_that_leave_enough_devices(seed: int) -> None:
    made = plan(seed, 300.0, NAMES, "dispatcher", every_s=2.0, most_out=2)
    assert made == plan(seed, 300.0, NAMES, "dispatcher", every_s=2.0, most_out=2)
    assert made != plan(seed + 1, 300.0, NAMES, "dispatcher", every_s=2.0, most_out=2)
    assert {fault.kind for fault in made} == set(KINDS) == set(LASTS_S)
    for fault in made:
        assert fault.at < 285.0
        assert bool(fault.other) == (fault.kind in ON_LINKS)
        assert fault.other != fault.device
        out = {one.device for one in made if one.kind in OUT and one.at <= fault.at < one.end + BACK_S}
        assert len(out) <= 2


def asked(*ends: tuple[float, str], sent: float = 0.0, again: int = 0) -> Asked:
    return Asked(sent, [(at, outcome, "") for at, outcome in ends], again)


def ran(*numbers: int, epoch: int = 1, hops: tuple[int, ...] = (0, 1)) -> list[Ran]:
    return [Ran(0.1 * hop, f"box-{hop}", epoch, hop, number) for number in numbers for hop in hops]


def test_what_was_promised_and_kept_is_counted() -> None:
    history = {1: asked((1.0, "result")), 2: asked((1.5, "not-ready")), 3: asked((4.0, "result"), sent=3.0)}
    verdict = judge(history, ran(1, 3), [(1.2, "kill")], 30.0)
    assert (verdict.sent, verdict.results, verdict.refused["not-ready"]) == (3, 2, 1)
    assert (verdict.lost, verdict.duplicated, verdict.wrong, verdict.errors.total()) == (0, 0, 0, 0)
    assert verdict.longest_gap_s == pytest.approx(3.0)
    assert verdict.gaps == {"kill": [pytest.approx(3.0)]}


@pytest.mark.parametrize(
    ("request_1", "runs", "problem"),
    [
        (asked(), ran(1), "lost"),
        (asked((40.0, "result")), ran(1), "lost"),
        (asked((1.0, "result"), (2.0, "result")), ran(1), "duplicated"),
        (asked((1.0, "result"), again=1), ran(1), "duplicated"),
        (asked((1.0, "wrong")), ran(1), "wrong"),
        (asked((1.0, "result")), ran(1, hops=(0,)), "wrong"),
        (asked((1.0, "result")), ran(1, hops=(0,)) + ran(1, epoch=2, hops=(1,)), "wrong"),
    ],
)
def test_a_broken_promise_is_found(request_1: Asked, runs: list[Ran], problem: str) -> None:
    # The other request shows how many partitions each deployment has.
    history = {1: request_1, 2: asked((1.0, "result"))}
    verdict = judge(history, runs + ran(2) + ran(2, epoch=2), [], 30.0)
    counted = {name: getattr(verdict, name) for name in ("lost", "duplicated", "wrong")}
    assert counted == {"lost": 0, "duplicated": 0, "wrong": 0, problem: 1}
    assert len(verdict.problems) == 1


def test_errors_on_accepted_requests_are_told_apart_from_refusals() -> None:
    verdict = judge({1: asked((1.0, "agent-lost")), 2: asked((1.0, "overloaded"))}, [], [], 30.0)
    assert (dict(verdict.errors), dict(verdict.refused)) == ({"agent-lost": 1}, {"overloaded": 1})


def test_notes_are_read_up_to_where_a_killed_agent_wrote_them() -> None:
    assert read_agent("box", ["1.5 7 0 1000\n", "1.6 7 0 10"]) == [Ran(1.5, "box", 7, 0, 1000)]
    lines = [
        json.dumps(line) for line in (["sent", 1.0, 5], ["end", 2.0, 5, "result", ""], ["again", 3.0, 5])
    ]
    assert read_client(lines) == {5: Asked(1.0, [(2.0, "result", "")], 1)}


def test_the_network_carries_its_number_and_shows_what_was_left_out(tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(model.save(tmp_path / "numbered.onnx"))
    matrices = model.weights()
    (result,) = session.run(None, {"a0": model.request(1234)})
    assert model.is_right(result, 1234, matrices)
    assert not model.is_right(result, 1235, matrices)
    assert not model.is_right(result[:-1], 1234, matrices)
    assert not model.is_right(result, 1234, matrices[:-1])
    spoilt = result.copy()
    spoilt[-1, np.argmax(spoilt[-1, 1:]) + 1] = 0
    assert not model.is_right(spoilt, 1234, matrices)


def test_a_clock_can_be_moved_while_a_process_runs(tmp_path: Path) -> None:
    file, script = tmp_path / "clock", tmp_path / "told.py"
    script.write_text(
        "import sys, time\n"
        "for _ in sys.stdin:\n"
        "    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)\n"
    )
    clock.put(file, 0.0)
    command = [sys.executable, "-m", "benchmarks.chaos.clock", str(file), "told"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": f".:{tmp_path}"}
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def told() -> list[float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return [float(word) for word in process.stdout.readline().split()]

        before = told()
        clock.put(file, -86400.0)
        after = told()
        process.stdin.close()
    assert [later - earlier for earlier, later in zip(before, after, strict=True)] == pytest.approx(
        [-86400, -86400, 0], abs=60
    )


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.alone
def test_nothing_is_lost_while_things_go_wrong(tmp_path: Path) -> None:
    if lacking := missing(abilities()):
        pytest.skip(f"no testbed on this machine: {'; '.join(one.name for one in lacking)}")
    owner.reap()
    command = [sys.executable, "-m", "benchmarks.chaos", "--quick", "--devices", "6", "--most-out", "1"]
    command += ["--seed", "3", "--every", "2", "--rate", "15", "--keep", str(tmp_path), "--json"]
    done = subprocess.run([*command, "-"], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = {target["name"]: target["value"] for target in json.loads(done.stdout)["targets"]}
    assert told["requests lost"] == 0, done.stderr[-2000:]
    assert told["requests answered twice"] == 0, done.stderr[-2000:]
    assert told["results that are wrong"] == 0, done.stderr[-2000:]
    assert told["accepted requests that ended with an error"] == 0, done.stderr[-2000:]
    assert told["availability"] > 0.9


def test_a_fault_ends_after_it_began() -> None:
    assert Fault(1.0, "kill", "box", "", 2.5).end == 3.5
