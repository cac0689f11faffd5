"""Cuts a partition where an engine lacks an op: which ops run together, and a file for each part.

The order of ops is chosen so that kinds alternate as rarely as the graph allows; weights are linked, not copied.
`python -m node_agent.engines.segments JOB` cuts in a process of its own, so that the agent itself never holds the `onnx`
package and goes on answering; its last line of output is an `Answer` as JSON.
"""

from __future__ import annotations

import heapq
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from node_agent.engines.base import Partition
from node_agent.errors import EngineMissingError, LoadFailedError
from node_agent.interpreter import python
from node_agent.messages import TensorSpec

INSTALL = 'Install the onnx package beside the agent: pip install "defer-edge[tensorrt]".'

MOST = 9
"""Parts beyond which what they cost each other outweighs what the faster engine gains."""


DEADLINE_S = 120.0
"""How long cutting may take: it reads and writes graphs without weights."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a partition that one engine runs.

    Attributes:
        supported: Whether the engine that was asked for takes it.
        ops: Positions of its ops in the partition's file, in the order in which they run.
        types: What they are, without repetition.
        graph: Its ONNX file.
        inputs: What it consumes; free dimensions are named.
        outputs: What later parts or the partition's caller want of it.
    """

    supported: bool
    ops: tuple[int, ...]
    types: tuple[str, ...]
    graph: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Job:
    """What the process that cuts is told: the graph, the ops that are refused, what is wanted of it, where parts go."""

    graph: str
    refused: tuple[int, ...]
    outputs: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What it says: the parts and what is wanted of the whole, or why there are none."""

    segments: tuple[Segment, ...] = ()
    outputs: tuple[str, ...] = ()
    problem: str = ""


def available() -> bool:
    """Whether partitions can be cut here."""
    return find_spec("onnx") is not None


def cut_aside(
    partition: Partition, refused: Collection[int], folder: Path, *, deadline_s: float = DEADLINE_S
) -> tuple[tuple[Segment, ...], tuple[str, ...]]:
    """As `cut`, in a child process; the parts, and names of what is wanted of the whole.

    Raises:
        EngineMissingError: There is no `onnx` package.
        LoadFailedError: It cannot be cut, with the reason.
    """
    if not available():
        raise EngineMissingError("Nothing can be cut without the onnx package.", hint=INSTALL)
    job = Job(
        str(partition.graph),
        tuple(sorted(refused)),
        tuple(spec.name for spec in partition.outputs),
        str(folder),
    )
    try:
        child = subprocess.run(
            [*python(), "-m", "node_agent.engines.segments", msgspec.json.encode(job).decode()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LoadFailedError(f"Cutting the partition took longer than {deadline_s:g} s.") from None
    lines = child.stdout.strip().splitlines()
    if child.returncode != 0 or not lines:
        raise LoadFailedError(f"Cutting the partition ended with status {child.returncode}.")
    answer = msgspec.json.decode(lines[-1], type=Answer)
    if answer.problem:
        raise LoadFailedError(answer.problem)
    return answer.segments, answer.outputs


def cut(job: Job) -> Answer:
    """Cuts a partition into parts that one kind of engine runs, and writes them.

    Raises:
        LoadFailedError: There would be nothing or too much to cut, or a tensor between parts has no type.
    """
    import onnx

    source = Path(job.graph)
    model = onnx.load(job.graph, load_external_data=False)
    graph = model.graph
    reads = [frozenset(_reads(node)) for node in graph.node]
    writes = [tuple(name for name in node.output if name) for node in graph.node]
    runs = order(reads, writes, frozenset(job.refused))
    if len(runs) < 2:
        raise LoadFailedError("There is nothing to cut: the engine lacks every op of the partition, or none.")
    if len(runs) > MOST:
        raise LoadFailedError(f"What the engine lacks would cut the partition into {len(runs)} parts.")
    types = _types(onnx, model)
    outputs = job.outputs or tuple(value.name for value in graph.output)
    wanted = set(outputs)
    passed = wanted - {name for names in writes for name in names}
    if passed:
        raise LoadFailedError(f"Output {min(passed)!r} is made by no op.")
    consts = {init.name for init in graph.initializer}
    consts |= {init.values.name for init in graph.sparse_initializer}
    segments = []
    for index, (supported, ops) in enumerate(runs):
        later = {name for _, others in runs[index + 1 :] for op in others for name in reads[op]}
        made = {name for op in ops for name in writes[op]}
        read = {name for op in ops for name in reads[op]} - made
        names = sorted(read - consts), sorted(made & (later | wanted))
        specs = _specs(onnx, names[0], types), _specs(onnx, names[1], types)
        path = Path(job.folder, f"part{index}.onnx")
        _write(onnx, model, path, ops, *names, read & consts, types)
        kinds = tuple(dict.fromkeys(graph.node[op].op_type for op in ops))
        segments.append(Segment(supported, tuple(ops), kinds, str(path), *specs))
    _link_weights(onnx, model, source.parent, Path(job.folder))
    return Answer(tuple(segments), tuple(outputs))


def order(
    reads: Sequence[Collection[str]], writes: Sequence[Collection[str]], refused: Collection[int]
) -> list[tuple[bool, list[int]]]:
    """A topological order of ops in which kinds seldom alternate, as runs of one kind. Pure.

    As many ops of a kind as can go are taken before the other kind's turn; of the two ways to begin, the one with fewer
    runs is taken. No order of a graph has fewer.

    Args:
        reads: What each op reads.
        writes: What each op makes.
        refused: Positions of the ops of one of the kinds.

    Returns:
        For each run whether its ops are of the other kind, and their positions.
    """
    return min((_ordered(reads, writes, refused, first) for first in (True, False)), key=len)


def _ordered(
    reads: Sequence[Collection[str]], writes: Sequence[Collection[str]], refused: Collection[int], first: bool
) -> list[tuple[bool, list[int]]]:
    maker = {name: op for op, names in enumerate(writes) for name in names}
    needs = [{maker[name] for name in names if name in maker} for names in reads]
    waits = [len(each) for each in needs]
    feeds: list[list[int]] = [[] for _ in reads]
    for op, each in enumerate(needs):
        for other in each:
            feeds[other].append(op)
    ready: dict[bool, list[int]] = {True: [], False: []}
    for op, count in enumerate(waits):
        if not count:
            heapq.heappush(ready[op not in refused], op)
    runs: list[tuple[bool, list[int]]] = []
    kind = first
    while ready[True] or ready[False]:
        ops: list[int] = []
        while ready[kind]:
            op = heapq.heappop(ready[kind])
            ops.append(op)
            for other in feeds[op]:
                waits[other] -= 1
                if not waits[other]:
                    heapq.heappush(ready[other not in refused], other)
        if ops:
            runs.append((kind, ops))
        kind = not kind
    return runs


def _reads(node: Any) -> Iterator[str]:
    """What an op reads, also inside its bodies."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            own = {value.name for value in (*body.input, *body.initializer)}
            for inner in body.node:
                yield from (name for name in _reads(inner) if name not in own)
                own.update(inner.output)
            yield from (value.name for value in body.output if value.name not in own)


