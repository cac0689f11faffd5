"""Placement of operator graphs: files of msr-fiddle/dnn-partitioning and the cost model of its paper.

An accelerator pays the seconds of its ops and every tensor that enters or leaves, once per source node; a CPU pays
its ops only; sizes must fit an accelerator; nodes of one colour share a device; stages are convex.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from router import DeviceKind, GraphPlan, InvalidProblem, OpGraph, Tensor, split_graph

KNOWN = {
    "bert24_layers_inference": 17.7899,
    "gnmt_layers_inference": 32.9107,
    "resnet50_layers_inference": 33.7747,
}


def graph_of(data: dict[str, Any]) -> tuple[OpGraph, list[DeviceKind]]:
    """The op graph and the two kinds of devices of a file."""
    nodes = data["nodes"]
    if any(node.get("isBackwardNode") for node in nodes):
        raise InvalidProblem("the file describes training; only single-pass models are planned")
    at = {node["id"]: number for number, node in enumerate(nodes)}
    readers: dict[int, dict[int, float]] = defaultdict(dict)
    for edge in data["edges"]:
        readers[at[edge["sourceId"]]][at[edge["destId"]]] = float(edge["cost"])
    colours: dict[int, list[int]] = defaultdict(list)
    for number, node in enumerate(nodes):
        if node.get("colorClass") is not None:
            colours[node["colorClass"]].append(number)
    graph = OpGraph(
        size=[node["size"] for node in nodes],
        tensors=[Tensor(producer, tuple(to), max(to.values())) for producer, to in readers.items()],
        together=[group for group in colours.values() if len(group) > 1],
    )
    fast = [node["fpgaLatency"] if node["supportedOnFpga"] else math.inf for node in nodes]
    kinds = [
        DeviceKind("accelerator", int(data["maxFPGAs"]), fast, data["maxSizePerFPGA"]),
        DeviceKind("cpu", int(data["maxCPUs"]), [node["cpuLatency"] for node in nodes], transfer=0.0),
    ]
    return graph, kinds


def solve_placement(file: Path) -> GraphPlan:
    """The product's plan for a file of the format."""
    return split_graph(*graph_of(json.loads(file.read_text())))
