"""`defer schema`: the JSON Schema of a document."""

from __future__ import annotations

import click

from defer.cli.output import common_options, examples, print_json
from defer.documents.schema import DOCUMENTS, schema


@click.command(epilog=examples("defer schema cluster", "defer schema plan > plan.schema.json"))
@click.argument("name", metavar="[" + "|".join(DOCUMENTS) + "]")
@common_options
def command(name: str, as_json: bool) -> None:  # noqa: ARG001 - the schema is JSON either way
    """Print the JSON Schema (draft 2020-12) of a document.

    cluster.toml is TOML; its schema describes the same keys and values.
    """
    print_json(schema(name))
