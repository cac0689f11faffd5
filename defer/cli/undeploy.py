"""`defer undeploy`: a model is served no more."""

from __future__ import annotations

import click

from defer import api
from defer.admin import Admin
from defer.cli.dispatcher import address_option
from defer.cli.output import common_options, examples, note, print_json
from defer.cli.values import GIVEN
from node_agent.finite import Finite
from node_agent.messages import Done


@click.command(
    epilog=examples(
        "defer undeploy resnet50",
        "defer undeploy resnet50 --drain 0",
        "defer undeploy resnet50@2",
        "defer undeploy resnet50@",
    )
)
@click.argument("name", type=GIVEN)
@click.option(
    "--drain",
    default=30.0,
    show_default=True,
    type=Finite(0, 3600),
    help="Seconds that requests in flight have to end.",
)
@address_option
@common_options
def command(name: str, drain: float, address: str, as_json: bool) -> None:
    """Take the deployment NAME down and free its agents; requests in flight end first.

    Of a model with versions, NAME means all of them, NAME@VERSION one, and NAME@ the one that was deployed without a
    version: it goes alone, once requests for NAME take another.
    """
    with Admin(address) as admin:
        admin.ask(api.Undeploy(0, name, drain), Done, timeout=drain + 60)
    if as_json:
        print_json({"undeployed": name})
    note(f"{name} is no longer served", as_json=as_json)
