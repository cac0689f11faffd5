"""Every route of a small problem, counted out with numpy: the oracle of the routes benchmark.

Written from the definitions in docs/planning.md on the public values alone; it shares no code with the solver.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from router import Objective, Problem

Floats = NDArray[np.float64]
MOST = 400_000


class TooManyRoutes(Exception):  # noqa: N818
    """The problem is too large to be counted out."""


class EveryRoute:
    """Columns over all routes: latency, cost, energy, error, period; routes that break memory are left out."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.devices = {d.name: at for at, d in enumerate(problem.cluster.devices)}
        self.links = {(k.source, k.target): at for at, k in enumerate(problem.cluster.links)}
        media = sorted({k.medium for k in problem.cluster.links if k.medium is not None})
        self.media = {name: at for at, name in enumerate(media)}
        self.width = 4 + len(self.devices) + len(self.links) + len(self.media)
        self.graph = problem.cluster.graph()
        self.paths: dict[tuple[str, str], list[list[str]]] = {}
        self.ways: dict[tuple[str, str, int], Floats] = {}
        found = [rows for rows in self._all() if len(rows)]
        self.rows = np.concatenate(found) if found else np.zeros((0, 5))

    def best(self, objective: Objective) -> float:
        """Least value within the bounds, inf when there is none."""
        latency, cost, energy, error, period = self.rows.T
        limits = (
            (latency, "latency"),
            (cost, "cost"),
            (energy, "energy"),
            (error, "error"),
            (period, "period"),
        )
        keeps = np.isfinite(latency)
        for column, name in limits:
            keeps &= column <= getattr(objective, f"max_{name}") * (1 + 1e-9)
        columns = {"latency": latency, "cost": cost, "energy": energy, "period": period, "throughput": period}
        if objective.name == "weighted":
            value = sum((w * columns[name] for name, w in objective.weights.items()), np.zeros(len(latency)))
        else:
            value = columns[objective.name]
        return float(value[keeps].min()) if keeps.any() else math.inf

    def _work(self, row: Floats, device: str, seconds: float) -> None:
        facts = self.problem.cluster.device(device)
        row[0] += seconds
        row[1] += seconds * facts.price
        row[2] += seconds * facts.power
        row[4 + self.devices[device]] += seconds

    def _transfers(self, a: str, b: str, boundary: int) -> Floats:
        """One row per path and codec."""
        key = (a, b, boundary)
        if key in self.ways:
            return self.ways[key]
        problem = self.problem
        if a == b:
            self.ways[key] = np.zeros((1, self.width))
            return self.ways[key]
        if (a, b) not in self.paths:
            self.paths[a, b] = [list(p) for p in nx.all_simple_paths(self.graph, a, b)]
        rows = []
        for codec, path in itertools.product(problem.codecs, self.paths[a, b]):
            ratio = codec.ratio if isinstance(codec.ratio, float | int) else codec.ratio[boundary]
            wire = problem.boundary_bytes[boundary] / ratio
            row = np.zeros(self.width)
            row[3] = codec.error if isinstance(codec.error, float | int) else codec.error[boundary]
            self._work(row, a, codec.encode[a][boundary] if codec.encode else 0.0)
            self._work(row, b, codec.decode[b][boundary] if codec.decode else 0.0)
            for hop in itertools.pairwise(path):
                link = problem.cluster.link(*hop)
                air = wire / link.bandwidth
                row[0] += link.delay + air
                row[1] += wire * link.price_per_byte
                row[2] += wire * link.joules_per_byte
                row[4 + len(self.devices) + self.links[hop]] += air
                if link.medium is not None:
                    row[4 + len(self.devices) + len(self.links) + self.media[link.medium]] += air
                if link.encrypted:
                    for end in hop:
                        self._work(row, end, wire * problem.cluster.device(end).crypt_seconds_per_byte)
            rows.append(row)
        self.ways[key] = np.array(rows).reshape(-1, self.width)
        return self.ways[key]

    def _placements(self) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
        problem = self.problem
        able = list(problem.block_seconds)
        for count in range(1, min(problem.max_stages or problem.blocks, problem.blocks) + 1):
            for cuts in itertools.combinations(range(1, problem.blocks), count - 1):
                edges = (0, *cuts, problem.blocks)
                for devices in itertools.product(able, repeat=count):
                    if any(a == b for a, b in itertools.pairwise(devices)):
                        continue
                    most = max(devices.count(name) for name in devices)
                    if problem.stages_per_device is not None and most > problem.stages_per_device:
                        continue
                    yield edges, devices

    def _all(self) -> Iterator[Floats]:
        problem = self.problem
        counted = 0
        for edges, devices in self._placements():
            need: dict[str, float] = {}
            row = np.zeros(self.width)
            for device, (start, stop) in zip(devices, itertools.pairwise(edges), strict=True):
                need[device] = need.get(device, 0) + sum(problem.block_memory[start:stop])
                self._work(row, device, problem.stage_overhead.get(device, 0.0))
                self._work(row, device, sum(problem.block_seconds[device][start:stop]))
            memory = {name: problem.cluster.device(name).memory for name in need}
            if not math.isfinite(row[0]) or any(
                room is not None and need[name] > room for name, room in memory.items()
            ):
                continue
            table = row[None]
            holders = (problem.source, *devices, problem.sink)
            for boundary, (a, b) in zip(edges, itertools.pairwise(holders), strict=True):
                ways = self._transfers(a, b, boundary)
                if len(table) * len(ways) > MOST:
                    raise TooManyRoutes
                table = (table[:, None] + ways[None]).reshape(-1, self.width)
            counted += len(table)
            if counted > 20 * MOST:
                raise TooManyRoutes
            yield np.column_stack([table[:, :4], table[:, 4:].max(axis=1)])
