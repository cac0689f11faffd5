"""The layered graph, vertex by vertex, on networkx: the reference for the fast solvers."""

from __future__ import annotations

import networkx as nx

from router.additive import Additive
from router.instance import Instance

Vertex = tuple[str, int, str]  # device, boundary, "closed" | "running" | codec name


def layered_graph(instance: Instance, cost: Additive) -> nx.DiGraph[Vertex]:
    """The whole layered graph of one additive quantity; edge attribute `weight`.

    Vertices are (device, boundary, kind): `closed` holds the decoded boundary, `running` has a stage open,
    and one kind per codec is in transit.
    """
    graph: nx.DiGraph[Vertex] = nx.DiGraph()
    names, codecs = instance.names, instance.problem.codecs

    def edge(a: Vertex, b: Vertex, weight: float) -> None:
        if weight != float("inf"):
            graph.add_edge(a, b, weight=weight)

    for i in range(instance.blocks + 1):
        for u, name in enumerate(names):
            if i < instance.blocks:
                onward = float(cost.block[u, i])
                edge((name, i, "closed"), (name, i + 1, "running"), float(cost.start[u]) + onward)
                edge((name, i, "running"), (name, i + 1, "running"), onward)
            else:
                edge((name, i, "running"), (name, i, "closed"), 0.0)
            for c, codec in enumerate(codecs):
                transit = (name, i, f"codec {codec.name}")
                edge((name, i, "running"), transit, float(cost.encode[c, u, i]))
                if (u, i) == (instance.source, 0):  # elsewhere a tensor is never decoded only to be sent on
                    edge((name, i, "closed"), transit, float(cost.encode[c, u, i]))
                edge(transit, (name, i, "closed"), float(cost.decode[c, u, i]))
        for c, codec in enumerate(codecs):
            hops = cost.hop + instance.wire[c, i] * cost.per_byte
            for e, (a, b) in enumerate(zip(instance.src, instance.dst, strict=True)):
                kind = f"codec {codec.name}"
                edge((names[int(a)], i, kind), (names[int(b)], i, kind), float(hops[e]))
    return graph


def reference_value(instance: Instance, cost: Additive) -> float:
    """Least cost by Dijkstra on the explicit graph, memory and stage limits aside; inf: no path."""
    graph = layered_graph(instance, cost)
    start: Vertex = (instance.problem.source, 0, "closed")
    goal: Vertex = (instance.problem.sink, instance.blocks, "closed")
    if start not in graph or goal not in graph:
        return float("inf")
    try:
        return float(nx.dijkstra_path_length(graph, start, goal))
    except nx.NetworkXNoPath:
        return float("inf")
