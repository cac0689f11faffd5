"""`defer completion`: the script that has a shell complete defer's command line, and what that knows beyond click.

Verbs are completed from the table without importing any. What an option of a verb takes is looked up in the tables here
by the option's name, so that verbs do not know of it: devices from the cluster file that stands on the line, models from
the dispatcher that answers at once, reference networks and engines by name, files where text names a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from defer.cli.output import common_options, examples, print_json

if TYPE_CHECKING:
    from defer.documents.cluster import Cluster

SHELLS: Final[Mapping[str, type[ShellComplete]]] = {
    "bash": BashComplete,
    "zsh": ZshComplete,
    "fish": FishComplete,
}

VARIABLE: Final = "_DEFER_COMPLETE"
"""Set by the script when it asks for completions."""

ASK_S: Final = 0.5
"""Longest that somebody who pressed Tab waits for a dispatcher."""

Complete = Callable[[click.Context, str], Iterable[str]]


@click.command(
    epilog=examples(
        'eval "$(defer completion bash)"                                  # in ~/.bashrc',
        'eval "$(defer completion zsh)"                                   # in ~/.zshrc',
        "defer completion fish > ~/.config/fish/completions/defer.fish",
    )
)
@click.argument("shell", type=click.Choice(list(SHELLS)))
@common_options
def command(shell: str, as_json: bool) -> None:
    """Print the script that has a shell complete defer's commands, options, devices, models and files.

    bash 4.4 or newer, zsh or fish.
    """
    script = SHELLS[shell](click.Command("defer"), {}, "defer", VARIABLE)
    # Not through `source()`: for bash it would run a bash to ask its version.
    text = script.source_template % script.source_vars()
    if as_json:
        print_json({"shell": shell, "script": text})
    else:
        click.echo(text)


def completing() -> bool:
    """Whether this process was started to complete a line."""
    return bool(os.environ.get(VARIABLE))


def teach(verb: str, command: click.Command) -> None:
    """Has a verb's options complete what the tables know; does nothing else to them."""
    commands = command.commands.values() if isinstance(command, click.Group) else [command]
    for each in commands:
        for param in each.params:
            found = _for(verb if each is command else f"{verb} {each.name}", param)
            if found is not None:
                # Instead of the method: there is no other way to give one to an option that exists.
                setattr(param, "shell_complete", found)  # noqa: B010


def _for(path: str, param: click.Parameter) -> Callable[[click.Context, str], list[CompletionItem]] | None:
    if (complete := BY_PLACE.get((path, param.name or ""))) or (complete := BY_NAME.get(param.name or "")):
        return _items(complete)
    told = param.metavar or ""
    if isinstance(param.type, click.types.StringParamType) and told.partition("|")[0].startswith(
        ("FILE", "PLAN")
    ):
        return lambda _ctx, incomplete: [CompletionItem(incomplete, type="file")]
    return None


def _items(complete: Complete) -> Callable[[click.Context, str], list[CompletionItem]]:
    def items(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        try:
            found = list(complete(ctx, incomplete))
        except Exception:  # whatever it is, a traceback on the line that somebody is typing is no help
            return []
        return [CompletionItem(word) for word in found if word.startswith(incomplete)]

    return items


def _cluster(ctx: click.Context) -> Cluster:
    from defer.cli.dispatcher import CLUSTER_FILE
    from defer.documents.cluster import Cluster

    given = ctx.params.get("cluster_file") or ctx.params.get("cluster_path") or CLUSTER_FILE
    return Cluster.load(Path(str(given)).expanduser())


def _devices(ctx: click.Context, _: str) -> Iterable[str]:
    return [device.name for device in _cluster(ctx).agents]


def _placed(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """`0:4=DEV`: devices behind the `=`, where bash shows only what follows it."""
    head, equals, _ = incomplete.rpartition("=")
    return [f"{head}{equals}{name}" for name in _devices(ctx, incomplete)]


def _placing(ctx: click.Context, incomplete: str) -> Iterable[str]:
    """`DEV=0:12,DEV=12:`: a device after each comma."""
    head, comma, _ = incomplete.rpartition(",")
    return [f"{head}{comma}{name}=" for name in _devices(ctx, incomplete)]


def _served(ctx: click.Context, _: str) -> Iterable[str]:
    from defer import api
    from defer.access import Choice, using
    from defer.admin import Admin
    from defer.cli.dispatcher import whom_to_ask

    choice = Choice(ctx.params.get("keys"), bool(ctx.params.get("insecure")))
    asked = whom_to_ask(ctx.params.get("address"), ctx.params.get("ask_cluster"))
    with using(choice), Admin(asked.address, connect_s=ASK_S) as admin:
        return [each.name for each in admin.ask(api.ListModels(0), api.Models, timeout=ASK_S).models]


def _zoo(_: click.Context, __: str) -> Iterable[str]:
    import models

    return models.NAMES


def _engines(_: click.Context, __: str) -> Iterable[str]:
    from node_agent.engines import names

    return ("auto", *names())


def _documents(_: click.Context, __: str) -> Iterable[str]:
    from defer.documents.schema import DOCUMENTS

    return DOCUMENTS


def _codecs(_: click.Context, __: str) -> Iterable[str]:
    from node_agent.codecs import CODECS

    return ("auto", *CODECS)


BY_NAME: Final[Mapping[str, Complete]] = {
    "exclude": _devices,
    "pin": _placed,
    "forbid": _placed,
    "place": _placing,
    "engine": _engines,
    "codec": _codecs,
    "model_name": _served,
}
"""Whatever the verb."""

BY_PLACE: Final[Mapping[tuple[str, str], Complete]] = {
    ("undeploy", "name"): _served,
    ("rollout show", "name"): _served,
    ("rollout canary", "name"): _served,
    ("rollout promote", "name"): _served,
    ("rollout rollback", "name"): _served,
    ("models build", "name"): _zoo,
    ("demo", "model"): _zoo,
    ("schema", "name"): _documents,
}
