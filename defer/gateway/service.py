"""What both protocols ask of a pipeline: which models there are, whether they are ready, and inferences.

Everything here runs on the gateway's event loop, beside the dispatcher's data thread and never in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import defer
from defer import api
from defer.client_core import Submit, check_outputs
from defer.errors import DeferError, NotReady, Overloaded, UnknownModel, WrongInput
from defer.gateway.backend import Backend, Outcome, raw_of
from defer.gateway.calls import Answer, Call, Tensor
from defer.gateway.datatypes import datatype_of
from defer.gateway.repository import Repository, batching_of
from defer.gateway.tallies import Tally, statistics
from defer.signature import input_problem
from defer.tracing.otel import serving
from node_agent.codecs import CODECS
from node_agent.dtypes import storage
from node_agent.errors import AgentError
from node_agent.frames import check_headers, pack_tensor, unpack_tensor
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

ONE = "1"
"""The version of a model that was deployed without one."""

ID_BYTES = 16
"""Length of a request's id."""

LOWEST = 1 << 31
"""Priorities beyond it are no lower."""

ENCODE_BESIDE = 64 << 10
"""Tensors of at least so many bytes are encoded and decoded beside the event loop, where their codec takes time."""


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
        info = self._infos.get(name)
        if info is None:
            served = ", ".join(sorted(self._infos)) or "none"
            raise UnknownModel(f"no model {name!r} is served; served: {served}")
        if version not in ("", ONE):
            raise UnknownModel(f"model {name!r} has no version {version!r}; its version is {ONE}")
        return info

    async def ready(self) -> bool:
        """Whether the server takes requests: it has started, is not stopping, and every model that it has is ready."""
        if self.starting or self.draining:
            return False
        try:
            return all(_answers(info) for info in (await self.refresh()).values())
        except DeferError:
            return False  # its dispatcher does not answer

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
            "name": info.name,
            "versions": [ONE],
            "platform": PLATFORM,
            "inputs": [_described(spec) for spec in info.inputs],
            "outputs": [_described(spec) for spec in info.outputs],
        }

    async def statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics of one model, or of all.

        Raises:
            UnknownModel: There is none of this name and version.
        """
        names = [(await self.model(name, version)).name] if name else sorted(await self.refresh())
        deployments = (await self.backend.status()).deployments
        return [statistics(one, ONE, self.tallies.get(one, Tally()), deployments) for one in names]

    async def index(self, *, ready: bool = False) -> list[dict[str, str]]:
        """The models and their states, as the protocol's repository index."""
        infos = dict(await self.refresh())
        for name in await asyncio.to_thread(self.repository.models):
            infos.setdefault(name, api.ModelInfo(name, "", "not loaded"))
        return [
            {
                "name": info.name,
                "version": ONE,
                "state": _STATES.get(info.state, "UNAVAILABLE"),
                "reason": info.reason,
            }
            for _, info in sorted(infos.items())
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
            if call.model in self._infos:
                tally = self.tallies.setdefault(call.model, Tally())
                batch = max(1, call.inputs[0].shape[0]) if call.inputs and call.inputs[0].shape else 1
                tally.ended(time.monotonic() - began, time.time(), batch=batch, ok=ok)

    async def _infer(self, call: Call, began: float) -> Answer:
        deadline = began + (self.limits.timeout_s if call.timeout_s is None else call.timeout_s)
        info = self._infos.get(call.model)
        if info is None or not info.inputs or call.version not in ("", ONE):
            info = await self._loaded(call)
        try:
            submit = await _submit(info, call, deadline)
        except WrongInput:
            # The model may have been replaced by one with another signature since we asked.
            newer = await self._loaded(call)
            if (newer.inputs, newer.outputs) == (info.inputs, info.outputs):
                raise
            info, submit = newer, await _submit(newer, call, deadline)
        headers, frames = await _decoded(*await self.hand_over(submit, call))
        return Answer(info.name, ONE, headers, frames)

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


async def _submit(info: api.ModelInfo, call: Call, deadline: float) -> Submit:
    """The request as the client path takes it: checked, and encoded as the model's plan wants inputs to come."""
    problem = input_problem(info.inputs, call.inputs)
    if problem is not None:
        raise WrongInput(f"model {info.name!r}: {problem}")
    wanted = check_outputs(call.outputs, info)
    codec = info.codec if info.codec in CODECS else "raw"
    try:
        if codec == "raw":
            headers = tuple(TensorHeader(t.name, t.dtype, t.shape, "raw", t.nbytes) for t in call.inputs)
            frames: list[Any] = [tensor.data for tensor in call.inputs]
        elif sum(tensor.nbytes for tensor in call.inputs) < ENCODE_BESIDE:
            headers, frames = _encoded(call.inputs, codec)
        else:
            headers, frames = await asyncio.to_thread(_encoded, call.inputs, codec)
        check_headers(headers)
    except AgentError as error:
        raise WrongInput(str(error), hint=error.hint) from error
    limit = deadline if deadline - time.monotonic() < 1e9 else math.inf
    return Submit(
        _new_id(),
        info.name,
        wanted,
        headers,
        frames,
        limit,
        trace=call.trace,
        priority=min(call.priority, LOWEST),
    )


_ids = bytearray()


def _new_id() -> bytes:
    """A random id for a request; the kernel is asked for many at once."""
    if not _ids:
        _ids.extend(secrets.token_bytes(ID_BYTES * 256))
    found = bytes(_ids[-ID_BYTES:])
    del _ids[-ID_BYTES:]
    return found


def _encoded(tensors: Sequence[Tensor], codec: str) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    pairs = [
        pack_tensor(t.name, np.frombuffer(t.data, storage(t.dtype)).reshape(t.shape), codec, t.dtype)
        for t in tensors
    ]
    return tuple(header for header, _ in pairs), [frame for _, frame in pairs]


async def _decoded(
    headers: tuple[TensorHeader, ...], frames: Sequence[Any]
) -> tuple[tuple[TensorHeader, ...], list[Any]]:
    """A result's tensors in raw form: plain buffers."""
    plain: list[Any] = []
    told: list[TensorHeader] = []
    for header, frame in zip(headers, frames, strict=True):
        if header.codec == "raw":
            told.append(header)
            plain.append(getattr(frame, "buffer", frame))
            continue
        if header.nbytes < ENCODE_BESIDE:
            array = unpack_tensor(header, frame)
        else:
            array = await asyncio.to_thread(unpack_tensor, header, frame)
        data = raw_of(array)
        told.append(TensorHeader(header.name, header.dtype, header.shape, "raw", len(data)))
        plain.append(data)
    return tuple(told), plain
