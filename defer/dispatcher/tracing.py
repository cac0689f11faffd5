"""What the dispatcher notes of traced requests, and what it gathers of them from the agents.

Times are of its own monotonic clock. Each agent has another one; by how much theirs are ahead is read from short
questions over the control connections (`defer.tracing.clocks`), before and after what is traced.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial

from defer import api
from defer.agents import AgentPool
from defer.dispatcher.shell import DataShell
from defer.tracing.clocks import Reading, best_reading
from node_agent.messages import ControlMessage, TraceReport, TraceRequest

ASK_S = 2.0
"""An agent that does not answer within this is left out of the trace."""

MOST_ROUNDS = 64
"""Questions to each agent by which its clock is read, at most."""


def traces_of(shell: DataShell, pool: AgentPool, devices: Sequence[str], wanted: api.GetTraces) -> api.Traces:
    """Everything that is known of some traces, and how the agents' clocks stand.

    Args:
        shell: Has noted when requests came and went.
        pool: Reaches the agents.
        devices: Their names.
        wanted: Which traces, and how often each clock is to be read.

    Returns:
        What those agents know that answered in time.
    """
    alive = [
        name for name in devices if (known := pool.liveness(name)) is not None and known.state == "alive"
    ]
    readings: dict[str, list[Reading]] = {name: [] for name in alive}
    for _ in range(min(wanted.rounds, MOST_ROUNDS)):
        for name, (reading, _) in _ask(pool, alive, ()).items():
            readings[name].append(reading)
    heard = _ask(pool, alive, wanted.traces) if wanted.traces else {}
    found = {name: best_reading(taken) for name, taken in readings.items() if taken}
    return api.Traces(
        id=0,
        clock_ns=time.monotonic_ns(),
        requests=shell.call(lambda _core, _now: shell.traces.find(wanted.traces)).result(5),
        agents=tuple(
            api.AgentTraces(
                name,
                heard[name][1].hops if name in heard else (),
                at_ns=found[name].at_ns if name in found else 0,
                ahead_ns=found[name].ahead_ns if name in found else 0,
                error_ns=found[name].error_ns if name in found else -1,
            )
            for name in alive
        ),
    )


def _arrived(arrived: dict[str, int], name: str, _: object) -> None:
    """Notes when an answer came, in the thread that reads it."""
    arrived[name] = time.monotonic_ns()


def _ask(
    pool: AgentPool, names: Sequence[str], traces: tuple[str, ...]
) -> dict[str, tuple[Reading, TraceReport]]:
    """One question to every agent at once; those that answer in time."""
    arrived: dict[str, int] = {}
    asked: dict[str, tuple[int, Future[ControlMessage]]] = {}
    for name in names:
        begun = time.monotonic_ns()
        future = pool.submit(name, TraceRequest(0, traces), timeout=ASK_S)
        future.add_done_callback(partial(_arrived, arrived, name))
        asked[name] = (begun, future)
    wait([future for _, future in asked.values()], ASK_S + 0.5)
    found = {}
    for name, (begun, future) in asked.items():
        if name in arrived and future.done() and future.exception() is None:
            answer = future.result()
            if isinstance(answer, TraceReport):
                found[name] = (Reading.of(begun, answer.clock_ns, arrived[name]), answer)
    return found
