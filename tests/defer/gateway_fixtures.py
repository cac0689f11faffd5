"""A gateway without agents: its backend answers in this process, as the test says."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from defer import api
from defer.client_events import Submit
from defer.documents.address import Address
from defer.errors import DeferError, UnknownModel
from defer.gateway.backend import Done, Outcome
from defer.gateway.server import Gateway, Options
from defer.gateway.service import Limits, Service
from node_agent.messages import TensorHeader, TensorSpec

SAME = api.ModelInfo(
    "same",
    "ready",
    "",
    1,
    (TensorSpec("x", "float32", ("N", 4)),),
    (TensorSpec("y", "float32", ("N", 4)),),
)


def same(submit: Submit) -> Outcome:
    """Each output is the input at its place."""
    headers = tuple(
        TensorHeader(
            "y" if header.name == "x" else header.name, header.dtype, header.shape, "raw", header.nbytes
        )
        for header in submit.tensors
    )
    return headers, [bytes(frame) for frame in submit.frames]  # type: ignore[call-overload]


class FakeBackend:
    """Answers with what `work` makes of a request, at once or when it is let go."""

    def __init__(self, *infos: api.ModelInfo, work: Callable[[Submit], Outcome] = same) -> None:
        self.infos = list(infos or (SAME,))
        self.work = work
        self.hold = False
        self.held: list[tuple[Submit, Done]] = []
        self.seen: list[Submit] = []
        self.cancelled = threading.Event()
        self.arrived = threading.Event()
        self.loads: list[str] = []

    async def models(self) -> Sequence[api.ModelInfo]:
        return tuple(self.infos)

    async def probed(self) -> Sequence[api.ModelInfo]:
        return tuple(self.infos)

    async def status(self) -> api.ServerStatus:
        return api.ServerStatus(0, "fake", "0", 1.0)

    async def load(self, name: str, file: Any, batching: Any = None) -> None:
        if file is None:
            raise UnknownModel(f"no {name}")
        self.batching = batching
        self.loads.append(name)

    async def unload(self, name: str) -> None:
        self.infos = [info for info in self.infos if info.name != name]

    def launch(self, submit: Submit, done: Done) -> Callable[[], object]:
        self.seen.append(submit)
        if self.hold:
            self.held.append((submit, done))
        else:
            done(self.work(submit))
        self.arrived.set()
        return self.cancelled.set

    def let_go(self) -> None:
        for submit, done in self.held:
            done(self.work(submit))
        self.held.clear()

    def close(self) -> None:
        pass


def failing(error: DeferError) -> Callable[[Submit], Outcome]:
    """Work that ends every request with an error."""
    return lambda _: error


@contextmanager
def grpc_at_work() -> Iterator[None]:
    """gRPC has one thread for all its servers in a process, which ends when the last is collected, whenever that is.

    It asks for the main thread's event loop, which `asyncio.run` takes away.
    """
    import grpc.aio

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        grpc.aio.init_grpc_aio()
        yield
        grpc.aio.shutdown_grpc_aio()
        gc.collect()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


@contextmanager
def served(
    backend: FakeBackend, *, limits: Limits | None = None, **options: Any
) -> Iterator[tuple[Gateway, Callable[..., Any]]]:
    """A gateway on a free port, and a function that asks it: `ask(method, path, body, headers)`."""
    service_options = {key: options.pop(key) for key in ("repository",) if key in options}
    with Gateway(
        Service(backend, limits, **service_options), Options(Address("127.0.0.1", 0), **options)
    ) as gateway:

        def ask(
            method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
        ) -> tuple[int, Any, Mapping[str, str]]:
            return exchange(gateway.http, method, path, body, headers)

        yield gateway, ask


def exchange(
    address: Address, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any, Mapping[str, str]]:
    """One request on a connection of its own: status, body (decoded where it is JSON), headers."""
    if isinstance(body, dict):
        body = json.dumps(body)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=20)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        data = response.read()
        told = {key.lower(): value for key, value in response.getheaders()}
        plain = told.get("content-type") == "application/json" and "content-encoding" not in told
        return response.status, json.loads(data) if plain and data else data, told
    finally:
        connection.close()


INFER = "/v2/models/same/infer"


def tensor(**more: Any) -> dict[str, Any]:
    return {"name": "x", "shape": [1, 4], "datatype": "FP32"} | more


def body(**more: Any) -> dict[str, Any]:
    return {"inputs": [tensor(data=[1, 2, 3, 4])]} | more


def binary(values: Any, *, outputs: Any = None, after: bytes = b"") -> tuple[bytes, dict[str, str]]:
    """A request with binary data in and out."""
    raw = np.asarray(values, np.float32).tobytes()
    told: dict[str, Any] = {
        "inputs": [tensor(shape=[len(raw) // 16, 4], parameters={"binary_data_size": len(raw)})],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(told | ({"outputs": outputs} if outputs else {})).encode()
    return head + raw + after, {"Inference-Header-Content-Length": str(len(head))}
