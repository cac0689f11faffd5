"""`defer serve`: the dispatcher, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from click.core import ParameterSource

from defer import api, units
from defer.access import said
from defer.accuracy import Budget
from defer.cli.access import access_options, warn_insecure
from defer.cli.chains import (
    Shapes,
    batch_options,
    blocks_option,
    budget_options,
    given_plan,
    input_option,
    replicas_option,
    sample_option,
    standby_option,
)
from defer.cli.dispatcher import CLUSTER_VARIABLE
from defer.cli.engines import EngineNote, engine_lines, engine_notes
from defer.cli.gateway_options import GatewayWish, check_exposure, gateway_options, make_gateway, told
from defer.cli.leading import handing_over, led
from defer.cli.observing import ObservingWish, announced, log_to_stderr, observing_options, serving_metrics
from defer.cli.output import common_options, examples, note, progress
from defer.cli.plots import check_plot, write_plot
from defer.cli.state_options import state_options, state_place, still_asked
from defer.cli.stopping import StopNow, stopping
from defer.cli.values import GIVEN, deployment_name
from defer.dispatcher.bringup import Order
from defer.dispatcher.commanded import Commanded
from defer.dispatcher.daemon import Daemon
from defer.dispatcher.deployments import Outcome
from defer.dispatcher.exporting import exporting
from defer.dispatcher.returning import Back, summary
from defer.documents.address import Address
from defer.documents.cluster import Replan
from defer.documents.files import check_file
from defer.documents.plan import Objective, PlanBatching
from defer.documents.profile import CostProfile, Created
from defer.errors import Cancelled, Internal, UsageError
from defer.live.watcher import Watcher
from defer.paths import profile_cache
from defer.serving import cluster_to_serve, hosts_of, security_to_serve
from defer.translating import translate
from node_agent.finite import Finite
from node_agent.machine import keep_buffers, settle_collector

if TYPE_CHECKING:
    from defer.gateway.server import Gateway

DRAIN_S = 30.0
"""Seconds that requests in flight have when the dispatcher is told to stop."""

FLUSH_S = 5.0
"""Seconds that the gateway has to write their answers."""


@click.command(
    epilog=examples(
        "defer serve --cluster cluster.toml --model resnet50.onnx",
        "defer serve --cluster cluster.toml --model resnet50.onnx --objective throughput --save-plan plan.json",
        "defer serve --cluster cluster.toml --model resnet50.onnx --objective throughput --replicas",
        "defer serve --cluster cluster.toml --listen 127.0.0.1:7640",
        "defer serve --cluster cluster.toml --model resnet50.onnx --http 127.0.0.1:8000",
    )
)
@click.option(
    "--cluster",
    "cluster_file",
    required=True,
    metavar="FILE",
    envvar=CLUSTER_VARIABLE,
    help=f"The devices, cluster.toml; also from {CLUSTER_VARIABLE}.",
)
@click.option("--model", type=click.Path(path_type=Path), help="Deploy this ONNX model at once.")
@click.option("--name", type=GIVEN, help="Name to serve it under; the file's by default.")
@click.option("--plan", "plan_file", metavar="FILE", type=GIVEN, help="Follow this plan.json.")
@click.option("--profile", "profile_file", metavar="FILE", type=GIVEN, help="Plan with this profile.json.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "cost", "energy"]),
    help="What planning makes least: seconds of one request (by default), seconds between results, money or joules.",
)
@replicas_option
@click.option("--listen", metavar="HOST:PORT", help="First of three ports; the cluster file's by default.")
@click.option(
    "--replan",
    type=click.Choice(["own", "every", "never"]),
    help="Plans to replace when devices or links drift or join: those made here, given ones too, or none.",
)
@state_options
@click.option("--wait", default=10.0, show_default=True, type=Finite(0.1, 3600), help="Seconds per agent.")
@click.option("--save-plan", metavar="FILE", help="Write the plan, plan.json.")
@click.option("--save-profile", metavar="FILE", help="Write what was measured, profile.json.")
@click.option("--plot", metavar="FILE.svg|html|png", type=click.Path(path_type=Path), help="Draw the plan.")
@click.option(
    "--until-stdin-closes",
    is_flag=True,
    help="Stop when standard input ends: for a parent process that may be killed.",
)
@gateway_options
@observing_options
@budget_options
@sample_option
@batch_options
@standby_option
@input_option
@blocks_option()
@access_options
@common_options
def command(
    cluster_file: str,
    model: Path | None,
    name: str | None,
    plan_file: str | None,
    profile_file: str | None,
    objective: Objective | None,
    replicas: bool,
    listen: str | None,
    replan: Replan | None,
    state: str | None,
    no_state: bool,
    wait: float,
    save_plan: str | None,
    save_profile: str | None,
    plot: Path | None,
    until_stdin_closes: bool,
    gateway: GatewayWish,
    observing: ObservingWish,
    max_error: Budget | None,
    calibration: Path | None,
    sample: float,
    batching: PlanBatching | None,
    standby: str,
    inputs: Shapes,
    blocks: int,
    as_json: bool,
) -> None:
    """Run the dispatcher: connect the agents, deploy a model, and serve requests until SIGTERM or Ctrl-C.

    With --model it measures (what was measured before is remembered), plans, splits, ships and loads, and sends a
    first request through the whole pipeline before it says that it is ready. Models can be deployed later with
    `defer deploy`. With --http, other clients are served by the Open Inference Protocol v2 too.

    What is served is kept in --state: after a crash, the same command takes it over from the agents as it is. Started
    twice with the same nats:// state, on two machines, one leads and the other stands by.
    """
    keep_buffers()
    if plot is not None:
        check_plot(plot)
    cluster = cluster_to_serve(cluster_file, listen=listen, replan=replan)
    security = security_to_serve(cluster)
    if security.insecure:
        warn_insecure(hosts_of(cluster), as_json=as_json)
    check_exposure(gateway, insecure=said().insecure, as_json=as_json)
    order = None
    if model is not None:
        check_file(model, "check --model")
        if replicas:
            api.check_replicas(objective or "latency", given=bool(plan_file))
        order = Order(
            name=deployment_name(name, None, model, may_have_version=True),
            model=model,
            plan=given_plan(plan_file, objective),
            profile=CostProfile.load(profile_file) if profile_file else None,
            objective=objective or "latency",
            replicas=replicas,
            shapes=inputs,
            blocks=blocks,
            budget=max_error,
            calibration=calibration,
            sample=sample,
            batching=batching,
            source="serve",
            given=bool(plan_file),
            standby=standby,
        )
    elif max_error or calibration or plan_file or profile_file or name or save_plan or save_profile or plot:
        raise UsageError(
            "--name, --plan, --profile, --max-error, --save-plan, --save-profile and --plot need --model"
        )
    elif batching is not None:
        raise UsageError("--batch needs --model")
    elif replicas:
        raise UsageError("--replicas needs --model")
    elif click.get_current_context().get_parameter_source("standby") is ParameterSource.COMMANDLINE:
        raise UsageError("--standby needs --model")
    with stopping() as stop, ExitStack() as stack:
        if until_stdin_closes:
            stop.with_stdin()
        log_to_stderr(observing, quiet=as_json and observing.log_format == "text")
        place = state_place(cluster, state, stack, none=no_state)
        shared = None
        if place.url is not None:
            pages = [each for each in (gateway.http, observing.metrics) if each is not None]
            shared = led(
                place.url, place.folder, cluster, order, pages, security, stop, stack, as_json=as_json
            )
            if shared is None:
                note("stopped while it stood by", as_json=as_json)
                return
            order = shared.order
        crashed: list[BaseException] = []

        def crash(error: BaseException) -> None:
            crashed.append(error)
            stop.set()

        daemon = Daemon(
            cluster,
            place.folder,
            profiles=profile_cache(),
            on_crash=crash,
            held=True,
            durable=place.lasting,
            security=security,
            shared=shared,
        )
        with handing_over(shared):
            stack.enter_context(daemon)
        if order is not None:
            daemon.deployments.planner.warm()  # it imports what it needs while agents are connected
        watcher = Watcher(daemon)
        metrics = stack.enter_context(serving_metrics(observing, watcher))
        stack.enter_context(announced(observing, daemon.address, daemon.boot, keys=security.curve))
        stack.enter_context(exporting(daemon))
        http = _gateway(gateway, daemon, watcher, stack, crash)
        outcome, left = None, Commanded(load=False)
        try:
            with stop.interrupting():
                with progress("serve", as_json=as_json) as show:
                    reporter = _Reporter(show, as_json=as_json)
                    reporter("connecting the agents", 0.0)
                    daemon.connect(wait, reporter)
                    if order is not None:
                        left = still_asked(daemon.deployments, order)
                    if order is not None and left.load:
                        daemon.reach_all(wait, reporter)
                        outcome = daemon.deployments.bring_up(order, reporter)
                if outcome is not None:
                    _save(outcome, save_plan, save_profile, plot)
                daemon.let_go()
                if http is not None:
                    http.service.starting = False
                back = () if outcome is not None else daemon.back()
                restored = tuple(each.info for each in back)
                term = 0 if shared is None else shared.term
                engines = engine_notes(daemon.verbs.status().deployments) if outcome or restored else ()
                settle_collector()
                note(left.told, as_json=as_json or not left.told)
                more = {key: of for key, of in (("term", term), ("not_served", left.told)) if of}
                _say_ready(daemon.address, outcome, back, http, metrics, engines, as_json=as_json, more=more)
        except StopNow:
            if stop.number == signal.SIGINT:
                raise Cancelled("stopped before it was ready") from None
            note("stopped before it was ready", as_json=as_json)
            return
        stop.wait()
        if crashed:
            raise Internal(f"a thread of the dispatcher ended: {crashed[0]}") from crashed[0]
        what = (
            "no new requests, those in flight end first"
            if shared is None
            else "the next dispatcher takes over"
        )
        note(f"stopping: {what}", as_json=as_json)
        if http is not None:
            http.service.draining = True  # its probe says so from now on
        if shared is None:
            daemon.drain(DRAIN_S)
        if http is not None:
            http.drain(FLUSH_S)


def _gateway(
    wish: GatewayWish,
    daemon: Daemon,
    watcher: Watcher,
    stack: ExitStack,
    on_crash: Callable[[BaseException], None],
) -> Gateway | None:
    """The gateway, live but not ready; closed before the dispatcher is."""
    if not wish.wanted:
        return None
    try:
        from defer.gateway.backend import LocalBackend
        from defer.live.board import Board
        from defer.live.routes import OPEN, live_routes
    except ImportError as error:
        raise translate(error) from error
    board = Board(daemon, stack.enter_context(watcher), may_act=bool(wish.token))
    pages = live_routes(board, watcher, token=wish.token)
    made = make_gateway(wish, LocalBackend(daemon), more=pages, open_paths=OPEN, on_crash=on_crash)
    made.service.starting = True
    return stack.enter_context(made)


class _Reporter:
    """Progress for people (one line that changes) or for programs (one JSON object per new step)."""

    def __init__(self, show: object, *, as_json: bool) -> None:
        self._show = show
        self._as_json = as_json
        self._last = ""
        self._lock = threading.Lock()

    def __call__(self, what: str, fraction: float) -> None:
        if not self._as_json:
            if callable(self._show):
                self._show(what, fraction)
            return
        with self._lock:
            if what == self._last:
                return
            self._last = what
            click.echo(msgspec.json.encode({"progress": what, "fraction": round(fraction, 3)}).decode())


def _save(outcome: Outcome, save_plan: str | None, save_profile: str | None, plot: Path | None) -> None:
    if save_plan:
        outcome.deployment.plan.save(save_plan)
    if save_profile and outcome.profile is not None:
        created = Created(at=datetime.now(UTC).isoformat(timespec="seconds"), by="defer serve")
        msgspec.structs.replace(outcome.profile, created=created).save(save_profile)
    if plot is not None:
        write_plot(outcome.deployment.plan, plot)


def _say_ready(
    address: Address,
    outcome: Outcome | None,
    back: tuple[Back, ...],
    http: Gateway | None,
    metrics: Address | None,
    engines: tuple[EngineNote, ...],
    *,
    as_json: bool,
    more: Mapping[str, object],
) -> None:
    made = outcome.deployment if outcome else None
    if as_json:
        ready: dict[str, object] = {"ready": str(address), **more}
        if http is not None:
            ready |= told(http)
        if metrics is not None:
            ready["metrics"] = f"http://{metrics}/metrics"
        if back:
            ready["restored"] = [each.info.name for each in back if each.info.state == "ready"]
        if outcome is not None and made is not None:
            ready |= {
                "model": made.model,
                "epoch": made.epoch,
                "stages": len(made.plan.stages),
                "sent_bytes": made.sent_bytes,
                "canary_s": outcome.canary_s,
                "seconds": outcome.seconds,
            }
        if engines:
            ready["engine_notes"] = engines
        click.echo(msgspec.json.encode(ready).decode())
        return
    also = "".join(f", {protocol} on {at}" for protocol, at in told(http).items()) if http is not None else ""
    also += f", metrics on {metrics}" if metrics is not None else ""
    if outcome is None or made is None:
        for each in back:
            click.echo(each.told())
        for line in engine_lines(engines):
            click.echo(line)
        what = summary(back) if back else "no model yet"
        click.echo(f"ready: {what}, listening on {address}{also}")
        return
    from defer.draw_text import plan_text

    click.echo(plan_text(made.plan))
    for line in engine_lines(engines):
        click.echo(line)
    devices = len({stage.device for _, leg in made.plan.legs for stage in leg.stages})
    click.echo(
        f"ready: model {made.model} on {devices} device{'s' if devices > 1 else ''}, listening on {address}{also} "
        f"(first request {units.show_duration(outcome.canary_s)})"
    )