def _types(onnx: Any, model: Any) -> dict[str, Any]:
    """What is known of every tensor's type, by name, as ONNX writes it."""
    try:
        known = onnx.shape_inference.infer_shapes(model).graph
    except Exception:
        known = model.graph  # what the file says by itself may be enough
    return {value.name: value for value in (*known.value_info, *known.output, *known.input)}


def _specs(onnx: Any, names: Sequence[str], types: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    found = []
    for name in names:
        tensor = types[name].type.tensor_type if name in types else None
        if tensor is None or not tensor.elem_type:
            raise LoadFailedError(f"The type of tensor {name!r} between two parts is not known.")
        dims = tensor.shape.dim if tensor.HasField("shape") else None
        if dims is None:
            raise LoadFailedError(f"Nothing is known of the shape of tensor {name!r} between two parts.")
        shape = tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or f"{name}.{axis}"
            for axis, dim in enumerate(dims)
        )
        kind = onnx.helper.tensor_dtype_to_string(tensor.elem_type).removeprefix("TensorProto.").lower()
        found.append(TensorSpec(name, _NAMES.get(kind, kind), shape))
    return tuple(found)


_NAMES = {
    "float": "float32",
    "double": "float64",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float8e8m0": "float8_e8m0fnu",
}
"""Wire names of the types that ONNX calls otherwise."""


def _write(
    onnx: Any,
    model: Any,
    path: Path,
    ops: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    consts: Collection[str],
    types: Mapping[str, Any],
) -> None:
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    for field in ("node", "initializer", "sparse_initializer", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(model.graph.node[op] for op in ops)
    graph.initializer.extend(init for init in model.graph.initializer if init.name in consts)
    graph.sparse_initializer.extend(
        init for init in model.graph.sparse_initializer if init.values.name in consts
    )
    for names, values in ((inputs, graph.input), (outputs, graph.output)):
        values.extend(types[name] for name in names)
    path.write_bytes(part.SerializeToString())


def _link_weights(onnx: Any, model: Any, source: Path, folder: Path) -> None:
    """Puts the files that weights lie in beside the parts: runtimes do not look for them elsewhere."""
    names = {
        entry.value
        for tensor in _tensors(onnx, model.graph)
        if onnx.external_data_helper.uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for name in sorted(names):
        try:
            os.link(source / name, folder / name)
        except OSError:
            shutil.copyfile(source / name, folder / name)


def _tensors(onnx: Any, graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(onnx, body)


if __name__ == "__main__":
    try:
        _said = cut(msgspec.json.decode(sys.argv[1], type=Job))
    except LoadFailedError as _error:
        _said = Answer(problem=str(_error))
    print("\n" + msgspec.json.encode(_said).decode(), flush=True)
