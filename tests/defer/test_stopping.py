"""Stopping while something is under way: nothing that need not be finished is waited for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from defer import deployer
from defer.cli.stopping import Stop, StopNow, stopping
from defer.deployer import in_parallel
from defer.dispatcher import events as e
from defer.dispatcher.daemon import Daemon
from defer.documents.cluster import loads_cluster
from defer.local_agents import read_line

CLUSTER = '[dispatcher]\nlisten = "127.0.0.1:0"\n[[device]]\nname = "a"\naddress = "127.0.0.1:1"'


def test_in_parallel_does_not_wait_when_its_waiting_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    ended: list[str] = []

    def action(name: str) -> None:
        go.wait(10)
        ended.append(name)

    def interrupted(*_: object, **__: object) -> None:
        raise StopNow

    monkeypatch.setattr(deployer, "wait", interrupted)
    with pytest.raises(StopNow):
        in_parallel(action, ["a", "b"])
    assert ended == []
    go.set()


def test_in_parallel_raises_when_all_have_ended() -> None:
    ended: list[str] = []

    def action(name: str) -> str:
        ended.append(name)
        if name == "b":
            raise ValueError(name)
        return name

    assert in_parallel(action, ["a", "c"]) == {"a": "a", "c": "c"}
    with pytest.raises(ValueError, match="b"):
        in_parallel(action, ["a", "b", "c"])
    assert sorted(ended) == ["a", "a", "b", "c", "c"]


def test_the_first_signal_stops_in_order_and_the_second_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and so it would stay
    try:
        with stopping() as stop:
            with pytest.raises(StopNow), stop.interrupting():
                signal.raise_signal(signal.SIGHUP)
            stop.wait()
            assert codes == []
            signal.raise_signal(signal.SIGTERM)
            assert codes == [143]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, outside)


def test_a_signal_that_came_before_interrupts_and_one_that_comes_while_serving_does_not() -> None:
    stop = Stop()
    stop.signalled(signal.SIGTERM, None)
    with pytest.raises(StopNow), stop.interrupting():
        pytest.fail("it must not get here")
    stop.wait()
    stop.close()


def test_a_signal_that_does_not_interrupt_the_wait_ends_it_all_the_same() -> None:
    with stopping() as stop:
        late = threading.Event()

        def give_up() -> None:  # without which a failure would be a hang
            late.set()
            stop.set()

        rescue = threading.Timer(10, give_up)

        def elsewhere() -> None:
            time.sleep(0.2)  # until the main thread waits
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

        sender = threading.Thread(target=elsewhere)
        rescue.start()
        sender.start()
        stop.wait()
        assert not late.is_set()
        assert stop.number == signal.SIGTERM
        rescue.cancel()
        rescue.join()
        sender.join()


def test_a_signal_of_somebody_elses_stops_nothing() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _frame: came.append(number))
    try:
        with stopping() as stop:
            told = threading.Event()

            def tell() -> None:
                told.set()
                stop.set()

            last = threading.Timer(0.3, tell)
            last.start()
            signal.raise_signal(signal.SIGUSR2)
            stop.wait()
            assert told.is_set()
            last.join()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert came == [signal.SIGUSR2]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_restarted_agent_is_lost_for_good_and_what_it_held_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = Daemon(loads_cluster(CLUSTER), tmp_path)
    posted: list[e.Event] = []
    cleaned: list[str | None] = []
    monkeypatch.setattr(daemon.shell, "post", posted.append)
    monkeypatch.setattr(daemon.deployments, "clean", cleaned.append)
    monkeypatch.setattr(daemon._background, "do", lambda action: action())
    daemon._news.happened("restarted", "a", "")
    daemon._news.happened("back", "a", "")
    assert posted == [e.DeviceLost("a", "its agent restarted", restarted=True), e.DeviceBack("a")]
    assert cleaned == ["a", "a"]


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_serve_stops_while_it_waits_for_its_agents(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    command = [sys.executable, "-m", "defer", "serve", "--cluster", tmp_path / "cluster.toml", "--wait", 600]
    command += ["--json", "--state", tmp_path / "state"]
    process: subprocess.Popen[Any] = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "connecting" in json.loads(read_line(process, 60) or "{}")["progress"]
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (130 if number == signal.SIGINT else 0), said
    finally:
        process.kill()
        process.communicate()


def test_a_terminal_that_closes_when_all_is_done_changes_nothing() -> None:
    program = (
        "import atexit, os, signal, sys; sys.argv = ['defer', 'schema', 'plan']\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGHUP))\n"
        "from defer.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert json.loads(ended.stdout)
