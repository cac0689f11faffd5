"""What both protocols ask of a pipeline: which models there are, whether they are ready, and inferences.

Everything here runs on the gateway's event loop, beside the dispatcher's data thread and never in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import defer
from defer import api
from defer.client_events import Submit
from defer.errors import DeferError, NotReady, Overloaded, UnknownModel, WrongInput
from defer.gateway.backend import Backend, Outcome
from defer.gateway.calls import Answer, Call
from defer.gateway.datatypes import datatype_of
from defer.gateway.repository import Repository, batching_of
from defer.gateway.submitting import made, plain
from defer.gateway.tallies import Tally, statistics
from defer.gateway.versions import deployment_of, every, find, name_of, version_of, versions
from defer.signature import name_problem
from defer.tracing.otel import serving
from node_agent.messages import TensorHeader

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "schedule_policy",
    "statistics",
)
"""The protocol's extensions that are served."""

PLATFORM = "defer_onnx"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a gateway takes.

    Attributes:
        body: Bytes of one request, decompressed.
        held: Bytes of all requests that are being read or are under way.
        timeout_s: Seconds that a request may take which names no timeout.
    """

    body: int = 256 << 20
    held: int = 1 << 30
    timeout_s: float = 60.0


class Service:
    """Answers both protocols.

    Args:
        backend: What serves the requests.
        limits: What is taken.
        repository: Models that may be loaded by name.
        name: How the server calls itself.
    """

    def __init__(
        self,
        backend: Backend,
        limits: Limits | None = None,
        *,
        repository: Repository | None = None,
        name: str = "defer",
    ) -> None:
        self.backend = backend
        self.repository = repository or Repository()
        self.limits = limits or Limits()
        self.name = name
        self.version: str = defer.__version__
        self.tallies: dict[str, Tally] = {}
        self.under_way = 0
        self.starting = False
        """While it is set, the ready probe says no."""
        self.draining = False
        self._held = 0
        self._infos: dict[str, api.ModelInfo] = {}

    # ------------------------------------------------------------------------------------------------- models

    async def refresh(self) -> Mapping[str, api.ModelInfo]:
        """The models as they are now, by name."""
        self._infos = {info.name: info for info in await self.backend.models()}
        return self._infos

    async def model(self, name: str, version: str = "") -> api.ModelInfo:
        """A model as it is now, ready or not.

        Raises:
            UnknownModel: There is none of this name and version.
        """
        await self.refresh()
        return self._known(name, version)

    def _known(self, name: str, version: str) -> api.ModelInfo:
        info = find(self._infos, name, version)
        if info is not None:
            return info
        known = ", ".join(map(version_of, versions(self._infos, name)))
        if known:
            raise UnknownModel(f"model {name!r} has no version {version!r:.80}; it has {known}")
        served = ", ".join(sorted(self._infos)) or "none"
        raise UnknownModel(f"no model {name!r:.80} is served; served: {served}")

    async def ready(self) -> bool:
        """Whether the server takes requests: it has started, is not stopping, and every model that it has is ready."""
        if self.starting or self.draining:
            return False
        try:
            return all(_answers(info) for info in await self.backend.probed())
        except DeferError:
            return False  # its dispatcher does not answer

    async def unready(self) -> str:
        """Why requests should not come here, of `/readyz`; empty where every model takes them."""
        if self.draining:
            return "the gateway is shutting down"
        if self.starting:
            return "the gateway is starting"
        try:
            models = await self.backend.probed()
        except DeferError as error:
            return str(error)
        if not models:
            return "no model is deployed"
        bad = [info for info in models if not _answers(info)]
        return "; ".join(f"model {info.name} is not ready: {info.failing or info.reason}" for info in bad)

    async def model_ready(self, name: str, version: str = "") -> bool:
        """Whether a model takes requests now.

        Raises:
            UnknownModel: There is none of this name and version.
        """
        info = await self.model(name, version)
        return _answers(info) and not self.draining

    async def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's inputs and outputs, as the protocol's object; a free dimension is -1.

        Raises:
            UnknownModel: There is none of this name and version.
            NotReady: It was never loaded, so that nothing is known of it.
        """
        info = await self.model(name, version)
        if not info.inputs:
            raise NotReady(f"model {name!r} is not ready: {info.reason}")
        return {
            "name": name_of(info),
            "versions": [version_of(each) for each in versions(self._infos, name_of(info))],
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in info.inputs],
            "outputs": [_described(spec) for spec in info.outputs],
        }

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics of one model, or of all.

        Raises:
            UnknownModel: There is none of this name and version.
        """
        if version:
            asked = [await self.model(name, version)]
        elif name:
            asked = versions(self._infos, (await self.model(name)).name)
        else:
            asked = every(await self.refresh())
        deployments = (await self.backend.status()).deployments
        return [
            statistics(
                name_of(info),
                version_of(info),
                self.tallies.get(deployment_of(info), Tally()),
                [each for each in deployments if each.model == deployment_of(info)],
            )
            for info in asked
        ]

    async def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """The models and their states, as the protocol's repository index."""
        infos = dict(await self.refresh())
        for name in await asyncio.to_thread(self.repository.models):
            infos.setdefault(name, api.ModelInfo(name, "", "not loaded"))
        return [
            {
                "name": name_of(info),
                "version": version_of(info),
                "state": _STATES.get(info.state, "UNAVAILABLE"),
                "reason": info.reason,
            }
            for info in every(infos)
            if info.state == "ready" or not ready
        ]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Load a model of the repository, or one that was served before; one that is served is loaded anew.

        Raises:
            UnknownModel: There is nothing to load under this name.
            DeferError: It cannot be deployed; what was served before is served on.
        """
        batching = batching_of(parameters)
        known = await asyncio.to_thread(self.repository.models)
        try:
            await self.backend.load(name, known.get(name), batching)
        except UnknownModel:
            if name not in known:
                self.repository.find(name)  # says what there is
            raise
        await self.refresh()

    async def unload(self, name: str) -> None:
        """Serve a model no more; its requests in flight end first.

        Raises:
            UnknownModel: No such model is served.
        """
        await self.backend.unload(name)
        await self.refresh()

    async def config(self, name: str, version: str = "") -> dict[str, Any]:
        """A model's configuration in the words of the protocol's extension, as far as they have a meaning here.

        Raises:
            UnknownModel, NotReady: As in `metadata`.
        """
        told = await self.metadata(name, version)
        return {
            "name": name,
            "platform": PLATFORM,
            "backend": "defer",
            "max_batch_size": 0,
            "version_policy": {"latest": {"num_versions": 1}},
            **{
                kind: [
                    {
                        "name": tensor["name"],
                        "data_type": f"TYPE_{_CONFIG_TYPES.get(tensor['datatype'], tensor['datatype'])}",
                        "dims": tensor["shape"],
                    }
                    for tensor in told[f"{kind}s"]
                ]
                for kind in ("input", "output")
            },
        }

    # ---------------------------------------------------------------------------------------------- inferences

    def take(self, nbytes: int) -> None:
        """Take room for a request's body; `give` it back when the request has ended.

        Raises:
            Overloaded: Too much is held already.
        """
        if self._held and self._held + nbytes > self.limits.held:
            raise Overloaded(
                f"requests of {self._held} bytes are held already, {nbytes} more would pass the limit of "
                f"{self.limits.held}"
            )
        self._held += nbytes

    def give(self, nbytes: int) -> None:
        """Give room back."""
        self._held -= nbytes

    async def infer(self, call: Call) -> Answer:
        """Run a model once. Cancelling the task gives the request up.

        Raises:
            UnknownModel, NotReady, WrongInput, Overloaded, DeadlineExceeded, AgentLost: As for the Python client.
        """
        began = time.monotonic()
        self.under_way += 1
        ok = False
        try:
            if self.draining:
                raise NotReady("the server is shutting down")
            with serving(call.trace, call.model) as trace:
                answer = await self._infer(call if trace == call.trace else replace(call, trace=trace), began)
            ok = True
            return answer
        finally:
            self.under_way -= 1
            info = find(self._infos, call.model, call.version)
            if info is not None:
                tally = self.tallies.setdefault(deployment_of(info), Tally())
                batch = max(1, call.inputs[0].shape[0]) if call.inputs and call.inputs[0].shape else 1
                tally.ended(time.monotonic() - began, time.time(), batch=batch, ok=ok)

    async def _infer(self, call: Call, began: float) -> Answer:
        deadline = began + (self.limits.timeout_s if call.timeout_s is None else call.timeout_s)
        info = find(self._infos, call.model, call.version)
        if info is None or not info.inputs:
            info = await self._loaded(call)
        try:
            submit = await made(info, call, deadline)
        except WrongInput:
            # The model may have been replaced by one with another signature since we asked.
            newer = await self._loaded(call)
            if (newer.inputs, newer.outputs) == (info.inputs, info.outputs):
                raise
            info, submit = newer, await made(newer, call, deadline)
        headers, frames = await plain(*await self.hand_over(submit, call))
        return Answer(name_of(info), version_of(info), headers, frames)

    async def name_problem(self, name: str, version: str, names: Sequence[str]) -> str | None:
        """What is wrong with the names of a request's inputs; None where that is not known."""
        info = find(self._infos, name, version)
        if info is None or not info.inputs:
            try:
                info = await self.model(name, version)
            except DeferError:
                return None
        problem = name_problem(info.inputs, names) if info.inputs else None
        return None if problem is None else f"model {info.name!r}: {problem}"

    async def _loaded(self, call: Call) -> api.ModelInfo:
        info = await self.model(call.model, call.version)
        if not info.inputs:
            raise NotReady(f"model {call.model!r} is not ready: {info.reason}")
        return info

    async def hand_over(self, submit: Submit, call: Call) -> tuple[tuple[TensorHeader, ...], Sequence[Any]]:  # noqa: ARG002 - for who batches
        """Hand one checked and encoded request to the client path and wait for its result.

        The one place through which every request of both protocols passes: whoever gathers requests into batches does
        so here.

        Args:
            submit: The request.
            call: What it was made from.

        Raises:
            DeferError: The request ended without a result.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def settle(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def done(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(settle, outcome)

        cancel = self.backend.launch(submit, done)
        try:
            outcome = await future
        except asyncio.CancelledError:
            cancel()
            raise
        if isinstance(outcome, DeferError):
            raise outcome
        return outcome


_CONFIG_TYPES = {"BYTES": "STRING"}
"""Types that a model's configuration calls otherwise than its metadata."""


def _answers(info: api.ModelInfo) -> bool:
    """Whether requests for a model are taken, and the last canary was answered."""
    return info.state == "ready" and not info.failing


_STATES = {"ready": "READY", "announced": "LOADING", "lost": "UNAVAILABLE"}
"""The protocol's words for the states of a model."""


def _described(spec: Any) -> dict[str, Any]:
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
    }
