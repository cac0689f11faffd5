"""Values as people type them on a command line: names of models, shares of requests, and sizes of dimensions.

An option with nothing behind it (`--version "$UNSET"`) is a mistake, never an option that was left out.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from defer.dispatcher.rollout import check_name, versioned
from defer.errors import UsageError
from node_agent.quantities import is_name

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic only in newer releases of click
    _ParamType = click.ParamType

_SHARE: Final = re.compile(
    r"([0-9]{1,20}(?:\.[0-9]{0,20})?|\.[0-9]{1,20})([eE][+-]?[0-9]{1,2})?\s?(%?)", re.ASCII
)

_MOST_DIGITS: Final = 100
"""Of one dimension: Python reads thousands of them as no number at all. Sizes beyond reason are checked elsewhere."""


class Given(click.types.StringParamType):
    """Any text but none at all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text.

        Raises:
            UsageError: It is empty.
        """
        if value == "":
            raise UsageError(
                f"{_called(param)} is empty",
                hint="is the variable set that it came from? Without a value, leave it out altogether",
            )
        return super().convert(value, param, ctx)


class Share(_ParamType):
    """A part of a whole, `10%` or `0.1`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """The part, 0 to 1.

        Raises:
            UsageError: It is none.
        """
        if isinstance(value, float):  # a default
            return value
        try:
            return parse_share(value)
        except UsageError as error:
            error.message = f"{_called(param)}: {error.message}"
            raise


GIVEN: Final = Given()
SHARE: Final = Share()


def parse_share(text: str) -> float:
    """A part of the requests from `10%` or `0.1`.

    Raises:
        UsageError: Neither, or not between 0 and 1.
    """
    found = _SHARE.fullmatch(text.strip()[:64])
    value = Fraction(-1) if found is None else Fraction(found[1] + (found[2] or ""))
    if found is not None and found[3]:
        value /= 100
    if not 0 <= value <= 1:
        raise UsageError(
            f"{text!r:.80} is not a share of the requests", hint="write 10% or 0.1, from 0 to all of them"
        )
    return float(value)


def parse_size(text: str) -> int:
    """The size of a dimension; 0 where it is no positive whole number."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else 0


def deployment_name(
    name: str | None, version: str | None, model: Path, *, may_have_version: bool = False
) -> str:
    """What a deployment is called, from what was given or by the model's file.

    Args:
        name: As it was given.
        version: As it was given.
        model: The model's file.
        may_have_version: `name` may be `NAME@VERSION`.

    Raises:
        UsageError: So it cannot be called.
    """
    if may_have_version and name is not None:
        check_name(name)
        return name
    try:
        return versioned(name if name is not None else model.stem, version or "")
    except UsageError as error:
        if name is None and not is_name(model.stem):
            error.hint = f"give it another name than its file's with --name; {error.hint}"
        raise


def _called(param: click.Parameter | None) -> str:
    """The option's longest name, or the argument's."""
    if param is None:
        return "the value"
    if isinstance(param, click.Option):
        return max(param.opts, key=len)
    return (param.metavar or param.name or "").strip("[]").upper()
