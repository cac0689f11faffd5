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
from defer.errors import DeferError, InvalidCluster, UnknownDevice
from defer.units import show_size
from node_agent.messages import Hello
from node_agent.quantities import NAME_RULE, is_name

logger = logging.getLogger("defer.dispatcher")


WARNED = 256
"""Refusals that the process's log tells, each once; the events tell all."""


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
        self._warned: set[tuple[str, str]] = set()
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

    def admit(self, hello: Hello) -> str:
        """Whether an agent may register; in the control thread.

        Returns:
            Where the cluster has the device of that name, `tcp://host:port`; empty where it is one that registers.

        Raises:
            UnknownDevice: The cluster file does not name it, and lets nobody else in.
            InvalidCluster: It cannot be a device of the cluster.
        """
        name, cluster = hello.name, self._deployments.cluster
        if not is_name(name):
            raise InvalidCluster(f"{name!r:.80} is not a name of a device", hint=NAME_RULE)
        if name in cluster.names and name not in self._joined:
            device = cluster.device(name)
            if not device.has_agent:
                raise InvalidCluster(
                    f"the cluster file says that {name!r} has no agent",
                    hint="start this one with another --name; or say `dials = true` there",
                )
            return "" if device.dials else f"tcp://{device.address}"
        if not self._open:
            raise UnknownDevice(
                f"the cluster file of this dispatcher does not name {name!r}, and does not let others join",
                hint="name it there (with dials = true), or say join = true under [dispatcher]",
            )
        with_joined(cluster, name, hello.register, self._joined)
        return ""

    def turned_away(self, kind: str, name: str, why: str) -> None:
        """An agent that wanted to register was told why it may not; in the control thread.

        Args:
            kind: `device-unknown` or `device-refused`.
            name: What it calls itself.
            why: What it was told.
        """
        text = f"an agent called {name if is_name(name) else repr(name)} is not taken: {why}"
        self._deployments.log.note_seldom(kind, name, text)
        if (name, why) in self._warned or len(self._warned) >= WARNED:
            return
        self._warned.add((name, why))
        logger.warning("%s", text)

    def answered(self, name: str) -> None:
        """An agent has answered as a new process; in the control thread."""
        log = self._deployments.log
        self._warned = {each for each in self._warned if each[0] != name}
        if name in self._deployments.cluster.names and name not in self._joined:
            return
        known = self._pool.liveness(name)
        if known is None or known.offer is None:
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
