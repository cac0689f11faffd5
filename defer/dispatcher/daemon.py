"""The dispatcher daemon: the only owner of the cluster's state.

It joins the control connections (`AgentPool`), the data thread (`DataShell`), the deployments and the api
(`ApiServer`). Agents' events come from the control thread and are only noted there; what follows from them is done in
background threads.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

import msgspec

from defer import api
from defer.accuracy import parse_budget
from defer.agents import AgentPool
from defer.batching import make_batching
from defer.dispatcher import events as e
from defer.dispatcher.adapting import Adapting
from defer.dispatcher.api_server import ApiServer, OnProgress
from defer.dispatcher.bringup import Order, check_standby
from defer.dispatcher.canaries import Canaries
from defer.dispatcher.chronicle import Chronicle
from defer.dispatcher.core import DispatcherCore
from defer.dispatcher.deployments import Deployments, Outcome
from defer.dispatcher.detours import Detours
from defer.dispatcher.keeper import Keeper
from defer.dispatcher.membership import Membership
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.report import models_of, status_of, version_of
from defer.dispatcher.restoring import kept_request
from defer.dispatcher.rollout import base_of
from defer.dispatcher.shell import DataShell
from defer.dispatcher.state_lock import lock
from defer.dispatcher.store import KeptModel, Snapshot
from defer.dispatcher.store_sqlite import SqliteStore
from defer.dispatcher.tracing import traces_of
from defer.dispatcher.uploads import Uploads
from defer.documents.address import Address, parse_address
from defer.documents.base import decode, encode
from defer.documents.cluster import Cluster
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import AgentUnreachable, NotReady, PortInUse, translate
from defer.event_log import EventLog, Level
from defer.hops import DISPATCHER
from node_agent.messages import Chunk, Have, Taken, Want
from node_agent.security import OPEN, Security

if TYPE_CHECKING:
    from defer.dispatcher.sharing import Shared
    from defer.ways import Way

logger = logging.getLogger("defer.dispatcher")
news = logging.getLogger("defer.dispatcher.models")

MOST_ANSWERS: Final = 4096
"""Durable answers that a shared state keeps: whoever takes over reads what they are."""

MENDING_S: Final = 5.0
"""How long requests wait at a takeover for a model that cannot be served from what is there."""

ABSENT_S: Final = 1.0
"""An agent that does not answer a new leader by then is lost: perhaps it was on the machine of the one before."""


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
        self._shared = shared
        self._held = held
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
            on_api=self._on_api,
            on_event=self._on_agent_event,
            on_crash=on_crash,
            security=security,
            lead=("", 0) if shared is None else (shared.name, shared.term),
        )
        self.deployments = Deployments(
            cluster, self.pool, self.shell, state, profiles or state / "profiles", self._keeper, self.log
        )
        self._members = Membership(self.deployments, self.pool)
        self._detours = Detours(self.deployments, self.pool)
        self.recovery = Recovery(self.deployments, self.pool, self.shell)
        self.adapting = Adapting(self.deployments, self.pool, self.shell, self.recovery, cluster.dispatcher)
        self.canaries = Canaries(self.deployments, self.shell, cluster.dispatcher)
        self._closing = threading.Event()
        self._draining = False
        self._boot = secrets.token_hex(8)

    # ---------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Bind every port and answer the api; no model is served yet.

        Raises:
            PortInUse: Another process listens on one of the ports.
            DeferError: The state directory cannot be used.
        """
        self._started = time.monotonic()
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self._state / "lock", str(self._listen))
            self._uploads = Uploads.open(self._state)
            self._snapshot = self._keeper.open()
            if self._shared is not None:
                self._snapshot = self._shared.brought_home(self._snapshot)
            self._tidy_uploads()
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
        self._background = ThreadPoolExecutor(2, thread_name_prefix="defer-background")
        self._takeovers = ThreadPoolExecutor(1, thread_name_prefix="defer-takeovers")
        self._api = ApiServer(DISPATCHER, self._boot, self, self.pool.reply)
        try:
            self.shell.start()
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
        self._closing.set()
        if self._shared is None:
            self.shell.post(e.Stopped())
        self._api.stop()
        self.recovery.stop()
        self.adapting.stop()
        self.canaries.stop()
        self._background.shutdown(wait=False, cancel_futures=True)
        self._takeovers.shutdown(wait=False, cancel_futures=True)
        for epoch in list(self.deployments.served) if self._shared is None else ():
            self.deployments.forget(epoch)
        # A deployment that is being made now fails with the connections that it needs.
        self.pool.close()
        self._api.close()
        self.recovery.close()
        self.adapting.close()
        self.canaries.close()
        self._detours.close()
        self._background.shutdown(wait=True)
        self._takeovers.shutdown(wait=True)
        self.shell.close()
        for name, order in self.deployments.orders.items():
            # What the command line asks for, the next command line says.
            if order.source == "serve" and self._shared is None:
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
        if self._draining or self._closing.is_set():
            return "stopping"
        return "starting" if self._held else "serving"

    def let_go(self) -> None:
        """The start-up is over: whoever asks may deploy and undeploy."""
        self._held = False

    def _refuse_while_held(self) -> None:
        if self._held:
            raise NotReady(
                "the dispatcher is starting", hint="try again when `defer serve` says that it is ready"
            )

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

    def connect(self, wait_s: float) -> None:
        """Reach every agent, serve again what an earlier process served, and have agents forget the rest.

        Raises:
            AgentUnreachable: One did not answer within `wait_s`; names it and says what to do. Where there is something
                to serve again, the others are used.
            ProtocolMismatch: One speaks another version.
        """
        from defer.connecting import connect_all
        from defer.ways import with_fastest

        self.deployments.cluster = with_fastest(
            self.cluster, security=self.pool.security, on_chosen=self._address_chosen
        )
        if self._shared is not None and self._snapshot.models:
            wait_s = min(wait_s, ABSENT_S)
        try:
            connect_all(self.pool, self.cluster, timeout=wait_s)
        except AgentUnreachable as error:
            if not self._snapshot.models:
                raise
            logger.warning("%s", error)
        self._members.expect(self._snapshot.models)
        self.deployments.rollouts.load(self._snapshot.splits)
        for model in self._snapshot.models:
            self._restore(model)
        self.deployments.clean()
        if self._shared is not None:
            self.recovery.start()
            self._await_mending()
        self.shell.post(e.Resumed(tuple(kept_request(each) for each in self._snapshot.requests)))
        self._snapshot = Snapshot()
        if self._shared is None:
            self.recovery.start()
        self.adapting.start()
        self.canaries.start()

    def _address_chosen(self, name: str, ways: Sequence[Way]) -> None:
        text = f"{name} is reached at {ways[0]}; its others: {', '.join(str(way) for way in ways[1:])}"
        self.log.note("address-chosen", text, device=name)

    def _await_mending(self) -> None:
        """What a takeover finds without a device is planned anew: requests wait for that instead of being refused."""
        deadline = time.monotonic() + MENDING_S
        while time.monotonic() < deadline:
            if all(info.state == "ready" for info in self.shell.call(models_of).result(5)):
                return
            time.sleep(0.02)

    def _restore(self, model: KeptModel) -> None:
        try:
            self.deployments.restore(model)
        except Exception as error:
            told = translate(error)
            logger.warning("model %s is not back yet: %s", model.name, told)
            self.deployments.postpone(model, f"coming back failed: {told}")
            return
        news.info("model %s is served again", model.name)

    # ------------------------------------------------------------------------------------- what happens meanwhile

    def _on_agent_event(self, kind: str, name: str, detail: str) -> None:
        """From the control thread."""
        if kind == "alive" and self._detours.arrived(name):
            kind = "moved"
        if kind == "lost":
            self.shell.post(e.DeviceLost(name, detail or "its connection closed"))
            self.recovery.lost(name)
            self._detours.lost(name)
        elif kind == "alive":
            self._members.answered(name)
        elif kind == "back":
            self.shell.post(e.DeviceBack(name))
            self._background_do(lambda: self.deployments.clean(name))
            self.recovery.look()
        elif kind in ("restarted", "moved"):
            # Its process is new: what it had loaded is gone, and with it every route through it. What it could not
            # be told to forget is forgotten. Where it is reached elsewhere, its neighbours have it at its old address.
            self._background_do(lambda: self.deployments.clean(name))
            self._members.answered(name)
            why = "its agent restarted" if kind == "restarted" else "it is reached at another address"
            self.shell.post(e.DeviceLost(name, why, restarted=True))
            self.recovery.look()
        self.log.note(*agent_words(kind, name, detail), level=AGENT_LEVELS.get(kind, "info"), device=name)
        level = logging.INFO if kind == "alive" else logging.WARNING
        logger.log(level, "agent %s is %s%s", name, kind, f": {detail}" if detail else "")

    def _drained(self, epoch: int) -> None:
        """From the data thread: nothing is in flight on the route any more."""
        self._background_do(lambda: self.deployments.forget(epoch))

    def _sampled(self, sampled: e.Sampled) -> None:
        """From the data thread: a request is to be compared with its deployment's reference."""
        self._background_do(lambda: self.deployments.sampler.compare(sampled))

    def _took_over(self, model: str, epoch: int) -> None:
        """From the data thread: what stood by serves."""
        # Unloading takes long where a device does not answer, as is usual at a takeover: this does not wait for it.
        self._do(self._takeovers, lambda: self.recovery.standbys.took_over(model, epoch))

    def _background_do(self, action: Callable[[], None]) -> None:
        self._do(self._background, action)

    def _do(self, where: ThreadPoolExecutor, action: Callable[[], None]) -> None:
        def run() -> None:
            try:
                action()
            except Exception:
                logger.exception("background work failed")

        try:
            where.submit(run)
        except RuntimeError:
            logger.debug("not done any more: the dispatcher is closing")

    # -------------------------------------------------------------------------------------------------- the api

    def _on_api(self, identity: bytes, frames: list[bytes]) -> None:
        self._api.heard(identity, frames)

    def models(self) -> api.Models:
        """See `Verbs`."""
        return api.Models(0, self.shell.data_port, self.shell.call(models_of).result(5))

    def events(self, ask: api.GetEvents) -> api.Events:
        """See `Verbs`."""
        return api.Events(0, self.log.since(ask.after, ask.limit), self.log.last, self._boot)

    def status(self) -> api.ServerStatus:
        """See `Verbs`."""
        told = status_of(
            self.shell,
            self.pool,
            self.cluster,
            dict(self.deployments.served),
            dict(self.deployments.sampler.tallies),
            self._started,
        )
        return msgspec.structs.replace(told, standby=self.recovery.coverage())

    def traces(self, wanted: api.GetTraces) -> api.Traces:
        """See `Verbs`."""
        return traces_of(self.shell, self.pool, [device.name for device in self.cluster.agents], wanted)

    def want(self, want: Want) -> Have:
        """See `Verbs`."""
        return self._uploads.want(want)

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        """See `Verbs`."""
        return self._uploads.chunk(chunk, piece)

    def deploy(self, order: api.Deploy, on_progress: OnProgress) -> api.Deployed:
        """See `Verbs`."""
        if self._closing.is_set():
            raise NotReady("the dispatcher is shutting down")
        self._refuse_while_held()
        self.deployments.rollouts.check(order.name)
        standby = check_standby(order.standby)
        try:
            outcome = self.deployments.bring_up(
                Order(
                    name=order.name,
                    model=self._uploads.assemble(order.files),
                    plan=decode(Plan, order.plan.encode(), "the plan") if order.plan else None,
                    profile=decode(CostProfile, order.profile.encode(), "the profile")
                    if order.profile
                    else None,
                    objective=order.objective or self._objective_beside(order.name),
                    shapes=order.shapes,
                    budget=parse_budget(order.max_error) if order.max_error else None,
                    calibration=self._uploads.assemble(order.calibration) if order.calibration else None,
                    sample=order.sample,
                    batching=make_batching(order.batch, order.batch_delay_s),
                    given=bool(order.plan),
                    standby=standby,
                ),
                on_progress,
            )
        finally:
            self._tidy()
        made = outcome.deployment
        news.info("model %s is deployed as deployment %d", made.model, made.epoch)
        return deployed(outcome)

    def _objective_beside(self, deployment: str) -> Objective:
        orders = dict(self.deployments.orders)
        stable = orders.get(self.deployments.rollouts.beside(deployment, orders))
        return "latency" if stable is None else stable.objective

    def undeploy(self, order: api.Undeploy) -> None:
        """See `Verbs`."""
        self._refuse_while_held()
        try:
            self.deployments.take_down(order.name, order.drain_s)
            news.info("model %s is no longer served", order.name)
        finally:
            self._tidy()

    def roll(self, order: api.Roll) -> api.Rolled:
        """See `Verbs`."""
        self._refuse_while_held()
        served = list(self.deployments.orders)
        split = self.deployments.rollouts.roll(order.name, order.action, order.version, order.share, served)
        if order.action != "show":
            news.info("requests for %s take %s", split.name, split.stable)
        return api.Rolled(
            0,
            split.name,
            split.stable,
            split.canary,
            split.share,
            split.before,
            tuple(sorted(each for each in served if base_of(each) == split.name)),
        )

    def _tidy_uploads(self) -> None:
        """At the start: what is served again needs its model's files, if its agents have lost theirs."""
        kept = [path for each in self._snapshot.models for path in (each.model, each.calibration) if path]
        self._uploads.tidy(Path(path) for path in kept)

    def _tidy(self) -> None:
        """Verbs that take long run one after the other, so no other model is between its upload and its deployment."""
        orders = list(self.deployments.orders.values())
        self._uploads.tidy(path for order in orders for path in (order.model, order.calibration) if path)


