"""The live page's routes: to be mounted beside the gateway's, or served alone.

The page and its script are files of this package; they load nothing from elsewhere, and a strict Content-Security-Policy
says so to the browser. They hold no state and need no token; what they ask for does, where there is one.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from defer.errors import PermissionDenied, UsageError
from defer.live.board import Asked, Board
from defer.live.watcher import Watcher
from defer.live.what_if import changes_of
from defer.translating import translate
from node_agent.pages import Page

FILES: Final = {
    "": ("index.html", "text/html; charset=utf-8"),
    "live.css": ("live.css", "text/css; charset=utf-8"),
    **{
        name: (name, "text/javascript; charset=utf-8")
        for name in ("live.js", "dom.js", "cluster.js", "charts.js", "panels.js", "whatif.js")
    },
}
"""What the page is made of, by its path below `/live/`."""

OPEN: Final = ("/", "/live", "/healthz", "/readyz", *(f"/live/{name}" for name in FILES))
"""Paths that need no token: they hold no state, or tell probes yes or no."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}

MOST: Final = 64 << 10
"""Bytes of a question at most."""

WORKERS: Final = 4
"""Questions of pages that are answered at a time, and as many of probes; in threads that the gateway does not use."""

T = TypeVar("T")

Work = Callable[[Callable[[], T]], Awaitable[T]]
"""Runs what blocks in a thread."""


class WhatIfQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /live/what-if` takes."""

    model: str
    without: tuple[str, ...] = ()
    links: tuple[tuple[str, str, float], ...] = ()


class ActQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """What `POST /live/act` takes."""

    action: str
    model: str


def live_routes(board: Board, watcher: Watcher, *, token: str = "") -> list[BaseRoute]:
    """Every route.

    Args:
        board: Answers the page.
        watcher: Answers probes and scrapers.
        token: What whoever acts must show; without one, nobody can act.
    """
    pages, probes = _Answers(board, token, _workers(WORKERS)), _workers(WORKERS)
    return [
        Route("/", _to_page),
        Route("/live", _to_page),
        *(Route(f"/live/{name}", _file(*what, token=bool(token))) for name, what in FILES.items()),
        Route("/live/state", pages.state),
        Route("/live/what-if", pages.what_if, methods=["POST"]),
        Route("/live/act", pages.act, methods=["POST"]),
        *(Route(path, _plain(make, probes)) for path, make in watcher.pages().items()),
    ]


def _workers(most: int) -> Work[Any]:
    limiter = anyio.CapacityLimiter(most)

    async def work(job: Callable[[], Any]) -> Any:
        return await anyio.to_thread.run_sync(job, limiter=limiter)

    return work


async def _to_page(_request: Request) -> Response:
    return RedirectResponse("/live/", 307, HEADERS)


def _file(name: str, kind: str, *, token: bool) -> Callable[[Request], Awaitable[Response]]:
    content = (resources.files("defer.live") / "page" / name).read_bytes()
    if token:  # the page asks for it before it asks for anything that would be refused
        content = content.replace(b'<html lang="en">', b'<html lang="en" data-token>')

    async def answer(_request: Request) -> Response:
        return Response(content, 200, {**HEADERS, "Content-Type": kind})

    return answer


def _plain(make: Callable[[], Page], work: Work[Page]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_request: Request) -> Response:
        page = await work(make)
        return Response(page.body, page.status, {"Content-Type": page.kind, "Cache-Control": "no-store"})

    return answer


class _Answers:
    """What the page's script asks for, as JSON; everything that blocks runs in a thread."""

    def __init__(self, board: Board, token: str, work: Work[Any]) -> None:
        self._board, self._token, self._work = board, token, work

    async def state(self, request: Request) -> Response:
        return await self._told(lambda: self._state(request), request)

    def _state(self, request: Request) -> object:
        try:
            event = int(request.query_params.get("event", "0"))
            point = float(request.query_params.get("point", "0"))
        except ValueError:
            raise UsageError("event and point are numbers") from None
        return self._board.state(event, point)

    async def what_if(self, request: Request) -> Response:
        body = await _body(request)

        def answer() -> object:
            asked = _parsed(body, WhatIfQuestion)
            return self._board.what_if(Asked(asked.model, changes_of(asked.without, asked.links)))

        return await self._told(answer, request)

    async def act(self, request: Request) -> Response:
        body = await _body(request)

        def answer() -> object:
            self._check(request)
            asked = _parsed(body, ActQuestion)
            self._board.act(asked.action, asked.model)
            return {"begun": asked.action}

        return await self._told(answer, request, 202)

    def _check(self, request: Request) -> None:
        if not self._token:
            raise PermissionDenied(
                "nothing can be done here without a token",
                hint="start with --token-file, and enter the token",
            )
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            shown.strip().encode(), self._token.encode()
        ):
            raise PermissionDenied("that is not the token", hint="enter the one of --token-file")

    async def _told(self, answer: Callable[[], object], request: Request, status: int = 200) -> Response:
        # Another site's page in the same browser may send, though not read, a question to this machine.
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _json({"error": "this is for the live page alone"}, 403)
        try:
            return _json(await self._work(answer), status)
        except Exception as error:
            told = translate(error)
            return _json({"error": told.message, "hint": told.hint, "code": told.code}, told.http_status)


def _json(value: object, status: int) -> Response:
    headers = {**HEADERS, "Content-Type": "application/json", "Cache-Control": "no-store"}
    return Response(msgspec.json.encode(value), status, headers)


async def _body(request: Request) -> bytes:
    kept = bytearray()
    async for piece in request.stream():
        kept += piece
        if len(kept) > MOST:
            break
    return bytes(kept)


def _parsed(body: bytes, kind: type[Any]) -> Any:
    if len(body) > MOST:
        raise UsageError(f"a question has {MOST} bytes at most")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise UsageError(f"not a question of the live page: {error}") from None
