"""An agent that notes what it runs: `python -m benchmarks.chaos.agent HISTORY`, then arguments as for `defer-agent`.

One line per run and request: monotonic time, epoch, hop, the request's number (see `benchmarks.chaos.model`). Each is
written at once, so that what a killed agent has done is known.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from node_agent import cli
from node_agent.plane import DataPlane


class Noting:
    """A partition's session that notes each run before it is made.

    Args:
        session: The engine's.
        file: Descriptor of the history.
        where: Epoch and hop.
    """

    def __init__(self, session: Any, file: int, where: tuple[int, int]) -> None:
        self._session, self._file, self._where = session, file, where

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Note it and run."""
        array = next(iter(inputs.values()))
        now = time.monotonic()
        # Each row of a request carries its number; a batch holds several requests.
        numbers = dict.fromkeys(int(row[0]) for row in array)
        lines = [f"{now:.6f} {self._where[0]} {self._where[1]} {number}\n" for number in numbers]
        os.write(self._file, "".join(lines).encode())
        return self._session.run(inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def main() -> None:
    """Run an agent."""
    file = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    install = DataPlane.install

    def noting(plane: DataPlane, load: Any, sessions: Mapping[int, Any], *rest: Any, **more: Any) -> Any:
        noted = {hop: Noting(session, file, (load.epoch, hop)) for hop, session in sessions.items()}
        return install(plane, load, noted, *rest, **more)

    DataPlane.install = noting  # type: ignore[method-assign, assignment]
    cli.main()


if __name__ == "__main__":
    main()
