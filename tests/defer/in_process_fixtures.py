"""Clients of a test's server that is in their own process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from defer import api
from defer.client import Client
from defer.client_requests import Requests
from defer.client_served import Served
from defer.documents.address import parse_address
from defer.in_process_session import InProcessSession
from node_agent.security import OPEN


def x(value: float = 1) -> np.ndarray:
    return np.full((1, 4), value, np.float32)


class ServedHere(Served):
    """What a test's server says that it serves."""

    def __init__(self, server: Any) -> None:
        super().__init__((parse_address(server.address),), 5.0, OPEN)
        self._server = server

    def refresh(self) -> tuple[api.ModelInfo, ...]:
        answer = self._server.verbs.models()
        self._note(answer, self.addresses[0])
        return answer.models


def requests_to(server: Any, **more: Any) -> Requests:
    options = {"model": "", "timeout": 10.0, "codec": "auto"} | more
    return Requests(ServedHere(server), lambda: InProcessSession(server.shell), **options)


@contextmanager
def here(server: Any, **more: Any) -> Iterator[Client]:
    with Client._over(requests_to(server, **more)) as client:
        yield client


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)
