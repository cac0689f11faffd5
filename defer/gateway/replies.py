"""Answers in HTTP that every endpoint gives alike: JSON, and errors in the protocol's shape with the right status."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from defer.errors import DeferError
from defer.translating import translate

_ENCODER = msgspec.json.Encoder()

RETRY_AFTER_S = {429: b"1", 503: b"1"}
"""Seconds after which whoever was refused for the moment may try again, by status."""

Endpoint = Callable[[Request], Awaitable[Response]]


def json(content: Any, status: int = 200) -> Response:
    """An answer in JSON."""
    return Response(_ENCODER.encode(content), status, media_type="application/json")


def error_text(error: DeferError) -> str:
    """An error as one text: what is wrong, and what to do about it."""
    return f"{error}; {error.hint}" if error.hint else str(error)


def error_reply(error: DeferError, status: int | None = None) -> Response:
    """An error in the protocol's shape, with the status of the product's table."""
    status = error.http_status if status is None else status
    response = json({"error": error_text(error)}, status)
    if status in RETRY_AFTER_S:
        response.headers["retry-after"] = RETRY_AFTER_S[status].decode()
    return response


def answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors become answers."""

    @functools.wraps(endpoint)
    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except Exception as error:
            return error_reply(translate(error))

    return wrapped


PATHS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/NAME",
    "/v2/models/NAME/ready",
    "/v2/models/NAME/infer",
    "/v2/repository/index",
)
"""What somebody may have meant who asked for something else."""


async def http_error(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, in the protocol's shape; says what there is."""
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    path = request.scope["path"]
    if error.status_code == 404:
        text = f"there is no {path}; there are {', '.join(PATHS)}"
    elif error.status_code == 405:
        takes = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow", "another method")
        text = f"{path} takes {takes}, not {request.method}; inferences are POST /v2/models/NAME/infer"
    response = json({"error": text}, error.status_code)
    response.headers.update(error.headers or {})
    return response
