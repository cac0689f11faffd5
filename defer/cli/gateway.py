"""`defer gateway`: the gateway as a process of its own, in front of a dispatcher elsewhere."""

from __future__ import annotations

import click
import msgspec

from defer.access import said
from defer.cli.dispatcher import address_option
from defer.cli.gateway_options import GatewayWish, check_exposure, gateway_options, make_gateway, told
from defer.cli.observing import ObservingWish, log_to_stderr
from defer.cli.output import common_options, examples, note
from defer.cli.stopping import stopping
from defer.errors import Internal, UsageError
from node_agent.machine import keep_buffers

ABSENCE_S = 5.0
"""Seconds in which the dispatcher must answer, or come back, before requests are refused."""

SOON_S = 1.0
"""Seconds in which a dispatcher that is there has answered."""

DRAIN_S = 30.0
"""Seconds that requests in flight have when the gateway is told to stop."""


@click.command(
    epilog=examples(
        "defer gateway --http 127.0.0.1:8000",
        "defer gateway --http 0.0.0.0:8000 --token-file token --dispatcher 192.168.1.2:7600",
    )
)
@gateway_options
@click.option("--until-stdin-closes", is_flag=True, help="Stop when standard input ends.")
@address_option
@common_options
def command(gateway: GatewayWish, until_stdin_closes: bool, address: str, as_json: bool) -> None:
    """Serve a running dispatcher's models by the Open Inference Protocol v2, until SIGTERM or Ctrl-C.

    `defer serve --http` does the same in the dispatcher's own process, which costs less; this is for a dispatcher that
    should not be reached from where the clients are.
    """
    from defer.client_requests import dialling
    from defer.gateway.backend import RemoteBackend

    keep_buffers()
    if not gateway.wanted:
        raise UsageError("nowhere to listen", hint="give --http HOST:PORT or --grpc HOST:PORT")
    check_exposure(gateway, insecure=said().insecure, as_json=as_json)
    log_to_stderr(ObservingWish(), quiet=as_json)
    requests = dialling(
        address,
        model="",
        timeout=gateway.timeout_s,
        codec="auto",
        connect_timeout=ABSENCE_S,
        absence_s=ABSENCE_S,
    )
    backend = RemoteBackend(requests)
    crashed: list[BaseException] = []
    with stopping() as stop:
        if until_stdin_closes:
            stop.with_stdin()

        def crash(error: BaseException) -> None:
            crashed.append(error)
            stop.set()

        with make_gateway(gateway, backend, on_crash=crash) as running:
            where = told(running)
            listening = ", ".join(f"{protocol} on {at}" for protocol, at in where.items())

            def there() -> None:
                if as_json:
                    click.echo(msgspec.json.encode({"ready": address, **where}).decode())
                else:
                    click.echo(f"ready: {listening}, dispatcher at {address}")

            if not backend.start(there).wait(SOON_S):
                note(f"waiting for the dispatcher at {address}; {listening}", as_json=as_json)
            stop.wait()
            if crashed:
                raise Internal(f"the gateway ended: {crashed[0]}") from crashed[0]
            note("stopping: no new requests, those in flight end first", as_json=as_json)
            running.drain(DRAIN_S)
