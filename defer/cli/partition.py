"""`defer partition`: a model as ONNX files that run one after the other."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from defer import units
from defer.cli.chains import Shapes, analyze, input_option, located
from defer.cli.output import common_options, console, examples, note, print_json, progress, table
from defer.documents.plan import Plan
from defer.errors import InvalidDocument, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from partitioner import BlockChain, Partition


@click.command(
    epilog=examples(
        "defer partition resnet50.onnx --parts 4 -o parts/",
        "defer partition resnet50.onnx --plan plan.json -o parts/",
        "defer partition resnet50.onnx --parts 2 --precision fp16 -o parts/",
        "defer partition resnet50.onnx --at 12,40 -o parts/",
        "defer partition resnet50.onnx --parts 2 --freeze --input input=1,3,224,224 -o parts/",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--parts", type=click.IntRange(min=1), metavar="K", help="K parts: least largest FLOPs, then least bytes."
)
@click.option("--plan", "plan_file", metavar="FILE", help="Cut where plan.json says.")
@click.option("--at", "at", metavar="12,40", help="Cut at these op positions (see `defer analyze --json`).")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory to write.",
)
@click.option(
    "--freeze", is_flag=True, help="Fix the shapes that --input gives; otherwise free dimensions stay free."
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"]),
    default="fp32",
    show_default=True,
    help="Write the partitions in this precision; the model's inputs and outputs keep their types.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE.npz",
    help="Requests that int8 and fp8 take their ranges from; made up without it.",
)
@input_option
@common_options
def command(
    model: Path,
    parts: int | None,
    plan_file: str | None,
    at: str | None,
    output: Path,
    freeze: bool,
    precision: str,
    calibration: Path | None,
    inputs: Shapes,
    as_json: bool,
) -> None:
    """Split MODEL into partition_00.onnx, partition_01.onnx, … and manifest.json in DIR.

    Each partition lists only the tensors that it reads and makes. To run them, keep a dict of tensors: start with the
    model's inputs, run the partitions in order, and add what each of them returns. Needs no cluster and no agent.
    """
    import partitioner

    if sum(each is not None for each in (parts, plan_file, at)) != 1:
        raise UsageError("give one of --parts, --plan and --at", hint="for example --parts 4")
    plan = Plan.load(plan_file) if plan_file else None
    if freeze and not inputs and plan is None:
        raise UsageError("--freeze needs the shapes", hint="add --input NAME=1,3,224,224")
    order = plan.order if plan is not None else ()
    chain = analyze(model, inputs, as_json=as_json, order=order)
    cuts = _cuts(chain, parts, plan, at)
    with progress(f"splitting {model.name}", as_json=as_json) as step:
        step(units.show_count(len(cuts) + 1, "part"), 0.3)
        try:
            frozen = _frozen(chain, inputs) if freeze else None
            partitions = partitioner.split(model, cuts, input_shapes=frozen, order=order)
            if precision != "fp32":
                step(f"rewriting in {precision}", 0.5)
                partitions = _rewritten(partitions, precision, model, chain, calibration)
            step("writing", 0.6)
            manifest = partitioner.write_directory(partitions, chain, output, precision=precision)
        except partitioner.PartitionerError as exc:
            raise located(exc, model) from exc
    if as_json:
        print_json(manifest)
        return
    _show(chain, cuts, manifest)
    note(f"wrote {output / 'manifest.json'}")


def _cuts(chain: BlockChain, parts: int | None, plan: Plan | None, at: str | None) -> tuple[int, ...]:
    import partitioner

    if plan is not None:
        if plan.digest != chain.digest:
            raise InvalidDocument(
                f"the plan is for another model: {plan.model!r} with digest {plan.digest[:12]}, not {chain.digest[:12]}",
                hint="plan again with this model",
            )
        return plan.cuts
    if at is not None:
        words = [word.strip() for word in at.split(",") if word.strip()]
        if not all(word.isdecimal() for word in words):
            raise UsageError(f"--at {at!r} is not a list of positions", hint="for example --at 12,40")
        return tuple(int(word) for word in words)
    assert parts is not None
    return partitioner.balance(chain, parts)


def _rewritten(
    partitions: tuple[Partition, ...],
    precision: str,
    model: Path,
    chain: BlockChain,
    calibration: Path | None,
) -> tuple[Partition, ...]:
    from defer.precision import ranges_for, rewritten

    wanted = (precision,) * len(partitions)
    with tempfile.TemporaryDirectory(prefix="defer-ranges-") as work:
        ranges = ranges_for(wanted, model, chain, Path(work), calibration)
    return rewritten(partitions, wanted, ranges, chain.outputs)


def _frozen(chain: BlockChain, inputs: Shapes) -> dict[str, tuple[int, ...]]:
    """Every input's shape with its free dimensions bound as the chain was costed."""
    shapes = {
        spec.name: tuple(dim if isinstance(dim, int) else chain.bindings[dim] for dim in spec.shape)
        for spec in chain.inputs
    }
    return {**shapes, **inputs}


def _show(chain: BlockChain, cuts: Sequence[int], manifest: dict[str, Any]) -> None:
    shown = table("file", "ops", "FLOPs", "weights", "reads", "makes", right=("ops", "FLOPs", "weights"))
    edges = [0, *cuts, chain.boundaries[-1].position]
    index = {boundary.position: number for number, boundary in enumerate(chain.boundaries)}
    for number, entry in enumerate(manifest["partitions"]):
        start, stop = index[edges[number]], index[edges[number + 1]]
        flops = sum(block.flops for block in chain.blocks[start:stop])
        shown.add_row(
            entry["file"],
            str(edges[number + 1] - edges[number]),
            units.show_flops(flops),
            units.show_size(chain.weight_bytes_of(start, stop)),
            ", ".join(tensor["name"] for tensor in entry["inputs"]),
            ", ".join(tensor["name"] for tensor in entry["outputs"]),
        )
    console().print(shown)