AGENT_LEVELS: Final[dict[str, Level]] = {
    "lost": "error",
    "restarted": "warning",
    "moved": "warning",
    "refused": "error",
}
"""How bad it is what happens to an agent; the rest is good news."""


def agent_words(kind: str, name: str, detail: str) -> tuple[str, str]:
    """Kind and sentence of what happened to an agent, for the event log."""
    words = {
        "alive": ("agent-joined", f"agent {name} has joined"),
        "lost": ("agent-lost", f"agent {name} is lost"),
        "back": ("agent-back", f"agent {name} is back with what it had loaded"),
        "restarted": ("agent-restarted", f"agent {name} has restarted, and holds nothing"),
        "moved": ("agent-moved", f"agent {name} is reached at another address"),
        "refused": ("agent-refused", f"agent {name} is not taken"),
    }
    known, text = words.get(kind, (f"agent-{kind}", f"agent {name} is {kind}"))
    return known, text + (f": {detail}" if detail else "")


def deployed(outcome: Outcome) -> api.Deployed:
    """An outcome in the api's words."""
    made = outcome.deployment
    info = api.ModelInfo(
        made.model,
        "ready",
        "",
        made.epoch,
        made.inputs,
        made.outputs,
        made.plan.transfers[0].codec,
        version_of=version_of(made.model),
    )
    return api.Deployed(
        0, info, encode(made.plan).decode(), made.sent_bytes, outcome.seconds, outcome.canary_s
    )
