"""Everything the partitioner refuses, as one tree.

PartitionerError
├── InvalidModel        not ONNX, truncated, inconsistent
│   ├── ModelNotFound   no such file
│   ├── MissingWeights  external data absent or too short
│   └── UnsafePath      external data outside the model's folder
├── UnsupportedOp       an op that cannot be analysed or cut, by name
│   └── KeyValueCache   a decoder that keeps its keys and values between calls
├── UnsupportedPrecision  a number format that this model cannot be written in
├── WrongInput          ``input_shapes`` contradicts the model
│   └── MissingDimension  a free dimension that a cost needs
├── InvalidCut          a position that cannot be a boundary
│   ├── InvalidOrder    an order of the ops that is none of this model
│   └── TooManyParts    more parts than blocks
└── OutputError         nothing was left half-written
    ├── OutputExists    the directory holds files of somebody else
    └── WriteFailed     disk full, no permission
"""

from __future__ import annotations

from typing import ClassVar


class PartitionerError(Exception):
    """Base of every error this room raises on purpose.

    Attributes:
        code: stable name for programs and exit codes.
        hint: what to do about it, one sentence, or empty.
    """

    code: ClassVar[str] = "partitioner"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidModel(PartitionerError):  # noqa: N818
    """The bytes are not a usable ONNX model."""

    code: ClassVar[str] = "invalid-model"


class ModelNotFound(InvalidModel):
    """There is no readable file at the path."""

    code: ClassVar[str] = "model-not-found"


class MissingWeights(InvalidModel):
    """A tensor's external data is absent or shorter than the tensor."""

    code: ClassVar[str] = "missing-weights"


class UnsafePath(InvalidModel):
    """A tensor's external data lies outside the model's own folder."""

    code: ClassVar[str] = "unsafe-path"


class UnsupportedOp(PartitionerError):  # noqa: N818
    """An op that is unknown or that this room cannot treat; the message names it."""

    code: ClassVar[str] = "unsupported-op"


class KeyValueCache(UnsupportedOp):
    """An input takes what an earlier call made; the message names it."""

    code: ClassVar[str] = "key-value-cache"


class UnsupportedPrecision(PartitionerError):  # noqa: N818
    """A number format that is unknown, or that this model cannot be written in; the message says why."""

    code: ClassVar[str] = "unsupported-precision"


class WrongInput(PartitionerError):  # noqa: N818
    """A name, rank or dimension given for an input does not fit the model."""

    code: ClassVar[str] = "wrong-input"


class MissingDimension(WrongInput):
    """A cost depends on a free dimension that nobody bound."""

    code: ClassVar[str] = "missing-dimension"


class InvalidCut(PartitionerError):  # noqa: N818
    """A position at which this model cannot be cut; the message says why."""

    code: ClassVar[str] = "invalid-cut"


class InvalidOrder(InvalidCut):
    """An order of the ops that misses one, or puts one before another that it needs."""

    code: ClassVar[str] = "invalid-order"


class TooManyParts(InvalidCut):
    """More parts were asked for than the chain has blocks."""

    code: ClassVar[str] = "too-many-parts"


class OutputError(PartitionerError):
    """Files could not be written; what was there before is still there."""

    code: ClassVar[str] = "output"


class OutputExists(OutputError):  # noqa: N818
    """The target holds files that this room did not write."""

    code: ClassVar[str] = "output-exists"


class WriteFailed(OutputError):  # noqa: N818
    """The operating system refused a write (disk full, no permission)."""

    code: ClassVar[str] = "write-failed"
