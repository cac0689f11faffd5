"""Runs a build in a child process: passes its progress on, holds it to a deadline, and says how it failed."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from node_agent.engines.tensorrt_build import Job
from node_agent.errors import AgentError, LoadFailedError, OutOfMemoryError
from node_agent.interpreter import python

Progress = Callable[[str, float], None]

DEADLINE_S = 1800.0
"""How long a build may take unless told otherwise. Large models on small boards take tens of minutes."""

MODULE = "node_agent.engines.tensorrt_build"


def run_build(
    job: Job,
    *,
    deadline_s: float = DEADLINE_S,
    progress: Progress | None = None,
    module: str = MODULE,
) -> None:
    """Builds what `job` says, in a process of its own.

    Raises:
        LoadFailedError: The build failed, crashed, or took longer than `deadline_s`; the child is gone.
        OutOfMemoryError: It ran out of memory, or the system killed it for its memory.
    """
    with tempfile.TemporaryDirectory(prefix="defer-build-") as folder:
        description = Path(folder, "job.json")
        description.write_bytes(msgspec.json.encode(job))
        errors = Path(folder, "stderr")
        with errors.open("wb") as stderr:
            child = subprocess.Popen(
                [*python(), "-m", module, str(description)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                last = _follow(child, deadline_s, progress)
            finally:
                _end(child)
        _judge(child.returncode, last, errors, Path(job.graph))


def _follow(
    child: subprocess.Popen[bytes], deadline_s: float, progress: Progress | None
) -> dict[str, object]:
    """Reads the child's lines until it ends; the last one that is a verdict."""
    assert child.stdout is not None
    verdict: dict[str, object] = {}
    rest = b""
    end = time.monotonic() + deadline_s
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            left = end - time.monotonic()
            if left <= 0 or not selector.select(left):
                return {
                    "error": f"the build took longer than {deadline_s:g} s",
                    "code": LoadFailedError.code,
                    "hint": "Give it longer (engine option build_deadline), or fewer blocks.",
                }
            data = _read(child.stdout)
            if not data:
                child.wait()
                return verdict
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                verdict = _line(line, progress) or verdict


def _read(stream: IO[bytes]) -> bytes:
    return os.read(stream.fileno(), 65536)


def _line(line: bytes, progress: Progress | None) -> dict[str, object] | None:
    """Passes progress on; gives a verdict back. Other text (a library's own output) is passed over."""
    try:
        said = json.loads(line)
    except ValueError:
        return None
    if not isinstance(said, dict):
        return None
    if "error" in said or "done" in said:
        return said
    if progress is not None and "phase" in said:
        progress(str(said["phase"]), float(said.get("fraction", 0.0)))
    return None


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leaves nothing of the child behind."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _judge(status: int, verdict: dict[str, object], errors: Path, path: Path) -> None:
    graph = path.name
    if "error" in verdict:
        kind: type[AgentError] = (
            OutOfMemoryError if verdict.get("code") == OutOfMemoryError.code else LoadFailedError
        )
        message = str(verdict["error"]).replace(f"{path.parent}/", "")  # whoever reads it has no such folder
        if "partition" not in message:
            message = f"Partition {graph} cannot be built: {message}."
        raise kind(message, hint=str(verdict.get("hint", "")))
    if status == 0 and "done" in verdict:
        return
    if status == -signal.SIGKILL:
        raise OutOfMemoryError(
            f"The build of partition {graph} was killed, as the system does when memory runs out.",
            hint="Give this device fewer blocks, or build with a smaller workspace (engine option workspace).",
        )
    text = errors.read_bytes().decode(errors="replace").strip().splitlines()
    ended = f"by signal {-status}" if status < 0 else f"with status {status}"
    raise LoadFailedError(
        f"The build of partition {graph} ended {ended}{': ' + text[-1] if text else ''}.",
        hint="Run defer doctor on this device; a crash inside TensorRT is one to report to NVIDIA.",
    )
