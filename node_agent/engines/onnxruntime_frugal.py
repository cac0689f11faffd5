"""Prepares graphs with convolutions for ONNX Runtime where little memory is free.

It fuses what stands behind a convolution into its weights, and then lays these out in blocks of channels; both copies,
and what its heap keeps of them, come to 2.6 times the weights of ResNet-50 for a moment. A box that holds the network
well is killed for memory as it loads it. So there the graph is fused first, into a file. Weights of a file are mapped,
not read: with one copy less, and memory given back as soon as it is free, 1.2 times the weights are enough. What is
loaded, and how fast it runs, is the same; preparing takes two to three times the time.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from node_agent import machine
from node_agent.content import SCRATCH
from node_agent.engines.onnx_file import OnnxFile

Options = Callable[[], Any]
"""Makes session options as for the partition itself."""

MOST_GRAPH_BYTES = 4 << 20
"""Of a graph that is read in Python; one of a real network has less than one MiB, its weights lie beside it."""

_INLINE_BYTES = 1024
"""Weights above this lie beside an optimised graph, where they are mapped into memory and not read into it."""

_CONVOLUTION, _OTHERS = 3.0, 1.1
"""More than preparing takes, in sizes of the weights: 2.6 for ResNet-50's, 1.06 for VGG-16's, mostly matrices; by
`python -m benchmarks.memory`."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def prepared(runtime: Any, graph: Path, options: Options) -> Iterator[Path]:
    """A graph's file to load, or one of the same graph that takes less memory to load; that is gone when the block ends.

    Args:
        runtime: The `onnxruntime` module.
        graph: The file.
        options: As it is to be run.
    """
    whole = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if options().graph_optimization_level != whole or not _is_tight(graph):
        yield graph
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(machine.frugal_heap())
        first = options()
        first.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        first.add_session_config_entry("session.disable_prepacking", "1")
        try:
            # Some file systems do not let go of what is mapped: a later start of the agent removes it.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix=SCRATCH, dir=graph.parent, ignore_cleanup_errors=True)
            )
            fused = Path(folder, "fused.onnx")
            write_optimised(runtime, graph, first, fused)
        except Exception as error:  # the disk is full, perhaps: it may still load at once, or says why not
            log.warning("%s cannot be fused into a file: %s", graph.name, error)
            fused = graph
        machine.trim()
        yield fused


def write_optimised(runtime: Any, graph: Path, options: Any, into: Path) -> None:
    """Writes a graph as ONNX Runtime optimises it, its weights beside it.

    Args:
        runtime: The `onnxruntime` module.
        graph: The graph's file.
        options: Say how far to optimise it; changed.
        into: The new file.
    """
    options.optimized_model_filepath = str(into)
    for key, value in (("file_name", f"{into.name}.data"), ("min_size_in_bytes", str(_INLINE_BYTES))):
        options.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _is_tight(graph: Path) -> bool:
    """Whether what preparing a graph takes for a moment may be more than there is."""
    free = machine.available_bytes()
    if free is None or graph.stat().st_size > MOST_GRAPH_BYTES:
        return False
    try:
        model = OnnxFile.read(graph)
        weights = model.weights_beside()
    except (ValueError, LookupError):  # no graph, or one whose weights lie nowhere: whoever loads it says so
        return False
    convolved = {node.reads[1] for node in model.nodes if node.op == "Conv" and len(node.reads) > 1}
    needed = sum((_CONVOLUTION if name in convolved else _OTHERS) * size for name, size in weights.items())
    return bool(convolved) and needed > free
