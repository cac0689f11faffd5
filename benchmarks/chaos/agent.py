"""An agent that notes what it runs: `python -m benchmarks.chaos.agent HISTORY`, then arguments as for `defer-agent`.

One line per run and request: monotonic time, epoch, hop, the request's number (see `benchmarks.chaos.model`). Each is
written at once, so that what a killed agent has done is known. As long as there is a file `HISTORY.slow`, each
run takes longer by the seconds that it holds behind a word: `work 0.5` uses the processor, `wait 20` does not.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node_agent import cli
from node_agent.plane import DataPlane


class Noting:
    """A partition's session that notes each run before it is made.

    Args:
        session: The engine's.
        file: Descriptor of the history.
        where: Epoch and hop.
        slow: File that says how runs take longer.
    """

    def __init__(self, session: Any, file: int, where: tuple[int, int], slow: Path) -> None:
        self._session, self._file, self._where, self._slow = session, file, where, slow

    def run(self, inputs: Mapping[str, Any]) -> Any:
        """Note it and run."""
        array = next(iter(inputs.values()))
        now = time.monotonic()
        # Each row of a request carries its number; a batch holds several requests.
        numbers = dict.fromkeys(int(row[0]) for row in array)
        lines = [f"{now:.6f} {self._where[0]} {self._where[1]} {number}\n" for number in numbers]
        os.write(self._file, "".join(lines).encode())
        if self._slow.exists():
            self._linger()
        return self._session.run(inputs)

    def _linger(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            how, seconds = self._slow.read_text().split()
            until = time.monotonic() + float(seconds)
            while time.monotonic() < until and self._slow.exists():
                if how == "wait":
                    time.sleep(0.05)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def main() -> None:
    """Run an agent."""
    history = sys.argv.pop(1)
    file = os.open(history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    install = DataPlane.install

    def noting(plane: DataPlane, load: Any, sessions: Mapping[int, Any], *rest: Any, **more: Any) -> Any:
        noted = {
            hop: Noting(session, file, (load.epoch, hop), Path(f"{history}.slow"))
            for hop, session in sessions.items()
        }
        return install(plane, load, noted, *rest, **more)

    DataPlane.install = noting  # type: ignore[method-assign, assignment]
    cli.main()


if __name__ == "__main__":
    main()
