"""Nothing stays, however a bed ends. Needs root."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.testbed import Options, Testbed, owner, uniform
from benchmarks.testbed.cgroups import hierarchy
from benchmarks.testbed.interrupts import undisturbed

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("clean")]

PROGRAM = Path(__file__).with_name("owner_program.py")
ROOT = Path(__file__).resolve().parent.parent.parent


def left(tag: str) -> list[str]:
    """Everything on this machine that carries a bed's tag."""
    namespaces = subprocess.run(
        ["ip", "netns"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    links = subprocess.run(
        ["ip", "-o", "link"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    found = [line for line in (namespaces + links).splitlines() if tag in line]
    found += [str(path) for path in hierarchy().group(tag).directories if path.exists()]
    found += [str(path) for path in (owner.scratch(tag), owner.RECORDS / f"{tag}.json") if path.exists()]
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and tag in (process / "cgroup").read_text():
                found.append(f"process {process.name}")
    return found


@contextlib.contextmanager
def owned(*words: str) -> Iterator[tuple[subprocess.Popen[str], str, list[int]]]:
    """A process that owns a running bed; yields it, the bed's tag and some of the bed's processes."""
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        started = json.loads(line)
        yield process, started["tag"], started["pids"]
    finally:
        process.kill()
        process.wait(20)
        owner.reap()  # before its pipes are read to the end: its orphans hold them open
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_a_signal_removes_everything(number: signal.Signals, code: int) -> None:
    with owned() as (process, tag, pids):
        assert len(left(tag)) > 5
        process.send_signal(number)
        assert process.wait(20) == code
        assert left(tag) == []
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_an_exception_removes_everything() -> None:
    with owned("--raise") as (process, tag, _):
        assert process.wait(20) == 1
        assert left(tag) == []


def test_what_a_killed_owner_left_goes_with_the_next_bed() -> None:
    with owned() as (process, tag, pids), owned() as (alive, other, _):
        process.kill()
        process.wait(20)
        assert any(word.startswith("process") for word in left(tag))
        with Testbed(uniform(1), Options(agents=False)):
            assert left(tag) == []
        # The others' parent is gone, so somebody else collects them; they have ended.
        deadline = time.monotonic() + 5
        while any(owner.started_at(pid) is not None for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert all(owner.started_at(pid) is None for pid in pids)
        assert alive.poll() is None
        assert len(left(other)) > 5


def test_a_failure_while_it_is_made_removes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.testbed import layout

    monkeypatch.setattr(layout, "fdb_lines", lambda _: ["fdb add nonsense"])
    bed = Testbed(uniform(1), Options(agents=False))
    with pytest.raises(Exception, match="fdb add nonsense"):
        bed.__enter__()
    assert left(bed.layout.tag) == []


def test_closing_twice_and_an_unused_bed_are_no_fault() -> None:
    bed = Testbed(uniform(1), Options(agents=False))
    bed.close()
    with bed:
        bed.close()
    assert left(bed.layout.tag) == []


def test_processes_that_ignore_everything_end_with_the_bed() -> None:
    with Testbed(uniform(1), Options(agents=False)) as bed:
        script = "trap '' TERM INT HUP; setsid sh -c \"trap '' TERM; sleep 100\" & echo; sleep 100"
        stubborn = bed.start(
            ["sh", "-c", script], "box-1", start_new_session=True, stdout=subprocess.PIPE, text=True
        )
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline()
        stopped = bed.start(["sleep", "100"], "box-1")
        bed.stop("box-1")
        begin = time.monotonic()
    assert time.monotonic() - begin < 15
    assert stubborn.returncode == -signal.SIGKILL
    assert stopped.returncode is not None
    assert left(bed.layout.tag) == []


def test_a_signal_during_teardown_counts_afterwards() -> None:
    done = []

    def tear_down() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        tear_down()
    assert done


def test_start_times_tell_processes_apart() -> None:
    assert owner.started_at(os.getpid()) == owner.started_at(os.getpid())
    assert owner.started_at(1 << 30) is None
    first, second = owner.new_tag(), owner.new_tag()
    assert first != second
    assert owner.parts(first)[:2] == (os.getpid(), owner.started_at(os.getpid()))
