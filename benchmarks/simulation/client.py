"""Simulated clients: the product's connection and core; what they asked and what they were told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.simulation.dispatcher import HOST
from benchmarks.simulation.seams import Stage
from benchmarks.simulation.world import Process
from defer import client_events as c
from defer.client_session import Session
from defer.errors import DeferError
from node_agent.frames import pack_item


@dataclass(slots=True)
class Asked:
    """One request as its client sees it.

    Attributes:
        request: Its id.
        values: Its input.
        submitted: When.
        deadline: When it must have ended.
        ended: When it did; each time, if more than once.
        result: What came, or None.
        code: The error's code, or empty.
        abandoned: Its client was killed.
    """

    request: bytes
    values: list[int]
    submitted: float
    deadline: float
    ended: list[float] = field(default_factory=list)
    result: list[int] | None = None
    code: str = ""
    message: str = ""
    abandoned: bool = False


class Client:
    """One client process.

    Args:
        name: Its host.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = Stage.process = Process(Stage.world, name)
        self.asked: list[Asked] = []
        self.session = Session(f"tcp://{HOST}:7601", HOST)
        self.session.start()

    def ask(self, request: bytes, values: list[int], timeout: float, *, patient: bool) -> Asked:
        """Send a request."""
        world = Stage.world
        asked = Asked(request, values, world.now, world.now + timeout)
        self.asked.append(asked)
        headers, frames = pack_item({"x": np.array(values, np.int64)}, "raw")
        world.note(self.name, "ask", request.hex()[:6], f"{timeout:.2f} s")
        future = self.session.launch(c.Submit(request, "m", (), headers, frames, asked.deadline, patient))
        future.add_done_callback(lambda done: self._ended(asked, done))
        return asked

    def _ended(self, asked: Asked, done: Any) -> None:
        world = Stage.world
        asked.ended.append(world.now)
        error = done.exception()
        if error is None:
            asked.result = done.result()["y"].tolist()
            world.note(self.name, "result", asked.request.hex()[:6])
        else:
            asked.code = error.code if isinstance(error, DeferError) else type(error).__name__
            asked.message = str(error)
            world.note(self.name, "error", asked.request.hex()[:6], asked.code, asked.message)

    def kill(self) -> None:
        """SIGKILL; what it asked is nobody's any more."""
        self.process.alive = False
        for asked in self.asked:
            asked.abandoned |= not asked.ended
        context: Any = self.session._loop.context
        Stage.net.process_ended(context)
