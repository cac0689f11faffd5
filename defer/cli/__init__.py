"""The command line. Verbs are loaded when used, so `defer infer` runs without the planner's packages.

Every verb's module has a click command named `command`. What goes wrong in any of them ends here: one line
that says what, one that says what to do, and the exit code of the table in `defer.errors`; with `--json` the
same as one JSON object, also on standard error, so that standard output holds a result or nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click
from click.shell_completion import CompletionItem

from defer.cli import completion
from defer.cli.output import examples, report
from defer.cli.stopping import ending_in_order
from defer.errors import Cancelled, DeferError, MissingExtra, UsageError
from defer.translating import translate

VERBS: Final[dict[str, tuple[str, str]]] = {
    "analyze": (
        "defer.cli.analyze:command",
        "Show a model's blocks: FLOPs, weights, and bytes at each boundary.",
    ),
    "partition": ("defer.cli.partition:command", "Split a model into ONNX files; needs no cluster."),
    "init": ("defer.cli.init:command", "Write a cluster.toml from the agents that answer."),
    "discover": ("defer.cli.discover:command", "List agents and dispatchers that announce themselves."),
    "plan": ("defer.cli.plan:command", "Decide which device runs which blocks."),
    "replan": ("defer.cli.replan:command", "Decide whether a running plan should give way to a better one."),
    "jobs": ("defer.cli.jobs:command", "Plan several models on one cluster, each with its rate."),
    "models": ("defer.cli.models:command", "List or build the reference networks."),
    "schema": ("defer.cli.schema:command", "Print the JSON Schema of a document."),
    "completion": ("defer.cli.completion:command", "Print what makes a shell complete defer's commands."),
    "doctor": ("defer.cli.doctor:command", "Check this installation, and say what is missing."),
    "agent": ("defer.cli.agent:command", "Run an agent on this device."),
    "keys": ("defer.cli.keys:command", "Make, list, authorise, rotate and revoke keys."),
    "profile": ("defer.cli.profile:command", "Measure a model's blocks and the links on the agents."),
    "serve": (
        "defer.cli.serve:command",
        "Run the dispatcher; with a model and a cluster, deploy and serve it.",
    ),
    "gateway": (
        "defer.cli.gateway:command",
        "Serve a dispatcher's models by the Open Inference Protocol v2.",
    ),
    "deploy": ("defer.cli.deploy:command", "Deploy a model through a running dispatcher."),
    "rollout": (
        "defer.cli.rollout:command",
        "Try a new version on a share of the requests, promote it, roll it back.",
    ),
    "undeploy": ("defer.cli.undeploy:command", "Take a deployment down."),
    "status": ("defer.cli.status:command", "Show the dispatcher's deployments, agents and requests."),
    "top": ("defer.cli.top:command", "Watch stages, queues, rates and events in the terminal."),
    "events": ("defer.cli.events:command", "Show what happened in a dispatcher, and what happens."),
    "infer": ("defer.cli.infer:command", "Send inputs from .npy or .npz files, and save the outputs."),
    "bench": (
        "defer.cli.bench:command",
        "Measure a served model: rate, latencies, each stage's time and energy.",
    ),
    "trace": (
        "defer.cli.trace:command",
        "Trace requests hop by hop: a chart, a drawing, a file for Perfetto.",
    ),
    "demo": (
        "defer.cli.demo:command",
        "Four agents on this machine, one model, measured against one device.",
    ),
    "testbed": (
        "defer.cli.testbed:command",
        "Emulate an edge cluster on this machine: devices, shares, links.",
    ),
}
"""Every verb: where its command is, and its line in `defer --help`."""

EXTENSIBLE: Final = frozenset(("plan", "replan", "jobs", "profile", "serve", "deploy", "doctor"))
"""Verbs that know engines and codecs by name, also those of other packages; an agent looks for them itself."""

NOISY: Final = ("onnx", "onnx_ir", "onnxscript")
"""Libraries whose log is for their own developers; what matters of it comes as an error of ours."""

HINTS: Final = {"wrong-input": "`defer infer --random` sends inputs as the model takes them"}
"""What somebody at a command line may do about an error whose message says the rest."""

BROKEN_PIPE: Final = 128 + signal.SIGPIPE
"""Exit code when the reader of standard output went away, as a shell reports it."""


class VerbGroup(click.Group):
    """A group that imports a verb when it is called, and turns every error into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """All verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb's command, or one that says which extra it needs."""
        if cmd_name not in VERBS:
            return None
        target, summary = VERBS[cmd_name]
        module, _, attribute = target.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except ImportError as exc:
            return _stand_in(cmd_name, summary, translate(exc))
        if not isinstance(found, click.Command):
            raise TypeError(f"{target} is not a click command")
        if completion.completing():
            completion.teach(cmd_name, found)
        elif cmd_name in EXTENSIBLE:
            from node_agent import plugins  # NumPy comes with it

            plugins.load()
        return found

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs from the table: none is imported for it."""
        if incomplete.startswith("-"):
            return super().shell_complete(ctx, incomplete)
        return [
            CompletionItem(name, help=line)
            for name, (_, line) in VERBS.items()
            if name.startswith(incomplete)
        ]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of verbs from the table: no verb is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a verb that does not exist."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            close = difflib.get_close_matches(args[0], VERBS, 1)
            raise UsageError(
                f"there is no command {args[0]!r}" + (f", did you mean {close[0]!r}?" if close else ""),
                hint="`defer --help` lists the commands",
            )
        return super().resolve_command(ctx, args)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "defer",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs the command line; in standalone mode ends the process with the exit code of what happened."""
        words = list(sys.argv[1:] if args is None else args)
        _open_streams()
        if not _debugging(words):
            for library in NOISY:
                logging.getLogger(library).setLevel(logging.CRITICAL)
        call = super().main
        if not standalone_mode:
            return call(words, prog_name, complete_var, standalone_mode=False, **extra)
        with ending_in_order(last=args is None) as ending:
            try:
                code = call(words, prog_name, complete_var, standalone_mode=False, **extra)
                sys.stdout.flush()
            except (BrokenPipeError, click.exceptions.Exit) as exc:
                sys.exit(_quiet_end(exc))
            except BaseException as exc:
                if ending.number:  # whatever went wrong on the way out: the terminal may be gone
                    _forget_output()
                    sys.exit(128 + ending.number)
                if isinstance(exc, SystemExit | GeneratorExit):
                    raise
                _fail(exc, words)
        sys.exit(code if isinstance(code, int) else 0)


