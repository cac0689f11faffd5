"""The gateway's options, and a gateway made from them: what `defer serve --http` and `defer gateway` have in common."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from defer import units
from defer.cli.output import note
from defer.documents.address import Address, parse_address
from defer.errors import DeferError, FileMissing, PermissionDenied, UsageError
from defer.translating import translate
from node_agent.finite import Finite

if TYPE_CHECKING:
    from defer.gateway.backend import Backend
    from defer.gateway.server import Gateway

F = TypeVar("F", bound=Callable[..., Any])

TOKEN_VARIABLE = "DEFER_HTTP_TOKEN"  # noqa: S105 - the variable's name
SHORTEST_TOKEN = 16


@dataclass(frozen=True, slots=True)
class GatewayWish:
    """What the command line says of the gateway.

    Attributes:
        http: Where HTTP listens; None for nowhere.
        grpc: Where gRPC listens; None for nowhere.
        token: What callers must show; empty lets everyone in.
        certificate: The server's TLS certificate.
        key: Its key.
        body: Bytes of one request at most.
        timeout_s: Seconds that a request may take which names no timeout.
        repository: Directory of models that may be loaded by name.
    """

    http: Address | None = None
    grpc: Address | None = None
    token: str = ""
    certificate: Path | None = None
    key: Path | None = None
    body: int = 256 << 20
    timeout_s: float = 60.0
    repository: Path | None = None

    @property
    def wanted(self) -> bool:
        """Whether there is to be a gateway at all."""
        return bool(self.listens)

    @property
    def listens(self) -> tuple[Address, ...]:
        """Every address that it listens on."""
        return tuple(address for address in (self.http, self.grpc) if address is not None)


def gateway_options(command: F) -> F:
    """Adds the gateway's options (argument `gateway`, a `GatewayWish`)."""

    @functools.wraps(command)
    def wrapped(
        *args: Any,
        http: str | None,
        grpc: str | None,
        token_file: Path | None,
        tls_certificate: Path | None,
        tls_key: Path | None,
        body_limit: str,
        request_timeout: float,
        repository: Path | None,
        **more: Any,
    ) -> Any:
        wish = GatewayWish(
            http=parse_address(http, "--http") if http else None,
            grpc=parse_address(grpc, "--grpc") if grpc else None,
            token=_token(token_file),
            certificate=tls_certificate,
            key=tls_key,
            body=_size(body_limit),
            timeout_s=request_timeout,
            repository=repository,
        )
        if not wish.wanted and (token_file or tls_certificate or tls_key or repository):
            raise UsageError(
                "--token-file, --tls-certificate, --tls-key and --repository need --http or --grpc"
            )
        return command(*args, gateway=wish, **more)

    options = (
        click.option(
            "--http", metavar="HOST:PORT", help="Serve the Open Inference Protocol v2 over HTTP there."
        ),
        click.option(
            "--grpc", metavar="HOST:PORT", help="Serve the Open Inference Protocol v2 over gRPC there."
        ),
        click.option(
            "--token-file",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help=f"Callers of the gateway must show the token in this file; or set {TOKEN_VARIABLE}.",
        ),
        click.option(
            "--tls-certificate",
            type=click.Path(path_type=Path),
            metavar="FILE.pem",
            help="Serve with TLS, by it.",
        ),
        click.option(
            "--tls-key", type=click.Path(path_type=Path), metavar="FILE.pem", help="Key of the certificate."
        ),
        click.option(
            "--body-limit",
            default="256 MiB",
            show_default=True,
            metavar="SIZE",
            help="Largest request taken.",
        ),
        click.option(
            "--request-timeout",
            default=60.0,
            show_default=True,
            type=Finite(0.001, 86_400),
            help="Seconds of a gateway's request that names none.",
        ),
        click.option(
            "--repository",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Models that may be loaded by name over the gateway: NAME.onnx, or NAME/1/model.onnx.",
        ),
    )
    decorated: Any = wrapped
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


def told(gateway: Gateway) -> dict[str, str]:
    """Where a gateway listens, for `--json` and for people."""
    where = {"http": gateway.http, "grpc": gateway.grpc}
    return {protocol: str(address) for protocol, address in where.items() if address is not None}


def check_exposure(wish: GatewayWish, *, insecure: bool, as_json: bool) -> None:
    """Refuse an address that other machines reach without a token, unless the operator insists.

    Raises:
        PermissionDenied: It is one.
    """
    for address in wish.listens:
        if address.is_loopback or wish.token:
            continue
        if not insecure:
            raise PermissionDenied(
                f"anyone who reaches {address} could send requests, load and unload models",
                hint=f"give --token-file or {TOKEN_VARIABLE}, listen on 127.0.0.1, or say --insecure",
            )
        note(f"warning: whoever reaches {address} is let in without a token", as_json=as_json)


def make_gateway(
    wish: GatewayWish,
    backend: Backend,
    *,
    more: Sequence[Any] = (),
    open_paths: Sequence[str] = (),
    on_crash: Callable[[BaseException], None] | None = None,
) -> Gateway:
    """A gateway as the options say, not started yet.

    Raises:
        MissingExtra: Its packages are not installed; names the extra.
        FileMissing: The repository's directory does not exist.
    """
    try:
        from defer.gateway.repository import Repository
        from defer.gateway.server import Gateway, Options
        from defer.gateway.service import Limits, Service
    except ImportError as error:
        raise translate(error) from error
    service = Service(
        backend, Limits(body=wish.body, timeout_s=wish.timeout_s), repository=Repository(wish.repository)
    )
    options = Options(wish.http, wish.grpc, wish.token, wish.certificate, wish.key)
    return Gateway(service, options, more=more, open_paths=open_paths, on_crash=on_crash)


def _size(text: str) -> int:
    try:
        return units.parse_size(text)
    except DeferError as error:
        raise UsageError(f"--body-limit: {error.message}", hint=error.hint) from None


def _token(path: Path | None) -> str:
    """The token, from a file or the environment; empty where there is none.

    Raises:
        FileMissing: The file does not exist.
        UsageError: It holds none, or one that could be guessed.
    """
    token = os.environ.get(TOKEN_VARIABLE, "")
    if path is not None:
        try:
            token = path.read_text().strip()
        except FileNotFoundError:
            raise FileMissing("no such file", where=str(path), hint="check --token-file") from None
        except (OSError, UnicodeDecodeError) as error:
            raise translate(error) from error
    if (path is not None or token) and (len(token) < SHORTEST_TOKEN or not token.isascii() or " " in token):
        raise UsageError(
            f"a token has at least {SHORTEST_TOKEN} characters, all of them ASCII and none a space",
            hint="make one with: openssl rand -hex 32",
        )
    return token
