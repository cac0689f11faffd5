"""Answers to the dispatcher's api: messages are decoded in the control thread, verbs run beside it.

Two threads: one for questions and pieces of files, in the order in which they come, and one for what takes minutes.
So a deployment does not silence `defer status`, and neither delays heartbeats.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from defer import api
from defer.errors import DeferError, Overloaded, ProtocolMismatch, translate
from node_agent.errors import VersionError
from node_agent.messages import Chunk, Done, Fault, Have, Hello, Progress, Taken, Want, Welcome
from node_agent.versions import OURS, VersionRange, negotiate

logger = logging.getLogger("defer.dispatcher")

WAITING = 256
"""Questions that wait at most; more are refused."""

Reply = Callable[[bytes, list[bytes]], None]
OnProgress = Callable[[str, float], None]


class Verbs(Protocol):
    """What the dispatcher can be asked; methods raise `DeferError`, or what `translate` understands."""

    def models(self) -> api.Models:
        """What is served."""

    def status(self) -> api.ServerStatus:
        """How everything is."""

    def want(self, want: Want) -> Have:
        """How much of some files is held."""

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        """Take a piece of a file."""

    def deploy(self, order: api.Deploy, on_progress: OnProgress) -> api.Deployed:
        """Deploy a model and serve it."""

    def undeploy(self, order: api.Undeploy) -> None:
        """Serve a model no more."""


class ApiServer:
    """Takes messages of the api ROUTER and answers them.

    Args:
        name: The dispatcher's name.
        boot: Changes with each start of its process.
        verbs: What is done.
        reply: Sends frames to a caller; may be called from any thread.
    """

    def __init__(self, name: str, boot: str, verbs: Verbs, reply: Reply) -> None:
        self._name, self._boot, self._verbs, self._reply = name, boot, verbs, reply
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="defer-api")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="defer-verbs")
        self._waiting = threading.BoundedSemaphore(WAITING)

    def close(self) -> None:
        """Refuse what waits, finish what runs."""
        for executor in (self._quick, self._slow):
            executor.shutdown(wait=True, cancel_futures=True)

    def heard(self, identity: bytes, frames: list[bytes]) -> None:
        """A message of a caller; returns at once."""
        try:
            message = api.decode(frames[0] if frames else b"")
        except ProtocolMismatch as error:
            self._say(identity, Fault(0, error.code, error.message, error.hint))
            return
        number = getattr(message, "id", 0)
        if isinstance(message, Hello):
            self._say(identity, self._welcome(message))
            return
        if not self._waiting.acquire(blocking=False):
            self._fault(identity, number, Overloaded(f"{WAITING} questions wait already"))
            return
        slow = isinstance(message, api.Deploy | api.Undeploy)
        piece = frames[1] if len(frames) > 1 else b""
        try:
            (self._slow if slow else self._quick).submit(self._run, identity, number, message, piece)
        except RuntimeError:  # shut down between two lines
            self._waiting.release()

    def _run(self, identity: bytes, number: int, message: api.ApiMessage, piece: bytes) -> None:
        try:
            answer = self._answer(identity, number, message, piece)
            self._say(identity, msgspec.structs.replace(answer, id=number))
        except Exception as error:
            told = translate(error)
            if told.code == "internal":
                logger.exception("an api call failed: %s", type(message).__name__)
            self._fault(identity, number, told)
        finally:
            self._waiting.release()

    def _answer(
        self, identity: bytes, number: int, message: api.ApiMessage, piece: bytes
    ) -> api.Models | api.ServerStatus | api.Deployed | Have | Taken | Done:
        def report(what: str, fraction: float) -> None:
            self._say(identity, Progress(number, what, fraction))

        match message:
            case api.ListModels():
                return self._verbs.models()
            case api.GetStatus():
                return self._verbs.status()
            case Want():
                return self._verbs.want(message)
            case Chunk():
                return self._verbs.chunk(message, piece)
            case api.Deploy():
                return self._verbs.deploy(message, report)
            case api.Undeploy():
                self._verbs.undeploy(message)
                return Done(number)
            case _:
                raise ProtocolMismatch(f"{type(message).__name__} is no question")

    def _welcome(self, hello: Hello) -> Welcome | Fault:
        try:
            version = negotiate(OURS, VersionRange(hello.minimum, hello.version), hello.name)
        except VersionError as error:
            return Fault(hello.id, error.code, str(error), error.hint)
        return Welcome(hello.id, version, self._name, self._boot)

    def _fault(self, identity: bytes, number: int, error: DeferError) -> None:
        self._say(identity, Fault(number, error.code, str(error), error.hint))

    def _say(self, identity: bytes, message: api.ApiMessage) -> None:
        self._reply(identity, [api.encode(message)])
