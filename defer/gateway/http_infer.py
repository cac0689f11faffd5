"""`POST /v2/models/M/infer`: the one endpoint that must be fast, as a bare ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, MutableMapping
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from defer.errors import WrongInput
from defer.gateway.bodies import Body, answer_body, input_names, parse, parse_raw
from defer.gateway.calls import Call, trace_of
from defer.gateway.classification import classified
from defer.gateway.protocol import CONNECTION, WHOLE_BODY, Connection, WholeBody
from defer.gateway.reading import (
    Gone,
    accepted_coding,
    compressed,
    decompressed,
    read_body,
    stated_length,
)
from defer.gateway.replies import error_reply
from defer.gateway.service import Service
from defer.translating import translate

LENGTH_HEADER = b"inference-header-content-length"

TOGETHER = 64 << 10
"""Parts of a response below this are written as one; larger ones each by themselves, so that they are not copied."""

COMPRESSIBLE = 1024
"""Responses of fewer bytes are not worth compressing."""

Parts = list[Any]
T = TypeVar("T")


class InferEndpoint:
    """Runs a model once per request.

    Args:
        service: What runs it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's application."""
        headers = dict(scope["headers"])
        try:
            status, said, parts = await self._answer(scope, headers, receive)
        except Gone:
            return  # nobody is there to be told
        except Exception as error:
            await error_reply(translate(error))(scope, receive, send)
            return
        said.append((b"content-length", str(sum(map(len, parts))).encode()))
        await send({"type": "http.response.start", "status": status, "headers": said})
        last = len(parts) - 1
        for at, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": at < last})

    async def _answer(
        self, scope: Scope, headers: MutableMapping[bytes, bytes], receive: Receive
    ) -> tuple[int, list[tuple[bytes, bytes]], Parts]:
        service = self._service
        limit = service.limits.body
        length = stated_length(headers, limit)
        held = limit if length is None else length
        service.take(held)
        try:
            extensions = scope["extensions"]
            connection: Connection = extensions[CONNECTION]
            whole: WholeBody | None = extensions.get(WHOLE_BODY)
            body = await (read_body(receive, length, limit) if whole is None else whole.read())
            coding = headers.get(b"content-encoding", b"").strip().lower()
            if coding:
                body = await decompressed(body, coding, limit)
            path = scope["path_params"]
            call = await self._call(path["model"], path.get("version", ""), body, headers)
            answer = await _unless_gone(service.infer(call), connection)
        finally:
            service.give(held)
        if any(wanted.classes for wanted in call.wanted):
            answer = classified(call, answer)
        return await _response(answer_body(call, answer), headers.get(b"accept-encoding", b""))

    async def _call(self, model: str, version: str, body: Any, headers: MutableMapping[bytes, bytes]) -> Call:
        trace = trace_of(headers.get(b"traceparent", b"").decode("latin-1"))
        stated = headers.get(LENGTH_HEADER)
        if stated is None:
            return await self._parsed(model, version, body, None, trace)
        if not stated.isdigit():
            raise WrongInput(f"Inference-Header-Content-Length is {stated.decode('latin-1')!r}, no length")
        if int(stated) == 0:
            return parse_raw(await self._service.model(model, version), version, body, trace)
        return await self._parsed(model, version, body, int(stated), trace)

    async def _parsed(self, model: str, version: str, body: Any, length: int | None, trace: str) -> Call:
        try:
            return parse(model, version, body, length, trace)
        except WrongInput:
            # A tensor of a name that the model lacks is told by the name; what its shape should be, nobody can know.
            names = input_names(body, length)
            problem = await self._service.name_problem(model, version, names) if names else None
            if problem is None:
                raise
        raise WrongInput(problem)


async def _response(body: Body, accept: bytes) -> tuple[int, list[tuple[bytes, bytes]], Parts]:
    binary = body.json_length is not None
    headers = [(b"content-type", b"application/octet-stream" if binary else b"application/json")]
    if binary:
        headers.append((LENGTH_HEADER, str(body.json_length).encode()))
    parts: Parts = list(body.parts)
    if accept and body.nbytes >= COMPRESSIBLE and (coding := accepted_coding(accept, binary=binary)):
        headers.append((b"content-encoding", coding))
        parts = [await compressed(parts, coding)]
    elif body.nbytes < TOGETHER:
        parts = [b"".join(parts)]
    return 200, headers, parts


async def _unless_gone(work: Coroutine[Any, Any, T], connection: Connection) -> T:
    """The result of `work`, which is cancelled when the client goes.

    Raises:
        Gone: It did.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    def went() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    if connection.lost:
        work.close()
        raise Gone
    connection.gone = went
    try:
        return await work
    except asyncio.CancelledError:
        if gone:
            task.uncancel()
            raise Gone from None
        raise
    finally:
        connection.gone = None
