"""The inputs on which codec errors are measured: the user's own, from .npz files, or made up from a seed."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from defer.documents.files import check_file
from defer.errors import WrongInput
from node_agent.dtypes import storage
from node_agent.messages import TensorSpec
from node_agent.samples import samples

GENERATED = 4
"""Requests that are made up where the user gives none."""

MOST = 64
"""Requests that are used of a larger file: more cost time and say little more."""

Arrays = dict[str, npt.NDArray[Any]]


def generated(inputs: Sequence[TensorSpec], count: int = GENERATED) -> list[Arrays]:
    """Requests of standard normal values (0 and 1 for integers), equal in every run.

    Args:
        inputs: The model's inputs, every dimension bound.
        count: How many.
    """
    return [samples(inputs, seed) for seed in range(count)]


def load(path: Path, inputs: Sequence[TensorSpec]) -> list[Arrays]:
    """Requests from an .npz file: per input an array of its shape, or with one more axis in front for several.

    Args:
        path: The file.
        inputs: The model's inputs, every dimension bound.

    Raises:
        FileMissing: There is no such file.
        WrongInput: Not an .npz file, or arrays that do not fit the inputs.
    """
    check_file(path, "check --calibration")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy's own sentence would have people load what may run code.
        raise WrongInput(
            f"{path.name} is not an .npz file of numbers", hint="write it with numpy.savez"
        ) from error
    found = {spec.name: _requests(path.name, spec, arrays) for spec in inputs}
    counts = {name: len(values) for name, values in found.items()}
    if len(set(counts.values())) > 1:
        raise WrongInput(f"{path.name} has different numbers of requests per input: {counts}")
    return [
        {name: values[number] for name, values in found.items()}
        for number in range(min(MOST, *counts.values()) if counts else 0)
    ]


def _requests(file: str, spec: TensorSpec, arrays: Arrays) -> npt.NDArray[Any]:
    """The values of one input, one per request along the first axis."""
    shape = tuple(spec.shape)
    if spec.name not in arrays:
        raise WrongInput(
            f"{file} has no array {spec.name!r}; it has {', '.join(arrays) or 'none'}",
            hint="name the arrays like the model's inputs",
        )
    array = arrays[spec.name]
    if array.shape == shape:
        array = array[np.newaxis]
    elif array.shape[1:] != shape or not len(array):
        raise WrongInput(
            f"{file}: array {spec.name!r} has shape {list(array.shape)}, neither {list(shape)} nor a number of those"
        )
    held = storage(spec.dtype)
    if array.dtype != held and not np.can_cast(array.dtype, held, "same_kind"):
        raise WrongInput(f"{file}: array {spec.name!r} is of {array.dtype}, the input of {spec.dtype}")
    return array.astype(held, copy=False)


def check_requests(path: Path, hint: str = "check the calibration's path") -> None:
    """Check that a file may hold calibration requests; what is in it is for whoever knows the model's inputs to check.

    Raises:
        FileMissing: There is no such file.
        WrongInput: It is no .npz file.
    """
    check_file(path, hint)
    if not zipfile.is_zipfile(path):
        raise WrongInput(f"{path.name} is not an .npz file of numbers", hint="write it with numpy.savez")
