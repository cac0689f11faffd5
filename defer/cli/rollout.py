"""`defer rollout`: which version of a model requests take."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal

import click
import msgspec

from defer import api
from defer.admin import Admin
from defer.cli.dispatcher import address_option
from defer.cli.output import common_options, examples, note, print_json
from defer.cli.values import GIVEN, SHARE
from defer.dispatcher.rollout import alone, show_share
from defer.errors import UnknownModel

ANSWER_S = 30.0

USUAL_SHARE = "10%"


@click.group(
    name="rollout",
    help="Try a new version of a model on a share of its requests, promote it, or roll it back."
    "\n\nDeploy it beside the old one first: `defer deploy MODEL.onnx --name NAME --version 2`."
    " Requests that name a version (NAME@2) always take it.",
)
def command() -> None:
    """The group; its verbs do the work."""


@command.command(
    name="show",
    help="Show which version requests for NAME take; without NAME, for every model.\n\n"
    + examples("defer rollout show", "defer rollout show resnet", "defer rollout show resnet --json"),
)
@click.argument("name", required=False, type=GIVEN)
@address_option
@common_options
def show_command(name: str | None, address: str, as_json: bool) -> None:
    """Shows a split, or all."""
    if name is None:
        _show_all(address, as_json=as_json)
        return
    _roll(address, name, "show", as_json=as_json)


@command.command(
    name="canary",
    help="Let a share of the requests for NAME take VERSION.\n\n"
    + examples("defer rollout canary resnet 2", "defer rollout canary resnet 2 --share 50%"),
)
@click.argument("name", type=GIVEN)
@click.argument("version", type=GIVEN)
@click.option(
    "--share",
    type=SHARE,
    metavar="10%",
    default=USUAL_SHARE,
    show_default=True,
    help="Part of the requests: 10% or 0.1.",
)
@address_option
@common_options
def canary_command(name: str, version: str, share: float, address: str, as_json: bool) -> None:
    """Begins or changes a canary."""
    _roll(address, name, "canary", version, share, as_json=as_json)


@command.command(
    name="promote",
    help="Let all requests for NAME take VERSION: by default the one that is tried. The one before stays loaded.\n\n"
    + examples("defer rollout promote resnet", "defer rollout promote resnet 2"),
)
@click.argument("name", type=GIVEN)
@click.argument("version", required=False, type=GIVEN)
@address_option
@common_options
def promote_command(name: str, version: str | None, address: str, as_json: bool) -> None:
    """Makes a version the stable one."""
    _roll(address, name, "promote", version or "", as_json=as_json)


@command.command(
    name="rollback",
    help="End the canary of NAME; where none runs, go back to the version before.\n\n"
    + examples("defer rollout rollback resnet"),
)
@click.argument("name", type=GIVEN)
@address_option
@common_options
def rollback_command(name: str, address: str, as_json: bool) -> None:
    """Undoes a canary or a promotion."""
    _roll(address, name, "rollback", as_json=as_json)


def _roll(
    address: str,
    name: str,
    action: Literal["show", "canary", "promote", "rollback"],
    version: str = "",
    share: float = 0.0,
    *,
    as_json: bool,
) -> None:
    with Admin(address) as admin:
        told = admin.ask(api.Roll(0, name, action, version, share), api.Rolled, timeout=ANSWER_S)
    if as_json:
        print_json(_plain(told))
        return
    _show(told)
    if action == "promote" and told.before:
        note(
            f"`defer undeploy {alone(told.before)}` frees what it takes, once nothing leads back",
            as_json=as_json,
        )


def _show_all(address: str, *, as_json: bool) -> None:
    splits = []
    with Admin(address) as admin:
        served = admin.ask(api.ListModels(0), api.Models, timeout=ANSWER_S).models
        for name in sorted({each.name.partition("@")[0] for each in served}):
            with suppress(UnknownModel):  # it has gone meanwhile
                splits.append(admin.ask(api.Roll(0, name, "show"), api.Rolled, timeout=ANSWER_S))
    if as_json:
        print_json({"models": [_plain(each) for each in splits]})
        return
    for each in splits:
        _show(each)
    if not splits:
        note("no model is served")


def _plain(told: api.Rolled) -> dict[str, Any]:
    return {key: value for key, value in msgspec.to_builtins(told).items() if key not in ("id", "t")}


def _show(told: api.Rolled) -> None:
    for deployment in told.versions:
        if deployment == told.canary:
            what = show_share(told.share)
        elif deployment == told.stable:
            what = show_share(1 - told.share if told.canary else 1)
        else:
            what = "before" if deployment == told.before else "loaded"
        click.echo(f"{deployment:<24} {what}")
