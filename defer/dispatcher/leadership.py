"""Takes part in the election of the dispatcher that acts, on a connection to NATS: see `election` for the decisions."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from defer.dispatcher import election as el
from defer.dispatcher.nats_connection import CONNECT_S
from defer.dispatcher.nats_link import Fenced, NatsLink
from defer.dispatcher.state_url import StateUrl
from defer.errors import DeferError

logger = logging.getLogger("defer.dispatcher")
news = logging.getLogger("defer.dispatcher.models")

CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A lease ends also while the machine sleeps; Linux has a clock that says so."""


def boot_time() -> float:
    """Seconds on the leases' clock."""
    return time.clock_gettime(CLOCK)


class Leadership:
    """One candidate; `start` connects and takes part until `close`.

    Args:
        url: The shared state.
        address: Where this dispatcher is reached, for the others' messages.
    """

    def __init__(self, url: StateUrl, address: str) -> None:
        self.url = url
        self.link = NatsLink(url)
        self._core = el.Election(secrets.token_hex(8), address, el.Timing.of(url.lease_s))
        self._changed = threading.Condition()
        self._on_lost: Callable[[str], None] | None = None
        self._turns: Future[None] | None = None
        self._unreachable = ""

    # ------------------------------------------------------------------------------------------- any thread's

    def start(self) -> None:
        """Connect, and stand for election.

        Raises:
            DeferError: See `NatsLink.start`.
        """
        self.link.start()
        self._turns = self.link.spawn(self._run())

    def close(self) -> None:
        """Release the lease, if it is held, and disconnect. Nothing may act under it any more."""
        if self._turns is not None:
            self._turns.cancel()
            self._turns = None
            try:
                self.link.run(self._resign(), CONNECT_S)
            except DeferError as error:
                logger.debug("the lease was not released: %s", error)
        self.link.close()

    def acts(self) -> bool:
        """Whether this process may act, at this moment."""
        return self._core.acts(boot_time())

    @property
    def term(self) -> int:
        """The term under which this process leads, or led last."""
        return self._core.term

    @property
    def leader(self) -> str:
        """Address of the dispatcher that holds the lease, as far as is known; empty for none."""
        lease = self._core.lease
        return "" if lease is None or lease.released else lease.address

    @property
    def trouble(self) -> str:
        """Why the election does not go on; empty where it does."""
        return self._unreachable

    def when_lost(self, action: Callable[[str], None] | None) -> None:
        """Have `action` called, with the reason and in the connection's thread, when this process must not act any more.

        It is called at once where that is so already.
        """
        with self._changed:
            self._on_lost = action
            lost = action is not None and not self.acts()
        if lost and action is not None:
            action("the lease has ended")

    def wait(self, seconds: float) -> bool:
        """Whether this process leads, within so many seconds."""
        with self._changed:
            return self._changed.wait_for(self.acts, seconds)

    # ---------------------------------------------------------------------------------------------- in the loop

    async def _run(self) -> None:
        while True:
            try:
                await self._feed(el.Tick())
            except Exception:  # a leader's lease then ends by itself; a candidate goes on
                logger.exception("the election failed")
                await asyncio.sleep(1.0)
            pause = self._core.next_wake(boot_time()) - boot_time()
            await asyncio.sleep(max(0.005, pause))

    async def _feed(self, event: el.Event) -> None:
        todo = self._core.handle(event, boot_time())
        while todo:
            instruction = todo.pop(0)
            match instruction:
                case el.ReadLease() | el.WriteLease():
                    todo += self._core.handle(await self._ask(instruction), boot_time())
                case el.Lead(term):
                    news.info("this dispatcher leads: term %d of %s", term, self.url.name)
                    with self._changed:
                        self._changed.notify_all()
                case el.StepDown(reason):
                    logger.warning("this dispatcher leads no more: %s", reason)
                    with self._changed:
                        lost, self._on_lost = self._on_lost, None
                    if lost is not None:
                        lost(reason)

    async def _ask(self, asked: el.ReadLease | el.WriteLease) -> el.Event:
        try:
            if isinstance(asked, el.WriteLease):
                revision = await self.link.write_lease(asked.lease, asked.revision)
                said: el.Event = el.Written(revision)
            else:
                said = el.Read(*await self.link.read_lease())
        except Fenced:
            return el.Refused()
        except DeferError as error:
            if not self._unreachable:
                logger.warning("the election waits: %s", error)
            self._unreachable = str(error)
            return el.Failed()
        self._unreachable = ""
        return said

    async def _resign(self) -> None:
        await self._feed(el.Resign())
