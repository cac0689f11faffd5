"""Every reference network, whole against chained; the tiny ones cut everywhere."""

import numpy as np
import pytest

import models
import partitioner

TINY = [name for name in models.NAMES if models.describe(name).kind == "tiny"]
ZOO = [name for name in models.NAMES if models.describe(name).kind == "zoo"]
LARGE = ("vgg16", "vgg19", "bert_base")
"""Hundreds of megabytes, hashed and loaded again for each count of parts. Networks of the same kinds of block are proved
for every count: vit_b16, and a vgg19 among the light networks."""


@pytest.mark.parametrize("name", TINY)
def test_tiny(name, harness):
    model = models.build(name)
    feeds = models.example_inputs(name)
    chain = harness.check_chained(model, feeds)
    harness.check_chained(model, feeds, optimised=True, tolerance=1e-5)
    assert [spec.name for spec in chain.inputs] == list(feeds)
    for seed in (1, 2):
        other = models.example_inputs(name, seed=seed)
        whole = harness.run_whole(model, chain, other)
        harness.run_parts(partitioner.split(model, chain.positions), whole, folder=None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_zoo(name, harness, scratch):
    path = models.save(name, scratch / f"{name}.onnx")
    feeds = models.example_inputs(name)
    counts = (1, 3, 8) if name in LARGE else range(1, 9)
    whole = harness.prove(path, feeds, counts=counts, every=False, folder=scratch / "store")
    coarse = partitioner.coarsen(whole.chain, 48)
    assert len(coarse.blocks) <= 48
    harness.run_parts(partitioner.split(path, coarse.positions), whole, folder=scratch / "store")
    parts = partitioner.split(path, partitioner.balance(coarse, 4))
    harness.run_parts(parts, whole, folder=scratch / "store", optimised=True, tolerance=1e-4)


def test_batch_stays_free(harness):
    model = models.build("mobilenet_v2")
    chain = partitioner.analyze(model)
    assert chain.bindings == {"batch": 1}
    parts = partitioner.split(model, partitioner.balance(chain, 3))
    for batch in (1, 3):
        feeds = models.example_inputs("mobilenet_v2", batch=batch)
        whole = harness.run_whole(model, partitioner.coarsen(chain, 8), feeds)
        values = harness.run_parts(parts, whole, folder=None)
        assert all(len(values[spec.name]) == batch for part in parts for spec in part.outputs)
    assert all(spec.shape[0] == "batch" for part in parts for spec in (*part.inputs, *part.outputs))
    frozen = partitioner.split(model, partitioner.balance(chain, 3), input_shapes={"input": (3, 3, 224, 224)})
    for part in frozen:
        assert all(isinstance(dim, int) for spec in (*part.inputs, *part.outputs) for dim in spec.shape)
    np.testing.assert_equal([part.weight_bytes for part in frozen], [part.weight_bytes for part in parts])
