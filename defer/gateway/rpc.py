"""The gRPC side of the Open Inference Protocol v2: `inference.GRPCInferenceService` on the gateway's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from defer.documents.address import Address
from defer.errors import DeferError, PortInUse
from defer.gateway.auth import token_problem
from defer.gateway.calls import Call, trace_of
from defer.gateway.classification import classified
from defer.gateway.protobuf import DATA_TYPES, METHODS, SERVICE, message
from defer.gateway.replies import error_text
from defer.gateway.rpc_bodies import parse, response, stream_error, stream_response, values
from defer.gateway.service import EXTENSIONS, Service
from defer.translating import translate

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""gRPC's status of an error, by its status in HTTP; the rest is internal."""

STREAM_WINDOW = 16
"""Requests of one stream under way; the next is read when one of them is answered."""

ENVELOPE = 64 << 10
"""What a message may have besides its tensors, in bytes."""

PROBES = (f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady")
"""Methods that need no token, as in HTTP."""

Context = Any
Method = Callable[[Any, Context], Awaitable[Any]]


class RpcServer:
    """Serves gRPC on the event loop that it is started on.

    Args:
        service: What answers.
        address: Where to listen.
        token: What callers must show; empty lets everyone in.
        certificate: The server's certificate; None for no TLS.
        key: Its key; None where the certificate's file holds it.
    """

    def __init__(
        self,
        service: Service,
        address: Address,
        token: str = "",
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        self._service, self.address = service, address
        self._token, self._certificate, self._key = token, certificate, key

    async def start(self) -> None:
        """Listen and serve.

        Raises:
            PortInUse: It cannot listen there.
        """
        limit = self._service.limits.body + ENVELOPE
        options = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        interceptors = [_Tokens(self._token)] if self._token else []
        self._server = grpc.aio.server(interceptors=interceptors, options=options)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, self._handlers()),)
        )
        where = str(self.address)
        try:
            if self._certificate is not None:
                certificate = self._certificate.read_bytes()
                key = (self._key or self._certificate).read_bytes()
                credentials = grpc.ssl_server_credentials([(key, certificate)])
                port = self._server.add_secure_port(where, credentials)
            else:
                port = self._server.add_insecure_port(where)
        except RuntimeError:
            raise PortInUse(
                f"cannot listen on {where}",
                where="--grpc",
                hint="another process listens there, or this machine has no such address",
            ) from None
        await self._server.start()
        self.address = Address(self.address.host, port)

    async def stop(self, grace: float) -> None:
        """Take no new calls, and end those under way within `grace` seconds."""
        await self._server.stop(grace)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        told = _Methods(self._service)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(told.model_infer),
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(told.model_stream_infer),
        }
        for name in METHODS:
            if name not in handlers:
                handlers[name] = grpc.unary_unary_rpc_method_handler(
                    _answered(getattr(told, name)),
                    request_deserializer=message(f"{name}Request").FromString,
                    response_serializer=message(f"{name}Response").SerializeToString,
                )
        return handlers


class _Methods:
    """The service's methods, by their names in the protocol where they take and give messages."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, _request: Any) -> dict[str, Any]:  # noqa: N802 - the protocol's name
        return {"live": True}

    async def ServerReady(self, _request: Any) -> dict[str, Any]:  # noqa: N802
        return {"ready": await self._service.ready()}

    async def ModelReady(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return {"ready": await self._service.model_ready(request.name, request.version)}

    async def ServerMetadata(self, _request: Any) -> dict[str, Any]:  # noqa: N802
        return {"name": self._service.name, "version": self._service.version, "extensions": EXTENSIONS}

    async def ModelMetadata(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return await self._service.metadata(request.name, request.version)

    async def ModelConfig(self, request: Any) -> dict[str, Any]:  # noqa: N802
        told = await self._service.config(request.name, request.version)
        for tensor in (*told["input"], *told["output"]):
            tensor["data_type"] = DATA_TYPES.index(tensor["data_type"].removeprefix("TYPE_"))
        told.pop("version_policy")
        return {"config": told}

    async def ModelStatistics(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return {"model_stats": await self._service.statistics(request.name, request.version)}

    async def RepositoryIndex(self, request: Any) -> dict[str, Any]:  # noqa: N802
        return {"models": await self._service.index(ready=request.ready)}

    async def RepositoryModelLoad(self, request: Any) -> dict[str, Any]:  # noqa: N802
        await self._service.load(request.model_name, values(request.parameters))
        return {}

    async def RepositoryModelUnload(self, request: Any) -> dict[str, Any]:  # noqa: N802
        await self._service.unload(request.model_name)
        return {}

    async def model_infer(self, data: bytes, context: Context) -> bytes:
        try:
            return await self._infer(data, _trace(context), context.time_remaining(), final=False)
        except Exception as error:
            await _abort(context, translate(error))
            raise AssertionError("aborting raises") from error

    async def model_stream_infer(
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answers a stream's requests in their order, several of them under way at once."""
        under_way: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_WINDOW)
        tasks: set[asyncio.Task[Any]] = set()
        trace = _trace(context)

        async def read() -> None:
            try:
                async for data in requests:
                    await room.acquire()
                    task = asyncio.create_task(self._streamed(data, trace))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                    under_way.put_nowait(task)
            finally:
                under_way.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await under_way.get()) is not None:
                yield await task
                room.release()
            await reader
        finally:
            reader.cancel()
            for left in list(tasks):
                left.cancel()

    async def _streamed(self, data: bytes, trace: str) -> bytes:
        try:
            return stream_response(await self._infer(data, trace, None, final=True))
        except Exception as error:
            return stream_error(error_text(translate(error)))

    async def _infer(self, data: bytes, trace: str, left: float | None, *, final: bool) -> bytes:
        service = self._service
        service.take(len(data))
        try:
            call = parse(data, trace)
            answer = await service.infer(_within(call, left))
            if any(wanted.classes for wanted in call.wanted):
                answer = classified(call, answer)
            return response(call, answer, final=final)
        finally:
            service.give(len(data))


def _within(call: Call, left: float | None) -> Call:
    """The call with the caller's own deadline, where that is nearer than its parameter says."""
    if left is None or (call.timeout_s is not None and call.timeout_s <= left):
        return call
    from dataclasses import replace

    return replace(call, timeout_s=max(0.001, left))


def _answered(method: Callable[[Any], Awaitable[dict[str, Any]]]) -> Method:
    """A method of a service: messages in and out, errors as status."""
    made = message(f"{getattr(method, '__name__', '')}Response")

    async def wrapped(request: Any, context: Context) -> Any:
        try:
            return made(**await method(request))
        except Exception as error:
            await _abort(context, translate(error))

    return wrapped


async def _abort(context: Context, error: DeferError) -> None:
    await context.abort(STATUS.get(error.http_status, grpc.StatusCode.INTERNAL), error_text(error))


def _trace(context: Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return trace_of(str(value))
    return ""


class _Tokens(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Lets calls pass that carry the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """See gRPC."""
        handler = await continuation(details)
        if handler is None or details.method in PROBES:
            return handler
        shown = [
            value if isinstance(value, bytes) else value.encode()
            for key, value in details.invocation_metadata or ()
            if key == "authorization"
        ]
        problem = token_problem(shown, self._token)
        if not problem:
            return handler

        async def refuse(_request: Any, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, problem)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(refuse)
        return grpc.unary_unary_rpc_method_handler(refuse)
