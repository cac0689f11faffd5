"""Reading what a child says, line by line."""

from __future__ import annotations

import subprocess
import sys

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
