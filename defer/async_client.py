"""The asyncio client of a dispatcher: the same requests over the same connection, awaited."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from defer.admin import CONNECT_S
from defer.api import ModelInfo, ServerStatus
from defer.client_arrays import Array, Inputs, Outputs, copied, fill
from defer.client_events import Submit
from defer.client_requests import DEFAULT_TIMEOUT_S, Requests, check_id, dialling, wished
from defer.errors import UsageError, WrongInput


class AsyncClient:
    """Sends requests to a dispatcher from an event loop; arguments and errors are those of `Client`."""

    def __init__(
        self,
        address: str | Sequence[str] = "127.0.0.1:7600",
        *,
        model: str = "",
        timeout: float = DEFAULT_TIMEOUT_S,
        codec: str = "auto",
        connect_timeout: float = CONNECT_S,
        keys: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        self._requests = dialling(
            address,
            model=model,
            timeout=timeout,
            codec=codec,
            connect_timeout=connect_timeout,
            keys=keys,
            insecure=insecure,
        )

    @classmethod
    def _over(cls, requests: Requests) -> Self:
        """A client of requests that go another way than over a connection."""
        made = cls.__new__(cls)
        made._requests = requests
        return made

    async def infer(
        self,
        inputs: Inputs,
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        durable: bool = False,
        request: bytes | None = None,
        into: Mapping[str, Array] | None = None,
        priority: int = 0,
    ) -> Outputs:
        """Run the model once; see `Client.infer`. Cancelling the task gives the request up."""
        if request is not None:
            check_id(request)
        submit = await self._prepare(inputs, model, outputs, timeout, copy=False, patient=False)
        submit = wished(submit, durable=durable, request=request, priority=priority)
        found = await (await self._launch(submit))
        return found if into is None else fill(into, found)

    async def recall(self, request: bytes, *, timeout: float | None = None) -> Outputs:
        """Wait for the answer to a request that was sent before; see `Client.recall`."""
        submit = await asyncio.to_thread(self._requests.recall, request, timeout)
        return await (await self._launch(submit))

    def submit(
        self,
        inputs: Inputs,
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        durable: bool = False,
        request: bytes | None = None,
        priority: int = 0,
    ) -> asyncio.Task[Outputs]:
        """Run the model once without waiting for it; no coroutine: `outputs = await client.submit(inputs)`.

        The inputs are copied at once. Keep the task: asyncio itself holds it weakly.

        Returns:
            A task of the running loop, to await once: arrays by output name, or any error of `infer`.

        Raises:
            RuntimeError: No event loop runs.
        """
        loop = asyncio.get_running_loop()
        held = copied(inputs)
        return loop.create_task(
            self.infer(
                held,
                model=model,
                outputs=outputs,
                timeout=timeout,
                durable=durable,
                request=request,
                priority=priority,
            )
        )

    async def map(
        self,
        inputs: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        window: int = 16,
        ordered: bool = True,
        timeout: float | None = None,
        priority: int = 0,
    ) -> AsyncIterator[Outputs]:
        """Run the model on each element with up to `window` requests under way; see `Client.map`."""
        if window < 1:
            raise UsageError(f"window must be at least 1, not {window}")
        under_way: deque[asyncio.Future[Outputs]] = deque()
        source = aiter(inputs) if isinstance(inputs, AsyncIterable) else _lifted(inputs)
        exhausted = False
        try:
            while True:
                while not exhausted and len(under_way) < window:
                    try:
                        element = await anext(source)
                    except StopAsyncIteration:
                        exhausted = True
                        break
                    submit = await self._prepare(element, model, outputs, timeout, copy=True, patient=True)
                    submit = wished(submit, durable=False, request=None, priority=priority)
                    under_way.append(await self._launch(submit))
                if not under_way:
                    return
                if ordered:
                    yield await under_way.popleft()
                    continue
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                first = next(future for future in under_way if future in done)
                under_way.remove(first)
                yield await first
        finally:
            for future in under_way:
                future.cancel()

    async def models(self) -> tuple[ModelInfo, ...]:
        """The models that are served; see `Client.models`."""
        return await asyncio.to_thread(self._requests.served.refresh)

    async def status(self) -> ServerStatus:
        """How the dispatcher is; see `Client.status`."""
        return await asyncio.to_thread(self._requests.served.status)

    async def close(self) -> None:
        """End the connection; requests without an answer end as cancelled."""
        await asyncio.to_thread(self._requests.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _prepare(
        self,
        inputs: Inputs,
        model: str,
        outputs: Sequence[str],
        timeout: float | None,
        *,
        copy: bool,
        patient: bool,
    ) -> Submit:
        requests = self._requests
        deadline, given = requests.deadline(timeout), requests.given(timeout)
        model = model or requests.model
        info = requests.served.known(model)
        if info is None:
            info = await asyncio.to_thread(requests.served.signature, model)
        try:
            return requests.encoder.encode(
                info, inputs, outputs, deadline, copy=copy, patient=patient, timeout=given
            )
        except WrongInput:
            newer = await asyncio.to_thread(requests.served.newer, model, info)
            if newer is None:
                raise
            return requests.encoder.encode(
                newer, inputs, outputs, deadline, copy=copy, patient=patient, timeout=given
            )

    async def _launch(self, submit: Submit) -> asyncio.Future[Outputs]:
        future = self._requests.try_launch(submit)
        if future is None:  # many are under way: wait for room beside the event loop
            future = await asyncio.to_thread(self._requests.launch, submit)
        return asyncio.wrap_future(future)


async def _lifted(inputs: Iterable[Inputs]) -> AsyncIterator[Inputs]:
    for element in inputs:
        yield element