def _debugging(words: Sequence[str]) -> bool:
    return "--debug" in words or os.environ.get("DEFER_DEBUG", "") not in ("", "0")


def _open_streams() -> None:
    """Standard streams that the caller has closed lead nowhere; else the next file or socket would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        with contextlib.suppress(OSError):
            os.fstat(number)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w"))


def _stand_in(name: str, summary: str, error: DeferError) -> click.Command:
    """A verb whose module cannot be imported: it has help, and any use of it says what to install."""

    def fail(**_: Any) -> NoReturn:
        raise error

    needs = f"Not available here: {error.message}. {error.hint}"
    return click.Command(
        name,
        help=f"{summary}\n\n{needs}",
        callback=fail,
        params=[click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
    )


def _quiet_end(exc: BaseException) -> int:
    if isinstance(exc, click.exceptions.Exit):
        return exc.exit_code
    _forget_output()
    return BROKEN_PIPE


def _forget_output() -> None:
    """Nobody reads on: keep the interpreter from failing once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a file at all, in a test
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(exc: BaseException, words: Sequence[str]) -> NoReturn:
    """Reports an error and ends the process."""
    error = _from_click(exc)
    error.hint = error.hint or error.usual_hint or HINTS.get(error.code, "")
    if error.code == "usage" and not error.hint:
        verb = f"defer {words[0]}" if words and words[0] in VERBS else "defer"
        error.hint = f"`{verb} --help` shows how it is used"
    if _debugging(words) and not isinstance(exc, click.ClickException | KeyboardInterrupt | click.Abort):
        import traceback

        traceback.print_exception(exc, file=sys.stderr)
    with contextlib.suppress(OSError):  # the terminal was closed, and the code still tells
        report(error, as_json="--json" in words)
    sys.exit(error.exit_code)


def _from_click(exc: BaseException) -> DeferError:
    if isinstance(exc, click.Abort):
        return Cancelled("interrupted")
    if isinstance(exc, click.FileError):
        return translate(OSError(exc.message))
    if isinstance(exc, click.exceptions.NoArgsIsHelpError) and exc.ctx is not None:
        click.echo(exc.ctx.get_help(), err=True)
        return UsageError(f"which command of `{exc.ctx.command_path}`?", hint="they are listed above")
    if isinstance(exc, click.UsageError):
        # Without a context (an option lacks its value) the verb that is called says more than the whole program.
        hint = f"`{exc.ctx.command_path} --help` shows how it is used" if exc.ctx else ""
        return UsageError(exc.format_message().rstrip("."), hint=hint)
    if isinstance(exc, click.ClickException):
        return UsageError(exc.format_message())
    return translate(exc)


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import defer

        click.echo(f"defer {defer.__version__}")
        ctx.exit()


@click.command(
    cls=VerbGroup,
    name="defer",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "defer demo",
        "defer models build resnet50 -o resnet50.onnx",
        "defer analyze resnet50.onnx",
        "defer plan resnet50.onnx --cluster cluster.toml --plot plan.svg",
        "defer serve --model resnet50.onnx --cluster cluster.toml",
    ),
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version and leave.",
)
def group() -> None:
    """Split an ONNX model over edge boxes, and serve it through a pipeline of agents.

    Each command has --json for programs and --debug for a traceback. Exit codes follow sysexits.h.
    """


def main() -> None:
    """The console command `defer`."""
    group.main()


__all__ = ["VERBS", "MissingExtra", "VerbGroup", "group", "main"]
