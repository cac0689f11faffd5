"""Which ops of a partition TensorRT takes: asked of its parser, without building anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from node_agent.engines.tensorrt_build import make_logger
from node_agent.engines.tensorrt_versions import dialect


@dataclass(frozen=True, slots=True)
class Support:
    """What the parser says of one graph.

    Attributes:
        supported: Whether all of it can be built.
        refused: Positions of the ops (as in the file) that cannot.
    """

    supported: bool
    refused: tuple[int, ...] = ()

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
    return Support(supported, tuple(sorted(refused)))
