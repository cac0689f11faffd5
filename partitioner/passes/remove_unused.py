"""Drop what no output of the model depends on."""

from __future__ import annotations

import onnx_ir as ir

from partitioner.needs import needs


def remove_unused(model: ir.Model) -> None:
    """Remove ops and initializers that reach no output, captures inside bodies counted as uses."""
    graph = model.graph
    alive: set[ir.Node] = set()
    used: set[ir.Value] = set()
    pending = list(graph.outputs)
    while pending:
        value = pending.pop()
        if value in used:
            continue
        used.add(value)
        node = value.producer()
        if node is not None and node not in alive:
            alive.add(node)
            pending += needs(node)
    dead = [node for node in graph if node not in alive]
    for node in dead:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
    graph.remove(dead)
    for name, value in [*graph.initializers.items()]:
        if value not in used:
            del graph.initializers[name]
