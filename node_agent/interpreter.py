"""The interpreter that children of this process run."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def python() -> tuple[str, ...]:
    """How a child is started, which is not to take a user's files for its modules where this process does not.

    With `-m` and `-c` Python looks in the working directory first: a user's `models/` or `onnx.py` would be imported.
    """
    here = {"", "."}
    with suppress(OSError):
        here.add(str(Path.cwd()))
    return (sys.executable,) if here & set(sys.path) else (sys.executable, "-P")
