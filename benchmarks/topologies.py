"""Real networks in GraphML (Internet Topology Zoo): nodes, distances, link speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import networkx as nx

LIGHT = 299_792_458.0 * 2 / 3  # metres per second in fibre
EARTH = 6_371_000.0
DEFAULT_SPEED = 1e9 / 8  # bytes per second where the file names none


@dataclass(frozen=True, slots=True)
class Topology:
    """One network; `links` are (a, b, bytes per second, seconds), one entry per undirected link."""

    name: str
    nodes: tuple[str, ...]
    links: tuple[tuple[str, str, float, float], ...]
    without_speed: int


def _distance(a: dict[str, float], b: dict[str, float]) -> float:
    lat1, lon1, lat2, lon2 = map(math.radians, (a["Latitude"], a["Longitude"], b["Latitude"], b["Longitude"]))
    inner = math.sin((lat2 - lat1) / 2) ** 2
    inner += math.cos(lat1) * math.cos(lat2) * math.sin((lon2 - lon1) / 2) ** 2
    return 2 * EARTH * math.asin(math.sqrt(inner))


def load(path: Path) -> Topology:
    """Read a file; parallel links become the fastest of them, a node without coordinates is next door."""
    graph = nx.read_graphml(path)
    best: dict[tuple[str, str], tuple[float, float]] = {}
    missing = 0
    for a, b, facts in graph.edges(data=True):
        if a == b:
            continue
        speed = float(facts.get("LinkSpeedRaw") or 0) / 8
        if speed <= 0:
            missing += 1
            speed = DEFAULT_SPEED
        here, there = graph.nodes[a], graph.nodes[b]
        placed = all("Latitude" in node and "Longitude" in node for node in (here, there))
        delay = _distance(here, there) / LIGHT if placed else 0.0
        key = (min(a, b), max(a, b))
        if key not in best or speed > best[key][0]:
            best[key] = (speed, delay)
    links = tuple((a, b, speed, delay) for (a, b), (speed, delay) in sorted(best.items()))
    return Topology(path.stem, tuple(sorted(graph.nodes)), links, missing)


def connected_part(topology: Topology, size: int, rng: Random) -> Topology:
    """A connected induced subgraph, grown from a random node."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(topology.nodes)
    graph.add_edges_from((a, b) for a, b, _, _ in topology.links)
    chosen = [rng.choice(topology.nodes)]
    while len(chosen) < size:
        border = sorted({v for u in chosen for v in graph[u]} - set(chosen))
        if not border:
            break
        chosen.append(rng.choice(border))
    inside = set(chosen)
    links = tuple(link for link in topology.links if link[0] in inside and link[1] in inside)
    return Topology(topology.name, tuple(sorted(inside)), links, 0)


def largest_part(topology: Topology) -> Topology:
    """The largest connected component."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(topology.nodes)
    graph.add_edges_from((a, b) for a, b, _, _ in topology.links)
    inside = max(nx.connected_components(graph), key=len)
    links = tuple(link for link in topology.links if link[0] in inside)
    return Topology(topology.name, tuple(sorted(inside)), links, topology.without_speed)


def names(topologies: Sequence[Topology]) -> str:
    """One line on what the files lack."""
    lacking = [f"{t.name} {t.without_speed}/{len(t.links)}" for t in topologies if t.without_speed]
    return "links without a speed, taken as 1 Gbit/s: " + (", ".join(lacking) or "none")
