"""Discrete events: requests of several jobs flow through first-come-first-served resources.

Time is simulated; with the same seed every run is the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from router.instance import Floats
from router.online import Policy, RouteTable


@dataclass(frozen=True, slots=True)
class Traffic:
    """Arrivals of one job.

    Attributes:
        rate: requests per second on average.
        burst: 1 = Poisson; b > 1 = Poisson bursts of b requests on average (geometric) at once.
    """

    rate: float
    burst: float = 1.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a run measured.

    Attributes:
        mean, p50, p99: seconds of latency of the requests after the warm-up.
        throughput: requests finished per second.
        growth: slope of the number of requests in the system, per request arriving, without the first quarter;
            about 0 when queues are bounded, the part of the load that is too much when they are not.
        most: largest number in the system.
    """

    mean: float
    p50: float
    p99: float
    throughput: float
    growth: float
    most: int


def arrivals(traffic: Sequence[Traffic], count: int, seed: int) -> list[tuple[float, int]]:
    """The first `count` arrivals of all jobs together: (time, job)."""
    rng = Random(seed)
    heap = [(rng.expovariate(each.rate / each.burst), j) for j, each in enumerate(traffic)]
    heapq.heapify(heap)
    found: list[tuple[float, int]] = []
    while len(found) < count:
        now, j = heapq.heappop(heap)
        size = 1
        while traffic[j].burst > 1 and rng.random() < 1 - 1 / traffic[j].burst:
            size += 1
        found += [(now, j)] * size
        heapq.heappush(heap, (now + rng.expovariate(traffic[j].rate / traffic[j].burst), j))
    return found[:count]


def simulate(
    tables: Sequence[RouteTable], traffic: Sequence[Traffic], policy: Policy, *, requests: int, seed: int
) -> Report:
    """Run one policy.

    The backlog that a policy sees is a virtual queue per resource: work is added when a request is routed and drained
    at one second per second, so a decision counts at once and not when the request gets there.
    """
    resources = tables[0].work.shape[1]
    free_at = [0.0] * resources
    virtual = np.zeros(resources)
    waiting: Floats = np.zeros(resources)
    seen = 0.0
    events: list[tuple[float, int, int, int]] = []  # time, order, request, next step
    plan = arrivals(traffic, requests, seed)
    chosen: list[tuple[tuple[int, float, float], ...]] = [()] * requests
    done = np.zeros(requests)
    samples: list[tuple[float, int]] = []
    order = inside = most = 0
    upcoming = 0
    while upcoming < requests or events:
        if upcoming < requests and (not events or plan[upcoming][0] <= events[0][0]):
            now, j = plan[upcoming]
            np.maximum(virtual - (now - seen), 0.0, out=virtual)
            seen = now
            row = policy(tables[j], virtual, waiting)
            virtual += tables[j].work[row]
            waiting += tables[j].met[row]
            chosen[upcoming] = tables[j].steps[row]
            order += 1
            heapq.heappush(events, (now, order, upcoming, 0))
            upcoming += 1
            inside += 1
            most = max(most, inside)
            samples.append((now, inside))
            continue
        now, _, request, step = heapq.heappop(events)
        if step == len(chosen[request]):
            done[request] = now
            inside -= 1
            for resource in {each[0] for each in chosen[request]}:
                waiting[resource] -= 1
            continue
        resource, busy, after = chosen[request][step]
        begin = max(now, free_at[resource])
        free_at[resource] = begin + busy
        order += 1
        heapq.heappush(events, (begin + busy + after, order, request, step + 1))
    begun = np.array([at for at, _ in plan])
    latency = (done - begun)[requests // 10 :]
    count = np.array([held for _, held in samples], float)
    tail = count[requests // 4 :]
    at = np.arange(len(tail)) - (len(tail) - 1) / 2
    growth = float(at @ tail) / float(at @ at)
    return Report(
        mean=float(latency.mean()),
        p50=float(np.percentile(latency, 50)),
        p99=float(np.percentile(latency, 99)),
        throughput=requests / float(done.max()),
        growth=growth,
        most=most,
    )
