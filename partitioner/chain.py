"""What a model looks like to a planner: blocks in a row, boundaries between them, numbers on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of one tensor.

    Attributes:
        name: the tensor's name in the model.
        dtype: NumPy's name, or ``bfloat16``, ``float8_*``, ``int4``, ``string`` … where NumPy has none.
        shape: an int per fixed dimension, a string per free one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Boundary:
    """The tensors alive between the ops before and after one position.

    Attributes:
        position: number of ops before the boundary.
        tensors: names, in the order in which they are produced; model inputs first.
        nbytes: bytes of all of them, free dimensions bound.
    """

    position: int
    tensors: tuple[str, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """The ops ``[start, stop)`` of the chosen order, run by one device without interruption.

    Attributes:
        start: position of the first op.
        stop: position after the last op.
        name: name of the op, or ``first..last``.
        op_types: in order of execution.
        flops: floating point (or integer) operations for one request; a multiply-add counts two.
        weights: names of the constant tensors that the ops read.
        weight_bytes: bytes of those, each counted once.
        activation_bytes: largest sum of bytes alive at once while the block runs, what merely passes
            through included.
    """

    start: int
    stop: int
    name: str
    op_types: tuple[str, ...]
    flops: int
    weights: tuple[str, ...]
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, slots=True)
class BlockChain:
    """A model as a chain of L blocks and L + 1 boundaries.

    Attributes:
        model: name of the model.
        digest: sha256 of the prepared model: structure, and every weight's bytes.
        inputs: the model's inputs, free dimensions as strings; initializers listed as inputs are not here.
        outputs: the model's outputs.
        blocks: in order.
        boundaries: boundary i lies before block i; the last one holds the model's outputs.
        tensors: declared shape of every tensor on any boundary.
        tensor_bytes: bytes of the same, free dimensions bound.
        bindings: value used for each free dimension of the inputs.
        weight_sizes: bytes of every constant tensor that some block reads.
        weight_bytes: bytes of all weights, each counted once.
    """

    model: str
    digest: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    boundaries: tuple[Boundary, ...]
    tensors: Mapping[str, TensorSpec]
    tensor_bytes: Mapping[str, int]
    bindings: Mapping[str, int]
    weight_sizes: Mapping[str, int]
    weight_bytes: int

    @property
    def flops(self) -> int:
        """Operations of the whole model for one request."""
        return sum(block.flops for block in self.blocks)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions at which the chain can be cut."""
        return tuple(boundary.position for boundary in self.boundaries[1:-1])

    def weight_bytes_of(self, start_block: int, stop_block: int) -> int:
        """Bytes of the weights that blocks ``[start_block, stop_block)`` need together.

        A weight shared by several of them counts once.

        Args:
            start_block: index of the first block.
            stop_block: index after the last block.
        """
        names = {name for block in self.blocks[start_block:stop_block] for name in block.weights}
        return sum(self.weight_sizes[name] for name in names)
