"""Answers to the dispatcher's api: messages are decoded in the control thread, verbs run beside it.

Two threads: one for questions and pieces of files, in the order in which they come, and one for what takes minutes.
So a deployment does not silence `defer status`, and neither delays heartbeats. Whoever has a model deployed may give
that up, by a word or by going away: while there is such a question a third thread says something to those who wait,
which shows who has gone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import msgspec

from defer import api
from defer.dispatcher.withdrawal import Withdrawal, given_up
from defer.errors import DeferError, NotReady, Overloaded, ProtocolMismatch
from defer.translating import translate
from node_agent.errors import VersionError
from node_agent.messages import Chunk, Done, Fault, Have, Hello, Progress, Taken, Want, Welcome
from node_agent.versions import OURS, VersionRange, negotiate

logger = logging.getLogger("defer.dispatcher")

WAITING = 256
"""Questions that wait at most; more are refused."""

BEAT_S = 1.0
"""Seconds between two words to those whose model is being deployed, or waits for that."""

QUEUED = "waiting for what is deployed before it"

_STOPPING = NotReady("the dispatcher is shutting down")

Reply = Callable[[bytes, list[bytes]], None]
OnProgress = Callable[[str, float], None]


class Verbs(Protocol):
    """What the dispatcher can be asked; methods raise `DeferError`, or what `translate` understands."""

    def models(self) -> api.Models:
        """What is served."""

    def status(self) -> api.ServerStatus:
        """How everything is."""

    def events(self, ask: api.GetEvents) -> api.Events:
        """What happened."""

    def traces(self, wanted: api.GetTraces) -> api.Traces:
        """What is known of traced requests."""

    def want(self, want: Want) -> Have:
        """How much of some files is held."""

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        """Take a piece of a file."""

    def deploy(self, order: api.Deploy, on_progress: OnProgress, withdrawal: Withdrawal) -> api.Deployed:
        """Deploy a model and serve it, unless that is given up meanwhile."""

    def undeploy(self, order: api.Undeploy) -> None:
        """Serve a model no more."""

    def roll(self, order: api.Roll) -> api.Rolled:
        """Change which version requests take, or show it."""


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
        # Questions without an answer, by a key of their own; whoever takes one out answers it.
        self._owed: dict[object, tuple[bytes, int]] = {}
        # Of those, what may be given up.
        self._withdrawals: dict[object, Withdrawal] = {}
        self._changed = threading.Condition()
        self._stopped = False
        self._watch: threading.Thread | None = None

    def stop(self) -> None:
        """Refuse what is asked from now on, what waits, and what runs: its answer would come too late."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for executor in (self._quick, self._slow):
            executor.shutdown(wait=False, cancel_futures=True)
        while self._owed:
            with contextlib.suppress(KeyError):  # it was answered just now
                _, (identity, number) = self._owed.popitem()
                self._fault(identity, number, _STOPPING)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self.stop()
        for executor in (self._quick, self._slow):
            executor.shutdown(wait=True)
        if self._watch is not None:
            self._watch.join()

    def gone(self, identity: bytes) -> None:
        """A caller has gone: what it has deployed is given up."""
        for key, (owner, _) in list(self._owed.items()):
            if owner == identity:
                self._give_up(key)

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
        if isinstance(message, api.GiveUp):
            for key, owed in list(self._owed.items()):
                if owed == (identity, message.question):
                    self._give_up(key)
            self._say(identity, Done(number))
            return
        if not self._waiting.acquire(blocking=False):
            self._fault(identity, number, Overloaded(f"{WAITING} questions wait already"))
            return
        slow = isinstance(message, api.Deploy | api.Undeploy | api.Roll)
        piece = frames[1] if len(frames) > 1 else b""
        key = object()
        self._owed[key] = (identity, number)
        if isinstance(message, api.Deploy):
            self._may_be_given_up(key)
        try:
            (self._slow if slow else self._quick).submit(self._run, key, message, piece)
        except RuntimeError:  # it is stopping
            self._waiting.release()
            self._withdrawals.pop(key, None)
            if self._owed.pop(key, None):
                self._fault(identity, number, _STOPPING)

    def _may_be_given_up(self, key: object) -> None:
        with self._changed:
            self._withdrawals[key] = Withdrawal()
            self._changed.notify_all()
            if self._watch is None and not self._stopped:
                self._watch = threading.Thread(target=self._beat, name="defer-api-watch")
                self._watch.start()

    def _give_up(self, key: object) -> None:
        """What waits is dropped, and what is being done ends with its step; a question of another kind goes on."""
        withdrawal = self._withdrawals.get(key)
        if withdrawal is None or not withdrawal.withdraw() or withdrawal.begun:
            return
        owed = self._owed.pop(key, None)
        if owed is not None:
            self._fault(*owed, given_up())

    def _beat(self) -> None:
        """Say something to whoever waits for a deployment, so that the connection tells who has gone."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._withdrawals)
                if self._stopped or self._changed.wait_for(lambda: self._stopped, BEAT_S):
                    return
            for key, withdrawal in list(self._withdrawals.items()):
                owed = self._owed.get(key)
                if owed is None:
                    continue
                # An answer to no question: how long a step takes without a word is the caller's to bound.
                self._say(owed[0], Done(0) if withdrawal.begun else Progress(owed[1], QUEUED, 0.0))

    def _run(self, key: object, message: api.ApiMessage, piece: bytes) -> None:
        asked = self._owed.get(key)
        try:
            if asked is None:
                return
            withdrawal = self._withdrawals.get(key)
            if withdrawal is not None:
                withdrawal.begun = True
            answer: api.ApiMessage
            try:
                found = self._answer(*asked, message, piece, withdrawal or Withdrawal())
                answer = msgspec.structs.replace(found, id=asked[1])
            except Exception as error:
                told = translate(error)
                if told.code == "internal":
                    logger.exception("an api call failed: %s", type(message).__name__)
                answer = _as_fault(asked[1], told)
            if self._owed.pop(key, None):
                self._say(asked[0], answer)
        finally:
            self._withdrawals.pop(key, None)
            self._waiting.release()

    def _answer(
        self,
        identity: bytes,
        number: int,
        message: api.ApiMessage,
        piece: bytes,
        withdrawal: Withdrawal,
    ) -> (
        api.Models
        | api.ServerStatus
        | api.Events
        | api.Traces
        | api.Deployed
        | api.Rolled
        | Have
        | Taken
        | Done
    ):
        def report(what: str, fraction: float) -> None:
            self._say(identity, Progress(number, what, fraction))

        match message:
            case api.ListModels():
                return self._verbs.models()
            case api.GetStatus():
                return self._verbs.status()
            case api.GetEvents():
                return self._verbs.events(message)
            case api.GetTraces():
                return self._verbs.traces(message)
            case Want():
                return self._verbs.want(message)
            case Chunk():
                return self._verbs.chunk(message, piece)
            case api.Deploy():
                return self._verbs.deploy(message, report, withdrawal)
            case api.Roll():
                return self._verbs.roll(message)
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
        self._say(identity, _as_fault(number, error))

    def _say(self, identity: bytes, message: api.ApiMessage) -> None:
        self._reply(identity, [api.encode(message)])


def _as_fault(number: int, error: DeferError) -> Fault:
    return Fault(number, error.code, str(error), error.hint)
