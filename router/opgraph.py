"""A model as a graph of ops, for splits that do not follow one topological order; and what may be merged in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from router.errors import InvalidProblem
from router.instance import Floats


@dataclass(frozen=True, slots=True)
class Tensor:
    """One value: made by `producer`, read by `consumers` (op numbers); `seconds` to move it on or off a device."""

    producer: int
    consumers: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """Several equal devices.

    Attributes:
        name: for people. count: how many there are.
        seconds: per op; `math.inf` = cannot run it.
        memory: bytes that a stage may fill; None = no limit.
        transfer: factor of `Tensor.seconds` that this kind pays for what enters or leaves its stage.
    """

    name: str
    count: int
    seconds: Sequence[float]
    memory: float | None = None
    transfer: float = 1.0


@dataclass(frozen=True, slots=True)
class OpGraph:
    """Ops 0 … n - 1.

    Attributes:
        size: bytes per op that its stage keeps.
        tensors: what flows; an op may make several.
        together: groups of ops that must share a device.
        before: further pairs (op, op) whose order must be kept.
    """

    size: Sequence[float]
    tensors: Sequence[Tensor]
    together: Sequence[Sequence[int]] = ()
    before: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Condensed:
    """The graph with every set of ops that can only be placed together as one node, in topological order.

    Attributes:
        members: ops per node.
        follow: successors per node, as a bit mask. lead: predecessors, the same.
        size: (n,). seconds: (kinds, n).
        producer, cost: per tensor that crosses nodes and costs something; readers: its consumers as a bit mask.
    """

    members: tuple[tuple[int, ...], ...]
    follow: tuple[int, ...]
    lead: tuple[int, ...]
    size: Floats
    seconds: Floats
    producer: tuple[int, ...]
    cost: Floats
    readers: tuple[int, ...]


def _edges(graph: OpGraph, ops: int) -> set[tuple[int, int]]:
    edges = {(t.producer, reader) for t in graph.tensors for reader in t.consumers} | set(graph.before)
    for pair in edges:
        if not all(0 <= op < ops for op in pair) or pair[0] == pair[1]:
            raise InvalidProblem(f"op graph: edge {pair} does not join two of the ops 0 … {ops - 1}")
    if not nx.is_directed_acyclic_graph(nx.DiGraph(list(edges))):
        raise InvalidProblem("op graph: the ops form a cycle", hint="only single-pass models can be planned")
    return edges


def _quotient(owner: list[int], edges: set[tuple[int, int]]) -> nx.DiGraph[int]:
    result: nx.DiGraph[int] = nx.DiGraph()
    result.add_nodes_from(owner)
    result.add_edges_from((owner[a], owner[b]) for a, b in edges if owner[a] != owner[b])
    return result


def condense(graph: OpGraph, kinds: Sequence[DeviceKind]) -> Condensed:
    """Merge what no better plan would separate.

    Ops that must share a device are merged, with everything between them (a stage is convex). Then, as long as one
    is found, an op that takes no time and no memory is merged with its only neighbour on one side when it has none
    on the other: moving it there never adds a transfer.

    Raises:
        InvalidProblem: a cycle, or numbers of the wrong length.
    """
    ops = len(graph.size)
    seconds = np.array([kind.seconds for kind in kinds], float).reshape(len(kinds), -1)
    if seconds.shape[1] != ops:
        raise InvalidProblem(f"op graph: {ops} sizes, but seconds for {seconds.shape[1]} ops")
    edges = _edges(graph, ops)
    size = np.asarray(graph.size, float)
    roomy = all(kind.memory is None or size.sum() <= kind.memory for kind in kinds)
    owner = list(range(ops))

    def merge(groups: list[list[int]]) -> None:
        new = {old: group[0] for group in groups for old in group}
        owner[:] = [new.get(each, each) for each in owner]

    ties: nx.Graph[int] = nx.Graph()
    for group in graph.together:
        nx.add_path(ties, group)
    merge([sorted(part) for part in nx.connected_components(ties)])
    while True:
        quotient = _quotient(owner, edges)
        knots = [sorted(part) for part in nx.strongly_connected_components(quotient) if len(part) > 1]
        if knots:
            merge(knots)
            continue
        weightless = seconds.max(axis=0) == 0
        if not roomy:
            weightless = weightless & (size == 0)
        light = dict.fromkeys(owner, True)
        for op, each in enumerate(owner):
            light[each] = light[each] and bool(weightless[op])
        pairs = []
        taken: set[int] = set()
        for node in quotient:
            if not light[node]:
                continue
            before, after = list(quotient.predecessors(node)), list(quotient.successors(node))
            ends = before + after
            if len(ends) == 1 and node not in taken and ends[0] not in taken:
                pairs.append([ends[0], node])
                taken.update((ends[0], node))
        if not pairs:
            break
        merge(pairs)
    order = list(nx.lexicographical_topological_sort(_quotient(owner, edges)))
    at = {node: number for number, node in enumerate(order)}
    members: list[list[int]] = [[] for _ in order]
    for op, each in enumerate(owner):
        members[at[each]].append(op)
    follow, lead = [0] * len(order), [0] * len(order)
    for a, b in edges:
        x, y = at[owner[a]], at[owner[b]]
        if x != y:
            follow[x] |= 1 << y
            lead[y] |= 1 << x
    joined: dict[tuple[int, int], float] = {}  # tensors with the same ends always cross together
    for tensor in graph.tensors:
        x = at[owner[tensor.producer]]
        readers = 0
        for reader in tensor.consumers:
            readers |= 1 << at[owner[reader]]
        readers &= ~(1 << x)
        if readers and tensor.seconds > 0:
            joined[x, readers] = joined.get((x, readers), 0.0) + tensor.seconds
    return Condensed(
        members=tuple(tuple(group) for group in members),
        follow=tuple(follow),
        lead=tuple(lead),
        size=np.array([size[group].sum() for group in members]),
        seconds=np.stack([seconds[:, group].sum(axis=1) for group in members], axis=1),
        producer=tuple(x for x, _ in joined),
        cost=np.array(list(joined.values())),
        readers=tuple(readers for _, readers in joined),
    )
