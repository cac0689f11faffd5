"""A caller's arrays: what is taken as a request's inputs, checked against the model, and what it gets as outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from defer.api import ModelInfo
from defer.errors import WrongInput
from defer.signature import input_problem, output_problem, specs_text

Array = npt.NDArray[np.generic]
Inputs = Mapping[str, npt.ArrayLike] | npt.ArrayLike
"""Arrays by input name, or one array for a model with one input."""

Outputs = dict[str, Array]
"""Arrays by output name."""


@dataclass(frozen=True, slots=True)
class _Given:
    name: str
    dtype: str
    shape: tuple[int, ...]


def as_arrays(inputs: Inputs, model: ModelInfo) -> dict[str, Array]:
    """The caller's inputs as contiguous arrays by name, checked against the model.

    A plain number or list takes the input's element type, an array must have it already.

    Raises:
        WrongInput: A name, element type or shape that the model does not take.
    """
    if not isinstance(inputs, Mapping):
        if len(model.inputs) != 1:
            raise WrongInput(
                f"model {model.name!r} has {len(model.inputs)} inputs, one array was given: "
                f"{specs_text(model.inputs)}",
                hint="give a mapping from input name to array",
            )
        inputs = {model.inputs[0].name: inputs}
    types = {spec.name: spec.dtype for spec in model.inputs}
    arrays = {str(name): _as_array(str(name), value, types.get(str(name))) for name, value in inputs.items()}
    given = [_Given(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    problem = input_problem(model.inputs, given)
    if problem is not None:
        raise WrongInput(f"model {model.name!r}: {problem}")
    return {spec.name: arrays[spec.name] for spec in model.inputs}


def copied(inputs: Inputs) -> Inputs:
    """The inputs as they are now, whatever the caller does to them later."""
    if isinstance(inputs, Mapping):
        return {name: deepcopy(value) for name, value in inputs.items()}
    return deepcopy(inputs)


def check_outputs(outputs: Sequence[str], model: ModelInfo) -> tuple[str, ...]:
    """The wanted outputs, sure to exist.

    Raises:
        WrongInput: The model has no such output.
    """
    if isinstance(outputs, str):  # one name, not its letters
        outputs = (outputs,)
    problem = output_problem(model.outputs, outputs)
    if problem is not None:
        raise WrongInput(f"model {model.name!r}: {problem}")
    return tuple(outputs)


def fill(into: Mapping[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs, those that the caller made room for in the caller's arrays.

    Raises:
        WrongInput: An array has another element type or shape than the output that it is for, or there is none.
    """
    for name, room in into.items():
        array = outputs.get(name)
        if array is None:
            raise WrongInput(f"there is room for output {name!r}, which is not among {', '.join(outputs)}")
        if (room.dtype, room.shape) != (array.dtype, array.shape):
            raise WrongInput(
                f"output {name!r} is {array.dtype.name}{list(array.shape)}, the array for it is "
                f"{room.dtype.name}{list(room.shape)}"
            )
        np.copyto(room, array)
    return {name: into.get(name, array) for name, array in outputs.items()}


def _as_array(name: str, value: npt.ArrayLike, dtype: str | None) -> Array:
    if not isinstance(value, np.ndarray | np.generic) and hasattr(value, "__dlpack__"):
        try:
            return np.ascontiguousarray(np.from_dlpack(cast(Any, value)))
        except (BufferError, RuntimeError, TypeError, ValueError) as exc:
            raise WrongInput(
                f"input {name!r} cannot be read through DLPack: {exc}",
                hint="give a tensor in this machine's memory, of a type that NumPy has",
            ) from exc
    if isinstance(value, np.ndarray) or dtype is None or dtype == "string":
        array: Array = np.asarray(value)
    else:
        try:
            array = np.asarray(value, dtype=None if hasattr(value, "dtype") else np.dtype(dtype))
        except (TypeError, ValueError) as exc:
            raise WrongInput(f"input {name!r} cannot be made an array of {dtype}: {exc}") from exc
    if array.dtype.hasobject and dtype != "string":
        raise WrongInput(f"input {name!r} holds Python objects, expected {dtype or 'numbers'}")
    return np.ascontiguousarray(array) if array.ndim else array
