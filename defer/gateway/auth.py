"""Bearer tokens: who shows the right one is let in."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from defer.gateway.replies import json

OPEN = ("/v2/health/live", "/v2/health/ready")
"""Paths that probes ask without a token; they tell yes or no, and nothing else."""


NO_TOKEN = "this server wants a bearer token"  # noqa: S105 - a sentence
WRONG_TOKEN = "the bearer token is wrong"  # noqa: S105 - a sentence
WRONG_SCHEME = "Authorization must be `Bearer TOKEN`"


class BearerToken:
    """Lets a request pass that carries the token.

    Args:
        app: What it passes on to.
        token: The token.
        path_exempt: Paths that need none.
    """

    def __init__(self, app: ASGIApp, token: str, path_exempt: tuple[str, ...] = OPEN) -> None:
        self._app, self._exempt = app, path_exempt
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's application."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        shown = [value for name, value in scope["headers"] if name == b"authorization"]
        problem = token_problem(shown, self._token)
        if not problem:
            await self._app(scope, receive, send)
            return
        refusal = json({"error": problem}, 401)
        refusal.headers["www-authenticate"] = "Bearer"
        await refusal(scope, receive, send)


def token_problem(shown: Iterable[bytes], token: bytes) -> str:
    """What is wrong with a request's `Authorization` headers; empty where one carries the token."""
    problem = NO_TOKEN
    for header in shown:
        if right_token(header, token):
            return ""
        bearer = header.partition(b" ")[0].lower() == b"bearer"
        problem = WRONG_TOKEN if bearer else WRONG_SCHEME
    return problem


def right_token(header: bytes, token: bytes) -> bool:
    """Whether an `Authorization` header carries the token; takes as long for a wrong one as for the right one."""
    scheme, _, shown = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token)
