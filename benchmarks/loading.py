"""What loading a partition takes for a moment: a process that loads it, and prints that as JSON.

    python -m benchmarks.loading GRAPH FREE

FREE is how many bytes the engine is told that it could take. Prints the most heap that there was while it loaded, less
what there was before, and the processor's seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from node_agent import machine
from node_agent.engines import engine_named
from node_agent.engines.base import Partition

PLENTY = 1 << 50
LOOK_S = 0.001
_ENGINE = "onnxruntime-cpu"


def taken(graph: Path, free: int) -> tuple[int, float]:
    """Bytes and seconds, measured in a process of its own; see the module."""
    command = [sys.executable, "-m", "benchmarks.loading", str(graph), str(free)]
    nbytes, seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return nbytes, seconds


def _heap() -> int:
    """Anonymous memory: pages of mapped files are the kernel's to take back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def _load(graph: Path, free: int) -> tuple[int, float]:
    machine.available_bytes = lambda: free
    machine.keep_buffers()  # as an agent does
    engine = engine_named(_ENGINE)
    engine.info()  # imports what it needs
    before = most = _heap()
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(LOOK_S):
            most = max(most, _heap())

    thread = threading.Thread(target=watch)
    thread.start()
    begun = time.process_time()
    session = engine.load(Partition(graph, (), ()))
    seconds = time.process_time() - begun
    over.set()
    thread.join()
    session.close()
    return most - before, seconds


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_load(Path(sys.argv[1]), int(sys.argv[2]))))
