"""The clients, in a process of their own: what they hold is judged, not what this benchmark holds beside them.

`python -m benchmarks.soak.clients ADDRESS RATE SEED` sends requests until its input closes, and then prints what became
of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import subprocess
import sys
from typing import TYPE_CHECKING

import msgspec

from benchmarks.soak.load import DEADLINE_S, Load, Tally
from defer.local_agents import read_line, stop

if TYPE_CHECKING:
    from benchmarks.soak.stand import Stand

START_S = 60.0
END_S = 10 * DEADLINE_S


class Clients:
    """The process; use it as a context manager.

    Args:
        stand: What is asked; the process is watched with it.
        rate: Requests per second.
        seed: Of all choices.
    """

    def __init__(self, stand: Stand, rate: float, seed: int) -> None:
        self._stand = stand
        self._log = stand.work / "clients.log"
        self._command = [sys.executable, "-m", __name__, stand.address, str(rate), str(seed)]

    def __enter__(self) -> Clients:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        try:
            self._line(START_S)
        except BaseException:
            stop([self._process])
            raise
        self._stand.pids["clients"] = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        stop([self._process])

    def check(self) -> None:
        """Nothing goes on without them.

        Raises:
            RuntimeError: The process has ended.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"the clients have failed: {self._last_words()}")

    def tally(self) -> Tally:
        """End the load, and wait for what is under way; what became of the requests.

        Raises:
            RuntimeError: The process has failed.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        return msgspec.json.decode(self._line(END_S), type=Tally, dec_hook=lambda kind, told: kind(told))

    def _line(self, timeout: float) -> str:
        if line := read_line(self._process, timeout):
            return line
        raise RuntimeError(f"the clients have failed: {self._last_words()}")

    def _last_words(self) -> str:
        return " ".join(self._log.read_text().strip().splitlines()[-3:])


def _share_heaps() -> None:
    """Has this process's threads share two heaps; where the C library is another one, nothing is done.

    Each of two dozen threads would have its own, and keep the most that it ever held: that looks like a leak.
    """
    m_arena_max = -8  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(m_arena_max, 2)


def main() -> None:
    """See the module."""
    _share_heaps()
    address, rate, seed = sys.argv[1:]
    with Load(address, float(rate), int(seed)) as load:
        print("ready", flush=True)
        sys.stdin.read()
    print(msgspec.json.encode(load.tally).decode(), flush=True)


if __name__ == "__main__":
    main()
