"""A model's inputs and outputs before they exist, and whether given tensors fit them.

Both ends check: the client before it sends, the dispatcher before it accepts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from node_agent.messages import TensorSpec

_RAW_BITS = {"bfloat16": "uint16"} | dict.fromkeys(
    ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8"
)
"""Types that NumPy lacks, and the type whose bits carry them."""

_ANONYMOUS = {"", "?"}
"""Free dimensions without a name: two of them need not be equal."""


class Described(Protocol):
    """Anything that says a tensor's type and shape: a header of the wire, a spec, an array's description."""

    @property
    def name(self) -> str:
        """The tensor's name."""

    @property
    def dtype(self) -> str:
        """NumPy's name of the element type."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, all known."""


def spec_text(spec: TensorSpec) -> str:
    """A spec for the screen: `data: float32[N, 3, 224, 224]`."""
    return f"{spec.name}: {spec.dtype}[{', '.join(str(dim) for dim in spec.shape)}]"


def specs_text(specs: Sequence[TensorSpec]) -> str:
    """Several specs for the screen, in order."""
    return ", ".join(spec_text(spec) for spec in specs)


def same_dtype(spec: str, given: str) -> bool:
    """Whether an array of NumPy type `given` carries elements of type `spec`."""
    if spec == "string":
        return given in ("string", "object") or given.startswith(
            ("str", "bytes")
        )  # NumPy's ways to hold text
    return spec == given or _RAW_BITS.get(spec) == given


def input_problem(specs: Sequence[TensorSpec], given: Sequence[Described]) -> str | None:
    """What is wrong with `given` as inputs of a model with inputs `specs`.

    Names, element types, rank and fixed dimensions must match, and a free dimension must have one value
    wherever its name stands.

    Returns:
        One sentence that says what was given and what was expected, or None where all fits.
    """
    problem = name_problem(specs, [tensor.name for tensor in given])
    if problem is not None:
        return problem
    bound: dict[str, tuple[int, str]] = {}
    by_name = {tensor.name: tensor for tensor in given}
    for spec in specs:
        problem = _tensor_problem(spec, by_name[spec.name], bound)
        if problem is not None:
            return problem
    return None


def name_problem(specs: Sequence[TensorSpec], names: Sequence[str]) -> str | None:
    """What is wrong with the names of inputs given to a model with inputs `specs`; None where each is there once."""
    expected = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        return f"input {twice[0]!r} is given twice"
    for name in names:
        if name not in expected:
            return f"it has no input {name!r}; its inputs are {specs_text(specs)}"
    for name in expected:
        if name not in names:
            return f"input {name!r} is missing; the inputs are {specs_text(specs)}"
    return None


def _tensor_problem(spec: TensorSpec, tensor: Described, bound: dict[str, tuple[int, str]]) -> str | None:
    wanted = spec_text(spec)
    if not same_dtype(spec.dtype, tensor.dtype):
        return f"input {spec.name!r} has element type {tensor.dtype}, expected {wanted}"
    if len(tensor.shape) != len(spec.shape):
        return f"input {spec.name!r} has shape {list(tensor.shape)}, expected {wanted}"
    for dim, size in zip(spec.shape, tensor.shape, strict=True):
        if isinstance(dim, int):
            if size != dim:
                return f"input {spec.name!r} has shape {list(tensor.shape)}, expected {wanted}"
        elif dim not in _ANONYMOUS:
            value, holder = bound.setdefault(dim, (size, spec.name))
            if value != size:
                return (
                    f"dimension {dim!r} is {value} in input {holder!r} and {size} in input {spec.name!r}; "
                    "it must be the same in both"
                )
    return None


def output_problem(outputs: Sequence[TensorSpec], wanted: Sequence[str]) -> str | None:
    """What is wrong with asking a model for the outputs `wanted`; None where all exist."""
    names = [spec.name for spec in outputs]
    for name in wanted:
        if name not in names:
            return f"it has no output {name!r}; its outputs are {specs_text(outputs)}"
    return None


def bind_free(
    specs: Sequence[TensorSpec], values: Mapping[str, int], default: int = 1
) -> tuple[TensorSpec, ...]:
    """The specs with every free dimension replaced by its value, or by `default` where it has none."""
    return tuple(
        TensorSpec(
            name=spec.name,
            dtype=spec.dtype,
            shape=tuple(dim if isinstance(dim, int) else values.get(dim, default) for dim in spec.shape),
        )
        for spec in specs
    )
