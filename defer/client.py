"""The blocking client of a dispatcher: numpy in, numpy out.

with defer.Client("127.0.0.1:7600") as client:
    outputs = client.infer({"input": image})
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from defer.admin import CONNECT_S
from defer.api import ModelInfo, ServerStatus
from defer.async_client import AsyncClient
from defer.client_arrays import Array, Inputs, Outputs, fill
from defer.client_core import STALL_S
from defer.client_errands import Awaited, Many
from defer.client_requests import DEFAULT_TIMEOUT_S, Requests, dialling
from defer.errors import DeadlineExceeded, UsageError

__all__ = ["AsyncClient", "Client"]


class Client:
    """Sends requests to a dispatcher; safe to use from several threads.

    It connects on first use, reconnects when the connection breaks, and sends unanswered requests again under the
    same id, so that none runs twice. Nothing waits for ever.

    Args:
        address: `host:port` of the dispatcher; where several share a state, a list of them, or one text with commas:
            requests go to the one that leads.
        model: Model that requests are for where they name none; may be empty where one model is served.
        timeout: Seconds that a request may take where it says nothing else.
        codec: How inputs are encoded on the wire: `auto` does as the model's plan wants, which changes values only where
            the plan was made with an error budget; else a codec's name, such as `raw`.
        connect_timeout: Seconds in which a dispatcher must answer at all; `timeout` where that is shorter.
        keys: Folder of keys, or a certificate in its folder `secret`, made with `defer keys`; what the environment's
            DEFER_KEYS says by default. Beyond this machine a dispatcher wants keys.
        insecure: Talk to a dispatcher on another machine without keys: whoever is on that network may read along.

    Raises:
        InvalidCluster: The address is not `host:port`.
        InvalidKey: The keys cannot be used.
        PermissionDenied: The address is beyond this machine, and neither `keys` nor `insecure` was given.
    """

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

    def infer(
        self,
        inputs: Inputs,
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        trace: str = "",
        durable: bool = False,
        request: bytes | None = None,
        into: Mapping[str, Array] | None = None,
        priority: int = 0,
    ) -> Outputs:
        """Run the model once and wait for its outputs.

        Args:
            inputs: Arrays by input name; one array where the model has one input. Anything that speaks DLPack, such as a
                PyTorch tensor on the CPU, is read where it lies.
            model: Which model; the client's own by default.
            outputs: Which outputs are wanted; all by default.
            timeout: Seconds until the request ends with `DeadlineExceeded`; the client's own by default, infinity for
                as long as the dispatcher lets it run.
            trace: W3C trace context under which every process notes its times; see `defer trace`.
            durable: Have the dispatcher keep the request and its answer on its disk: it is answered once although the
                dispatcher is killed and started again meanwhile.
            request: Its id, 16 bytes, for `recall`; made up where it is None.
            into: Arrays by output name that the outputs are written to, for buffers that are used again and again.
            priority: Of the requests that wait in the dispatcher for the model's first stage, those with the smallest
                number go first: 1 is the highest, 0 counts as 10. What the stage was handed already keeps its order.

        Returns:
            Arrays by output name; those of `into` where it has them.

        Raises:
            WrongInput: An input's name, element type or shape does not fit; nothing was sent.
            UnknownModel: No such model is served.
            NotReady: It is not ready; the message says why.
            Overloaded: The dispatcher's queue is full.
            DeadlineExceeded: No result in time.
            AgentLost: A device of the pipeline was lost while the request was in flight.
            DispatcherUnreachable: No connection to a dispatcher in time.
            Unauthorised: It refuses this client's key, or has another than is known here.
            NotAllowed: The key's role may not send requests.
        """
        requests = self._requests
        submit = requests.prepare(
            inputs,
            model,
            outputs,
            timeout,
            copy=False,
            durable=durable,
            request=request,
            priority=priority,
            trace=trace,
        )
        answer = requests.infer(submit)
        found = answer if isinstance(answer, dict) else _result(answer, submit.deadline)
        return found if into is None else fill(into, found)

    def recall(self, request: bytes, *, timeout: float | None = None) -> Outputs:
        """Wait for the answer to a request that was sent before, by this client or another, and has this id.

        Args:
            request: The id that it was given.
            timeout: Seconds to wait; the client's own by default.

        Returns:
            Arrays by output name.

        Raises:
            RequestFailed: It ended with an error, or the dispatcher knows nothing of it (any more).
            DispatcherUnreachable: No connection to a dispatcher in time.
        """
        submit = self._requests.recall(request, timeout)
        return _result(self._requests.launch(submit), submit.deadline)

    def submit(
        self,
        inputs: Inputs,
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
        trace: str = "",
        durable: bool = False,
        request: bytes | None = None,
        priority: int = 0,
    ) -> Future[Outputs]:
        """Run the model once without waiting for it.

        The inputs are copied, so they may be changed at once. Waits only with `durable`, until the dispatcher has the
        request on its disk; arguments are those of `infer`.

        Returns:
            A future that ends before the request's deadline: with arrays by output name, or an error of `infer`.

        Raises:
            WrongInput, UnknownModel, NotReady, DispatcherUnreachable: As in `infer`, before anything is sent.
            Overloaded: This client has 1,024 requests under way, or 512 MiB of inputs.
        """
        requests = self._requests
        submit = requests.prepare(
            inputs,
            model,
            outputs,
            timeout,
            copy=True,
            durable=durable,
            request=request,
            priority=priority,
            trace=trace,
        )
        return requests.launch_kept(submit)

    def map(
        self,
        inputs: Iterable[Inputs],
        *,
        model: str = "",
        outputs: Sequence[str] = (),
        window: int = 16,
        ordered: bool = True,
        timeout: float | None = None,
        priority: int = 0,
    ) -> Iterator[Outputs]:
        """Run the model on each element of `inputs`, with up to `window` requests under way.

        The iterable may be endless: it is read as results are taken, in the thread that takes them. Where the
        dispatcher is overloaded a request is tried again until its deadline. The first error ends the iteration.

        Args:
            inputs: What `infer` takes, one after the other.
            model: Which model.
            outputs: Which outputs are wanted.
            window: Requests under way at most.
            ordered: Yield results in the order of the inputs; otherwise as they come.
            timeout: Seconds that each request may take.
            priority: Of each; see `infer`.

        Yields:
            Arrays by output name, one dictionary per element.

        Raises:
            UsageError: The window is not positive.
        """
        if window < 1:
            raise UsageError(f"window must be at least 1, not {window}")
        requests = self._requests
        under_way = _UnderWay(ordered=ordered)
        source = iter(inputs)
        exhausted = False
        try:
            while True:
                while not exhausted and len(under_way) < window:
                    try:
                        element = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    submit = requests.prepare(
                        element, model, outputs, timeout, copy=True, patient=True, priority=priority
                    )
                    under_way.add(requests.launch(submit, owner=under_way), submit.deadline)
                if not under_way:
                    return
                requests.wait(under_way, under_way.any_ended())
                yield _result(*under_way.next())
        finally:
            under_way.cancel()

    def models(self) -> tuple[ModelInfo, ...]:
        """The models that are served, with their inputs and outputs.

        Raises:
            DispatcherUnreachable: Nobody answers at the address.
        """
        return self._requests.served.refresh()

    def status(self) -> ServerStatus:
        """What the dispatcher knows of itself, its deployments and its devices.

        Raises:
            DispatcherUnreachable: Nobody answers at the address.
        """
        return self._requests.served.status()

    def close(self) -> None:
        """End the connection; requests without an answer end as cancelled."""
        self._requests.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _UnderWay(Many):
    """The requests of one `map`, and which is taken next."""

    def __init__(self, *, ordered: bool) -> None:
        super().__init__()
        self._ordered = ordered
        self._deadlines: dict[Future[Outputs], float] = {}
        self._ended: SimpleQueue[Future[Outputs]] = SimpleQueue()

    def __len__(self) -> int:
        return len(self._deadlines)

    def add(self, future: Future[Outputs], deadline: float) -> None:
        self._deadlines[future] = deadline
        if not self._ordered:
            future.add_done_callback(self._ended.put)

    def any_ended(self) -> Callable[[], bool]:
        """Tells whether `next` need not wait any more."""
        if self._ordered:
            return next(iter(self._deadlines)).done
        return lambda: not self._ended.empty()

    def next(self) -> tuple[Future[Outputs], float]:
        """The oldest, or the one that ended first; where none ends in time the one that should have."""
        future = next(iter(self._deadlines))
        if not self._ordered:
            with suppress(Empty):
                future = self._ended.get(timeout=_left(max(self._deadlines.values())))
        return future, self._deadlines.pop(future)

    def cancel(self) -> None:
        for future in self._deadlines:
            future.cancel()


def _left(deadline: float) -> float | None:
    """Seconds to wait for what ends by a deadline; None for one without."""
    return max(0.0, deadline - time.monotonic()) + STALL_S if deadline < math.inf else None


def _result(future: Future[Outputs], deadline: float) -> dict[str, Array]:
    left = _left(deadline)
    try:
        if isinstance(future, Awaited):
            future.wait(-1.0 if left is None else left)
            left = 0.0
        return future.result(left)
    except FutureTimeout:
        if future.done():
            raise
        future.cancel()
        raise DeadlineExceeded(
            "the client's own thread did not run in time: this machine is stalled"
        ) from None
