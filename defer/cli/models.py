"""`defer models`: the reference networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from defer import units
from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.errors import OutputExists, UnknownModel
from defer.translating import translate


@click.group(epilog=examples("defer models list", "defer models build resnet50 -o resnet50.onnx"))
def command() -> None:
    """List or build the reference networks: real architectures with seeded weights, nothing downloaded."""


@command.command("list", epilog=examples("defer models list", "defer models list --json"))
@common_options
def list_models(as_json: bool) -> None:
    """List the reference networks with their sizes and shapes."""
    import models

    described = [models.describe(name) for name in models.NAMES]
    if as_json:
        print_json([_plain(each) for each in described])
        return
    shown = table("name", "kind", "parameters", "inputs", "outputs", "what it is", right=("parameters",))
    for each in described:
        shown.add_row(
            each.name,
            each.kind,
            f"{each.parameters:,}",
            _shapes(each.input_shapes),
            _shapes(each.output_shapes),
            each.summary,
        )
    console().print(shown)


@command.command(
    "build",
    epilog=examples(
        "defer models build resnet50 -o resnet50.onnx",
        "defer models build bert_base -o bert.onnx --external",
    ),
)
@click.argument("name")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="ONNX file to write.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the weights.")
@click.option("--external", is_flag=True, help="Keep the weights in a file of their own beside FILE.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if it is not an ONNX model.")
@common_options
def build_model(name: str, output: Path, seed: int, external: bool, force: bool, as_json: bool) -> None:
    """Build the reference network NAME and write it as ONNX."""
    import models

    if name not in models.NAMES:
        raise UnknownModel(f"there is no reference network {name!r}", hint="`defer models list` shows them")
    _check_target(output, force)
    with progress(f"building {name}", as_json=as_json) as step:
        step("weights", 0.2)
        try:
            written = models.save(name, output, seed=seed, external=external or None)
        except OSError as exc:
            error = translate(exc)
            error.where = str(output)
            raise error from exc
    size = sum(path.stat().st_size for path in {Path(written), *_beside(Path(written))} if path.is_file())
    if as_json:
        print_json({"model": name, "file": str(written), "bytes": size, "seed": seed})
    else:
        note(f"wrote {written}, {units.show_size(size)}")


def _check_target(output: Path, force: bool) -> None:
    """Refuses to overwrite a file that is clearly something else; an ONNX file starts with a small varint field."""
    if output.exists() and not output.is_file() and not output.is_dir():
        # Building writes beside the target and renames, which would put a file in the place of a device.
        raise OutputExists("is not a regular file", where=str(output), hint="choose another name")
    if force or not output.is_file() or output.stat().st_size == 0:
        return
    with output.open("rb") as file:
        head = file.read(1)
    if head not in (
        b"\x08",
        b"\x12",
        b"\x3a",
    ):  # ir_version, producer_name or graph come first in every writer
        raise OutputExists(
            "exists and is not an ONNX model", where=str(output), hint="choose another name, or --force"
        )


def _beside(path: Path) -> list[Path]:
    return [path.with_name(path.name + ".data"), path.with_suffix(".data")]


def _shapes(shapes: Any) -> str:
    items = shapes.items() if hasattr(shapes, "items") else shapes
    return ", ".join(f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, shape in items)


def _plain(described: Any) -> dict[str, Any]:
    return {name: getattr(described, name) for name in described.__dataclass_fields__}
