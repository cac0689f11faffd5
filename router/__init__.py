"""Which device runs which blocks, over which links, with which codec.

Numbers and names only: no sockets, threads, clocks or files. Inside, seconds, bytes, joules and money.

>>> from router import Cluster, Device, Link, Problem, solve, explain
>>> cluster = Cluster(
...     devices=[Device("server", computes=False), Device("a", memory=600), Device("b", memory=600)],
...     links=[Link(u, v, bandwidth=1e6, delay=0.001)
...            for u in ("server", "a", "b") for v in ("server", "a", "b") if u != v],
... )
>>> problem = Problem(
...     cluster=cluster, source="server", sink="server",
...     block_seconds={"a": [0.010, 0.010], "b": [0.020, 0.010]},
...     block_memory=[500, 500],
...     boundary_bytes=[1000, 2000, 100],
... )
>>> best = solve(problem, "throughput")
>>> [(stage.device, stage.start, stage.stop) for stage in best.route.stages], best.period, best.optimal
([('a', 0, 1), ('b', 1, 2)], 0.01, True)
>>> round(sum(term.seconds for term in explain(problem, best.route)), 4)   # = best.latency
0.0261

`solve(problem, objective)` finds the best plan, `place(problem, stages)` checks an operator's own,
`evaluate(problem, route)` predicts latency, period and loads, `explain(problem, route)` lists every addend of
the latency. A plan that cannot exist raises `NoRoute`, whose message names the limit that forbids it.
`docs/planning.md` states the model.
"""

from router.advice import Advice, WhatIf, advise
from router.branches import GraphPlan, GraphStage, split_graph
from router.cluster import Cluster, Device, Link
from router.errors import InvalidProblem, NoRoute, RouterError
from router.evaluation import evaluate, explain
from router.flows import Capacity, Job, capacity
from router.jobs import JointPlan, admit, plan_jobs
from router.opgraph import DeviceKind, OpGraph, Tensor
from router.placing import place
from router.problem import OBJECTIVES, RAW, Buffers, CodecCost, Load, Objective, Pins, Problem
from router.replanning import Change, predict, weigh
from router.replicas import solve_replicated
from router.route import Evaluation, Route, Share, Solution, Stage, Term, Transfer
from router.solver import solve, soon

__all__ = [
    "OBJECTIVES",
    "RAW",
    "Advice",
    "Buffers",
    "Capacity",
    "Change",
    "Cluster",
    "CodecCost",
    "Device",
    "DeviceKind",
    "Evaluation",
    "GraphPlan",
    "GraphStage",
    "InvalidProblem",
    "Job",
    "JointPlan",
    "Link",
    "Load",
    "NoRoute",
    "Objective",
    "OpGraph",
    "Pins",
    "Problem",
    "Route",
    "RouterError",
    "Share",
    "Solution",
    "Stage",
    "Tensor",
    "Term",
    "Transfer",
    "WhatIf",
    "admit",
    "advise",
    "capacity",
    "evaluate",
    "explain",
    "place",
    "plan_jobs",
    "predict",
    "solve",
    "solve_replicated",
    "soon",
    "split_graph",
    "weigh",
]
