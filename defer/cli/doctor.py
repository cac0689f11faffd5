"""`defer doctor`: what this installation can do, and what to install for the rest."""

from __future__ import annotations

import click

from defer.cli.output import common_options, console, examples, print_json, table
from defer.errors import Internal
from defer.health import Check, examine

_MARKS = {"good": "ok", "missing": "–", "bad": "BAD"}


@click.command(epilog=examples("defer doctor", "defer doctor --json"))
@common_options
def command(as_json: bool) -> None:
    """Check Python, packages, engines, memory, loopback and the store; say what is missing and how to get it.

    Ends with an error only when something is broken; what is merely not installed is no error.
    """
    checks = examine()
    broken = [check for check in checks if check.state == "bad"]
    if as_json:
        print_json({"ok": not broken, "checks": checks})
    else:
        shown = table("", "check", "found", "what to do")
        for check in checks:
            shown.add_row(_MARKS[check.state], check.name, check.found, check.hint)
        console().print(shown)
    if broken:
        raise Internal(_summary(broken), hint=broken[0].hint)


def _summary(broken: list[Check]) -> str:
    return "broken: " + ", ".join(check.name for check in broken)
