"""Fixtures that end what they began: agents as processes, and a dispatcher's sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.node_agent.harness import AgentProcess, Driver


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A dispatcher's sockets; the context's end hangs, and so fails, if a test leaves one open."""
    context = zmq.Context()
    made = Driver(context)
    yield made
    for socket in made.sockets:
        socket.close(0)
    context.term()


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[Callable[..., AgentProcess]]:
    """Starts agents that are gone when the test ends."""
    started: list[AgentProcess] = []

    def start(name: str, *arguments: str, **more: Any) -> AgentProcess:
        agent = AgentProcess(name, tmp_path / "stores" / name, *arguments, **more)
        started.append(agent)
        return agent

    yield start
    for agent in started:
        if agent.process.poll() is None:
            agent.process.kill()
        agent.process.communicate()
