"""Which ops of a partition TensorRT takes: asked of its parser, without building anything.

`python -m node_agent.engines.tensorrt_support GRAPH` asks in a process of its own, because a parser may hold the GIL
or crash, and the agent answers heartbeats. Its last line of output is a `Support` as JSON.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from node_agent.engines.tensorrt_build import make_logger, parse_errors
from node_agent.engines.tensorrt_versions import dialect
from node_agent.interpreter import python

ASK_DEADLINE_S = 120.0
"""How long the parser may take over one block: it compiles nothing."""

MODULE = "node_agent.engines.tensorrt_support"


@dataclass(frozen=True, slots=True)
class Support:
    """What the parser says of one graph.

    Attributes:
        supported: Whether all of it can be built.
        refused: Positions of the ops (as in the file) that cannot.
        reason: What the parser holds against them.
    """

    supported: bool
    refused: tuple[int, ...] = ()
    reason: str = ""

    def blocks(self, edges: Sequence[int]) -> tuple[bool, ...]:
        """Whether each block is taken whole, so that a planner can cut around those that are not.

        Args:
            edges: Op positions where blocks begin, from 0, and the number of ops at the end; increasing.
        """
        refused = set(self.refused)
        return tuple(
            not any(position in refused for position in range(start, stop)) for start, stop in pairwise(edges)
        )


def ask(trt: Any, graph: Path) -> Support:
    """What TensorRT's parser takes of a graph on disk; its weights lie beside it."""
    log = make_logger(trt)
    builder = trt.Builder(log)
    network = builder.create_network(dialect(trt.__version__).network_flags(trt))
    parser = trt.OnnxParser(network, log)
    supported = bool(parser.supports_model_v2(graph.read_bytes(), str(graph)))
    refused: list[int] = []
    for index in range(parser.num_subgraphs):
        nodes = [int(node) for node in parser.get_subgraph_nodes(index)]
        if not parser.is_subgraph_supported(index):
            refused += nodes
    if supported and not refused:
        return Support(True)
    return Support(False, tuple(sorted(refused)), f"TensorRT {trt.__version__} lacks {parse_errors(parser)}")


def ask_aside(graph: Path, *, deadline_s: float = ASK_DEADLINE_S, module: str = MODULE) -> Support:
    """As `ask`, in a child process. A parser that crashes or does not end takes nothing of the graph."""
    try:
        child = subprocess.run(
            [*python(), "-m", module, str(graph)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=deadline_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Support(False, reason=f"TensorRT's parser took longer than {deadline_s:g} s")
    lines = child.stdout.strip().splitlines()
    if child.returncode == 0 and lines:
        return msgspec.json.decode(lines[-1], type=Support)
    ended = f"by signal {-child.returncode}" if child.returncode < 0 else f"with status {child.returncode}"
    return Support(False, reason=f"TensorRT's parser ended {ended}")


if __name__ == "__main__":
    import tensorrt

    # On a line of its own: the library may have left one unfinished.
    print("\n" + msgspec.json.encode(ask(tensorrt, Path(sys.argv[1]))).decode(), flush=True)
