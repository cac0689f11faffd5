"""A dispatcher in the process that asks for inference: nothing is started beside it but the agents.

    with defer.Dispatcher("cluster.toml") as dispatcher:
        dispatcher.deploy("resnet50.onnx", objective="throughput")
        with dispatcher.client() as client:
            outputs = client.infer(image)

It is the dispatcher of `defer serve`, with the same promises, and listens for other clients and for `defer status` as
that does; its own process's requests come to it through no socket.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from defer.async_client import AsyncClient
from defer.client import Client
from defer.client_requests import DEFAULT_TIMEOUT_S, Requests
from defer.errors import NotReady, UsageError
from defer.translating import translate

if TYPE_CHECKING:
    from defer.dispatcher.daemon import Daemon
    from defer.documents.cluster import Cluster
    from defer.documents.plan import Objective, Plan
    from defer.documents.profile import CostProfile
    from defer.in_process_session import InProcessSession

DRAIN_S = 30.0
"""Seconds that requests in flight have when the dispatcher is closed in order."""

WAIT_S = 10.0
"""Seconds that each agent has to answer at the start."""


class Dispatcher:
    """A dispatcher of this process; a context manager, or `start` and `close`. Needs the extra `planner`.

    Args:
        cluster: The devices: a cluster.toml, or what was read from one.
        listen: `host:port` for other clients, in place of what the cluster says; port 0 takes free ones.
        state: Directory for what must survive the process: what is deployed, and durable requests. Nothing does where
            none is given.
        wait: Seconds that each agent has to answer.
        keys: Folder of keys with one for a dispatcher; what the environment's DEFER_KEYS says by default.
        insecure: Use addresses beyond this machine without keys.

    Raises:
        FileMissing, InvalidDocument, InvalidCluster: The cluster cannot be read.
        InvalidKey, PermissionDenied: There are no keys that it could use, and it would need them.
    """

    def __init__(
        self,
        cluster: str | Path | Cluster,
        *,
        listen: str | None = None,
        state: str | Path | None = None,
        wait: float = WAIT_S,
        keys: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        from defer.serving import cluster_to_serve, security_to_serve

        self._cluster = cluster_to_serve(cluster, listen=listen)
        self._security = security_to_serve(self._cluster, keys=keys, insecure=insecure)
        self._state = None if state is None else Path(state).expanduser().absolute()
        self._wait_s = wait
        self._stack = ExitStack()
        self._daemon: Daemon | None = None
        self._process = os.getpid()

    # ---------------------------------------------------------------------------------------------- life cycle

    def start(self) -> None:
        """Listen, and reach the agents; with a state, what was deployed before is served again.

        Raises:
            PortInUse: Another process listens there.
            StateInUse: Another dispatcher has the state.
            AgentUnreachable: An agent did not answer in time.
        """
        from defer.dispatcher.daemon import Daemon
        from defer.paths import profile_cache

        if self._daemon is not None:
            raise UsageError("this dispatcher has been started already")
        with ExitStack() as stack:
            lasting = self._state is not None
            folder = self._state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="defer-")))
            daemon = Daemon(
                self._cluster, folder, profiles=profile_cache(), durable=lasting, security=self._security
            )
            stack.enter_context(daemon)
            daemon.connect(self._wait_s)
            self._stack = stack.pop_all()
        self._daemon = daemon

    def close(self, drain_s: float = DRAIN_S) -> None:
        """Take no new requests, let those in flight end, and unload what agents hold.

        Args:
            drain_s: Seconds that they have; what is left then is answered with `NotReady`.
        """
        daemon, self._daemon = self._daemon, None
        if daemon is not None and os.getpid() == self._process:
            try:
                daemon.drain(drain_s)
            finally:
                self._stack.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(DRAIN_S if error is None else 0.0)

    # ------------------------------------------------------------------------------------------------- serving

    @property
    def address(self) -> str:
        """Where clients in other processes and `defer status --dispatcher` reach it."""
        return str(self._running().address)

    def deploy(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        objective: Objective | None = None,
        plan: str | Path | Plan | None = None,
        profile: str | Path | CostProfile | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        max_error: str = "",
        calibration: str | Path | None = None,
        sample: float = 0.0,
        batch: Sequence[int] = (),
        batch_delay_s: float = 0.0,
        standby: str = "",
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Plan:
        """Measure, plan, split, ship and load a model, send a first request through it, and serve it.

        A model that is served under the same name is replaced without a gap. The options are those of `defer deploy`.

        Args:
            model: The ONNX file; it must stay where it is while the model is served.
            name: Name to serve it under, or `NAME@VERSION`; the file's by default.
            objective: What a new plan makes least, `latency` by default.
            plan: A plan to follow, or its file.
            profile: Costs to plan with, or their file; measured (or remembered) by default.
            inputs: Shapes by input name, which bind free dimensions.
            max_error: Budget for lossy codecs, as `0.01` or `top1:0.01`; none uses none.
            calibration: Requests (.npz) on which their error is measured.
            sample: Share of the requests that are compared with the lossless pipeline.
            batch: How many requests stages may run together.
            batch_delay_s: How long the first of a batch waits for others.
            standby: What is prepared for the loss of a device, as `--standby`.
            on_progress: Told what is being done and how far it is, 0 to 1; from several threads.

        Returns:
            The plan that is served.

        Raises:
            DeferError: It cannot be planned, shipped, loaded or run; what was served before is served on.
        """
        from defer import api
        from defer.accuracy import parse_budget
        from defer.batching import make_batching
        from defer.dispatcher.bringup import Order, check_standby
        from defer.dispatcher.rollout import check_name, check_share
        from defer.documents.files import check_file
        from defer.documents.plan import Plan
        from defer.documents.profile import CostProfile

        daemon = self._running()
        file = Path(model).expanduser().absolute()
        called = file.stem if name is None else name
        check_file(file, "check the model's path")
        check_name(called)
        daemon.deployments.rollouts.check(called, daemon.deployments.orders)
        shapes = {each: tuple(shape) for each, shape in (inputs or {}).items()}
        api.check_shapes(shapes)
        check_share(sample)
        follow = Plan.load(plan) if isinstance(plan, str | Path) else plan
        if follow is not None and objective not in (None, follow.objective):
            raise UsageError(
                f"the plan was made for {follow.objective}, not for {objective}",
                hint="leave the objective out, or the plan",
            )
        order = Order(
            name=called,
            model=file,
            plan=follow,
            profile=CostProfile.load(profile) if isinstance(profile, str | Path) else profile,
            objective=objective or (follow.objective if follow is not None else "latency"),
            shapes=shapes,
            budget=parse_budget(max_error) if max_error else None,
            calibration=None if calibration is None else Path(calibration).expanduser().absolute(),
            sample=sample,
            batching=make_batching(batch, batch_delay_s),
            given=follow is not None,
            standby=check_standby(standby),
        )
        outcome = daemon.deployments.bring_up(order, on_progress or _quiet)
        return outcome.deployment.plan

    def undeploy(self, name: str, drain_s: float = DRAIN_S) -> None:
        """Serve a model no more, or one version of it (`NAME@VERSION`).

        Args:
            name: Its name.
            drain_s: Seconds that requests in flight have to end.

        Raises:
            UnknownModel: It is not served.
        """
        from defer import api

        self._running().verbs.undeploy(api.Undeploy(0, name, drain_s))

    def client(self, *, model: str = "", timeout: float = DEFAULT_TIMEOUT_S, codec: str = "auto") -> Client:
        """A client whose requests pass no socket on the way to this dispatcher; arguments as in `Client`."""
        return _Client(self._requests(model, timeout, codec))

    def async_client(
        self, *, model: str = "", timeout: float = DEFAULT_TIMEOUT_S, codec: str = "auto"
    ) -> AsyncClient:
        """The same for an event loop; arguments as in `AsyncClient`."""
        return _AsyncClient(self._requests(model, timeout, codec))

    # --------------------------------------------------------------------------------------------------- inside

    def _running(self) -> Daemon:
        daemon = self._daemon
        if daemon is None:
            raise NotReady("this dispatcher is not started, or closed", hint="use it as a context manager")
        if os.getpid() != self._process:
            raise UsageError(
                "this process is a child of the dispatcher's",
                hint=f'reach it from here with defer.Client("{daemon.address}")',
            )
        return daemon

    def _requests(self, model: str, timeout: float, codec: str) -> Requests:
        from defer.in_process_session import InProcessServed, InProcessSession

        daemon = self._running()

        def carry() -> InProcessSession:
            return InProcessSession(self._running().shell)

        try:
            return Requests(InProcessServed(daemon), carry, model=model, timeout=timeout, codec=codec)
        except Exception as error:
            raise translate(error) from error


class _Client(Client):
    def __init__(self, requests: Requests) -> None:
        self._requests = requests


class _AsyncClient(AsyncClient):
    def __init__(self, requests: Requests) -> None:
        self._requests = requests


def _quiet(_what: str, _fraction: float) -> None:
    pass
