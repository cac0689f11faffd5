"""Bearer tokens: who shows the right one is let in."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from defer.gateway.replies import json

OPEN = ("/v2/health/live", "/v2/health/ready")
"""Paths that probes ask without a token; they tell yes or no, and nothing else."""


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
        if scope["type"] != "http" or scope["path"] in self._exempt or self._allowed(scope):
            await self._app(scope, receive, send)
            return
        refusal = json({"error": "this server wants a bearer token"}, 401)
        refusal.headers["www-authenticate"] = "Bearer"
        await refusal(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        return any(
            name == b"authorization" and right_token(value, self._token) for name, value in scope["headers"]
        )


def right_token(header: bytes, token: bytes) -> bool:
    """Whether an `Authorization` header carries the token; takes as long for a wrong one as for the right one."""
    scheme, _, shown = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), token)
