"""Another order of a model's ops than the one chosen for it: checked, then laid out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from partitioner.errors import InvalidOrder
from partitioner.layout import Layout
from partitioner.needs import needs
from partitioner.preparing import Prepared


def with_order(prepared: Prepared, order: Sequence[int]) -> Prepared:
    """The model with its ops in another order; an empty order leaves it as it is.

    Args:
        prepared: in the model's own order.
        order: positions in the model's own order, each once; ``order[p]`` is the op that comes to position p.

    Raises:
        InvalidOrder: if an op is missing or comes twice, or comes before one whose result it needs.
    """
    if not order:
        return prepared
    layout = prepared.layout
    count = len(layout.ops)
    place = {int(op): position for position, op in enumerate(order)}
    if len(order) != count or sorted(place) != list(range(count)):
        raise InvalidOrder(
            f"the order lists {len(order)} ops ({len(place)} different ones), "
            f"but it must hold each of 0 to {count - 1} once",
            hint="it belongs to another model or another version of defer; plan again",
        )
    for op, before in enumerate(predecessors(layout)):
        for other in before:
            if place[other] > place[op]:
                raise InvalidOrder(
                    f"op {op} ({_name(layout.ops[op])}) comes before op {other} ({_name(layout.ops[other])}), "
                    "whose result it needs",
                    hint="an order must be a topological one",
                )
    ops = tuple(layout.ops[op] for op in order)
    return replace(prepared, layout=Layout(ops, layout.roles, layout.inputs, layout.outputs))


def predecessors(layout: Layout) -> tuple[tuple[int, ...], ...]:
    """Per op, the ops that must run before it, directly or through ops that are repeated; rising."""
    made_by: dict[ir.Value, frozenset[int]] = {value: frozenset() for value in layout.inputs}
    for position, node in enumerate(layout.ops):
        made_by.update(dict.fromkeys(node.outputs, frozenset((position,))))
    return tuple(
        tuple(sorted({other for value in needs(node) for other in _makers(value, made_by)} - {position}))
        for position, node in enumerate(layout.ops)
    )


def _makers(value: ir.Value, made_by: dict[ir.Value, frozenset[int]]) -> frozenset[int]:
    """Ops on which a value depends; what repeated ops make is traced back and remembered."""
    pending = [value]
    while pending:
        wanted = pending[-1]
        node = wanted.producer()
        if wanted in made_by or node is None:  # without a producer: a weight
            made_by.setdefault(wanted, frozenset())
            pending.pop()
            continue
        sources = needs(node)
        unknown = [source for source in sources if source not in made_by]
        if unknown:
            pending += unknown
            continue
        made_by[wanted] = frozenset[int]().union(*(made_by[source] for source in sources))
        pending.pop()
    return made_by[value]


def _name(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name!r}"
