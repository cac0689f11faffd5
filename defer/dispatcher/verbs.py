"""What the dispatcher's api can be asked, answered from its parts and done on them."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import msgspec

from defer import api
from defer.accuracy import parse_budget
from defer.agents import AgentPool
from defer.batching import make_batching
from defer.dispatcher.api_server import OnProgress
from defer.dispatcher.bringup import Order, check_standby
from defer.dispatcher.deployments import Deployments, Outcome
from defer.dispatcher.recovery import Recovery
from defer.dispatcher.report import models_of, status_of, version_of
from defer.dispatcher.rollout import base_of, check_share
from defer.dispatcher.shell import DataShell
from defer.dispatcher.store import Snapshot
from defer.dispatcher.tracing import traces_of
from defer.dispatcher.uploads import Uploads
from defer.dispatcher.withdrawal import Withdrawal
from defer.documents.base import decode, encode
from defer.documents.plan import Objective, Plan
from defer.documents.profile import CostProfile
from defer.errors import Cancelled, DeferError, NotReady, UsageError
from defer.event_log import EventLog
from node_agent.messages import Chunk, Have, Taken, Want

logger = logging.getLogger("defer.dispatcher")
news = logging.getLogger("defer.dispatcher.models")


class DispatcherVerbs:
    """The verbs of one dispatcher; `open` before anything else. See `api_server.Verbs`.

    Args:
        deployments: What is deployed, and on which cluster.
        shell: The data path.
        pool: Connections to the agents.
        recovery: What stands by for a loss.
        log: What has happened.
        boot: Differs for each start of the process.
        held: Deploy and undeploy nothing while this is set: a start-up that fails takes all down.
    """

    def __init__(
        self,
        deployments: Deployments,
        shell: DataShell,
        pool: AgentPool,
        recovery: Recovery,
        log: EventLog,
        boot: str,
        *,
        held: bool,
    ) -> None:
        self._deployments, self._shell, self._pool = deployments, shell, pool
        self._recovery, self._log, self._boot = recovery, log, boot
        self.held = held
        self.stopped = False
        """Deploy nothing any more."""
        self._started = time.monotonic()

    def open(self, state: Path) -> None:
        """Take uploads in the state directory.

        Raises:
            AgentError, OSError: It cannot be used.
        """
        self._started = time.monotonic()
        self._uploads = Uploads.open(state)

    def keep(self, snapshot: Snapshot) -> Snapshot:
        """Drop uploads, but for those of what is served again: its agents may have lost what they held.

        Returns:
            The snapshot, with these files where they lie now: the state may have been moved since.
        """
        models = tuple(
            msgspec.structs.replace(
                each, model=self._uploads.find(each.model), calibration=self._uploads.find(each.calibration)
            )
            for each in snapshot.models
        )
        self._uploads.tidy(Path(path) for each in models for path in (each.model, each.calibration) if path)
        for each in models:
            if not Path(each.model).is_file():
                text = (
                    f"{each.name}: its file {each.model} is not there any more, so it cannot be planned anew"
                )
                self._log.note("files-missing", text, level="warning", model=each.name)
                logger.warning("model %s", text)
        return msgspec.structs.replace(snapshot, models=models)

    def models(self) -> api.Models:
        """See `api_server.Verbs`."""
        return api.Models(0, self._shell.data_port, self._shell.call(models_of).result(5))

    def events(self, ask: api.GetEvents) -> api.Events:
        """See `api_server.Verbs`."""
        return api.Events(0, self._log.since(ask.after, ask.limit), self._log.last, self._boot)

    def status(self) -> api.ServerStatus:
        """See `api_server.Verbs`."""
        told = status_of(
            self._shell,
            self._pool,
            self._deployments.cluster,
            dict(self._deployments.served),
            dict(self._deployments.sampler.tallies),
            self._started,
        )
        return msgspec.structs.replace(told, standby=self._recovery.coverage())

    def traces(self, wanted: api.GetTraces) -> api.Traces:
        """See `api_server.Verbs`."""
        return traces_of(
            self._shell, self._pool, [device.name for device in self._deployments.cluster.agents], wanted
        )

    def want(self, want: Want) -> Have:
        """See `api_server.Verbs`."""
        return self._uploads.want(want)

    def chunk(self, chunk: Chunk, piece: bytes) -> Taken:
        """See `api_server.Verbs`."""
        return self._uploads.chunk(chunk, piece)

    def deploy(
        self, order: api.Deploy, on_progress: OnProgress, withdrawal: Withdrawal | None = None
    ) -> api.Deployed:
        """See `api_server.Verbs`."""
        if self.stopped:
            raise NotReady("the dispatcher is shutting down")
        self._refuse_while_held()
        self._deployments.rollouts.check(order.name, self._deployments.orders)
        api.check_shapes(order.shapes)
        check_share(order.sample)
        standby = check_standby(order.standby)
        objective = order.objective or self._objective_beside(order.name)
        if order.replicas:
            api.check_replicas(objective, given=bool(order.plan))
        again = False
        try:
            outcome = self._deployments.bring_up(
                Order(
                    name=order.name,
                    model=self._uploads.assemble(order.files),
                    plan=decode(Plan, order.plan.encode(), "the plan") if order.plan else None,
                    profile=decode(CostProfile, order.profile.encode(), "the profile")
                    if order.profile
                    else None,
                    objective=objective,
                    replicas=order.replicas,
                    shapes=order.shapes,
                    budget=parse_budget(order.max_error) if order.max_error else None,
                    calibration=self._uploads.assemble(order.calibration) if order.calibration else None,
                    sample=order.sample,
                    batching=make_batching(order.batch, order.batch_delay_s),
                    given=bool(order.plan),
                    standby=standby,
                    withdrawal=withdrawal or Withdrawal(),
                ),
                on_progress,
            )
        except DeferError as error:
            again = not isinstance(error, Cancelled)  # its files wait for whoever mends what was wrong
            raise
        finally:
            if not again:
                self._uploads.taken((*order.files, *order.calibration))
            self._tidy()
        made = outcome.deployment
        news.info("model %s is deployed as deployment %d", made.model, made.epoch)
        return _deployed(outcome)

    def _objective_beside(self, deployment: str) -> Objective:
        orders = dict(self._deployments.orders)
        stable = orders.get(self._deployments.rollouts.beside(deployment, orders))
        return "latency" if stable is None else stable.objective

    def undeploy(self, order: api.Undeploy) -> None:
        """See `api_server.Verbs`."""
        self._refuse_while_held()
        if not 0 <= order.drain_s < math.inf:
            raise UsageError(f"requests in flight cannot have {order.drain_s:g} s to end")
        try:
            self._deployments.take_down(order.name, order.drain_s)
            news.info("model %s is no longer served", order.name)
        finally:
            self._tidy()

    def roll(self, order: api.Roll) -> api.Rolled:
        """See `api_server.Verbs`."""
        self._refuse_while_held()
        served = list(self._deployments.orders)
        split = self._deployments.rollouts.roll(order.name, order.action, order.version, order.share, served)
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

    def _refuse_while_held(self) -> None:
        if self.held:
            raise NotReady(
                "the dispatcher is starting", hint="try again when `defer serve` says that it is ready"
            )

    def _tidy(self) -> None:
        """Verbs that take long run one after the other, so no other model is between its upload and its deployment."""
        orders = list(self._deployments.orders.values())
        self._uploads.tidy(path for order in orders for path in (order.model, order.calibration) if path)


def _deployed(outcome: Outcome) -> api.Deployed:
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
