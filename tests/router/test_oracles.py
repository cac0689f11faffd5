"""Cases with known answers, through the benchmarks' own entry points; skipped where their data is absent."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from benchmarks import oracles_edge, oracles_placement, oracles_routes, topologies
from benchmarks.plan_scale import problem_of
from router import InvalidProblem, solve, split_graph
from router.additive import latency
from router.instance import compile_problem
from router.reference import reference_value

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the data folder beside the project")


@needs_data
@pytest.mark.parametrize("name", sorted(oracles_placement.KNOWN))
def test_placement(name: str) -> None:
    plan = oracles_placement.solve_placement(DATA / "placement" / f"{name}.json")
    assert plan.optimal
    assert plan.value == pytest.approx(oracles_placement.KNOWN[name], rel=5e-6)


@needs_data
def test_placement_along_one_order_is_worse_on_gnmt() -> None:
    plan = oracles_placement.solve_placement(DATA / "placement" / "gnmt_layers_inference.json")
    assert plan.value < 33.0326


@needs_data
@pytest.mark.parametrize("case", list(oracles_edge.KNOWN))
def test_edge(case: tuple[int, int, float | None]) -> None:
    *boards, mbps = case
    file = DATA / "edge_profiles" / f"{oracles_edge.KNOWN_FILE}.json"
    found = oracles_edge.solve_edge(file, boards, mbps)
    assert found.optimal
    assert found.value == pytest.approx(oracles_edge.KNOWN[case], abs=1e-6)


@needs_data
def test_routes_on_real_networks() -> None:
    networks = [topologies.load(file) for file in sorted((DATA / "topologies").glob("*.graphml"))]
    for number in range(1000, 1015):
        compared, equal, proved = oracles_routes.small_case(networks, number)
        assert (equal, proved) == (compared, compared)
    for number in range(1000, 1010):
        assert oracles_routes.wide_case(networks, number) == (1, 1, 1)


def test_placement_refuses_training_graphs() -> None:
    node = {
        "id": 0,
        "fpgaLatency": 1.0,
        "cpuLatency": 1.0,
        "size": 1,
        "supportedOnFpga": 1,
        "isBackwardNode": 1,
    }
    with pytest.raises(InvalidProblem, match="training"):
        oracles_placement.graph_of(
            {"nodes": [node], "edges": [], "maxFPGAs": 1, "maxCPUs": 0, "maxSizePerFPGA": 1}
        )


def test_placement_format_with_colours_and_weights_as_nodes() -> None:
    rng = Random(1)
    nodes, edges = [], []
    for k in range(60):
        facts = {"supportedOnFpga": True, "isBackwardNode": False, "colorClass": k}
        nodes.append({"id": k, "fpgaLatency": rng.uniform(1, 3), "cpuLatency": 30.0, "size": 1.0, **facts})
        nodes.append({"id": 100 + k, "fpgaLatency": 0, "cpuLatency": 0, "size": 9.0, **facts})
        edges.append({"sourceId": 100 + k, "destId": k, "cost": 5.0})
        if k:
            edges.append({"sourceId": k - 1, "destId": k, "cost": rng.uniform(0.1, 1)})
    data = {"nodes": nodes, "edges": edges, "maxFPGAs": 4, "maxCPUs": 1, "maxSizePerFPGA": 200.0}
    graph, kinds = oracles_placement.graph_of(json.loads(json.dumps(data)))
    plan = split_graph(graph, kinds)
    assert plan.optimal
    assert all(len(stage.ops) % 2 == 0 for stage in plan.stages)  # a weight stays with its op


@pytest.mark.parametrize(("devices", "blocks", "codecs"), [(50, 20, 1), (40, 10, 3)])
def test_same_cost_as_networkx(devices: int, blocks: int, codecs: int) -> None:
    problem = problem_of(devices, blocks, codecs)
    instance = compile_problem(problem)
    assert solve(problem).value == pytest.approx(reference_value(instance, latency(instance)), rel=1e-12)
