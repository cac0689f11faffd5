"""One dispatcher per state directory."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from defer.errors import PortInUse, StateInUse


def lock(path: Path, listen: str) -> IO[str]:
    """Keeps other dispatchers out of a state directory until the file is closed.

    Raises:
        PortInUse: One that listens on the same address is in there already.
        StateInUse: Another one is.
    """
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        theirs = file.read()
        file.close()
        if theirs == listen and not listen.endswith(":0"):
            raise PortInUse(
                f"a dispatcher already runs on {listen}",
                hint="stop it, or choose another port with --listen HOST:PORT",
            ) from None
        raise StateInUse(
            f"another dispatcher keeps its state in {path.parent}",
            hint="stop it, or give this one a directory of its own with --state",
        ) from None
    file.truncate(0)
    file.write(listen)
    file.flush()
    return file
