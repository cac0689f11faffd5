"""The command `defer-agent`; `defer agent` is the same."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node_agent import plugins
from node_agent.agent import Agent, AgentConfig
from node_agent.announcing import announcing
from node_agent.ending import end_with_stdin, ending_on_signals
from node_agent.engines import names as engine_names
from node_agent.errors import (
    EXIT_INTERNAL,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TEMPORARY,
    EXIT_USAGE,
    AddressInvalidError,
    AgentError,
    code_of,
)
from node_agent.finite import Finite
from node_agent.json_log import FORMATS, log_to_stderr
from node_agent.machine import keep_buffers, settle_collector
from node_agent.messages import AUTO_ENGINE, PROTOCOL_VERSION
from node_agent.observed import observing
from node_agent.quantities import is_name, parse_address, parse_endpoint, parse_name, parse_size
from node_agent.ready_line import Where, ready_line
from node_agent.security import KEYS_VARIABLE, choose, host_of, is_loopback

log = logging.getLogger(__name__)

_EXAMPLES = """
\b
Examples:
  defer-agent                                        on this machine only, port 7700
  defer-agent --name edge1 --listen 127.0.0.1:7710   a second agent beside the first
  defer-agent --name cam --listen 10.0.0.5:7700 --keys keys --memory "4 GiB"
  defer-agent --name nat --dial tcp://dispatcher:7600   behind NAT: registers by itself
\b
Exit codes: 0 ended as asked, 2 usage, 69 engine missing or port in use, 70 a fault of its own (start it
again), 73 store unusable or another agent's, 75 a request hung and was left, 77 an address beyond this machine without
--keys or --insecure, 78 bad address or keys.
"""


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    # Generic only in click's newer releases.
    _ParamType = click.ParamType


class _Parsed(_ParamType):
    """An option read by a function that raises ValueError; wrong addresses end with the code of a wrong address."""

    def __init__(self, name: str, parse: Callable[[str], Any], *, address: bool = False) -> None:
        self.name = name
        self._address = address
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            if self._address:
                raise AddressInvalidError(f"{param.opts[0] if param else self.name}: {error}") from None
            self.fail(str(error), param, ctx)


def default_store() -> Path:
    """The store's directory unless another is given: one per user, shared by nobody else."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "defer" / "store"


def version() -> str:
    """This build's version."""
    try:
        return metadata.version("defer-edge")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        click.echo(f"defer-agent {version()}, protocol version {PROTOCOL_VERSION}")
        ctx.exit()


class _AgentCommand(click.Command):
    """Its examples call it what the user called it."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See click."""
        whole, self.epilog = self.epilog, _EXAMPLES.replace("defer-agent", ctx.command_path)
        try:
            super().format_epilog(ctx, formatter)
        finally:
            self.epilog = whole


@click.command(
    "agent",
    cls=_AgentCommand,
    epilog=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--name",
    default=None,
    metavar="NAME",
    type=_Parsed("NAME", parse_name),
    help="Device name in the cluster file. [default: host name]",
)
@click.option(
    "--listen",
    default="127.0.0.1:7700",
    show_default=True,
    type=_Parsed("HOST:PORT", parse_address, address=True),
    help="Control port P; data ports are P+1 and P+2. Port 0 takes any free ones.",
)
@click.option(
    "--dial",
    multiple=True,
    type=_Parsed("ENDPOINT", parse_endpoint, address=True),
    help="Register with the dispatcher at tcp://HOST:PORT instead of waiting to be dialled. Repeatable.",
)
@click.option(
    "--advertise",
    default="",
    metavar="HOST",
    help="With --dial: where others reach this agent all the same, so that it is dialled for data.",
)
@click.option(
    "--memory",
    default=None,
    type=_Parsed("SIZE", parse_size),
    help='What partitions may take in all, such as "4 GiB". [default: what machine or cgroup grants beside the agent]',
)
@click.option(
    "--threads", default=None, type=click.IntRange(1), help="Engine threads. [default: usable cores]"
)
@click.option(
    "--engine",
    default=AUTO_ENGINE,
    show_default=True,
    metavar="ENGINE",
    help=f"Engine to run partitions with: {', '.join((AUTO_ENGINE, *engine_names()))}.",
)
@click.option(
    "--store",
    default=None,
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for partitions and weights. [default: ~/.cache/defer/store/NAME]",
)
@click.option("--store-limit", default=None, type=_Parsed("SIZE", parse_size), help="Most bytes in it.")
@click.option(
    "--drain-timeout",
    default=10.0,
    show_default=True,
    type=Finite(0),
    help="Seconds to finish queued requests on SIGTERM or SIGINT; a second signal ends at once.",
)
@click.option(
    "--keys",
    default=None,
    metavar="DIR",
    help=f"Folder of keys made by `defer keys`; also from {KEYS_VARIABLE}. "
    "[default: for addresses beyond this machine, ~/.config/defer/keys]",
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Use addresses beyond this machine without keys: anybody there may use it.",
)
@click.option(
    "--log-level",
    default="warning",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="What to tell on stderr.",
)
@click.option(
    "--log-format",
    default="text",
    show_default=True,
    type=click.Choice(FORMATS),
    help="Lines, or JSON objects.",
)
@click.option(
    "--metrics",
    default=None,
    type=_Parsed("HOST:PORT", parse_address, address=True),
    help="Serve /metrics (Prometheus), /healthz and /readyz over HTTP there, to whoever reaches it.",
)
@click.option(
    "--announce",
    is_flag=True,
    help="Tell the local network by multicast DNS that this agent is here, for `defer init` and `defer discover` "
    "(extra discovery).",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="When ready, print one line of JSON with name, ports and pid; errors are JSON as well.",
)
@click.option(
    "--until-stdin-closes",
    is_flag=True,
    help="End in order when standard input ends: for a parent process that may be killed.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it."
)
def agent_command(
    name: str | None,
    listen: tuple[str, int],
    dial: tuple[str, ...],
    advertise: str,
    memory: int | None,
    threads: int | None,
    engine: str,
    store: Path | None,
    store_limit: int | None,
    drain_timeout: float,
    keys: str | None,
    insecure: bool,
    log_level: str,
    log_format: str,
    metrics: tuple[str, int] | None,
    announce: bool,
    as_json: bool,
    until_stdin_closes: bool,
) -> None:
    """Runs partitions of models on this device and passes results on."""
    if advertise and not dial:
        raise click.UsageError(
            "--advertise says to the dispatchers of --dial where this agent is; it needs --dial"
        )
    log_to_stderr(log_level, log_format)
    keep_buffers()
    plugins.load()
    known = name or default_name()
    try:
        hosts = (listen[0], *(host_of(endpoint) for endpoint in dial))
        security = choose(keys, roles=("agent",), hosts=hosts, insecure=insecure, name=known)
    except AgentError as error:
        sys.exit(report(code_of(error), str(error), error.hint, error.exit_code, as_json))
    config = AgentConfig(
        name=known,
        store=store or default_store() / _file_name(known),
        host=listen[0],
        port=listen[1],
        dials=dial,
        advertise=advertise,
        memory_bytes=memory,
        threads=threads,
        engine=engine,
        store_bytes=store_limit,
        security=security,
        announce=announce,
    )
    try:
        agent = Agent(config)
        if until_stdin_closes:
            end_with_stdin(agent, drain_timeout)
        code = serve(agent, drain_timeout, as_json, metrics)
    except AgentError as error:
        code = report(code_of(error), str(error), error.hint, error.exit_code, as_json)
    sys.exit(code)


