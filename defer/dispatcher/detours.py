"""A device that is lost at one of its addresses is looked for at the others, until it answers somewhere.

Where it answers, the cluster has it there from then on, and it counts as restarted: what was loaded with its old address
in it is loaded anew. One thread per device that is lost, and none for devices with a single address.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from defer.agents import AgentPool
from defer.dispatcher.deployments import Deployments
from defer.ways import answers, at

logger = logging.getLogger("defer.dispatcher")

AGAIN_S: Final = 1.0
"""Pause between two rounds over the addresses."""

GREET_S: Final = 3.0
"""How long an agent may take to answer at an address that accepts connections."""


class Detours:
    """See the module.

    Args:
        deployments: Its `cluster` is replaced as devices are found elsewhere.
        pool: Connections to the agents.
    """

    def __init__(self, deployments: Deployments, pool: AgentPool) -> None:
        self._deployments, self._pool = deployments, pool
        # In the order of the file, whichever is in use.
        self._addresses = {
            device.name: (device.address, *device.also)
            for device in deployments.cluster.devices
            if device.also
        }
        self._lock = threading.Lock()
        self._looking: dict[str, threading.Thread] = {}
        self._moved: set[str] = set()
        self._closing = threading.Event()

    def lost(self, name: str) -> None:
        """A device was lost; from any thread."""
        with self._lock:
            if name not in self._addresses or name in self._looking or self._closing.is_set():
                return
            thread = threading.Thread(
                target=self._look, args=(name,), name=f"defer-detour-{name}", daemon=True
            )
            self._looking[name] = thread
            thread.start()

    def arrived(self, name: str) -> bool:
        """Whether an agent that has just answered for the first time is one that was found elsewhere."""
        with self._lock:
            found = name in self._moved
            self._moved.discard(name)
            return found

    def close(self) -> None:
        """Look no more, and wait for what does."""
        with self._lock:
            self._closing.set()
            looking = list(self._looking.values())
        for thread in looking:
            thread.join()

    def _look(self, name: str) -> None:
        try:
            while not self._alive(name) and not self._closing.is_set():
                for address in self._addresses[name]:
                    # Where it was, the pool dials all the time.
                    if address != self._deployments.cluster.device(name).address and answers(address):
                        self._move(name, address)
                        if self._waited(name):
                            return
                self._closing.wait(AGAIN_S)
        except Exception:
            logger.exception("looking for device %s failed", name)
        finally:
            with self._lock:
                del self._looking[name]

    def _move(self, name: str, address: str) -> None:
        with self._lock:
            self._moved.add(name)
            self._deployments.cluster = at(self._deployments.cluster, name, address)
        text = f"{name} is looked for at {address}, where somebody answers"
        self._deployments.log.note("address-changed", text, level="warning", device=name)
        logger.warning("%s", text)
        self._pool.dial(name, f"tcp://{address}")

    def _waited(self, name: str) -> bool:
        deadline = time.monotonic() + GREET_S
        while time.monotonic() < deadline and not self._closing.wait(0.05):
            if self._alive(name):
                return True
        return False

    def _alive(self, name: str) -> bool:
        known = self._pool.liveness(name)
        return known is not None and known.state == "alive"
