"""A wall clock that can be moved: `python -m benchmarks.chaos.clock FILE MODULE ARGUMENTS…` runs a module with it.

The file holds how many seconds the clock is wrong by, as eight bytes. `time.time` and `time.time_ns` of the process
follow it at once, and with them log lines and whatever else of Python asks for the time of day. Clocks of the kernel
cannot be moved for one device alone: file times, and what C libraries ask for themselves, stay right.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import sys
import time
from pathlib import Path

_OFFSET = struct.Struct("d")


def put(file: Path, seconds: float) -> None:
    """Move the clock of the processes that follow a file."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, _OFFSET.pack(seconds), 0)
    finally:
        os.close(descriptor)


def follow(file: Path) -> None:
    """Let this process' wall clock be wrong by what the file says, from now on."""
    descriptor = os.open(file, os.O_RDONLY)
    shown = mmap.mmap(descriptor, _OFFSET.size, prot=mmap.PROT_READ)
    os.close(descriptor)
    right = time.time

    def wrong() -> float:
        return right() + float(_OFFSET.unpack_from(shown)[0])

    time.time = wrong
    time.time_ns = lambda: int(wrong() * 1e9)


def main() -> None:
    """Run a module."""
    _, file, module, *arguments = sys.argv
    follow(Path(file))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
