"""Where the gateway's requests go: the dispatcher of this process, or one at an address.

Both take what the Python client sends (`client_events.Submit`), so that a gateway checks, encodes and times requests as
every other client does. In the dispatcher's own process a request is handed to the data thread as a value, and its
frames never pass a socket on the way there.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from defer import api
from defer.client_core import asked
from defer.client_events import Submit
from defer.errors import DeferError, FileMissing, Overloaded, UnknownModel, from_code
from defer.gateway.watch import DispatcherWatch
from defer.translating import translate
from node_agent import messages
from node_agent.messages import Rejection, Result, TensorHeader

if TYPE_CHECKING:
    from concurrent.futures import Future
    from pathlib import Path

    from defer.client_arrays import Outputs
    from defer.client_requests import Requests
    from defer.dispatcher.bringup import Order
    from defer.dispatcher.daemon import Daemon
    from defer.documents.plan import PlanBatching

Outcome = tuple[tuple[TensorHeader, ...], Sequence[Any]] | DeferError
"""Headers and frames of a result, or why there is none."""

Done = Callable[[Outcome], None]
Cancel = Callable[[], object]

UNLOAD_S = 30.0
"""Seconds that requests in flight have when their model is unloaded."""

LOAD_S = 600.0
"""Longest that one step of a deployment may take without a word."""


class Backend(Protocol):
    """What serves the gateway's requests."""

    def models(self) -> Awaitable[Sequence[api.ModelInfo]]:
        """The models as they are now."""

    def probed(self) -> Awaitable[Sequence[api.ModelInfo]]:
        """The models for a probe, which has no time: as they were a moment ago, where asking takes long.

        Raises:
            DeferError: The dispatcher does not answer.
        """

    def status(self) -> Awaitable[api.ServerStatus]:
        """The dispatcher's view of everything; may take a second."""

    def load(self, name: str, file: Path | None, batching: PlanBatching | None = None) -> Awaitable[None]:
        """Deploy a model: from a file, or as it was deployed before, or with other batching than before.

        Takes as long as that takes.
        """

    def unload(self, name: str) -> Awaitable[None]:
        """Serve a model no more; what is in flight ends first."""

    def launch(self, submit: Submit, done: Done) -> Cancel:
        """Send a request; `done` is called once, in another thread. Returns what gives the request up."""

    def close(self) -> None:
        """Let go of what it holds."""


class LocalBackend:
    """The dispatcher of this process.

    Args:
        daemon: It; started before the gateway and closed after it.
    """

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._orders: dict[str, Order] = {}

    async def models(self) -> Sequence[api.ModelInfo]:
        """See `Backend`."""
        from defer.dispatcher.report import models_of

        return await asyncio.wrap_future(self._daemon.shell.call(models_of))

    async def probed(self) -> Sequence[api.ModelInfo]:
        """See `Backend`."""
        return await self.models()

    async def status(self) -> api.ServerStatus:
        """See `Backend`."""
        return await asyncio.to_thread(self._daemon.verbs.status)

    async def load(self, name: str, file: Path | None, batching: PlanBatching | None = None) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self._load, name, file, batching)

    def _load(self, name: str, file: Path | None, batching: PlanBatching | None) -> None:
        from defer.dispatcher.bringup import Order
        from defer.dispatcher.rollout import check_name

        deployments = self._daemon.deployments
        before = deployments.orders.get(name) or self._orders.get(name)
        if before is None and file is None:
            raise UnknownModel(f"model {name!r:.80} was never deployed")
        if before is None:
            check_name(name)
        order = before if file is None or (before and before.model == file) else Order(name, file)
        assert order is not None
        if batching is not None:
            order = replace(order, batching=batching, digest="", source="deploy", at=0.0)
        if not order.model.is_file():
            raise FileMissing("the model's file is gone", where=str(order.model))
        deployments.bring_up(order, _quiet)

    async def unload(self, name: str) -> None:
        """See `Backend`."""
        order = self._daemon.deployments.orders.get(name)
        await asyncio.to_thread(self._daemon.verbs.undeploy, api.Undeploy(0, name, UNLOAD_S))
        if order is not None:
            self._orders[name] = order

    def launch(self, submit: Submit, done: Done) -> Cancel:
        """See `Backend`."""

        def answered(answer: Result | Rejection, frames: Sequence[Any]) -> None:
            if isinstance(answer, Result):
                done((answer.tensors, frames))
            else:
                done(from_code(answer.code, answer.message))

        return self._daemon.shell.request(asked(submit, time.monotonic()), submit.frames, answered)

    def close(self) -> None:
        """See `Backend`; the dispatcher is not ours to close."""


