"""A closed terminal and SIGTERM: real processes on a terminal of their own, which goes; nothing is left behind."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from defer.cli.stopping import ending_in_order, stopping
from tests.defer.conftest import Server
from tests.defer.plan_fixtures import CLUSTER_TOML

ROOT = Path(__file__).parents[2]
LONG_S = 60.0

OWN_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the session's own, so that the system tells its processes when it closes
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # no `nohup` is inherited
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@contextmanager
def on_a_terminal(folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process with a terminal of its own, and this side of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_TERMINAL, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait(LONG_S)


def shown(terminal: int, words: str) -> str:
    """What the process wrote until certain words came."""
    text, deadline = "", time.monotonic() + LONG_S
    while words not in text:
        assert select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0], text
        text += os.read(terminal, 65536).decode(errors="replace")
    return text


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (("node_agent", "--name", "a", "--listen", "127.0.0.1:0", "--store", "store"), "is ready"),
        (("defer", "gateway", "--http", "127.0.0.1:0", "--dispatcher", "{address}"), "ready: http"),
        (("defer", "top", "--dispatcher", "{address}"), "device"),
    ],
    ids=["agent", "gateway", "top"],
)
def test_what_serves_or_watches_ends_in_order_when_its_terminal_closes(
    tmp_path: Path, words: tuple[str, ...], seen: str
) -> None:
    server = Server(serving=True).start()
    try:
        command = [word.format(address=server.address) for word in words]
        with on_a_terminal(tmp_path, *command) as (process, terminal):
            try:
                assert "Traceback" not in shown(terminal, seen)
            finally:
                os.close(terminal)
            assert process.wait(LONG_S) == 0
    finally:
        server.stop()
    assert [each.name for each in tmp_path.iterdir() if each.name != "store"] == []


@pytest.mark.integration
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_works_and_ends_leaves_no_file(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER_TOML)
    with on_a_terminal(tmp_path, "defer", "models", "build", "resnet50", "-o", "m.onnx") as (
        process,
        terminal,
    ):
        shown(terminal, "building resnet50: ")
        process.send_signal(number)
        assert process.wait(LONG_S) == code
        os.close(terminal)
    assert [each.name for each in tmp_path.iterdir()] == ["cluster.toml"]


def hung_up_twice() -> None:
    with ending_in_order() as ending:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGHUP)  # while what was held is given back
            assert ending.number == signal.SIGHUP


def test_a_terminal_that_closes_says_so_twice_and_nobody_is_in_a_hurry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    outside = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stopping() as stop:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            stop.wait()
        assert codes == []
        with pytest.raises(SystemExit) as ended:
            hung_up_twice()
        assert ended.value.code == 129
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with ending_in_order():
            signal.raise_signal(signal.SIGHUP)  # nohup
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, outside)
