"""The agent process put together: what it offers, its threads, and their end."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from pathlib import Path

import zmq

from node_agent import machine
from node_agent.actions import Actions
from node_agent.announcing import AGENT, Announcement
from node_agent.control import Control, dialled
from node_agent.core import AgentCore
from node_agent.encryption import measure_encryption
from node_agent.engines import channel_block_of, engine_named, inventory
from node_agent.engines.device_memory import device_memory
from node_agent.errors import AddressInUseError, AddressInvalidError, AgentError, EngineMissingError
from node_agent.events import Gauge, StopAsked
from node_agent.link import new_context
from node_agent.loader import Loader
from node_agent.measure import BlockTimer
from node_agent.messages import AUTO_ENGINE, AgentStatus, EngineInfo, Offer
from node_agent.notify import Notifier
from node_agent.plane import JOIN_S, DataPlane
from node_agent.security import OPEN, Security
from node_agent.sensors import Sensors
from node_agent.store import FileStore
from node_agent.threads import Shell

log = logging.getLogger(__name__)

SIGNALS_S = 1.0
"""A signal that does not interrupt `wait`, because it came just before or to another thread, is handled within this."""


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """How an agent is to run.

    Attributes:
        name: The device's name in the cluster file.
        host: Address to listen on.
        port: Control port P; data-in is P+1, fetch P+2. 0 takes any three free ports.
        dials: `tcp://host:port` of dispatchers to register with.
        memory_bytes: What partitions may take in all; None for what the machine, its cgroup or its GPU grants.
        threads: Engine threads; None for one per core that this process may use.
        engine: What `auto` stands for.
        store: Directory of the file store.
        store_bytes: Most bytes in it; None for no limit.
        security: Its keys; none by default, which is for this machine only.
        announce: Tell the local network that it is here.
        advertise: Host at which others can dial it, where it registers with dispatchers; empty where nobody can.
    """

    name: str
    store: Path
    host: str = "127.0.0.1"
    port: int = 7700
    dials: tuple[str, ...] = ()
    memory_bytes: int | None = None
    threads: int | None = None
    engine: str = AUTO_ENGINE
    store_bytes: int | None = None
    security: Security = OPEN
    announce: bool = False
    advertise: str = ""


def make_offer(config: AgentConfig, engines: tuple[EngineInfo, ...], ports: tuple[int, int]) -> Offer:
    """What the device brings."""
    share = machine.cores()
    threads = config.threads or machine.default_threads(share)
    usable = [engine for engine in engines if not engine.missing]
    if config.engine != AUTO_ENGINE:
        usable = usable[:1]
    beside = device_memory(engines, config.engine)
    whole = machine.memory_bytes()
    # What the agent takes itself is no partition's; 0 would say that nothing is known.
    here = max(1, whole - machine.resident_bytes()) if whole else 0
    memory = min(filter(None, (here, beside)), default=0)
    identity = {engine.name: f"{engine.version} {engine.provider}" for engine in usable}
    return Offer(
        engines=engines,
        memory_bytes=config.memory_bytes or memory,
        cores=share,
        threads=threads,
        fingerprint=machine.fingerprint(share, threads, identity),
        data_port=ports[0],
        fetch_port=ports[1],
        software=machine.software(),
        encryption_byte_s=measure_encryption() if config.security.curve else 0.0,
        address=_address(config),
        # Of several nobody knows beforehand which one runs.
        channel_block=channel_block_of(usable[0].name) if len(usable) == 1 else 0,
    )


def _address(config: AgentConfig) -> str:
    """Where others dial it, as `host:port`; empty where it does not say."""
    if not config.advertise:
        return ""
    if not config.port:
        raise AddressInvalidError(
            "An agent that says where it is reached needs ports that others know beforehand.",
            hint="Choose a port: --listen HOST:7700.",
        )
    host = config.advertise
    return f"[{host}]:{config.port}" if ":" in host else f"{host}:{config.port}"


def default_engine(asked: str, engines: tuple[EngineInfo, ...]) -> str:
    """What `auto` stands for: the engine that was asked for, or the only one; `auto` where there is a choice."""
    usable = [engine.name for engine in engines if not engine.missing]
    if asked == AUTO_ENGINE:
        return usable[0] if len(usable) == 1 else AUTO_ENGINE
    return asked


class Agent:
    """One agent; `start`, then `wait`, then `close`.

    Args:
        config: How it is to run.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.boot = uuid.uuid4().hex[:16]
        self.notifier = Notifier()
        self._ended = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._store: FileStore | None = None
        self._shells: list[Shell] = []
        self._plane: DataPlane | None = None
        self._actions: Actions | None = None
        self._control: Control | None = None

    def start(self) -> None:
        """Opens the store, binds the ports and starts the threads.

        Raises:
            StartError: An address cannot be used.
            StoreError: The store cannot be used.
            EngineMissingError: The engine that was asked for by name is unknown.
        """
        config = self.config
        config.security.check(config.host, "Listening on")
        engines = self._engines()
        self._store = store = FileStore.open(config.store, config.store_bytes)
        self._context = new_context(config.security)
        try:
            self._start(store, engines)
        except AddressInUseError as error:
            self.close()
            if not config.port:
                raise
            first, last = config.port, config.port + 2
            raise AddressInUseError(
                f"{error} An agent at port {first} of {config.host} takes the ports {first} to {last}.",
                error.hint,
            ) from None
        except BaseException:
            self.close()
            raise

    def _engines(self) -> tuple[EngineInfo, ...]:
        engines = inventory(self.config.engine)
        if self.config.engine != AUTO_ENGINE:
            info = engine_named(self.config.engine).info()
            usable = [engine.name for engine in engines if not engine.missing]
            if info.missing and not usable:
                raise EngineMissingError(f"Engine {info.name} cannot run here.", hint=info.missing)
            if info.missing:
                log.warning("Engine %s cannot run here, %s does. %s", info.name, usable[0], info.missing)
        elif all(engine.missing for engine in engines):
            # Without an engine it can still relay.
            log.warning("No engine is installed, this agent can only relay. %s", engines[0].missing)
        return engines

    def _start(self, store: FileStore, engines: tuple[EngineInfo, ...]) -> None:
        config = self.config
        assert self._context is not None
        data_ports = (config.port + 1, config.port + 2) if config.port else (0, 0)
        plane = DataPlane(self._context, config.name, config.host, data_ports)
        self._plane = plane
        self._end_with(plane.shells)
        plane.start()
        offer = make_offer(config, engines, plane.ports)
        plane.time_runs(machine.quota_clock(offer.cores, offer.threads))
        loader = Loader(store, default_engine(config.engine, engines), offer.threads)
        actions = Actions(
            config.name,
            self.boot,
            offer.memory_bytes,
            context=self._context,
            plane=plane,
            store=store,
            loader=loader,
            timer=BlockTimer(store, loader, offer.threads, offer.cores),
            sensors=Sensors(),
        )
        core = AgentCore(config.name, self.boot, offer, tuple(dialled(endpoint) for endpoint in config.dials))
        control = Control(
            self._context,
            config.host,
            config.port,
            config.dials,
            core=core,
            actions=actions,
            on_end=self._ended.set,
            notifier=self.notifier,
        )
        self._actions, self._control = actions, control
        self._end_with((control, *actions.shells))
        actions.start(control.inbox.put)
        control.start()

    def _end_with(self, shells: Iterable[Shell]) -> None:
        """An agent that lacks a thread would look alive and do nothing: it ends, and whoever runs it starts it again."""
        for shell in shells:
            shell.on_crash = self._ended.set
            self._shells.append(shell)

    @property
    def ports(self) -> tuple[int, int, int]:
        """Control, data-in and fetch port, once started."""
        assert self._plane is not None
        assert self._control is not None
        return (self._control.port, *self._plane.ports)

    @property
    def announcement(self) -> Announcement:
        """What is told to the local network, once started."""
        config = self.config
        keys = config.security.curve
        return Announcement(AGENT, config.name, config.host, self.ports[0], self.boot, keys)

    @property
    def failed(self) -> bool:
        """Whether a thread of the agent ended by an error."""
        return any(shell.error is not None for shell in self._shells)

    def look(self, timeout: float) -> tuple[AgentStatus, Gauge]:
        """The agent's state now; from any thread, once started.

        Args:
            timeout: Seconds that it may take.

        Raises:
            AgentError: It took longer.
        """
        assert self._actions is not None
        assert self._control is not None
        try:
            status = self._actions.look(self._control.state).result(timeout)
        except FutureTimeout:
            raise AgentError(f"The agent did not tell its state within {timeout:g} s.") from None
        return status, self._actions.gauge()

    def ask_stop(self, patience_s: float) -> None:
        """Finishes what is queued for at most `patience_s`, then lets `wait` return; from any thread."""
        self.notifier.stopping()
        if self._control is not None:
            self._control.inbox.put(StopAsked(patience_s))

    def wait(self) -> None:
        """Returns when the agent is to end; signals are handled meanwhile."""
        while not self._ended.wait(SIGNALS_S):
            pass

    def close(self) -> bool:
        """Ends all threads and closes all sockets; False where a thread hangs and was left behind."""
        ended = True
        if self._control is not None:
            self._control.stop()
            ended = self._control.join(JOIN_S)
        if self._plane is not None:
            ended = self._plane.stop() and ended
        if self._actions is not None:
            ended = self._actions.stop(JOIN_S) and ended
        if ended:
            if self._control is not None:
                self._control.inbox.close()
            if self._context is not None:
                self._context.term()
            if self._store is not None:
                self._store.close()
        return ended
