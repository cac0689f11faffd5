"""A dispatcher in the process that asks for inference: nothing is started beside it but the agents.

    with defer.Dispatcher("cluster.toml") as dispatcher:
        dispatcher.deploy("resnet50.onnx", objective="throughput")
        with dispatcher.client() as client:
            outputs = client.infer(image)

It is the dispatcher of `defer serve`, with the same promises, and listens for other clients and for `defer status` as
that does; its own process's requests come to it through no socket.
"""

from __future__ import annotations

import importlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from defer.async_client import AsyncClient
from defer.client import Client
from defer.client_requests import DEFAULT_TIMEOUT_S, Requests
from defer.errors import DeferError, Internal, NotReady, UsageError
from defer.translating import translate

if TYPE_CHECKING:
    from defer.dispatcher.daemon import Daemon
    from defer.documents.cluster import Cluster
    from defer.documents.plan import Objective, Plan
    from defer.documents.profile import CostProfile
    from defer.in_process_session import InProcessSession

OBJECTIVES = ("latency", "throughput", "cost", "energy")
"""What a plan can make least that needs no weights."""

DRAIN_S = 30.0
"""Seconds that requests in flight have when the dispatcher is closed in order."""

WAIT_S, MOST_WAIT_S = 10.0, 3600.0
"""Seconds that each agent has to answer at the start; by default, and at most."""

_STARTED: weakref.WeakSet[Dispatcher] = weakref.WeakSet()


def _close_all() -> None:
    for dispatcher in list(_STARTED):
        dispatcher.close(0.0)


# Before the interpreter waits for threads at its end, which `atexit` is too late for: a program may forget to close.
# Last registered is called first, and executors, which must still work then, are registered with their module.
importlib.import_module("concurrent.futures.thread")
if hasattr(threading, "_register_atexit"):
    threading._register_atexit(_close_all)


