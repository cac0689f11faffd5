"""Plans count the bytes that narrow neighbours exchange, and no fewer where some device is wide."""

from __future__ import annotations

import msgspec
import pytest

from defer.codec_profiling import codec_costs, crossing_bytes
from defer.costs import make_costs
from defer.errors import InvalidDocument
from defer.planning import make_plan
from node_agent.messages import TensorStats
from tests.defer.plan_fixtures import a_chain, a_cluster, a_device, a_profile


def measured(jetson=(), nano=()):
    blocks = (0.05, 0.05, 0.05)
    return a_profile(
        jetson=msgspec.structs.replace(a_device(blocks), crossing_bytes=jetson),
        nano=msgspec.structs.replace(a_device(blocks), crossing_bytes=nano),
    )


def with_precision(cluster, **kinds):
    devices = tuple(
        msgspec.structs.replace(device, precision=kinds.get(device.name, "fp32"))
        for device in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices)


def test_bytes_are_those_of_the_precision_that_all_have():
    chain = a_chain()
    wide = tuple(boundary.nbytes for boundary in chain.boundaries)
    narrow = (wide[0], *(size // 2 for size in wide[1:-1]), wide[-1])
    cluster = with_precision(a_cluster(), jetson="fp16", nano="fp16")
    costs = make_costs(chain, cluster, measured(narrow, narrow))
    assert tuple(costs.problem.boundary_bytes) == narrow
    plan = make_plan(chain, cluster, measured(narrow, narrow), objective="throughput")
    assert [transfer.nbytes for transfer in plan.transfers] == [
        narrow[each.boundary] for each in plan.transfers
    ]


@pytest.mark.parametrize(
    ("kinds", "nano"), [({"jetson": "fp16"}, True), ({"jetson": "fp16", "nano": "bf16"}, True), ({}, False)]
)
def test_elsewhere_they_are_the_models(kinds, nano):
    chain = a_chain()
    wide = tuple(boundary.nbytes for boundary in chain.boundaries)
    narrow = (wide[0], *(size // 2 for size in wide[1:-1]), wide[-1])
    costs = make_costs(chain, with_precision(a_cluster(), **kinds), measured(narrow, narrow if nano else ()))
    assert tuple(costs.problem.boundary_bytes) == wide


def test_a_codec_is_compared_with_what_crosses():
    chain = a_chain()
    (name,) = chain.boundaries[1].tensors
    nbytes = chain.boundaries[1].nbytes // 2
    stats = TensorStats(name, "float16", (nbytes // 2,), nbytes, {"lz4": (nbytes // 4, 0.1, 0.2)})
    _, ratios = codec_costs(chain, {name: stats})
    assert ratios["lz4"][1] == pytest.approx(4.0)
    sizes = crossing_bytes(chain, {name: stats})
    assert sizes[1] == nbytes
    assert sizes[0] == chain.boundaries[0].nbytes


def test_a_profile_of_other_boundaries_is_refused():
    with pytest.raises(InvalidDocument, match="crossing_bytes"):
        measured((1, 2)).problems()