def default_name() -> str:
    """The host's name, as far as a device may be called so."""
    name = "".join(letter if is_name(f"a{letter}") else "-" for letter in socket.gethostname())[:63]
    return name if is_name(name) else "agent"


def report(code: str, message: str, hint: str, exit_code: int, as_json: bool) -> int:
    """Says on standard error what ends the command, as every command of defer does; returns the exit code."""
    if as_json:
        told = {"code": code, "message": message, "hint": hint, "where": "", "exit_code": exit_code}
        click.echo(json.dumps({"error": told}), err=True)
        return exit_code
    click.echo(click.style("error: ", fg="red", bold=True) + message, err=True)
    if hint:
        click.echo(click.style("hint:  ", fg="cyan") + hint, err=True)
    return exit_code


def _file_name(name: str) -> str:
    return (
        "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name).lstrip(".")
        or "agent"
    )


def serve(agent: Agent, drain_timeout: float, as_json: bool, metrics: Where | None = None) -> int:
    """Runs `agent` until a signal or a failure ends it, with its metrics at `metrics`; the exit code.

    Raises:
        AgentError: It cannot start.
    """
    agent.start()
    _warn(agent.config, as_json)
    with ExitStack() as stack:
        try:
            where = stack.enter_context(observing(agent, metrics, version()))
            if agent.config.announce:
                stack.enter_context(announcing(agent.announcement))
        except AgentError:
            agent.close()
            raise
        stack.enter_context(ending_on_signals(agent, drain_timeout))
        settle_collector()
        click.echo(ready_line(agent, as_json, where))
        agent.notifier.ready(ready_line(agent, as_json=False))
        agent.wait()
        failed = agent.failed
        clean = agent.close()
    if not clean:
        log.error("A thread hangs in its engine; the process ends without it.")
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter's own end would wait for it, or take its memory away under it.
        os._exit(EXIT_INTERNAL if failed else EXIT_TEMPORARY)
    return EXIT_INTERNAL if failed else EXIT_OK


def _warn(config: AgentConfig, as_json: bool) -> None:
    """Says on the operator's screen what being insecure means."""
    hosts = (config.host, *(host_of(endpoint) for endpoint in config.dials))
    beyond = [host for host in hosts if not is_loopback(host)]
    if config.security.insecure and beyond and not as_json:
        click.echo(
            f"warning: {beyond[0]} is used without keys: whoever is on that network may command this agent",
            err=True,
        )


def main() -> None:
    """Entry point of `defer-agent`."""
    as_json = "--json" in sys.argv[1:]
    try:
        code = agent_command.main(prog_name="defer-agent", standalone_mode=False)
    except click.Abort:
        code = report("cancelled", "interrupted", "", EXIT_INTERRUPTED, as_json)
    except click.ClickException as error:
        hint = "`defer-agent --help` shows how it is used"
        code = report("usage", error.format_message().rstrip("."), hint, EXIT_USAGE, as_json)
    except AgentError as error:
        code = report(code_of(error), str(error), error.hint, error.exit_code, as_json)
    sys.exit(code)


if __name__ == "__main__":
    main()
