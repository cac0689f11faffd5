"""Finds links that carry nothing: where a route stands still although its devices are well, its links are tried.

A broken connection tells its ends after ten seconds, a link without a packet on its way never. So a route on which
requests are under way and from which nothing has come back for too long has each of its links tried by its sender, all
at once, on connections of their own. One that fails is severed until a later try succeeds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from defer.agents import AgentPool
from defer.deployer import place_of
from defer.dispatcher.severed import Pair, cover
from defer.documents.cluster import Cluster
from defer.errors import AgentUnreachable, DeferError, UnknownDevice
from node_agent.errors import AgentError
from node_agent.link import new_context
from node_agent.messages import MeasureLink, PeerRef
from node_agent.prober import measure_link

logger = logging.getLogger("defer.dispatcher")

TRY_S = 0.8
"""A link over which nothing comes back for so long is severed."""

ANSWER_S = 2 * TRY_S
"""Within this its sender tells."""

AGAIN_S = 1.0
"""Pause between two tries of a severed link, and of a route's."""

NBYTES, BUDGET_S = 256 << 10, 0.1
"""A try is as large as items are, as far as the link's rate allows: on a link that spoils some of what passes, small
messages may get through while larger ones break their connection each time."""

AT_ONCE = 16


class LinkWatch:
    """See the module. Methods are safe to use from any thread.

    Args:
        pool: Connections to the agents.
        cluster: Asked for the devices.
        dispatcher: Asked where results are taken, which answers tries.
        changed: Called with the links that were found severed, and with none where one works again.
        at_work: Asked for the devices that compute so hard that they may answer late.
    """

    def __init__(
        self,
        pool: AgentPool,
        cluster: Callable[[], Cluster],
        dispatcher: Callable[[], PeerRef],
        changed: Callable[[frozenset[Pair]], None],
        at_work: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self._pool, self._cluster, self._dispatcher, self._changed = pool, cluster, dispatcher, changed
        self._at_work = at_work
        self._lock = threading.Lock()
        self._severed: frozenset[Pair] = frozenset()
        self._tried: dict[int, float] = {}
        self._due = 0.0
        self._busy: set[int] = set()
        self._jobs = ThreadPoolExecutor(2, thread_name_prefix="defer-links")

    @property
    def severed(self) -> frozenset[Pair]:
        """Links that carry nothing."""
        return self._severed

    def missing(self, *, other: bool = False) -> frozenset[str]:
        """Devices to do without for the links that are severed; `other` where there is a choice."""
        severed = self._severed
        return cover(severed, self._cluster().dispatcher.device, other=other) if severed else frozenset()

    def stands_still(self, epoch: int, links: Iterable[Pair], then: Callable[[str], None]) -> None:
        """A route has nothing to show for too long.

        Args:
            epoch: Which.
            links: It passes these.
            then: Called with a sentence where one of them carries nothing.
        """
        now = time.monotonic()
        with self._lock:
            if epoch in self._busy or now < self._tried.get(epoch, 0.0) + AGAIN_S:
                return
            self._busy.add(epoch)
        self._submit(lambda: self._check(epoch, tuple(links), then))

    def look(self) -> None:
        """Try the severed links again when it is time."""
        now = time.monotonic()
        with self._lock:
            if not self._severed or now < self._due or -1 in self._busy:
                return
            self._busy.add(-1)
        self._submit(self._try_severed)

    def close(self) -> None:
        """Try no more, and wait for what runs."""
        self._jobs.shutdown(wait=True, cancel_futures=True)

    def _submit(self, job: Callable[[], None]) -> None:
        def run() -> None:
            try:
                job()
            except Exception:
                logger.exception("looking for links that carry nothing failed")

        try:
            self._jobs.submit(run)
        except RuntimeError:
            logger.debug("no link is tried: the dispatcher is closing")

    def _check(self, epoch: int, links: tuple[Pair, ...], then: Callable[[str], None]) -> None:
        try:
            found = frozenset(pair for pair, works in self._try_all(links).items() if works is False)
        finally:
            with self._lock:
                self._busy.discard(epoch)
                self._tried.pop(epoch, None)
                self._tried = {**dict(list(self._tried.items())[-63:]), epoch: time.monotonic()}
        busy = self._at_work() if found else frozenset()
        found = frozenset(pair for pair in found if busy.isdisjoint(pair))
        if not found:
            return
        with self._lock:
            self._severed |= found
            self._due = time.monotonic() + AGAIN_S
        told = ", ".join(f"{source} → {target}" for source, target in sorted(found))
        then(f"nothing passes the link {told}")
        self._changed(found)

    def _try_severed(self) -> None:
        try:
            works = self._try_all(tuple(self._severed))
        finally:
            with self._lock:
                self._busy.discard(-1)
                self._due = time.monotonic() + AGAIN_S
        # Of a device that is not there nothing is known: it is missing anyway, and its links count anew when it is back.
        mended = {pair for pair, well in works.items() if well is not False}
        if mended:
            with self._lock:
                self._severed -= mended
            self._changed(frozenset())

    def _try_all(self, links: tuple[Pair, ...]) -> dict[Pair, bool | None]:
        """Whether each link carries something; None where nobody can tell."""
        if not links:
            return {}
        # Made for the occasion: links stand still seldom, and idle threads would be kept for ever.
        with ThreadPoolExecutor(min(AT_ONCE, len(links)), thread_name_prefix="defer-link") as tries:
            return dict(zip(links, tries.map(self._works, links), strict=True))

    def _works(self, pair: Pair) -> bool | None:
        cluster, (source, target) = self._cluster(), pair
        home = cluster.dispatcher.device
        agents = {device.name for device in cluster.agents}
        try:
            if target in agents:
                place = place_of(self._pool, cluster, target)
                if place.dials:
                    return None
                peer = PeerRef(place.name, place.data)
            else:
                peer = self._dispatcher()
            question = MeasureLink(0, peer, NBYTES, BUDGET_S, TRY_S)
            if source in agents:
                place_of(self._pool, cluster, source)
                self._pool.ask(source, question, timeout=ANSWER_S)
            elif source == home:
                with new_context(self._pool.security) as context:
                    measure_link(context, question)
        except UnknownDevice:
            return None
        except (AgentUnreachable, AgentError, DeferError) as error:
            logger.info("link %s → %s: %s", source, target, error)
            return None if self._gone(source) or self._gone(target) else False
        return True

    def _gone(self, device: str) -> bool:
        """Whether a device with an agent is out of reach, so that nothing is its links' fault."""
        if device not in {each.name for each in self._cluster().agents}:
            return False
        known = self._pool.liveness(device)
        return known is None or known.state != "alive"
