"""`blocks.json`: what the partitioner says of a model. Converted from and to its `BlockChain` only here."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import msgspec

from defer.documents.base import Document
from defer.errors import InvalidDocument

if TYPE_CHECKING:
    from partitioner import BlockChain, TensorSpec


class TensorEntry(msgspec.Struct, frozen=True):
    """A tensor; a dimension that is free until run time is a string."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class BlockEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A run of ops that planning does not split; see `partitioner.Block`.

    Attributes:
        start: Position of its first op in the topological order.
        stop: Position after its last op.
        name: For people.
        op_types: Its op types in order.
        flops: Floating-point operations of one run.
        weights: Names of the initializers that it reads.
        weight_bytes: Their size together.
        activation_bytes: The most bytes of activations that are alive at once while it runs.
    """

    start: int
    stop: int
    name: str
    op_types: tuple[str, ...]
    flops: int
    weights: tuple[str, ...]
    weight_bytes: int
    activation_bytes: int


class BoundaryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors alive between two blocks; see `partitioner.Boundary`."""

    position: int
    tensors: tuple[str, ...]
    nbytes: int


class BlocksDocument(Document, frozen=True, kw_only=True):
    """A block chain: L blocks, and L + 1 boundaries around them.

    Attributes:
        model: Name of the model.
        digest: sha256 of the prepared model's content.
        inputs: The model's inputs.
        outputs: The model's outputs.
        bindings: Value used for each free dimension when costing.
        weight_bytes: All weights, shared ones once.
        blocks: In order.
        boundaries: Boundary i comes before block i.
        tensors: Every tensor on any boundary.
        tensor_bytes: Size of each of them in bytes.
        weight_sizes: Bytes of each weight that a block reads, so that shared ones count once.
    """

    KIND: ClassVar[str] = "blocks"
    MADE_BY: ClassVar[str] = "defer analyze MODEL -o blocks.json"

    model: str
    digest: str
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    bindings: dict[str, int]
    weight_bytes: int
    weight_sizes: dict[str, int]
    blocks: tuple[BlockEntry, ...]
    boundaries: tuple[BoundaryEntry, ...]
    tensors: tuple[TensorEntry, ...]
    tensor_bytes: dict[str, int]

    def problems(self) -> None:
        """Checks that blocks follow each other and that boundaries fit between them."""
        if not self.blocks:
            raise InvalidDocument(
                "a chain needs at least one block", where="blocks", hint=f"`{self.MADE_BY}`"
            )
        if len(self.boundaries) != len(self.blocks) + 1:
            raise InvalidDocument(
                f"{len(self.blocks)} blocks need one boundary more, not {len(self.boundaries)}",
                where="boundaries",
                hint=f"`{self.MADE_BY}`",
            )
        self._check_weights()
        known = {tensor.name for tensor in self.tensors}
        for number, block in enumerate(self.blocks):
            ends = (self.boundaries[number].position, self.boundaries[number + 1].position)
            if not block.start < block.stop or (block.start, block.stop) != ends:
                raise InvalidDocument(
                    f"ops {block.start} to {block.stop} do not fit its boundaries at {ends[0]} and {ends[1]}",
                    where=f"blocks[{number}]",
                    hint=f"`{self.MADE_BY}`",
                )
        for number, boundary in enumerate(self.boundaries):
            for name in boundary.tensors:
                if name not in known:
                    raise InvalidDocument(
                        f"nothing is known of the tensor {name!r}",
                        where=f"boundaries[{number}]",
                        hint=f"`{self.MADE_BY}`",
                    )

    @property
    def positions(self) -> tuple[int, ...]:
        """Op positions of the boundaries, 0 first."""
        return tuple(boundary.position for boundary in self.boundaries)

    def _check_weights(self) -> None:
        for number, block in enumerate(self.blocks):
            for name in block.weights:
                if name not in self.weight_sizes:
                    raise InvalidDocument(
                        f"the size of the weight {name!r} is missing",
                        where=f"blocks[{number}].weights",
                        hint=f"`{self.MADE_BY}`",
                    )

    @classmethod
    def from_chain(cls, chain: BlockChain) -> BlocksDocument:
        """The document of a chain."""
        return cls(
            model=chain.model,
            digest=chain.digest,
            inputs=tuple(map(_entry, chain.inputs)),
            outputs=tuple(map(_entry, chain.outputs)),
            bindings=dict(chain.bindings),
            weight_bytes=chain.weight_bytes,
            weight_sizes=dict(chain.weight_sizes),
            blocks=tuple(
                BlockEntry(
                    start=block.start,
                    stop=block.stop,
                    name=block.name,
                    op_types=block.op_types,
                    flops=block.flops,
                    weights=block.weights,
                    weight_bytes=block.weight_bytes,
                    activation_bytes=block.activation_bytes,
                )
                for block in chain.blocks
            ),
            boundaries=tuple(
                BoundaryEntry(position=b.position, tensors=b.tensors, nbytes=b.nbytes)
                for b in chain.boundaries
            ),
            tensors=tuple(map(_entry, chain.tensors.values())),
            tensor_bytes=dict(chain.tensor_bytes),
        )

    def to_chain(self) -> BlockChain:
        """The partitioner's chain again; needs the extra `planner`."""
        import partitioner

        def spec(entry: TensorEntry) -> partitioner.TensorSpec:
            return partitioner.TensorSpec(entry.name, entry.dtype, entry.shape)

        return partitioner.BlockChain(
            model=self.model,
            digest=self.digest,
            inputs=tuple(map(spec, self.inputs)),
            outputs=tuple(map(spec, self.outputs)),
            blocks=tuple(
                partitioner.Block(
                    start=block.start,
                    stop=block.stop,
                    name=block.name,
                    op_types=block.op_types,
                    flops=block.flops,
                    weights=block.weights,
                    weight_bytes=block.weight_bytes,
                    activation_bytes=block.activation_bytes,
                )
                for block in self.blocks
            ),
            boundaries=tuple(partitioner.Boundary(b.position, b.tensors, b.nbytes) for b in self.boundaries),
            tensors={entry.name: spec(entry) for entry in self.tensors},
            tensor_bytes=dict(self.tensor_bytes),
            bindings=dict(self.bindings),
            weight_sizes=dict(self.weight_sizes),
            weight_bytes=self.weight_bytes,
        )


def _entry(spec: TensorSpec) -> TensorEntry:
    return TensorEntry(spec.name, spec.dtype, spec.shape)
