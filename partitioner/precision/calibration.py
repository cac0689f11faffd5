"""What has to be watched to quantise a partition, and the ranges seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from partitioner.cutting import spec
from partitioner.precision.folding import fold_batch_norms
from partitioner.precision.quantizing import quantizable
from partitioner.splitting import Partition


def observed_tensors(partition: Partition) -> tuple[str, ...]:
    """Names of the tensors whose ranges int8 and fp8 need: what the computing ops read."""
    model = partition.model.clone()
    fold_batch_norms(model.graph)
    wanted = (node.inputs[0] for node in model.graph if quantizable(node) is not None)
    return tuple(dict.fromkeys(value.name for value in wanted if value is not None and value.name))


def instrument(partition: Partition) -> Partition:
    """The same partition, which also hands out the tensors that have to be observed.

    Its weights are shared with `partition`. Run it on real inputs and give what it returns to an
    :class:`Observer`; the partition's own inputs may be among the observed tensors and are not handed out.
    """
    model = partition.model.clone()
    graph = model.graph
    fold_batch_norms(graph)
    names = set(observed_tensors(partition))
    known = {value.name for value in (*graph.inputs, *graph.outputs)}
    added = [
        output
        for node in graph
        for output in node.outputs
        if output.name in names and output.name not in known
    ]
    graph.outputs.extend(added)
    return replace(partition, model=model, outputs=(*partition.outputs, *map(spec, added)))


class Observer:
    """Collects the range of each tensor over several runs."""

    def __init__(self) -> None:
        self._ranges: dict[str, tuple[float, float]] = {}

    def add(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Widen the ranges by what one run saw; tensors that are not of floats are passed over."""
        for name, array in arrays.items():
            if array.dtype.kind != "f" or not array.size:
                continue
            low, high = float(array.min()), float(array.max())
            before = self._ranges.get(name, (low, high))
            self._ranges[name] = min(low, before[0]), max(high, before[1])

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Least and greatest number seen, by tensor."""
        return dict(self._ranges)
