"""Questions to the dispatcher's api: each gets one answer, also when the dispatcher stops."""

from __future__ import annotations

import threading
from typing import Any

from defer import api
from defer.dispatcher.api_server import ApiServer
from node_agent.messages import Done, Fault


class SlowVerbs:
    """Undeploying takes until the test lets it end."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.undeployed: list[str] = []

    def undeploy(self, order: api.Undeploy) -> None:
        self.begun.set()
        self.go.wait(10)
        self.undeployed.append(order.name)


def test_stopping_answers_what_runs_what_waits_and_what_comes() -> None:
    verbs: Any = SlowVerbs()
    said: list[tuple[bytes, Any]] = []
    server = ApiServer("d", "boot", verbs, lambda identity, frames: said.append((identity, frames[0])))
    for number in (1, 2):
        server.heard(b"%d" % number, [api.encode(api.Undeploy(number, f"m{number}"))])
    assert verbs.begun.wait(10)
    server.stop()
    server.heard(b"3", [api.encode(api.Undeploy(3, "m3"))])
    faults = [(identity, api.decode(body)) for identity, body in said]
    assert sorted((identity, fault.id) for identity, fault in faults) == [(b"1", 1), (b"2", 2), (b"3", 3)]  # type: ignore[union-attr]
    assert {fault.code for _, fault in faults if isinstance(fault, Fault)} == {"not-ready"}
    verbs.go.set()
    server.close()
    assert verbs.undeployed == ["m1"]
    assert len(said) == 3  # no second answer


def test_a_question_that_ends_before_is_answered_once() -> None:
    verbs: Any = SlowVerbs()
    verbs.go.set()
    said: list[Any] = []
    answered = threading.Event()

    def reply(_identity: bytes, frames: list[bytes]) -> None:
        said.append(api.decode(frames[0]))
        answered.set()

    server = ApiServer("d", "boot", verbs, reply)
    server.heard(b"1", [api.encode(api.Undeploy(7, "m"))])
    assert answered.wait(10)
    server.close()
    assert said == [Done(7)]
