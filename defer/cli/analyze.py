"""`defer analyze`: what a model is made of, and where it is narrow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from defer import units
from defer.cli.chains import Shapes, analyze, blocks_option, input_option
from defer.cli.output import common_options, console, examples, note, table
from defer.documents.base import encode
from defer.documents.blocks import BlocksDocument

if TYPE_CHECKING:
    from partitioner import BlockChain

STRETCH: Final = 8
"""A boundary is marked when it is the narrowest within one part in so many of the model, to either side."""

BAR: Final = 18
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARK_WIDTH: Final = 72


@click.command(
    epilog=examples(
        "defer analyze resnet50.onnx",
        "defer analyze bert.onnx --input input_ids=1,128 --input attention_mask=1,128",
        "defer analyze resnet50.onnx --blocks 12 -o blocks.json",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@input_option
@blocks_option()
@click.option("-o", "--output", metavar="FILE", help="Write the blocks as a document, blocks.json.")
@click.option("--force", is_flag=True, help="Overwrite FILE even if defer did not write it.")
@common_options
def command(model: Path, inputs: Shapes, blocks: int, output: str | None, force: bool, as_json: bool) -> None:
    """Show the blocks of an ONNX MODEL: FLOPs, weights, and the bytes alive at each boundary.

    A boundary marked ◆ is the narrowest of its part of the model: a good place to cut.
    """
    import partitioner

    whole = analyze(model, inputs, as_json=as_json)
    chain = whole if len(whole.blocks) <= blocks else partitioner.coarsen(whole, blocks)
    document = BlocksDocument.from_chain(chain)
    if output:
        document.save(output, force=force)
    if as_json:
        click.echo(encode(document).decode(), nl=False)
        return
    if output == "-":
        return
    _show(whole, chain)
    if output:
        note(f"wrote {output}")


def _show(whole: BlockChain, chain: BlockChain) -> None:
    out = console()
    sizes = [boundary.nbytes for boundary in chain.boundaries]
    narrow = narrow_boundaries(sizes)
    longest = max(sizes)
    shown = table(
        "block",
        "name",
        "ops",
        "FLOPs",
        "weights",
        "peak",
        "after",
        "",
        right=("block", "ops", "FLOPs", "weights", "peak", "after"),
    )
    shown.add_row("", "(inputs)", "", "", "", "", units.show_size(sizes[0]), _bar(sizes[0], longest))
    for number, block in enumerate(chain.blocks):
        after = number + 1
        shown.add_row(
            str(number),
            block.name,
            str(block.stop - block.start),
            units.show_flops(block.flops),
            units.show_size(block.weight_bytes),
            units.show_size(block.activation_bytes),
            units.show_size(sizes[after]),
            _bar(sizes[after], longest) + (" ◆" if after in narrow else ""),
        )
    free = ", ".join(f"{name} = {value}" for name, value in chain.bindings.items())
    flops = sum(block.flops for block in chain.blocks)
    weights = units.show_size(chain.weight_bytes)
    out.print(
        f"{chain.model}: {units.show_count(len(whole.blocks), 'op')}, {units.show_flops(flops)}, {weights} of weights"
    )
    if free:
        out.print(f"costed with {free}")
    out.print(shown)
    widest = max(boundary.nbytes for boundary in whole.boundaries)
    out.print(f"bytes alive along the model, widest {units.show_size(widest)}:")
    out.print("  " + sparkline([boundary.nbytes for boundary in whole.boundaries]))


def narrow_boundaries(sizes: list[int]) -> set[int]:
    """Indices of the boundaries inside the model that carry least in their own stretch of it.

    Not simply the least of all: those are the last ones, behind the pooling, where a cut gains nothing.
    """
    reach = max(1, (len(sizes) - 1) // STRETCH)
    found = set()
    for i in range(1, len(sizes) - 1):
        around = sizes[max(0, i - reach) : i + reach + 1]
        if sizes[i] == min(around) < max(around) and sizes[i] < sizes[i - 1]:
            found.add(i)
    return found


def sparkline(values: list[int], width: int = SPARK_WIDTH) -> str:
    """One character per value, eight heights; more values than `width` are grouped, each group by its least.

    The least, because a place to cut is what one looks for, and it must not vanish in an average.
    """
    count = min(width, len(values))
    edges = [len(values) * i // count for i in range(count + 1)]
    groups = [min(values[edges[i] : edges[i + 1]]) for i in range(count)]
    highest = max(groups)
    if highest == 0:
        return SPARKS[0] * count
    return "".join(SPARKS[min(len(SPARKS) - 1, value * len(SPARKS) // (highest + 1))] for value in groups)


def _bar(value: int, longest: int) -> str:
    return "█" * round(BAR * value / longest) if longest else ""
