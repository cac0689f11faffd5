"""`defer infer`: inputs from files, outputs into a file."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import numpy as np

from defer import units
from defer.api import MOST_DIMENSION, ModelInfo
from defer.cli.dispatcher import address_option, timeout_option
from defer.cli.output import common_options, console, examples, note, print_json, table
from defer.cli.values import GIVEN, parse_size
from defer.client import Client
from defer.client_arrays import Array
from defer.client_served import without_versions
from defer.documents.files import check_file, write_bytes
from defer.errors import InvalidDocument, NotReady, OutputExists, UnknownModel, UsageError
from defer.signature import bind_free
from defer.translating import translate
from node_agent.dtypes import storage

Arrays = dict[str, Array]

FEW_VALUES: Final = 64
"""`--json` holds the values of outputs up to this size."""


@click.command(
    epilog=examples(
        "defer infer image.npy -o outputs.npz",
        "defer infer inputs.npz --model bert --repeat 20",
        "defer infer --input input_ids=ids.npy --input attention_mask=mask.npy",
        "defer infer --random --json",
    )
)
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option(
    "--input", "named", multiple=True, metavar="NAME=FILE.npy", help="One input; repeat for several."
)
@click.option("--random", "use_random", is_flag=True, help="Seeded random inputs of the model's own shapes.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="For --random.")
@click.option(
    "--batch",
    default=1,
    show_default=True,
    type=click.IntRange(1, MOST_DIMENSION),
    help="Free dimensions, for --random.",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=128",
    callback=lambda _ctx, _param, values: parse_dims(values),
    help="Size of a free dimension by its name, for --random. Repeat for several.",
)
@click.option("-m", "--model", "model_name", type=GIVEN, help="Which model; needed where several are served.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Save the outputs, .npz or (one output) .npy."
)
@click.option("--force", is_flag=True, help="Overwrite --output whatever it is.")
@click.option("--repeat", default=1, show_default=True, type=click.IntRange(min=1), help="Send it so often.")
@click.option(
    "--window", default=1, show_default=True, type=click.IntRange(min=1), help="Requests under way at once."
)
@timeout_option(30.0)
@address_option
@common_options
def command(
    file: Path | None,
    named: tuple[str, ...],
    use_random: bool,
    seed: int,
    batch: int,
    dims: dict[str, int],
    model_name: str | None,
    output: Path | None,
    force: bool,
    repeat: int,
    window: int,
    timeout: float,
    address: str,
    as_json: bool,
) -> None:
    """Run the model on FILE (.npz by input name, or .npy for a model with one input), and show or save its outputs."""
    if sum((file is not None, bool(named), use_random)) != 1:
        raise UsageError(
            "give one of FILE, --input NAME=FILE.npy, or --random",
            hint="`defer infer --random` makes inputs up",
        )
    if output is not None and output.suffix not in (".npz", ".npy"):
        raise UsageError(
            f"the name {str(output)!r:.80} ends in neither .npz nor .npy", hint="name the output outputs.npz"
        )
    if output is not None and not force:
        _check_target(output)
    if dims and not use_random:
        raise UsageError("--dim has no meaning without --random", hint="files bring their own shapes")
    given = None if use_random else _read(file, named)
    with Client(address, model=model_name or "", timeout=timeout) as client:
        info = choose_model(client.models(), model_name or "")
        inputs = random_inputs(info, seed, batch, dims) if given is None else _named(given, info)
        outputs, seconds, total = _run(client, inputs, repeat, window)
    if output is not None:
        _write(output, outputs)
    if as_json:
        print_json(
            {
                "model": info.name,
                "outputs": {name: _told(array) for name, array in outputs.items()},
                "requests": repeat,
                "latency_p50_s": float(np.median(seconds)) if window == 1 else None,
                "throughput_per_s": repeat / total,
                "saved": str(output) if output else None,
            }
        )
        return
    shown = table("output", "type", "shape", "least", "mean", "largest", right=("least", "mean", "largest"))
    for name, array in outputs.items():
        shown.add_row(name, array.dtype.name, "×".join(map(str, array.shape)) or "scalar", *_summary(array))
    console().print(shown)
    what = f"{repeat} request{'s' if repeat > 1 else ''} in {units.show_duration(total)}"
    if window == 1:
        p50, worst = float(np.median(seconds)), max(seconds)
        what += f", p50 {units.show_duration(p50)}, slowest {units.show_duration(worst)}"
    click.echo(what + (f", {repeat / total:.1f}/s" if repeat > 1 else ""))
    if output is not None:
        note(f"wrote {output}")


def _run(client: Client, inputs: Arrays, repeat: int, window: int) -> tuple[Arrays, list[float], float]:
    """The last outputs, the seconds of each request (one at a time only), and the seconds of all."""
    seconds: list[float] = []
    outputs: Arrays = {}
    begin = time.perf_counter()
    if window > 1:
        for outputs in client.map((inputs for _ in range(repeat)), window=window):  # noqa: B007
            pass
    else:
        for _ in range(repeat):
            start = time.perf_counter()
            outputs = client.infer(inputs)
            seconds.append(time.perf_counter() - start)
    return outputs, seconds, time.perf_counter() - begin


def choose_model(models: tuple[ModelInfo, ...], name: str) -> ModelInfo:
    """The model called `name`, or the only one that is served; versions of one model are one.

    Raises:
        NotReady: None is served, or it is not ready.
        UnknownModel: There is none of that name, or several and no name.
    """
    served = {model.name: model for model in models}
    if not served:
        raise NotReady("no model is deployed", hint="`defer deploy MODEL` deploys one")
    named = without_versions(served)
    if not name and len(named) != 1:
        raise UnknownModel(f"several models are served: {', '.join(served)}", hint="say which with --model")
    chosen = served.get(name) if name else named[0]
    if chosen is None:
        raise UnknownModel(f"no model {name!r:.80} is served", hint=f"served: {', '.join(served)}")
    if not chosen.inputs:
        raise NotReady(f"model {chosen.name!r} is not ready: {chosen.reason}")
    return chosen


def parse_dims(values: tuple[str, ...]) -> dict[str, int]:
    """Sizes of free dimensions from `NAME=128`.

    Raises:
        UsageError: Not of that form, or no positive whole number.
    """
    dims: dict[str, int] = {}
    for value in values:
        name, equals, size = value.rpartition("=")
        if not equals or not name or not 0 < parse_size(size) <= MOST_DIMENSION:
            hint = f"for example --dim sequence=128; a size is 1 to {MOST_DIMENSION:,}"
            raise UsageError(f"--dim {value!r:.80} is not NAME=SIZE", hint=hint)
        dims[name] = parse_size(size)
    return dims


def random_inputs(model: ModelInfo, seed: int, batch: int, dims: Mapping[str, int] | None = None) -> Arrays:
    """Inputs of a model's own names, types and shapes: normal numbers, small whole numbers, or coins.

    Args:
        model: Its signature.
        seed: Of the generator.
        batch: Value of every other free dimension.
        dims: Values of free dimensions by name.

    Raises:
        UsageError: The model has no such dimension.
    """
    free = {dim for spec in model.inputs for dim in spec.shape if isinstance(dim, str)}
    for name in dims or {}:
        if name not in free:
            known = f"they are {', '.join(sorted(free))}" if free else "it has none"
            raise UsageError(f"model {model.name!r} has no free dimension {name!r}", hint=known)
    generator = np.random.default_rng(seed)
    arrays: Arrays = {}
    for spec in bind_free(model.inputs, dims or {}, batch):
        shape = [dim for dim in spec.shape if isinstance(dim, int)]
        dtype = storage(spec.dtype)
        if dtype.kind in "fc":
            arrays[spec.name] = generator.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            arrays[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:  # token ids and masks of every vocabulary include 0 and 1
            arrays[spec.name] = generator.integers(0, 2, shape).astype(dtype)
    return arrays


def _read(file: Path | None, named: tuple[str, ...]) -> Arrays:
    """Arrays by name; under the empty name where the file holds one array."""
    if file is not None:
        return _load(file)
    arrays: Arrays = {}
    for entry in named:
        name, equals, path = entry.partition("=")
        if not equals or not name or not path:
            raise UsageError(f"--input {entry!r} is not NAME=FILE.npy", hint="for example --input x=x.npy")
        if name in arrays:
            raise UsageError(f"--input {name!r} is given twice", hint="keep one of them")
        held = _load(Path(path))
        if list(held) != [""]:
            raise UsageError(f"{path} holds several arrays", hint="give an .npz file as the argument")
        arrays[name] = held[""]
    return arrays


def _load(path: Path) -> Arrays:
    check_file(path)
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise InvalidDocument(
            "not a .npy or .npz file of numbers",
            where=str(path),
            hint="numpy.save and numpy.savez write them",
        ) from error


def _named(arrays: Arrays, model: ModelInfo) -> Arrays:
    if list(arrays) != [""]:
        return arrays
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise UsageError(
            f"model {model.name!r} has {len(model.inputs)} inputs ({names}), one array was given",
            hint="give an .npz file, or --input NAME=FILE.npy for each",
        )
    return {model.inputs[0].name: arrays[""]}


def _write(path: Path, outputs: Arrays) -> None:
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        # numpy.savez takes the names as keywords, and a tensor may be called as one of its own.
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, array in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    elif len(outputs) == 1:
        np.save(buffer, next(iter(outputs.values())), allow_pickle=False)
    else:
        raise UsageError(f"{len(outputs)} outputs do not fit into one .npy file", hint="name it .npz")
    try:
        write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise translate(error) from error


_MARKS: Final = {".npy": b"\x93NUMPY", ".npz": b"PK"}


def _check_target(path: Path) -> None:
    """Refuses to overwrite what is no array file, as documents do, and before anything is sent.

    Raises:
        OutputExists: The file exists and is something else.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(_MARKS[path.suffix]):
        raise OutputExists(
            f"exists and is no {path.suffix} file",
            where=str(path),
            hint="choose another name, or overwrite it with --force",
        )


def _told(array: Array) -> dict[str, object]:
    told: dict[str, object] = {"dtype": array.dtype.name, "shape": array.shape}
    if array.size <= FEW_VALUES and array.dtype.kind in "biuf":
        told["values"] = array.tolist()
    return told


def _summary(array: Array) -> tuple[str, str, str]:
    if array.size == 0 or array.dtype.kind not in "biuf":
        return "", "", ""
    values = array.astype(np.float64)
    return f"{values.min():.6g}", f"{values.mean():.6g}", f"{values.max():.6g}"
