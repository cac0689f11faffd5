"""What can go wrong in this room.

ModelsError
├── UnknownModelError    no network of that name
├── MissingPackageError  onnx is not installed
├── WrongArgumentError   a seed or batch size that the network cannot take
└── UnwritablePathError  the file cannot be written where it was asked for
"""

from __future__ import annotations

from typing import ClassVar


class ModelsError(Exception):
    """Base of this room's errors; `str(error)` is one sentence for the reader.

    Attributes:
        code: Stable kebab-case name of the kind of error.
        hint: What to do about it; may be empty.
    """

    code: ClassVar[str] = "models-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UnknownModelError(ModelsError):
    """No reference network has this name."""

    code = "unknown-model"


class MissingPackageError(ModelsError):
    """Building needs a package that is not installed here."""

    code = "missing-package"


class WrongArgumentError(ModelsError):
    """A seed or batch size that the network cannot take."""

    code = "wrong-argument"


class UnwritablePathError(ModelsError):
    """The model file cannot be written where it was asked for."""

    code = "unwritable-path"
