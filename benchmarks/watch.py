"""What a process takes of the machine: memory, file descriptors, threads; from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process holds now.

    Attributes:
        resident: Bytes of memory.
        descriptors: Open files and sockets.
        threads: Of them.
    """

    resident: int
    descriptors: int
    threads: int


def taken(pid: int) -> Taken:
    """What a process holds.

    Raises:
        ProcessLookupError: It has ended.
    """
    folder = Path(f"/proc/{pid}")
    try:
        resident = int((folder / "statm").read_text().split()[1]) * PAGE
        return Taken(resident, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())))
    except OSError as error:
        raise ProcessLookupError(f"process {pid} has ended") from error
