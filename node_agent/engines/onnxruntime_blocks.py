"""Partitions whose tensors come and go in the blocks of channels on which ONNX Runtime's convolutions compute.

On processors with wide vectors it turns a convolution's input into blocks of channels ("NCHWc"), and the last output
back. So a cut through a network has every tensor that crosses turned back and forth, and what comes in plain keeps
additions and activations from being fused into the convolutions behind them. Here the graph that ONNX Runtime has
optimised is taken from it, what turns tensors round at the cut is removed, and the rest is run as it is.

It optimises for the inputs' blocks if something that computes on blocks stands at each input: an average over one pixel,
which changes nothing, and is removed again (https://onnxruntime.ai/docs/performance/model-optimizations/graph-optimizations.html
has levels and layouts; the operators are those of domain `com.microsoft.nchwc`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from node_agent.content import SCRATCH
from node_agent.engines.base import NotInBlocks
from node_agent.engines.onnx_file import LENGTH, VARINT, Node, OnnxFile, attribute, message, text, varint
from node_agent.engines.onnxruntime_frugal import MOST_GRAPH_BYTES, Options, prepared, write_optimised
from node_agent.layouts import MOST_BLOCK, to_blocks

_DOMAIN = "com.microsoft.nchwc"
_IN, _OUT = "ReorderInput", "ReorderOutput"
_IDLE, _ONE_PIXEL = "AveragePool", [1, 1]
_MOST_WEIGHTS = 128 << 20
"""Beside a graph that is optimised twice. To free the first session's holds the interpreter's lock, for hundreds of MiB
and on a fifth of a core so long that the agent is taken for lost; and where weights are that large, tensors are not.
"""

Channels = Mapping[str, int]
"""How many channels tensors have, by name."""


@lru_cache(1)
def native_block(runtime: Any) -> int:
    """Channels per block on this processor; 0 where ONNX Runtime computes on plain tensors alone."""
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    plain = np.arange(2 * MOST_BLOCK, dtype=np.float32).reshape(1, MOST_BLOCK, 1, 2)
    try:
        session = runtime.InferenceSession(_turning(plain.shape), options, providers=["CPUExecutionProvider"])
        (turned,) = session.run(None, {"x": plain})
    except Exception:
        return 0  # it has no such operator here
    sizes = (1 << power for power in range(1, MOST_BLOCK.bit_length()))
    return next((size for size in sizes if np.array_equal(turned, to_blocks(plain, size))), 0)


@contextlib.contextmanager
def optimised(
    runtime: Any, graph: Path, options: Options, inputs: Channels, outputs: Channels
) -> Iterator[Path]:
    """A partition's graph as ONNX Runtime runs it, with some inputs and outputs in blocks.

    The files are gone when the block ends: load the graph inside, with optimisation off.

    Args:
        runtime: The `onnxruntime` module.
        graph: The partition's file; others are written beside it, where its weights lie.
        options: As the partition is to be run.
        inputs: Those to be taken in blocks.
        outputs: Those to be made in blocks.

    Raises:
        NotInBlocks: It is not to be had.
    """
    model = _read(graph)
    _refuse_bodies(model)
    if sum(model.weights_beside().values()) > _MOST_WEIGHTS:
        raise NotInBlocks(f"it has more than {_MOST_WEIGHTS >> 20} MiB of weights")
    put_idle(model, inputs)
    # Some file systems do not let go of what is mapped: a later start of the agent removes it.
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=graph.parent, ignore_cleanup_errors=True) as folder:
        # Weights are found beside the graph: it must lie where they do.
        idle, found = Path(f"{folder}.onnx"), Path(folder, "optimised.onnx")
        try:
            model.write(idle)
            with prepared(runtime, idle, options) as ready:
                write_optimised(runtime, ready, options(), found)
        finally:
            idle.unlink(missing_ok=True)
        model = _read(found)
        take_blocks(model, inputs, outputs)
        model.write(found)
        yield found


def put_idle(model: OnnxFile, inputs: Iterable[str]) -> None:
    """Puts an average over one pixel between each of some inputs and all that read it."""
    taken = _names(model)
    for name in sorted(inputs):
        behind = _fresh(f"{name}/blocks", taken)
        for node in model.nodes:
            node.reads = [behind if read == name else read for read in node.reads]
        model.nodes.insert(0, Node(_IDLE, [name], [behind], rest=[attribute("kernel_shape", _ONE_PIXEL)]))


def take_blocks(model: OnnxFile, inputs: Channels, outputs: Channels) -> None:
    """Removes what turns inputs into blocks and outputs back; what wants them plain has them turned for it.

    Args:
        model: What became of a graph with idle nodes at these inputs; changed.
        inputs: They are in blocks from now on.
        outputs: So are they.

    Raises:
        NotInBlocks: It has loops or branches.
    """
    _refuse_bodies(model)
    taken = _names(model)
    for name, channels in inputs.items():
        _enter(model, name, channels, taken)
    for name in outputs:
        _leave(model, name, taken)


def _enter(model: OnnxFile, name: str, channels: int, taken: set[str]) -> None:
    turn = _only_reader(model, name)
    if turn is not None and _is(turn, _IN):
        idle = _only_reader(model, turn.makes[0])
        if idle is not None and _is(idle, _IDLE) and idle.integers("kernel_shape") == _ONE_PIXEL:
            model.nodes = [node for node in model.nodes if node is not turn and node is not idle]
            _rename(model, {idle.makes[0]: name})
            return
    plain = _fresh(f"{name}/plain", taken)
    _rename(model, {name: plain})
    model.nodes.insert(0, Node(_OUT, [name], [plain], _DOMAIN, [attribute("channels", channels)]))


def _leave(model: OnnxFile, name: str, taken: set[str]) -> None:
    plain = _fresh(f"{name}/plain", taken)
    _rename(model, {name: plain})
    (maker,) = (node for node in model.nodes if plain in node.makes)
    inner = maker.reads[0]
    if not _is(maker, _OUT) or inner in model.inputs or inner in model.outputs:
        model.nodes.append(Node(_IN, [plain], [name], _DOMAIN))
        return
    _rename(model, {inner: name})
    if not any(plain in node.reads for node in model.nodes):
        model.nodes.remove(maker)


def _only_reader(model: OnnxFile, name: str) -> Node | None:
    readers = [node for node in model.nodes if name in node.reads]
    return readers[0] if len(readers) == 1 else None


def _read(path: Path) -> OnnxFile:
    if path.stat().st_size > MOST_GRAPH_BYTES:
        raise NotInBlocks(f"its graph has more than {MOST_GRAPH_BYTES >> 20} MiB")
    return OnnxFile.read(path)


def _refuse_bodies(model: OnnxFile) -> None:
    if any(node.has_body for node in model.nodes):
        raise NotInBlocks("what is inside its loops or branches may read any value")


def _is(node: Node, op: str) -> bool:
    return node.op == op and node.domain == _DOMAIN


def _rename(model: OnnxFile, names: Mapping[str, str]) -> None:
    for node in model.nodes:
        node.reads = [names.get(read, read) for read in node.reads]
        node.makes = [names.get(made, made) for made in node.makes]


def _names(model: OnnxFile) -> set[str]:
    return {*model.inputs, *(name for node in model.nodes for name in (*node.reads, *node.makes))}


def _fresh(wanted: str, taken: set[str]) -> str:
    name = next(name for n in count() if (name := f"{wanted}{n or ''}") not in taken)
    taken.add(name)
    return name


def _turning(shape: Sequence[int]) -> bytes:
    """A model that turns `x` of this shape into blocks, as `y`."""
    dimensions = ((1, LENGTH, message([(1, VARINT, varint(size))])) for size in shape)
    kind = [(1, VARINT, varint(1)), (2, LENGTH, message(dimensions))]  # float
    value = [(2, LENGTH, message([(1, LENGTH, message(kind))]))]
    node = [text(1, "x"), text(2, "y"), text(4, _IN), text(7, _DOMAIN)]
    graph = [
        (1, LENGTH, message(node)),
        text(2, "turn"),
        (11, LENGTH, message([text(1, "x"), *value])),
        (12, LENGTH, message([text(1, "y"), *value])),
    ]
    domain = [text(1, _DOMAIN), (2, VARINT, varint(1))]
    plain = [text(1, ""), (2, VARINT, varint(13))]
    imports = [(8, LENGTH, message(plain)), (8, LENGTH, message(domain))]
    return message([(1, VARINT, varint(8)), *imports, (7, LENGTH, message(graph))])
