"""Reading what a child says, line by line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from defer.local_agents import read_line, stop


def test_two_lines_in_one_write_are_two_lines() -> None:
    code = "import os, time; os.write(1, b'one\\ntwo\\n'); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert read_line(process, 20) == "one\n"
        assert read_line(process, 20) == "two\n"
        assert read_line(process, 0.05) == ""
    finally:
        stop([process])


def test_a_child_that_ends_says_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE, text=True)
    try:
        assert read_line(process, 20) == ""
    finally:
        stop([process])


@pytest.mark.integration
def test_a_parent_that_is_killed_leaves_no_agent_behind(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\n"
        "from defer.local_agents import local_agents\n"
        "with local_agents(['a'], pathlib.Path(sys.argv[1])) as (agent,):\n"
        "    print(agent.process.pid, flush=True)\n"
        "    time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        agent = int(read_line(parent, 60))
        assert _runs(agent)
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 30
        while _runs(agent):
            assert time.monotonic() < deadline, "the agent outlives its parent"
            time.sleep(0.05)
    finally:
        stop([parent])


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has asked for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
