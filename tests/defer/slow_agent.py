"""An agent that can be made slow: `python -m tests.defer.slow_agent FILE`, then arguments as for `defer-agent`.

What FILE says counts for each run: `spin 0.05` makes it take 50 ms longer with the processor busy, as a slower processor
would; `sleep 0.05` without, as a hang would; `fail 0` makes it fail; an absent file nothing.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_agent import cli
from node_agent.plane import DataPlane

BLOCK = bytes(1 << 20)


class Slow:
    """A partition's session that waits before it runs."""

    def __init__(self, session: Any, file: Path) -> None:
        self._session, self._file = session, file

    def run(self, inputs: Mapping[str, Any]) -> Any:
        try:
            how, seconds = self._file.read_text().split()
        except (FileNotFoundError, ValueError):
            return self._session.run(inputs)
        if how == "fail":
            raise RuntimeError("told to fail")
        if how == "sleep":
            time.sleep(float(seconds))
        end = time.thread_time() + float(seconds)
        while how == "spin" and time.thread_time() < end:
            hashlib.sha256(BLOCK)  # like an engine, it lets other threads run meanwhile
        return self._session.run(inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def main() -> None:
    file = Path(sys.argv.pop(1))
    install = DataPlane.install

    def slow(plane: DataPlane, load: Any, sessions: Mapping[int, Any], *rest: Any, **more: Any) -> Any:
        made = {hop: Slow(session, file) for hop, session in sessions.items()}
        return install(plane, load, made, *rest, **more)

    DataPlane.install = slow  # type: ignore[method-assign, assignment]
    cli.main()


if __name__ == "__main__":
    main()
