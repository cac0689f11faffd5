"""What can be cut, and what does each piece cost? Splits ONNX models into partitions.

``analyze`` describes a model as a chain of blocks, ``coarsen`` and ``balance`` choose boundaries in it,
``split`` cuts there, ``write_directory`` and ``write_store`` put the pieces on disk. ``flow`` tells which op needs
which, whatever their order.
"""

from partitioner.analysis import analyze
from partitioner.balancing import balance
from partitioner.chain import Block, BlockChain, Boundary, TensorSpec
from partitioner.coarsening import coarsen
from partitioner.convolutions import convolved
from partitioner.directory import write_directory
from partitioner.errors import PartitionerError
from partitioner.flow import Flow, flow
from partitioner.splitting import Partition, split
from partitioner.store import StoredFile, StoredPartition, write_store

__all__ = [
    "Block",
    "BlockChain",
    "Boundary",
    "Flow",
    "Partition",
    "PartitionerError",
    "StoredFile",
    "StoredPartition",
    "TensorSpec",
    "analyze",
    "balance",
    "coarsen",
    "convolved",
    "flow",
    "split",
    "write_directory",
    "write_store",
]
