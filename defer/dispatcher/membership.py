"""Lets agents join that register with the dispatcher by themselves, where the cluster file allows it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from defer.agents import AgentPool
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.joining import expecting, with_joined
from defer.dispatcher.restoring import order_of, plan_of
from defer.dispatcher.store import KeptModel
from defer.errors import DeferError
from defer.units import show_size

logger = logging.getLogger("defer.dispatcher")


class Membership:
    """Which devices the cluster has, beyond those of its file.

    Args:
        deployments: Its `cluster` is replaced as devices join.
        pool: Connections to the agents.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool) -> None:
        self._deployments, self._pool = deployments, pool
        self._open = deployments.cluster.dispatcher.join
        self._joined: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def expect(self, models: Iterable[KeptModel]) -> None:
        """Devices that models of an earlier process run on have joined then, and are waited for."""
        if not self._open:
            return
        plans = []
        for kept in models:
            try:
                own = order_of(kept).plan
                plans += [plan_of(kept)] if own is None else [plan_of(kept), own]
            except DeferError:
                continue  # restoring it tells
        with self._lock:
            self._deployments.cluster, expected = expecting(self._deployments.cluster, plans)
            self._joined |= expected

    def answered(self, name: str) -> None:
        """An agent has answered as a new process; in the control thread."""
        log = self._deployments.log
        if name in self._deployments.cluster.names and name not in self._joined:
            return
        known = self._pool.liveness(name)
        if known is None or known.offer is None:
            return
        if not self._open:
            text = f"agent {name} registered, and the cluster file does not name it; [dispatcher] join = true lets it in"
            log.note_seldom("device-unknown", name, text)
            return
        try:
            with self._lock:
                cluster = self._deployments.cluster
                self._deployments.cluster = with_joined(cluster, name, known.offer, self._joined)
                self._joined |= {name}
        except DeferError as error:
            log.note_seldom("device-refused", name, f"{name} cannot join: {error}")
            logger.warning("device %s cannot join: %s", name, error)
            return
        where = known.offer.address or "it dials"
        text = f"{name} has joined the cluster with {show_size(known.offer.memory_bytes)}; {where}"
        log.note("device-joined", text, device=name)
        logger.warning("device %s has joined the cluster", name)
        self._deployments.changed()
