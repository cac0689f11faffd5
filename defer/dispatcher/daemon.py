"""The dispatcher daemon: the only owner of the cluster's state.

It joins the control connections (`AgentPool`), the data thread (`DataShell`), the deployments and the api
(`ApiServer` with `DispatcherVerbs`), and starts and ends them in order. What the threads of others tell of (`AgentNews`,
routes that are drained) is only noted there; what follows from it is done in background threads.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from defer.agents import AgentPool
from defer.dispatcher import events as e
from defer.dispatcher.adapting import Adapting
from defer.dispatcher.agent_news import AgentNews
from defer.dispatcher.api_server import ApiServer
from defer.dispatcher.background import Background
from defer.dispatcher.bringup import OnProgress
from defer.dispatcher.canaries import Canaries
from defer.dispatcher.chronicle import Chronicle
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.deployments import Deployments
from defer.dispatcher.detours import Detours
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.membership import Membership
from defer.dispatcher.private import make_private
from defer.dispatcher.reaching import Reaching
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.report import models_of
from defer.dispatcher.restoring import COMING_BACK, kept_request
from defer.dispatcher.returning import Back, backs, bring_back, devices_of_kept, lacking
from defer.dispatcher.shell import DataShell
from defer.dispatcher.state_lock import lock
from defer.dispatcher.store import KeptModel, Snapshot
from defer.dispatcher.store_sqlite import SqliteStore
from defer.dispatcher.verbs import DispatcherVerbs
from defer.documents.address import Address, parse_address
from defer.documents.cluster import Cluster
from defer.errors import PortInUse
from defer.event_log import EventLog
from defer.hops import DISPATCHER
from defer.translating import translate
from node_agent.security import OPEN, Security

if TYPE_CHECKING:
    from defer.dispatcher.sharing import Shared
    from defer.ways import Way

logger = logging.getLogger("defer.dispatcher")
news = logging.getLogger("defer.dispatcher.models")

MOST_ANSWERS: Final = 4096
"""Durable answers that a shared state keeps: whoever takes over reads what they are."""

MENDING_S: Final = 5.0
"""How long requests wait after a restart or a takeover for a model that cannot be served from what is there."""

BACKGROUND: Final = 32
"""Threads for what nobody waits for. An agent whose stage hangs keeps one for seconds with each epoch that it is to
forget, and nothing may wait behind those: what another agent is to forget frees the credit that requests wait for."""

ABSENT_S: Final = 1.0
"""An agent that does not answer a new leader by then is lost: perhaps it was on the machine of the one before."""

RETURN_S: Final = 3.0
"""An agent that does not answer a restarted dispatcher by then is lost: those that dial out try every two seconds."""


class Daemon:
    """A dispatcher; use it as a context manager.

    Args:
        cluster: Its devices, and where it listens: api at the port, data at the next two (free ones for port 0).
        state: Directory for epochs, uploaded models and partitions.
        profiles: Directory of measured profiles; within `state` by default.
        limits: What the data path holds at most.
        on_crash: Called when the data or the control thread ends by an error.
        held: Deploy and undeploy nothing over the api before `let_go`: a start-up that fails takes all down.
        security: How connections are protected.
        durable: Take durable requests; not where `state` is deleted afterwards.
        shared: Where this process leads dispatchers that share a state: it is used instead of a file in `state`, and in
            the end agents keep what they hold, for the next leader.
    """

    def __init__(
        self,
        cluster: Cluster,
        state: Path,
        *,
        profiles: Path | None = None,
        limits: e.Limits | None = None,
        on_crash: Callable[[BaseException], None] | None = None,
        held: bool = False,
        security: Security = OPEN,
        durable: bool = True,
        shared: Shared | None = None,
    ) -> None:
        self._boot = secrets.token_hex(8)
        self._shared = shared
        self._durable = durable
        self._keeper = Keeper(SqliteStore(state / "dispatcher.db") if shared is None else shared.store())
        self._snapshot = Snapshot()
        self.log = EventLog(time.time)
        self._listen = parse_address(cluster.dispatcher.listen, "dispatcher.listen")
        self._state = state
        ports = (self._listen.port + 1, self._listen.port + 2) if self._listen.port else (0, 0)
        self.shell = DataShell(
            f"{DISPATCHER} {cluster.dispatcher_host}",
            self._listen.host,
            *ports,
            limits=limits or e.Limits(routing_v=cluster.dispatcher.routing_v_s),
            on_drained=self._drained,
            on_sampled=self._sampled,
            on_took_over=self._took_over,
            on_crash=on_crash,
            chronicle=Chronicle(self.log),
            security=security,
            may_act=None if shared is None else shared.acts,
        )
        self.pool = AgentPool(
            DISPATCHER,
            listen=self._listen.endpoint(),
            on_api=lambda identity, frames: self._api.heard(identity, frames),
            on_gone=lambda identity: self._api.gone(identity),
            on_event=lambda kind, name, detail: self._news.happened(kind, name, detail),
            on_crash=on_crash,
            admit=lambda hello: self._members.admit(hello),
            security=security,
            lead=("", 0) if shared is None else (shared.name, shared.term),
        )
        self.deployments = Deployments(
            cluster, self.pool, self.shell, state, profiles or state / "profiles", self._keeper, self.log
        )
        self._background = Background(BACKGROUND, "defer-background")
        self._takeovers = Background(1, "defer-takeovers")
        self._members = Membership(self.deployments, self.pool)
        self._detours = Detours(self.deployments, self.pool)
        self.recovery = Recovery(self.deployments, self.pool, self.shell)
        self.adapting = Adapting(self.deployments, self.pool, self.shell, self.recovery, cluster.dispatcher)
        self.canaries = Canaries(self.deployments, self.shell, cluster.dispatcher)
        self._news = AgentNews(
            self.deployments,
            self.shell,
            self.recovery,
            self._members,
            self._detours,
            self.log,
            self._background,
        )
        self.verbs = DispatcherVerbs(
            self.deployments, self.shell, self.pool, self.recovery, self.log, self._boot, held=held
        )
        self._draining = False
        self._came_with: frozenset[str] = frozenset()  # deployments of the process before
        self.postponed: dict[str, tuple[str, ...]] = {}
        self._unrestored: set[str] = set()  # those of them that nothing serves yet
        """Models that did not come back as they were, each with the devices that did not answer."""

    # ---------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Bind every port and answer the api; no model is served yet.

        Raises:
            PortInUse: Another process listens on one of the ports.
            DeferError: The state directory cannot be used.
        """
        try:
            make_private(self._state)
            self._lock = lock(self._state / "lock", str(self._listen))
            self.verbs.open(self._state)
            self._snapshot = self._keeper.open()
            if self._shared is not None:
                self._snapshot = self._shared.brought_home(self._snapshot)
            self._came_with = frozenset(kept.name for kept in self._snapshot.models)
            self._snapshot = self.verbs.keep(self._snapshot)
            self.deployments.open(self._snapshot)
            self.shell.keep_in(
                self._keeper,
                self._snapshot.answers,
                durable=self._durable,
                resuming=bool(self._snapshot.models),
                most=None if self._shared is None else MOST_ANSWERS,
            )
        except Exception as error:
            self._keeper.close()
            raise translate(error) from error
        self._api = ApiServer(DISPATCHER, self._boot, self.verbs, self.pool.reply)
        try:
            self.shell.start()
            self.deployments.rollouts.load(self._snapshot.splits)
            for kept in self._snapshot.models:  # before anybody can ask for them
                self.shell.post(e.ModelAnnounced(kept.name, COMING_BACK))
            self.pool.start()
        except Exception as error:
            self.close()
            told, first = translate(error), self._listen.port
            if isinstance(told, PortInUse) and first:
                told.message += (
                    f" A dispatcher takes the ports {first} to {first + 2}; perhaps one runs there already."
                )
            raise told from error

    def close(self) -> None:
        """Stop at once: answer what is left, unload what is loaded, close every socket, end every thread.

        Where the state is shared nothing is answered or unloaded: clients and agents turn to the next leader.
        """
        self.verbs.stopped = True
        if self._shared is None:
            self.shell.post(e.Stopped())
        self._api.stop()
        self.recovery.stop()
        self.adapting.stop()
        self.canaries.stop()
        self._background.stop()
        self._takeovers.stop()
        self.deployments.planner.close()
        for epoch in list(self.deployments.served) if self._shared is None else ():
            self.deployments.forget(epoch)
        # A deployment that is being made now fails with the connections that it needs.
        self.pool.close()
        self._api.close()
        self.recovery.close()
        self.adapting.close()
        self.canaries.close()
        self._detours.close()
        self._background.close()
        self._takeovers.close()
        self.shell.close()
        for name, order in self.deployments.orders.items():
            # What the command line asks for, the next command line says; a start that failed changes nothing.
            kept = self.verbs.held and name in self._came_with
            if order.source == "serve" and self._shared is None and not kept:
                self.deployments.kept.drop(name)
        self._keeper.close()
        self._lock.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cluster(self) -> Cluster:
        """Its devices now: those of the file, and those that have joined."""
        return self.deployments.cluster

    @property
    def boot(self) -> str:
        """Differs for each start of the process."""
        return self._boot

    @property
    def phase(self) -> Literal["starting", "serving", "stopping"]:
        """Where it is between its start and its end."""
        if self._draining or self.verbs.stopped:
            return "stopping"
        return "starting" if self.verbs.held else "serving"

    def let_go(self) -> None:
        """The start-up is over: whoever asks may deploy and undeploy."""
        self.verbs.held = False

    def drain(self, seconds: float) -> None:
        """Take no new requests, and wait for those in flight."""
        self._draining = True
        self.log.note("stopping", "the dispatcher takes no new requests, those in flight end first")
        self.shell.post(e.Closing())
        deadline = time.monotonic() + seconds

        def left(core: DispatcherCore, _: float) -> int:
            return len(core.requests) + core.durable.owed

        while self.shell.call(left).result(5) and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def address(self) -> Address:
        """Where the api listens, the port resolved."""
        return replace(self._listen, port=int(self.pool.endpoint.rpartition(":")[2]))

    def connect(self, wait_s: float, on_progress: OnProgress = lambda _what, _fraction: None) -> None:
        """Reach every agent, serve again what an earlier process served, and have agents forget the rest.

        What is to be served again comes back as soon as its own agents are there; an agent that does not answer soon
        counts as lost then, and what needs it is planned anew.

        Args:
            wait_s: Seconds for each agent.
            on_progress: Told whom it waits for.

        Raises:
            AgentUnreachable: One did not answer within `wait_s`; names it and says what to do. Where there is something
                to serve again, the others are used.
            ProtocolMismatch: One speaks another version, and nothing is to be served again.
        """
        from defer.ways import with_fastest

        self.deployments.cluster = with_fastest(
            self.cluster, security=self.pool.security, on_chosen=self._address_chosen
        )
        models = self._snapshot.models
        self._members.expect(models)
        if models:
            wait_s = min(wait_s, RETURN_S if self._shared is None else ABSENT_S)
        with self._reaching(wait_s, on_progress) as reaching:
            if models:
                bring_back(
                    models, reaching.missing, reaching.wait, self._restore, self._without, reaching.told
                )
            if not models or self._unrestored:  # what is planned anew may use any of them
                for problem in reaching.problems():
                    if not models:
                        raise problem
                    logger.warning("%s", problem)
        self.deployments.resumed = True
        self.deployments.clean()
        self.recovery.start()
        self._await_mending()
        self.shell.post(e.Resumed(tuple(kept_request(each) for each in self._snapshot.requests)))
        self._snapshot = Snapshot()
        reaching.settle()  # agents that nothing needs now are told of, too, where they are missing
        self.adapting.start()
        self.canaries.start()

    def back(self) -> tuple[Back, ...]:
        """What has become of the models that an earlier process served."""
        serving = self.shell.call(
            lambda core, _: {*chain.from_iterable(core.routes.serving.values())}
        ).result(5)
        served = [each for epoch, each in self.deployments.in_service().items() if epoch in serving]
        return backs(self.verbs.models().models, served, self.postponed)

    def reach_all(self, wait_s: float, on_progress: OnProgress) -> None:
        """After `connect`, wait for those agents too that nothing needed so far; `wait_s` seconds for each."""
        with self._reaching(wait_s, on_progress, dial=False) as reaching:
            for problem in reaching.problems():
                logger.warning("%s", problem)

    def _reaching(self, wait_s: float, on_progress: OnProgress, *, dial: bool = True) -> Reaching:
        def tell(names: tuple[str, ...]) -> None:
            told = ", ".join(names)
            self.log.note("agents-awaited", f"waiting for {told}, out of reach so far", level="warning")
            logger.warning("waiting for %s, out of reach so far", told)
            on_progress(f"waiting for {told}", 0.0)
            for kept in self._snapshot.models:
                lacks = devices_of_kept(kept) & set(names)
                if lacks and kept.name not in self.deployments.orders:
                    reason = f"coming back: it waits for {', '.join(sorted(lacks))}"
                    self.shell.post(e.ModelAnnounced(kept.name, reason))

        return Reaching(self.pool, self.cluster, wait_s, tell, dial=dial)

    def _address_chosen(self, name: str, ways: Sequence[Way]) -> None:
        text = f"{name} is reached at {ways[0]}; its others: {', '.join(str(way) for way in ways[1:])}"
        self.log.note("address-chosen", text, device=name)

    def _await_mending(self) -> None:
        """What came back without a device is planned anew: requests wait for that instead of being refused."""
        deadline = time.monotonic() + MENDING_S
        while time.monotonic() < deadline:
            if all(info.state == "ready" for info in self.shell.call(models_of).result(5)):
                return
            time.sleep(0.02)

    def _restore(self, model: KeptModel, without: tuple[str, ...]) -> None:
        if not set(without) <= {device.name for device in self.cluster.agents}:
            # They do not come back: what would serve until then is no plan for good.
            self._without(model, without)
            return
        try:
            self.deployments.restore(model, without)
        except Exception as error:
            told = translate(error)
            self._postpone(model, without, str(told))
            return
        if without:
            self.postponed[model.name] = without
        news.info("model %s is served again", model.name)

    def _without(self, model: KeptModel, devices: tuple[str, ...]) -> None:
        self._postpone(model, devices, lacking(devices, self.cluster))

    def _postpone(self, model: KeptModel, devices: tuple[str, ...], why: str) -> None:
        logger.warning("model %s is not back yet: %s", model.name, why)
        self.log.note(
            "not-restored", f"{model.name} is not back yet: {why}", level="warning", model=model.name
        )
        self.postponed[model.name] = devices
        self._unrestored.add(model.name)
        self.deployments.postpone(model, f"coming back: {why}")

    # ------------------------------------------------------------------------------------- what happens meanwhile

    def _drained(self, epoch: int) -> None:
        """From the data thread: nothing is in flight on the route any more."""
        self._background.do(lambda: self.deployments.forget(epoch))

    def _sampled(self, sampled: e.Sampled) -> None:
        """From the data thread: a request is to be compared with its deployment's reference."""
        # In this process their memory is the caller's again as soon as it has its answer.
        sampled = replace(sampled, frames=_copied(sampled.frames), outputs=_copied(sampled.outputs))
        self._background.do(lambda: self.deployments.sampler.compare(sampled))

    def _took_over(self, model: str, epoch: int) -> None:
        """From the data thread: what stood by serves."""
        # Unloading takes long where a device does not answer, as is usual at a takeover: this does not wait for it.
        self._takeovers.do(lambda: self.recovery.standbys.took_over(model, epoch))


def _copied(frames: Sequence[Any]) -> tuple[bytes, ...]:
    return tuple([bytes(memoryview(frame)) for frame in frames])
