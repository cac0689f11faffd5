"""The HTTP side of the Open Inference Protocol v2: which path answers what.

Whoever adds pages (metrics, a live view) passes routes of their own to `create_app`; they stand behind the same token.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from defer.errors import WrongInput
from defer.gateway.auth import OPEN, BearerToken
from defer.gateway.http_infer import InferEndpoint
from defer.gateway.reading import read_body, stated_length
from defer.gateway.replies import answered, http_error, json
from defer.gateway.service import EXTENSIONS, Service

NOT_READY = 400
"""Status of a ready probe that is answered with no: the protocol wants one of 4xx."""

SMALL_BODY = 1 << 20
"""Bytes of a body that holds no tensors."""

PROBES = ("/healthz", "/readyz")
"""Pages for probes; without a token, as those of the protocol."""

_FRESH = {"Cache-Control": "no-store"}


class _IndexRequest(msgspec.Struct):
    ready: bool = False


def create_app(
    service: Service, *, token: str = "", more: Sequence[BaseRoute] = (), open_paths: Sequence[str] = ()
) -> Starlette:
    """The gateway's ASGI application.

    Args:
        service: What answers.
        token: What callers must show as `Authorization: Bearer …`; empty lets everyone in.
        more: Routes besides the protocol's.
        open_paths: Those of them that need no token, as paths.
    """
    return Starlette(
        routes=[*routes(service), *more, *probes(service)],
        middleware=[Middleware(BearerToken, token=token, path_exempt=(*OPEN, *PROBES, *open_paths))]
        if token
        else [],
        exception_handlers={HTTPException: http_error},
    )


def routes(service: Service) -> list[BaseRoute]:
    """The protocol's routes, the one that must be fast first."""
    infer = InferEndpoint(service)
    told = _Endpoints(service)
    of_model = {
        "/ready": told.model_ready,
        "/stats": told.statistics,
        "/config": told.config,
        "": told.metadata,
    }
    return [
        Route("/v2/models/{model}/infer", infer, methods=["POST"]),
        Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
        Route("/v2", answered(told.server)),
        Route("/v2/", answered(told.server)),
        Route("/v2/health/live", answered(told.live)),
        Route("/v2/health/ready", answered(told.ready)),
        Route("/v2/models/stats", answered(told.statistics)),
        *(
            Route(f"/v2/models/{{model}}{version}{suffix}", answered(endpoint))
            for suffix, endpoint in of_model.items()
            for version in ("", "/versions/{version}")
        ),
        Route("/v2/repository/index", answered(told.index), methods=["POST"]),
        Route("/v2/repository/models/{model}/load", answered(told.load), methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", answered(told.unload), methods=["POST"]),
    ]


def probes(service: Service) -> list[BaseRoute]:
    """`/healthz` and `/readyz` as the dispatcher has them, for a process that has no dispatcher."""

    async def alive(_request: Request) -> Response:
        return PlainTextResponse("alive\n", headers=_FRESH)

    async def ready(_request: Request) -> Response:
        why = await service.unready()
        return PlainTextResponse(f"{why}\n" if why else "ready\n", 503 if why else 200, _FRESH)

    return [Route(path, page) for path, page in zip(PROBES, (alive, ready), strict=True)]


class _Endpoints:
    """Everything but inferences."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, _request: Request) -> Response:
        service = self._service
        return json({"name": service.name, "version": service.version, "extensions": EXTENSIONS})

    async def live(self, _request: Request) -> Response:
        return json({"live": True})

    async def ready(self, _request: Request) -> Response:
        ready = await self._service.ready()
        return json({"ready": ready}, 200 if ready else NOT_READY)

    async def model_ready(self, request: Request) -> Response:
        model, version = _named(request)
        ready = await self._service.model_ready(model, version)
        return json({"name": model, "ready": ready}, 200 if ready else NOT_READY)

    async def metadata(self, request: Request) -> Response:
        return json(await self._service.metadata(*_named(request)))

    async def config(self, request: Request) -> Response:
        return json(await self._service.config(*_named(request)))

    async def statistics(self, request: Request) -> Response:
        return json({"model_stats": await self._service.statistics(*_named(request))})

    async def index(self, request: Request) -> Response:
        body = await _small(request)
        try:
            asked = msgspec.json.decode(body, type=_IndexRequest) if body else _IndexRequest()
        except msgspec.MsgspecError as error:
            raise WrongInput(f"not a request for the repository's index: {error}") from None
        return json(await self._service.index(ready=asked.ready))

    async def load(self, request: Request) -> Response:
        await self._service.load(request.path_params["model"], await _parameters(request))
        return json({})

    async def unload(self, request: Request) -> Response:
        await _parameters(request)
        await self._service.unload(request.path_params["model"])
        return json({})


def _named(request: Request) -> tuple[str, str]:
    path = request.path_params
    return path.get("model", ""), path.get("version", "")


async def _small(request: Request) -> bytes:
    length = stated_length(dict(request.scope["headers"]), SMALL_BODY)
    return bytes(await read_body(request.receive, length, SMALL_BODY))


class _ParametersRequest(msgspec.Struct):
    parameters: dict[str, bool | int | float | str] = {}


async def _parameters(request: Request) -> dict[str, bool | int | float | str]:
    body = await _small(request)
    try:
        return msgspec.json.decode(body, type=_ParametersRequest).parameters if body else {}
    except msgspec.MsgspecError as error:
        raise WrongInput(f"not a request of the model repository: {error}") from None
