"""Rewires the nodes of an ONNX file. An agent has no `onnx` package: what is not rewired stays the bytes that it was.

Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, bytes those of
https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Field = tuple[int, int, bytes]
"""Number, wire type and content: the bytes of a varint, or what follows a length."""

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

_GRAPH = 7
_NODE, _WEIGHT, _INPUT, _OUTPUT = 1, 5, 11, 12
_WEIGHT_NAME = 8
_EXTERNAL = 13
"""Where a weight lies beside the file: keys and values, as text."""
_READS, _MAKES, _OP, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7
_BODIES = {6, 11}
"""Graphs of an attribute: the bodies of `If`, `Loop` and `Scan`, whose nodes read the values around them."""


class UnreadableGraphError(ValueError):
    """The bytes are no ONNX file."""


@dataclass(slots=True)
class Node:
    """One node; names are those of values, empty where an optional one is left out."""

    op: str
    reads: list[str]
    makes: list[str]
    domain: str = ""
    rest: list[Field] = field(default_factory=list)

    @property
    def has_body(self) -> bool:
        """Whether it holds graphs."""
        return any(
            number == _ATTRIBUTE and any(inner in _BODIES for inner, _, _ in fields(content))
            for number, _, content in self.rest
        )

    def integers(self, name: str) -> list[int]:
        """An attribute that is a list of integers; empty where it is not there."""
        for number, _, content in self.rest:
            held = fields(content) if number == _ATTRIBUTE else []
            if text(1, name) in held:
                return [at for inner in held if inner[0] == 8 for at in _integers(inner)]
        return []


class OnnxFile:
    """A model whose graph's nodes may be changed.

    Args:
        data: The file's bytes.

    Attributes:
        nodes: In their order, which is topological.
        inputs: Names of the graph's inputs.
        outputs: Names of the graph's outputs.

    Raises:
        UnreadableGraphError: It is none.
    """

    def __init__(self, data: bytes) -> None:
        self._model = fields(data)
        graphs = [content for number, _, content in self._model if number == _GRAPH]
        if len(graphs) != 1:
            raise UnreadableGraphError(f"the model has {len(graphs)} graphs")
        held = fields(graphs[0])
        self.nodes = [_node(content) for number, _, content in held if number == _NODE]
        self.inputs = [_name(content) for number, _, content in held if number == _INPUT]
        self.outputs = [_name(content) for number, _, content in held if number == _OUTPUT]
        self._rest = [each for each in held if each[0] != _NODE]

    def weights_beside(self) -> dict[str, int]:
        """Bytes of the weights that lie beside the file, by name."""
        found = {}
        for weight in (fields(content) for number, _, content in self._rest if number == _WEIGHT):
            entries = [fields(content) for number, _, content in weight if number == _EXTERNAL]
            nbytes = sum(int(entry[1][2]) for entry in entries if entry[0] == text(1, "length"))
            found.update(
                {content.decode(): nbytes for number, _, content in weight if number == _WEIGHT_NAME}
            )
        return found

    @classmethod
    def read(cls, path: Path) -> OnnxFile:
        """See the class."""
        return cls(path.read_bytes())

    def write(self, path: Path) -> None:
        """Writes the model with its nodes as they are now."""
        path.write_bytes(self.encode())

    def encode(self) -> bytes:
        """The file's bytes."""
        nodes = ((_NODE, LENGTH, _node_bytes(node)) for node in self.nodes)
        graph = message((*nodes, *self._rest))
        return message(
            (number, kind, graph if number == _GRAPH else content) for number, kind, content in self._model
        )


def attribute(name: str, value: int | Sequence[int]) -> Field:
    """A node's attribute that is an integer, or a list of them."""
    kind, number, values = (2, 3, [value]) if isinstance(value, int) else (7, 8, list(value))
    held = ((number, VARINT, varint(each)) for each in values)
    return _ATTRIBUTE, LENGTH, message([text(1, name), *held, (20, VARINT, varint(kind))])


def text(number: int, value: str) -> Field:
    """A field that is a string."""
    return number, LENGTH, value.encode()


def message(parts: Iterable[Field]) -> bytes:
    """The bytes of a message."""
    found = bytearray()
    for number, kind, content in parts:
        found += varint(number << 3 | kind)
        if kind == LENGTH:
            found += varint(len(content))
        found += content
    return bytes(found)


def fields(data: bytes) -> list[Field]:
    """The fields of a message, in order.

    Raises:
        UnreadableGraphError: The bytes end too soon, or have a wire type that there is not.
    """
    found, at = [], 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == LENGTH:
            size, begin = _varint(data, at)
        elif kind == VARINT:
            begin, size = at, _varint(data, at)[1] - at
        elif kind in (FIXED64, FIXED32):
            begin, size = at, 8 if kind == FIXED64 else 4
        else:
            raise UnreadableGraphError(f"wire type {kind} at byte {at}")
        at = begin + size
        if at > len(data):
            raise UnreadableGraphError(f"{len(data)} bytes where field {key >> 3} ends at {at}")
        found.append((key >> 3, kind, data[begin:at]))
    return found


def varint(value: int) -> bytes:
    """A number that is not negative in base 128, the least first."""
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    found.append(value)
    return bytes(found)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    value = shift = 0
    while shift < 70:
        if at >= len(data):
            raise UnreadableGraphError(f"a number is cut off at byte {at}")
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
        shift += 7
    raise UnreadableGraphError(f"a number without end at byte {at}")


def _integers(values: Field) -> list[int]:
    """The numbers of a field of numbers, each by itself or packed."""
    _, _, data = values
    found, at = [], 0
    while at < len(data):
        number, at = _varint(data, at)
        found.append(number)
    return found


def _name(content: bytes) -> str:
    """Name of a described value."""
    return next((_string(inner) for number, _, inner in fields(content) if number == 1), "")


def _string(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableGraphError(f"a name is no UTF-8: {error}") from None


def _node(content: bytes) -> Node:
    node = Node("", [], [])
    for each in fields(content):
        number, _, inner = each
        if number == _READS:
            node.reads.append(_string(inner))
        elif number == _MAKES:
            node.makes.append(_string(inner))
        elif number == _OP:
            node.op = _string(inner)
        elif number == _DOMAIN:
            node.domain = _string(inner)
        else:
            node.rest.append(each)
    return node


def _node_bytes(node: Node) -> bytes:
    named = [text(_READS, name) for name in node.reads] + [text(_MAKES, name) for name in node.makes]
    domain = [text(_DOMAIN, node.domain)] if node.domain else []
    return message([*named, text(_OP, node.op), *domain, *node.rest])
