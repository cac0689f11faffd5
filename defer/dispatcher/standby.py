"""A dispatcher that waits for its turn: it says who leads to whoever asks, and to health probes that it is not ready."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import msgspec

from defer import api
from defer.agents import AgentPool
from defer.dispatcher.leadership import Leadership
from defer.dispatcher.shared_files import Follower
from defer.documents.address import Address
from defer.errors import DeferError, NotReady, Standby
from defer.hops import DISPATCHER
from node_agent.messages import Fault
from node_agent.pages import Page, PageServer
from node_agent.security import Security

logger = logging.getLogger("defer.dispatcher")

TURN_S: Final = 0.05
"""How often whoever waits looks whether it was told to stop."""

SAY_AFTER_S: Final = 0.5
"""A dispatcher that leads sooner than this after its start has not stood by."""

CONNECT_AGAIN_S: Final = 0.2
"""Pause between two attempts to reach the state."""

HAS_LED: Final = "DEFER_HAS_LED"
"""Set in the environment of a process that led dispatchers before it became one that stands by."""


class Known(Protocol):
    """What whoever stands by knows of the election."""

    @property
    def leader(self) -> str:
        """See `Leadership.leader`."""

    @property
    def trouble(self) -> str:
        """See `Leadership.trouble`."""


@dataclass(frozen=True, slots=True)
class OutOfReach:
    """What a process knows that has led, and does not reach the state since."""

    trouble: str
    leader: str = ""


class StandbyDoor:
    """What is open while a dispatcher stands by; use it as a context manager.

    Args:
        listen: Where its api listens when it leads.
        pages: Addresses of its gateway and its metrics, which answer probes alone.
        known: Knows who leads.
        security: How connections are protected.
        follower: Fetches models' files meanwhile; None where there is nowhere to fetch them from.
    """

    def __init__(
        self,
        listen: Address,
        pages: Sequence[Address],
        known: Known,
        security: Security,
        follower: Follower | None,
    ) -> None:
        self._follower = follower
        self._known = known
        self._pool = AgentPool(DISPATCHER, listen=listen.endpoint(), on_api=self._heard, security=security)
        lives, leads = ("/healthz", "/v2/health/live"), ("/readyz", "/v2/health/ready", "/metrics")
        probes = {**dict.fromkeys(lives, self._alive), **dict.fromkeys(leads, self._not_ready)}
        self._servers = [PageServer(each.host, each.port, probes) for each in pages]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            if self._follower is not None:
                self._stack.enter_context(self._follower)
            self._stack.enter_context(self._pool)
            for each in self._servers:
                self._stack.enter_context(each)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _alive(self) -> Page:
        return Page("standing by\n")

    def _not_ready(self) -> Page:
        return Page(f"{self._told().message}\n", status=503)

    def _told(self) -> DeferError:
        return standing_by(self._known)

    def _heard(self, identity: bytes, frames: list[bytes]) -> None:
        """Whatever is asked, the answer is who leads."""
        number = 0
        with suppress(DeferError):
            number = getattr(api.decode(frames[0] if frames else b""), "id", 0)
        told = self._told()
        self._pool.reply(identity, [api.encode(Fault(number, told.code, told.message, told.hint))])


def standing_by(known: Known) -> Standby:
    """What is said to whoever asks a dispatcher that stands by."""
    leader = known.leader
    if known.trouble:  # who led when it was last in reach says little
        return Standby(
            f"this dispatcher stands by, and the shared state is out of its reach: {known.trouble}",
            hint="see whether the NATS servers run; it goes on by itself when it reaches them"
            + (f"; {leader} led last" if leader else ""),
        )
    where = f"the one at {leader} leads" if leader else "none leads at the moment"
    return Standby(f"this dispatcher stands by, {where}", hint=f"ask {leader}" if leader else "try again")


def connected(
    make: Callable[[], Leadership], stopped: Callable[[], bool], door: Callable[[Known], StandbyDoor]
) -> Leadership | None:
    """Stand for election; None where the process was told to stop.

    A process that has led waits for the state as long as that takes: it may have lost its lease because the servers
    are electing one that leads them, and goes on when they have. One that was just started says what is wrong.

    Args:
        make: Makes a candidate.
        stopped: Whether the process was told to stop.
        door: Makes what is open while it waits for the state.

    Raises:
        DeferError: See `Leadership.start`.
    """
    has_led = os.environ.pop(HAS_LED, "") != ""
    with ExitStack() as stack:
        waits = False
        while True:
            leadership = make()
            try:
                leadership.start()
            except NotReady as error:
                if not has_led:
                    raise
                logger.warning("standing by, but out of the state's reach: %s", error)
                if not waits:
                    stack.enter_context(door(OutOfReach(str(error))))
                    waits = True
            else:
                return leadership
            if stopped():
                return None
            time.sleep(CONNECT_AGAIN_S)


def wait_for_lead(
    leadership: Leadership,
    stopped: Callable[[], bool],
    door: Callable[[], StandbyDoor],
    say: Callable[[str], None],
) -> bool:
    """Wait until this process leads.

    Args:
        leadership: Stands for election.
        stopped: Whether the process was told to stop.
        door: Makes what is open meanwhile.
        say: Told who leads, when that changes.

    Returns:
        Whether it leads; False where it was told to stop.
    """
    if leadership.wait(SAY_AFTER_S):
        return True
    with door():
        last: str | None = None
        while not leadership.wait(TURN_S):
            _reap()
            if stopped():
                return False
            leader = leadership.leader
            if leader != last:
                last = leader
                say(leader)
    return True


def _reap() -> None:
    """A leader that lost its lease has become this process: what its helpers leave when they end is taken away."""
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def spoken(leader: str, *, as_json: bool) -> str:
    """The line that says that this process stands by."""
    if as_json:
        return msgspec.json.encode({"standby": leader}).decode()
    return (
        f"standing by: the dispatcher at {leader} leads" if leader else "standing by: no dispatcher leads yet"
    )


def start_again(reason: str, argv: Sequence[str]) -> None:
    """Become a dispatcher that stands by, at once: nothing that this process had under way as a leader goes on.

    The process stays the same for whoever started it; every socket closes, as if it had been killed.
    """
    os.environ[HAS_LED] = "1"
    with suppress(OSError):
        os.write(2, f"defer: this dispatcher leads no more: {reason}; it stands by\n".encode())
    os.execv(argv[0], list(argv))  # noqa: S606 - this command itself
