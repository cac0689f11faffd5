"""From a name to a model in memory."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from models.catalog import describe
from models.errors import MissingPackageError, WrongArgumentError

if TYPE_CHECKING:
    import onnx

    from models.graph import Recipe


def build(name: str, *, seed: int = 0) -> onnx.ModelProto:
    """The network as an ONNX model, weights and all.

    Args:
        name: One of `models.NAMES`.
        seed: Seed of the weights, ≥ 0; the same seed gives the same model.

    Raises:
        UnknownModelError: There is no such network.
        WrongArgumentError: The seed is negative.
        MissingPackageError: onnx is not installed.
    """
    return recipe(name, seed=seed).to_proto()


def recipe(name: str, *, seed: int = 0) -> Recipe:
    """The network with its weights still to be made; raises what `build` raises."""
    module, function = describe(name).builder
    if seed < 0:
        raise WrongArgumentError(f"the seed of {name!r} is {seed}", hint="give a seed of 0 or more")
    try:
        family = importlib.import_module(f"models.{module}")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"building {name!r} needs the package {error.name!r}, which is not installed",
            hint="pip install 'defer-edge[planner]'",
        ) from error
    made: Recipe = getattr(family, function)(seed)
    return made


def count_parameters(model: onnx.ModelProto) -> int:
    """Number of trainable parameters of a model of this room.

    These are the elements of all initializers but the running mean and variance of each BatchNormalization,
    which PyTorch keeps as buffers and no published count includes.
    """
    statistics = {
        name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:]
    }
    total = 0
    for tensor in model.graph.initializer:
        size = 1
        for length in tensor.dims:
            size *= length
        total += 0 if tensor.name in statistics else size
    return total
