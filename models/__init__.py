"""Seeded reference networks as ONNX: published ones, and tiny ones that each show one difficulty.

Nothing is downloaded and no weights are stored: a network is generated from its name and a seed, with weights
that keep its activations of order one. Asking for names and descriptions loads neither NumPy nor onnx.

    >>> import models
    >>> models.describe("resnet50").parameters
    25557032
"""

from models.building import build, count_parameters
from models.catalog import NAMES, Description, describe
from models.errors import (
    MissingPackageError,
    ModelsError,
    UnknownModelError,
    UnwritablePathError,
    WrongArgumentError,
)
from models.inputs import example_inputs
from models.saving import save

__all__ = [
    "NAMES",
    "Description",
    "MissingPackageError",
    "ModelsError",
    "UnknownModelError",
    "UnwritablePathError",
    "WrongArgumentError",
    "build",
    "count_parameters",
    "describe",
    "example_inputs",
    "save",
]
