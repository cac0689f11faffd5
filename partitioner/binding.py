"""Numbers for free dimensions: what the caller gave, and 1 for a batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from partitioner.errors import MissingDimension, WrongInput
from partitioner.proto import ValueType

_BATCH_NAME = re.compile(r"(?i)^(n|b|bs)$|batch")
_LENGTH_NAME = re.compile(r"(?i)^(t|s|l)$|seq|time|len|step|frame|token")


@dataclass(frozen=True, slots=True)
class Bound:
    """Input types with dimensions bound.

    Attributes:
        types: by input name; what nobody bound keeps its name.
        values: the number taken for each named dimension.
    """

    types: Mapping[str, ValueType]
    values: Mapping[str, int]


def bind(
    inputs: Mapping[str, ValueType], shapes: Mapping[str, Sequence[int]], *, complete: bool = True
) -> Bound:
    """Put numbers in place of the free dimensions of inputs.

    A dimension named the same in several inputs is one dimension. With ``complete``, a batch that nobody
    gave is 1: the first dimension of an input of rank 2 or more unless its name speaks of a length, and any
    dimension whose name speaks of a batch.

    Args:
        inputs: declared types by name, every free dimension named.
        shapes: full shapes by input name.
        complete: whether every dimension must have a number in the end.

    Raises:
        WrongInput: for an unknown name, another rank, a fixed dimension of another size, or two sizes for
            one dimension.
        MissingDimension: with ``complete``, naming a dimension that is neither given nor a batch.
    """
    values: dict[str, int] = {}
    given: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise WrongInput(
                f"the model has no input {name!r}; its inputs are {', '.join(map(repr, inputs)) or 'none'}",
                hint="name one of them",
            )
        given[name] = _check(name, inputs[name], shape, values)
    if complete:
        for type_ in inputs.values():
            values |= {
                dim: 1
                for axis, dim in enumerate(type_.dims or ())
                if isinstance(dim, str) and dim not in values and _is_batch(dim, axis, len(type_.dims or ()))
            }
    types: dict[str, ValueType] = {}
    for name, type_ in inputs.items():
        dims = type_.dims
        if name in given:
            dims = given[name]
        elif dims is not None:
            dims = tuple(values.get(dim, dim) if isinstance(dim, str) else dim for dim in dims)
        if complete and type_.kind == "tensor":
            _require(name, type_, dims)
        types[name] = ValueType(type_.kind, type_.dtype, dims)
    return Bound(types, values)


def _check(name: str, type_: ValueType, shape: Sequence[int], values: dict[str, int]) -> tuple[int, ...]:
    numbers = tuple(int(size) for size in shape)
    if any(size < 1 for size in numbers):
        raise WrongInput(
            f"input {name!r} was given the shape {list(numbers)}; every dimension must be at least 1"
        )
    if type_.kind != "tensor":
        raise WrongInput(f"input {name!r} is a {type_.kind}, which has no shape")
    if type_.dims is None:
        return numbers
    declared = "[" + ", ".join(map(str, type_.dims)) + "]"
    if len(numbers) != len(type_.dims):
        raise WrongInput(
            f"input {name!r} has {len(type_.dims)} dimensions {declared}, but the shape given has "
            f"{len(numbers)}: {list(numbers)}",
            hint="give as many sizes as it has dimensions",
        )
    for dim, size in zip(type_.dims, numbers, strict=True):
        if isinstance(dim, int) and dim != size:
            raise WrongInput(
                f"input {name!r} is declared {declared}; the shape {list(numbers)} does not fit it"
            )
        if isinstance(dim, str) and values.setdefault(dim, size) != size:
            raise WrongInput(
                f"dimension {dim!r} was given two sizes, {values[dim]} and {size} (the latter by input {name!r})"
            )
    return numbers


def _is_batch(name: str, axis: int, rank: int) -> bool:
    if _BATCH_NAME.search(name):
        return True
    return axis == 0 and rank > 1 and not _LENGTH_NAME.search(name)


def _require(name: str, type_: ValueType, dims: Sequence[int | str | None] | None) -> None:
    example = ",".join("?" if not isinstance(dim, int) else str(dim) for dim in dims or ("?", "?"))
    hint = f"give the input's whole shape: --input {name}={example}, or input_shapes={{{name!r}: ({example})}} in Python"
    if dims is None:
        raise MissingDimension(f"input {name!r} declares no shape, so nothing can be costed", hint=hint)
    for axis, dim in enumerate(dims):
        if not isinstance(dim, int):
            declared = type_.dims[axis] if type_.dims else dim
            raise MissingDimension(
                f"dimension {axis} ({declared!r}) of input {name!r} has no size", hint=hint
            )