class Dispatcher:
    """A dispatcher of this process; a context manager, or `start` and `close`. Needs the extra `planner`.

    Args:
        cluster: The devices: a cluster.toml, or what was read from one.
        listen: `host:port` for other clients, in place of what the cluster says; port 0 takes free ones.
        state: Directory for what must survive the process: what is deployed, and durable requests; what the cluster says
            by default. Nothing does where neither says one.
        wait: Seconds that each agent has to answer.
        keys: Folder of keys with one for a dispatcher; what the environment's DEFER_KEYS says by default.
        insecure: Use addresses beyond this machine without keys.

    Raises:
        FileMissing, InvalidDocument, InvalidCluster: The cluster cannot be read.
        InvalidKey, PermissionDenied: There are no keys that it could use, and it would need them.
        UsageError: The state is one that several dispatchers share, or the wait is no time.
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
        from defer.dispatcher.state_url import is_state_url
        from defer.serving import cluster_to_serve, security_to_serve

        self._cluster = cluster_to_serve(cluster, listen=listen, said="listen")
        self._security = security_to_serve(self._cluster, keys=keys, insecure=insecure)
        kept = self._cluster.dispatcher.state if state is None else str(state)
        if is_state_url(kept):
            raise UsageError(
                "a dispatcher in a program shares no state with others",
                hint="give a directory, or run `defer serve` with that state",
            )
        self._state = Path(kept).expanduser().absolute() if kept else None
        self._wait_s = _seconds("wait", wait, most=MOST_WAIT_S)
        self._stack = ExitStack()
        self._daemon: Daemon | None = None
        self._used = False
        self._crash: BaseException | None = None
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
        from defer.serving import brief_state

        if self._used:
            raise UsageError("this dispatcher has been started already", hint="make another one")
        self._used = True
        with ExitStack() as stack:
            lasting = self._state is not None
            folder = self._state or brief_state(stack)
            daemon = Daemon(
                self._cluster,
                folder,
                profiles=profile_cache(),
                on_crash=self._crashed,
                held=True,
                durable=lasting,
                security=self._security,
            )
            stack.enter_context(daemon)
            daemon.connect(self._wait_s)
            daemon.let_go()
            self._stack = stack.pop_all()
        self._daemon = daemon
        _STARTED.add(self)

    def close(self, drain_s: float = DRAIN_S) -> None:
        """Take no new requests, let those in flight end, and unload what agents hold.

        Args:
            drain_s: Seconds that they have; what is left then is answered with `NotReady`.
        """
        drain_s = _seconds("drain_s", drain_s, least=0.0)
        daemon, self._daemon = self._daemon, None
        _STARTED.discard(self)
        if daemon is not None and os.getpid() == self._process:
            try:
                with suppress(DeferError):  # a thread of its has ended: nothing is left to wait for
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
        if self._daemon is None:
            raise _not_running()
        return str(self._daemon.address)

    def deploy(
        self,
        model: str | Path,
        *,
        name: str | None = None,
        objective: Objective | None = None,
        replicas: bool = False,
        plan: str | Path | Plan | None = None,
        profile: str | Path | CostProfile | None = None,
        inputs: Mapping[str, Sequence[int]] | None = None,
        max_error: str | float = "",
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
            replicas: Whether several devices may share a stage's requests in it; for `throughput`.
            plan: A plan to follow, or its file.
            profile: Costs to plan with, or their file; measured (or remembered) by default.
            inputs: Shapes by input name, which bind free dimensions.
            max_error: Budget for lossy codecs, as `0.01` or `"top1:0.01"`; none uses none.
            calibration: Requests (.npz) on which their error is measured.
            sample: Share of the requests that are compared with the lossless pipeline.
            batch: How many requests stages may run together.
            batch_delay_s: How long the first of a batch waits for others.
            standby: What is prepared for the loss of a device, as `--standby`.
            on_progress: Told what is being done and how far it is, 0 to 1; from several threads. What it
                raises ends this.

        Returns:
            The plan that is served.

        Raises:
            DeferError: It cannot be planned, shipped, loaded or run; what was served before is served on.
        """
        from defer import api
        from defer.accuracy import parse_budget
        from defer.batching import make_batching
        from defer.calibration import check_requests
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
        if objective not in (None, *OBJECTIVES):
            raise UsageError(f"objective is {objective!r:.80}", hint=f"say one of {', '.join(OBJECTIVES)}")
        if replicas:
            api.check_replicas(objective or "latency", given=plan is not None)
        samples = None if calibration is None else Path(calibration).expanduser().absolute()
        if samples is not None:
            if not max_error:
                raise UsageError("calibration has no meaning without max_error")
            check_requests(samples)
        sizes: Any = batch
        if isinstance(sizes, str | int) or not all(type(size) is int for size in sizes):
            raise UsageError(f"batch is {sizes!r:.80}", hint="give numbers of requests, such as (4, 8)")
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
            replicas=replicas,
            shapes=shapes,
            budget=parse_budget(str(max_error)) if max_error else None,
            calibration=samples,
            sample=sample,
            batching=make_batching(batch, _seconds("batch_delay_s", batch_delay_s, least=0.0)),
            given=follow is not None,
            standby=check_standby(standby),
        )
        told = _Told(on_progress)
        try:
            outcome = daemon.deployments.bring_up(order, told)
        except Exception:
            if told.raised is not None:
                raise told.raised from None
            raise
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
        return Client._over(self._requests(model, timeout, codec))

    def async_client(
        self, *, model: str = "", timeout: float = DEFAULT_TIMEOUT_S, codec: str = "auto"
    ) -> AsyncClient:
        """The same for an event loop; arguments as in `AsyncClient`."""
        return AsyncClient._over(self._requests(model, timeout, codec))

    # --------------------------------------------------------------------------------------------------- inside

    def _running(self) -> Daemon:
        daemon = self._daemon
        if daemon is None:
            raise _not_running()
        if self._crash is not None:
            raise Internal(f"a thread of the dispatcher ended: {self._crash}") from self._crash
        if os.getpid() != self._process:
            raise UsageError(
                "this process is a child of the dispatcher's",
                hint=f'reach it from here with defer.Client("{daemon.address}")',
            )
        return daemon

    def _crashed(self, error: BaseException) -> None:
        self._crash = error

    def _requests(self, model: str, timeout: float, codec: str) -> Requests:
        from defer.in_process_session import InProcessServed, InProcessSession

        daemon = self._running()

        def carry() -> InProcessSession:
            return InProcessSession(self._running().shell)

        try:
            return Requests(InProcessServed(daemon), carry, model=model, timeout=timeout, codec=codec)
        except Exception as error:
            raise translate(error) from error


def _not_running() -> NotReady:
    return NotReady("this dispatcher is not started, or closed", hint="use it as a context manager")


def _seconds(name: str, value: Any, *, least: float = 0.001, most: float = math.inf) -> float:
    """A number of seconds that a caller gave.

    Raises:
        UsageError: It is none, or out of bounds.
    """
    if not isinstance(value, int | float) or not least <= value <= most:
        bounds = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
        raise UsageError(f"{name} is {value!r:.80}", hint=f"give a number of seconds {bounds}")
    return float(value)


class _Told:
    """Tells a caller of progress, and remembers what that raised: it is no fault of the deployment's.

    Args:
        on_progress: The caller's.
    """

    def __init__(self, on_progress: Callable[[str, float], None] | None) -> None:
        if on_progress is not None and not callable(on_progress):
            raise UsageError(f"on_progress is {on_progress!r:.80}", hint="give a function of two arguments")
        self._on_progress = on_progress
        self.raised: Exception | None = None

    def __call__(self, what: str, fraction: float) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(what, fraction)
        except Exception as error:
            self.raised = error
            raise
