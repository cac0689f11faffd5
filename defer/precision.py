"""Numeric precision of a deployment: which device computes in which, and the ranges that quantising needs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy.typing as npt

from defer.calibration import generated, load
from defer.documents.cluster import Cluster
from node_agent.engines import REFERENCE, engine_named
from node_agent.engines.base import Partition
from node_agent.messages import TensorSpec

if TYPE_CHECKING:
    import partitioner

Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest number of a tensor, by its name in the model."""

QUANTISED = ("int8", "int8-fp16", "fp8")
"""Precisions that need ranges."""


def precisions_of(cluster: Cluster, devices: Iterable[str]) -> tuple[str, ...]:
    """The precision that the cluster file asks of each device."""
    return tuple(cluster.device(name).precision for name in devices)


def ranges_for(
    precisions: Iterable[str],
    model: Path,
    chain: partitioner.BlockChain,
    work: Path,
    calibration: Path | None = None,
) -> Ranges | None:
    """The ranges that these precisions need; None if none of them quantises.

    Args:
        precisions: What partitions are to be written in.
        model: The ONNX file.
        chain: Its blocks.
        work: Directory for what is made on the way, and for ranges measured before.
        calibration: Requests of the user's own (.npz); without it some are made up, which says little of real data.
    """
    if not set(precisions) & set(QUANTISED):
        return None
    from defer.parts import bound_inputs

    key = hashlib.sha256(f"{chain.digest}\n{sorted(chain.bindings.items())}\n".encode())
    if calibration is not None and calibration.is_file():
        key.update(calibration.read_bytes())
    path = work / f"ranges-{key.hexdigest()[:32]}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, tuple[float, float]])
    except (OSError, msgspec.MsgspecError):
        pass  # absent, or not ours: measured now
    work.mkdir(parents=True, exist_ok=True)
    inputs = bound_inputs(chain)
    requests = generated(inputs) if calibration is None else load(calibration, inputs)
    found = observe(model, inputs, requests, work)
    path.write_bytes(msgspec.json.encode(found))
    return found


def observe(
    model: Path, inputs: Sequence[TensorSpec], requests: Iterable[Mapping[str, npt.NDArray[Any]]], work: Path
) -> dict[str, tuple[float, float]]:
    """Runs a model on this machine and keeps the range of each tensor that would be quantised.

    Args:
        model: The ONNX file.
        inputs: Its inputs.
        requests: What to run it on, by input.
        work: Directory for the instrumented model.

    Raises:
        EngineMissingError: ONNX Runtime is not installed here.
        RunFailedError: The engine failed.
    """
    import partitioner
    from partitioner import precision

    work.mkdir(parents=True, exist_ok=True)
    whole = precision.instrument(partitioner.split(model, ())[0])
    stored = partitioner.write_store(whole, work)
    observer = precision.Observer()
    partition = Partition(work / f"{stored.graph.sha256}.onnx", tuple(inputs), ())
    with closing(engine_named(REFERENCE).load(partition)) as session:
        for request in requests:
            observer.add(request)
            observer.add(session.run(request))
    return observer.ranges


def rewritten(
    parts: Sequence[partitioner.Partition],
    precisions: Sequence[str],
    ranges: Ranges | None,
    outputs: Iterable[partitioner.TensorSpec],
) -> tuple[partitioner.Partition, ...]:
    """Partitions in the precisions that were asked for; the model's own inputs and outputs keep its types.

    Args:
        parts: All partitions of a model.
        precisions: One for each.
        ranges: What quantising needs to know.
        outputs: The model's.
    """
    from partitioner import precision

    keep = [spec.name for spec in outputs]
    return tuple(
        each.partition for each in precision.rewrite_chain(parts, precisions, ranges=ranges, keep=keep)
    )
