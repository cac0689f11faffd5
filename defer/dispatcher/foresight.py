"""Plans for what is left when devices are lost, with their partitions cut; made in a process of its own.

Planning and cutting take seconds of pure computation, which would delay every request of a dispatcher that did it in its
own process. The other one gets a question on its standard input, answers on its standard output, and ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import DeferError, from_code
from defer.hops import Part, Signature
from node_agent.messages import FileRef

if TYPE_CHECKING:
    from defer.parts import WrittenPart

LIMIT_S = 600.0
"""Seconds that one question may take."""

PATIENT = 10
"""What is added to the niceness of a process whose answer nobody waits for."""


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to plan.

    Attributes:
        model: The ONNX file.
        shapes: Input shapes that bind free dimensions.
        blocks: Most blocks to plan with.
        cluster: All devices.
        profile: Costs, if they were measured.
        objective: What is made least.
        calibration: Requests on which ranges are measured; empty where none were given.
        parts: Directory for partitions.
        without: Sets of devices that are lost; one plan is made for each.
        running: The plan that serves, where a new one is only wanted if it pays to change to it; None wants one anyway.
        rate: Requests per second that it would serve.
        horizon: Seconds for which it would.
        threshold: Least relative gain.
        staying: The plan that serves, where one that moves little of it is wanted if it is nearly as good as the best.
    """

    model: str
    shapes: dict[str, tuple[int, ...]]
    blocks: int
    cluster: Cluster
    profile: CostProfile | None
    objective: Objective
    calibration: str
    parts: str
    without: tuple[tuple[str, ...], ...]
    running: Plan | None = None
    rate: float = 1.0
    horizon: float = 600.0
    threshold: float = 0.05
    staying: Plan | None = None


class Foreseen(msgspec.Struct, frozen=True):
    """A plan and its stages' partitions, in order, all on disk; or why there is none, as code and sentence.

    `reason` says, where it was weighed against a running plan, why that gives way or, without a plan, is kept.
    `signature` has the model's inputs, its outputs, and its inputs with every dimension bound.
    """

    plan: Plan | None = None
    parts: tuple[Part, ...] = ()
    code: str = ""
    problem: str = ""
    reason: str = ""
    signature: Signature = ((), (), ())

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every file of its partitions."""
        return tuple(ref for part in self.parts for ref in (part.graph, *part.weights))

    def written(self, directory: Path) -> tuple[WrittenPart, ...]:
        """The partitions, and where their files lie."""
        from defer.parts import WrittenPart

        return tuple(
            WrittenPart(
                part, {ref: directory / f"{ref.sha256}{ref.suffix}" for ref in (part.graph, *part.weights)}
            )
            for part in self.parts
        )


def without(cluster: Cluster, lost: Collection[str]) -> Cluster:
    """The cluster that is left; the dispatcher's own device stays, but computes nothing."""
    home = cluster.dispatcher.device
    devices = tuple(
        msgspec.structs.replace(device, computes=False, address="", dials=False)
        if device.name in lost
        else device
        for device in cluster.devices
        if device.name == home or device.name not in lost
    )
    gone = set(lost) - {home}
    links = tuple(link for link in cluster.links if not gone & {end for pair in link.pairs for end in pair})
    return msgspec.structs.replace(cluster, devices=devices, links=links)


class Foresight:
    """Asks the other process, one question at a time and thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def ask(self, question: Question, *, patient: bool = False) -> tuple[Foreseen, ...]:
        """Plan; blocks.

        Args:
            question: What.
            patient: Nobody waits for it: leave the processor to others.

        Returns:
            One answer for each of `question.without`.

        Raises:
            DeferError: The process failed, took too long, or `close` was called.
        """
        command = [sys.executable, "-m", "defer.dispatcher.foreseeing"]
        with self._lock:
            if self._closed:
                raise _ended()
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            self._running.add(process)
        try:
            if patient:
                os.setpriority(os.PRIO_PROCESS, process.pid, PATIENT)
            out, told = process.communicate(msgspec.msgpack.encode(question), timeout=LIMIT_S)
        except (subprocess.TimeoutExpired, ProcessLookupError) as error:
            raise from_code("internal", f"planning for what is left did not end: {error}") from error
        finally:
            process.kill()
            process.communicate()
            with self._lock:
                self._running.discard(process)
        if process.returncode != 0:
            if self._closed:
                raise _ended()
            raise from_code(
                "internal", f"planning for what is left failed: {told.decode(errors='replace')[-500:]}"
            )
        return msgspec.msgpack.decode(out, type=tuple[Foreseen, ...])

    def close(self) -> None:
        """End what runs; whoever waits for it gets an error."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.kill()


def _ended() -> DeferError:
    return from_code("not-ready", "the dispatcher is shutting down")
