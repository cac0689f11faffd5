"""Which values of the main graph an op reads, those captured by its bodies included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs an op holds: branches of If, the body of Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def captured(graph: ir.Graph) -> tuple[ir.Value, ...]:
    """Values that a body, or one nested in it, reads from outside, in order of first use."""
    own = {*graph.inputs, *graph.initializers.values()}
    found: dict[ir.Value, None] = {}
    for node in graph:
        found.update((value, None) for value in needs(node) if value not in own)
        own.update(node.outputs)
    found.update((value, None) for value in graph.outputs if value not in own)
    return tuple(found)


def needs(node: ir.Node) -> tuple[ir.Value, ...]:
    """Values that an op reads, directly or from inside its bodies, each once, in order of first use."""
    found = {value: None for value in node.inputs if value is not None}
    for body in bodies(node):
        found.update(dict.fromkeys(captured(body)))
    return tuple(found)