class RemoteBackend:
    """A dispatcher at an address, over the connection that the Python client uses.

    Args:
        requests: The client's machinery, not yet connected.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._infos: dict[str, api.ModelInfo] = {}
        served = requests.served
        self._watch = DispatcherWatch(served.refresh, served.address, give_up=served.give_up)

    def start(self, on_there: Callable[[], None]) -> threading.Event:
        """Look after the dispatcher from now on.

        Args:
            on_there: Called once, in another thread: when it has answered for the first time.

        Returns:
            What is set then.
        """
        return self._watch.start(on_there)

    async def models(self) -> Sequence[api.ModelInfo]:
        """See `Backend`."""
        if self._watch.away:  # it was just asked, and would again be waited for
            raise self._watch.error()
        models = await asyncio.to_thread(self._requests.served.refresh)
        self._infos = {info.name: info for info in models}
        return models

    async def probed(self) -> Sequence[api.ModelInfo]:
        """See `Backend`."""
        if not self._watch.running:
            return await self.models()
        if self._watch.problem is not None:
            raise self._watch.error()
        return self._watch.models

    async def status(self) -> api.ServerStatus:
        """See `Backend`."""
        return await asyncio.to_thread(self._requests.served.status)

    async def load(self, name: str, file: Path | None, batching: PlanBatching | None = None) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self._load, name, file, batching)

    def _load(self, name: str, file: Path | None, batching: PlanBatching | None) -> None:
        from defer.admin import Admin
        from defer.model_files import model_files
        from defer.upload import upload

        if file is None:
            raise UnknownModel(f"model {name!r:.80} is not in the gateway's repository")
        with Admin(self._requests.served.address, security=self._requests.served.security) as admin:
            files = model_files(file)
            upload(admin, files)
            sizes, delay = (batching.sizes, batching.delay_s) if batching is not None else ((), 0.0)
            deploy = api.Deploy(0, name, tuple(files), batch=sizes, batch_delay_s=delay)
            admin.ask(deploy, api.Deployed, timeout=LOAD_S)

    async def unload(self, name: str) -> None:
        """See `Backend`."""
        await asyncio.to_thread(self._unload, name)

    def _unload(self, name: str) -> None:
        from defer.admin import Admin

        with Admin(self._requests.served.address, security=self._requests.served.security) as admin:
            admin.ask(api.Undeploy(0, name, UNLOAD_S), messages.Done, timeout=UNLOAD_S + 60)

    def launch(self, submit: Submit, done: Done) -> Cancel:
        """See `Backend`."""
        future = self._requests.try_launch(submit)
        if future is None:
            done(Overloaded("too many requests of this gateway are under way"))
            return _nothing

        def ended(future: Future[Outputs]) -> None:
            if future.cancelled():
                return
            error = future.exception()
            done(translate(error) if error is not None else self._raw(submit.model, future.result()))

        future.add_done_callback(ended)
        return future.cancel

    def _raw(self, model: str, outputs: Outputs) -> tuple[tuple[TensorHeader, ...], Sequence[Any]]:
        """The client's arrays as raw frames; those of types that NumPy lacks are their bits."""
        info = self._infos.get(model)
        types = {spec.name: spec.dtype for spec in info.outputs} if info is not None else {}
        headers, frames = [], []
        for name, array in outputs.items():
            frame = raw_of(array)
            dtype = types.get(name, array.dtype.name)
            headers.append(TensorHeader(name, dtype, array.shape, "raw", len(frame)))
            frames.append(frame)
        return tuple(headers), frames

    def close(self) -> None:
        """See `Backend`."""
        self._watch.close()
        self._requests.close()


def raw_of(array: npt.NDArray[Any]) -> memoryview:
    """An array's bytes in C order, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _quiet(_what: str, _fraction: float) -> None:
    pass


def _nothing() -> None:
    pass
