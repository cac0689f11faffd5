"""Replace calls of model-local functions by the functions' ops, so that cuts may lie inside them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from partitioner.errors import InvalidModel


def inline_functions(model: ir.Model) -> None:
    """Inline every function that can be; one that cannot stays whole, with its calls as single ops.

    A function stays if it is written for another opset than the model, or takes a graph as an attribute.

    Raises:
        InvalidModel: if functions call each other in a circle.
    """
    if not model.functions:
        return
    _name_apart(model)
    opsets = model.opset_imports
    stays = {
        name
        for name, function in model.functions.items()
        if any(opsets.get(domain, version) != version for domain, version in function.opset_imports.items())
        or any(
            a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in function.attributes.values()
        )
    }
    try:
        InlinePass(criteria=lambda function: function.identifier() not in stays)(model)
    except ir.passes.PreconditionError as error:
        raise InvalidModel(f"the model's functions call each other in a circle: {error}") from error
    _drop_uncalled(model)


def _name_apart(model: ir.Model) -> None:
    """Give the values inside functions names that nothing else in the model has.

    The inliner avoids names of the graph it inlines into, but not those inside bodies of If, Loop and Scan.
    An output that is an input of the function itself gets an Identity, since a value has one name only.
    """
    taken = {
        value.name
        for graph in model.graphs()
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(output for node in graph for output in node.outputs),
        )
    }
    for function in model.functions.values():
        seen: set[ir.Value] = set(function.inputs)
        for index, value in enumerate(function.outputs):
            if value in seen:
                node = ir.node("Identity", [value])
                node.outputs[0].name = f"{value.name}_copy_{index}"
                function.append(node)
                function.outputs[index] = node.outputs[0]
            seen.add(value)
        for graph in (function.graph, *function.graph.subgraphs()):
            inner = [output for node in graph for output in node.outputs]
            if graph is not function.graph:
                inner += [*graph.inputs]
            for value in inner:
                if value.name:
                    name = candidate = f"{function.name}/{value.name}"
                    count = 1
                    while candidate in taken:
                        count += 1
                        candidate = f"{name}.{count}"
                    value.name = candidate
                    taken.add(candidate)


def _drop_uncalled(model: ir.Model) -> None:
    called: set[object] = set()
    pending: list[ir.Graph] = [*model.graphs()]
    while pending:
        for node in pending.pop():
            name = node.op_identifier()
            if name in model.functions and name not in called:
                called.add(name)
                function = model.functions[name]
                pending += [function.graph, *function.graph.subgraphs()]
    for name in list(model.functions):
        if name not in called:
            del model.functions[name]
