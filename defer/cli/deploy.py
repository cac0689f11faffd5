"""`defer deploy`: a model through a running dispatcher."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from defer import api, units
from defer.accuracy import Budget
from defer.admin import CONNECT_S, Admin
from defer.cli.chains import (
    Shapes,
    batch_options,
    budget_options,
    check_calibration,
    given_plan,
    input_option,
    replicas_option,
    sample_option,
    standby_option,
)
from defer.cli.dispatcher import address_option
from defer.cli.engines import EngineNote, engine_lines, engine_notes
from defer.cli.output import common_options, examples, print_json, progress
from defer.cli.values import GIVEN, SHARE, deployment_name
from defer.dispatcher.rollout import base_of
from defer.documents.base import decode, encode
from defer.documents.plan import Objective, Plan, PlanBatching
from defer.documents.profile import CostProfile
from defer.errors import Cancelled, DeferError, DispatcherUnreachable, UnknownModel, UsageError
from defer.upload import upload

STEP_S = 600.0
"""Longest that one step of a deployment may take without a word: an engine that is compiled says nothing."""

GIVE_UP_S = 5.0
"""How long the command waits, after Ctrl-C, for the dispatcher to say what becomes of the deployment."""


@click.command(
    epilog=examples(
        "defer deploy resnet50.onnx",
        "defer deploy bert.onnx --name text --input input_ids=1,128 --objective throughput",
        "defer deploy resnet50.onnx --objective throughput --replicas",
        "defer deploy resnet50.onnx --plan plan.json --dispatcher 192.168.1.2:7600",
        "defer deploy resnet50-new.onnx --name resnet50 --version 2 --canary 10%",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", type=GIVEN, help="Name to serve it under; the file's by default.")
@click.option(
    "--version", type=GIVEN, help="Deploy it as a version beside others of its name; see `defer rollout`."
)
@click.option(
    "--canary", type=SHARE, metavar="10%", help="Let this share of the requests take the version; 0.1 is 10%."
)
@click.option("--plan", "plan_file", metavar="FILE", type=GIVEN, help="Follow this plan.json.")
@click.option("--profile", "profile_file", metavar="FILE", type=GIVEN, help="Plan with this profile.json.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "throughput", "cost", "energy"]),
    help="What planning makes least: seconds of one request, seconds between results, money or joules. By default "
    "latency, and with --version what the stable version was deployed with.",
)
@replicas_option
@budget_options
@sample_option
@batch_options
@standby_option
@input_option
@address_option
@common_options
def command(
    model: Path,
    name: str | None,
    version: str | None,
    canary: float | None,
    plan_file: str | None,
    profile_file: str | None,
    objective: Objective | None,
    replicas: bool,
    max_error: Budget | None,
    calibration: Path | None,
    sample: float,
    batching: PlanBatching | None,
    standby: str,
    inputs: Shapes,
    address: str,
    as_json: bool,
) -> None:
    """Send MODEL to the dispatcher, which measures, plans, loads it on the agents and serves it.

    A model that is served under the same name, and version, is replaced without a gap.
    """
    if canary is not None and not version:
        raise UsageError("--canary needs --version", hint="the version that is tried has a name of its own")
    deployment = deployment_name(name, version, model)
    base = base_of(deployment)
    from defer.model_files import calibration_file, model_files

    check_calibration(calibration, max_error)
    if replicas:
        api.check_replicas(objective or ("" if version else "latency"), given=bool(plan_file))
    given = given_plan(plan_file, objective)
    plan = encode(given).decode() if given is not None else ""
    profile = encode(CostProfile.load(profile_file)).decode() if profile_file else ""
    with progress("deploy", as_json=as_json) as show, Admin(address) as admin:
        if canary is not None:
            _check_canary(admin, base, deployment)
        try:
            files = model_files(model, lambda done, total: show("reading the model", done / max(total, 1)))
            samples = calibration_file(calibration) if calibration is not None else {}
            sent = upload(
                admin, files | samples, lambda done, total: show("sending the model", done / max(total, 1))
            )
        except KeyboardInterrupt:
            raise Cancelled("interrupted: the model was not sent whole, and nothing is deployed") from None
        order = api.Deploy(
            0,
            deployment,
            tuple(files),
            plan,
            profile,
            objective or ("" if version else "latency"),
            inputs,
            str(max_error or ""),
            tuple(samples),
            sample,
            batching.sizes if batching is not None else (),
            batching.delay_s if batching is not None else 0.0,
            standby,
            replicas,
        )
        number = admin.send(order)
        try:
            made = admin.answer(
                number, api.Deployed, timeout=STEP_S, on_progress=lambda step: show(step.what, step.fraction)
            )
        except KeyboardInterrupt:
            show("giving up", 0.0)
            raise _given_up(admin, number, deployment) from None
        notes = _engines(admin, deployment)
        if canary is not None:
            roll = api.Roll(0, base, "canary", deployment, canary)
            admin.ask(roll, api.Rolled, timeout=STEP_S)
    if as_json:
        told = msgspec.to_builtins(made) | {
            "uploaded_bytes": sent,
            "plan": msgspec.json.decode(made.plan),
            "engine_notes": notes,
        }
        print_json({key: value for key, value in told.items() if key not in ("id", "t")})
        return
    from defer.draw_text import plan_text

    click.echo(plan_text(decode(Plan, made.plan.encode(), "the plan")))
    for line in engine_lines(notes):
        click.echo(line)
    click.echo(
        f"ready: model {made.model.name} after {units.show_duration(made.seconds)}, "
        f"{units.show_size(made.sent_bytes)} to agents (first request {units.show_duration(made.canary_s)})"
    )


def _check_canary(admin: Admin, name: str, deployment: str) -> None:
    """Refuse a canary that could not take a share, before anything is sent or loaded."""
    try:
        told = admin.ask(api.Roll(0, name, "show"), api.Rolled, timeout=STEP_S)
    except UnknownModel:
        told = None
    if told is None or told.stable not in told.versions:
        raise UsageError(
            f"nothing serves {name} yet, and a canary takes a share of the requests for what is served",
            hint="deploy it without --canary: requests for the first version take it at once"
            if told is None
            else f"promote a version of it first: `defer rollout promote {name} VERSION`",
        )
    if told.stable == deployment:
        raise UsageError(
            f"requests for {name} take {deployment} already",
            hint="deploy it without --canary to replace it, or with another --version beside it",
        )


def _given_up(admin: Admin, number: int, name: str) -> Cancelled:
    """Have the dispatcher give a deployment up; says what becomes of it."""
    before = "what is served goes on as before"
    try:
        made = admin.give_up(number, api.Deployed, timeout=GIVE_UP_S)
    except Cancelled:
        return Cancelled(f"interrupted: the deployment of {name} was given up, and {before}")
    except DispatcherUnreachable:
        hint = "`defer status` and `defer events` tell what it does"
        return Cancelled(
            f"interrupted: whether the dispatcher still deploys {name} it does not say", hint=hint
        )
    except DeferError as error:
        return Cancelled(f"interrupted: {name} is not deployed, for another reason: {error}")
    if made is None:
        return Cancelled(
            f"interrupted: the dispatcher gives up the deployment of {name} as soon as its step has ended, and {before}"
        )
    return Cancelled(
        f"interrupted too late: {name} is deployed and served", hint=f"`defer undeploy {name}` ends that"
    )


def _engines(admin: Admin, model: str) -> tuple[EngineNote, ...]:
    """Which engines a model's stages are not on. It is served: that nobody tells is no error any more."""
    try:
        status = admin.ask(api.GetStatus(0), api.ServerStatus, timeout=CONNECT_S)
    except DeferError:
        return ()
    return engine_notes(status.deployments, model)
