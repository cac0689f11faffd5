"""Pages of the reference that the code itself writes: commands, keys of cluster.toml, errors.

A page says where by a comment, `<!-- generated: NAME -->`; `filled` puts the text there. Pure but for importing the
product, and without Sphinx, so that tests look at the same text as readers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import click

PLACE = re.compile(r"<!-- generated: ([a-z]+) -->")


def filled(text: str) -> str:
    """`text` with every generated part in its place."""
    return PLACE.sub(lambda found: PARTS[found[1]](), text)


def commands() -> str:
    """Every command of `defer` as its own `--help` describes it."""
    from defer.cli import group

    return "\n".join(_command(group, click.Context(group, info_name="defer", **group.context_settings), 2))


def _command(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```text\n{usage}\n```\n"
    yield _prose(command.help or command.short_help or "") + "\n"
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [record for each in options if (record := each.get_help_record(context))]
    if records:
        yield "| option | meaning |\n|---|---|"
        for names, meaning in records:
            yield f"| {_cell(names, code=True)} | {_cell(meaning)} |"
        yield ""
    if command.epilog:
        lines = [line.strip() for line in command.epilog.replace("\b", "").splitlines()]
        shown = [line for line in lines if line and line != "Examples:"]
        kind = "bash" if all(line.startswith("defer ") for line in shown) else "text"
        yield f"```{kind}\n" + "\n".join(shown) + "\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                own = click.Context(inner, info_name=name, parent=context, **inner.context_settings)
                yield from _command(inner, own, min(level + 1, 4))


def _prose(text: str) -> str:
    """A help text as Markdown: what click leaves unwrapped, marked by a backspace, stays as it is laid out."""
    paragraphs = inspect.cleandoc(text).replace("\f", "").split("\n\n")
    return "\n\n".join(
        "```text\n" + part.removeprefix("\b\n") + "\n```" if part.startswith("\b") else _escaped(part)
        for part in paragraphs
    )


def _escaped(text: str) -> str:
    """Text outside of code spans without Markdown's meaning of `<`, `*` and `_`."""
    return "".join(
        part if part.startswith("`") else re.sub(r"([<*_\[\]])", r"\\\1", part)
        for part in re.split(r"(`[^`]*`)", text)
    )


def _cell(text: str, *, code: bool = False) -> str:
    plain = " ".join(text.split())
    return (f"`{plain}`" if code and "`" not in plain else _escaped(plain)).replace("|", "\\|")


def configuration() -> str:
    """Every table and key of cluster.toml: type and default from the schema, meaning from the types' own words."""
    from defer.documents import cluster
    from defer.documents.schema import schema

    made = schema("cluster")
    shown: list[str] = []
    for title, struct in (
        ("[dispatcher]", cluster.Dispatcher),
        ("[network]", cluster.Network),
        ("[[device]]", cluster.Device),
        ("[[link]]", cluster.Link),
    ):
        own = made["$defs"][struct.__name__]
        said = _attributes(struct)
        words = {
            key: said.get(field, "")
            for field, key in zip(struct.__struct_fields__, struct.__struct_encode_fields__, strict=True)
        }
        shown.append(f"## `{title}`\n\n{_escaped(_first_line(struct))}\n")
        shown.append("| key | value | default | meaning |\n|---|---|---|---|")
        for key, about in own["properties"].items():
            needed = key in own.get("required", ())
            default = "(needed)" if needed else _default(about.get("default"))
            shown.append(f"| `{key}` | {_cell(_kind(about))} | {default} | {_cell(words[key])} |")
        shown.append("")
    return "\n".join(shown)


def _default(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    return f"`{shown}`"


def _kind(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(_kind(each) for each in about["anyOf"] if each.get("type") != "null")
    if "enum" in about:
        return ", ".join(f"`{each}`" for each in about["enum"])
    if "examples" in about:
        return f"text such as `{about['examples'][0]}`"
    plain = {"string": "text", "boolean": "`true`, `false`", "number": "number", "integer": "integer"}
    if about.get("type") == "array":
        items = about.get("items") or about.get("prefixItems", [{}])[0]
        return f"list of {_kind(items) or 'values'}"
    if about.get("type") == "object":
        return "table"
    return plain.get(about.get("type", ""), "")


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")


def _attributes(kind: type) -> dict[str, str]:
    """What a Google docstring says of each attribute."""
    found: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start is not None:
            name = start[1]
            found[name] = start[2]
        elif name and line.startswith("        "):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def errors() -> str:
    """Every error by its code: class, exit code, HTTP status, meaning."""
    from defer import errors as module
    from defer.outcomes import OUTCOMES

    classes = {
        each.code: each
        for each in reversed(list(vars(module).values()))
        if inspect.isclass(each) and issubclass(each, module.DeferError) and each is not module.DeferError
    }
    shown = ["| code | in Python | exit code | HTTP | when |\n|---|---|---|---|---|"]
    for code, outcome in OUTCOMES.items():
        kind = classes[code]
        numbers = f"{outcome.exit_code} | {outcome.http_status}"
        shown.append(f"| `{code}` | `{kind.__name__}` | {numbers} | {_cell(_first_line(kind))} |")
    return "\n".join(shown)


PARTS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "configuration": configuration,
    "errors": errors,
}
"""What can be generated, by the name that pages call it."""
