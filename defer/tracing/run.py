"""Sends traced requests, and fetches what every process noted of them."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, wait

from defer import api
from defer.admin import Admin
from defer.client_arrays import Inputs, Outputs
from defer.client_requests import Requests
from defer.errors import NotReady
from defer.tracing.clocks import Clock, Reading, best_reading
from defer.tracing.timeline import CLIENT, ClientTrace, Timeline, agent_clocks, make_timeline

ROUNDS = 16
"""Questions by which each clock is read, before and after."""

ANSWER_S = 60.0
"""Reading the clocks of many far devices takes a while."""


def new_trace() -> str:
    """A fresh W3C trace context with the sampled flag (W3C Recommendation Trace Context, section 3.2)."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def run_traced(
    client: Requests, model: str, inputs: Inputs, *, requests: int, window: int, warm_up: int = 1
) -> Timeline:
    """Send traced requests and put together where their time went.

    Args:
        client: Of the dispatcher.
        model: Which model.
        inputs: Of every request.
        requests: How many.
        window: How many at once, at most.
        warm_up: Requests before them that are not traced.

    Raises:
        NotReady: Of no request is all known: a device did not answer, or runs another build.
        DeferError: A request failed.
    """
    for _ in range(warm_up):
        client.launch(client.prepare(inputs, model, (), None, copy=False)).result()
    with Admin(client.served.address) as admin:
        before, first = _read(admin)
        seen = _send(client, model, inputs, requests, window)
        after, last = _read(admin)
        wanted = api.GetTraces(0, tuple(each.trace for each in seen))
        found = admin.ask(wanted, api.Traces, timeout=ANSWER_S)
    clocks = {**agent_clocks(before, after), CLIENT: Clock(first, last)}
    timeline = make_timeline(model, seen, found, clocks)
    if not timeline.requests:
        unread = sorted(agent.device for agent in after.agents if agent.error_ns < 0)
        who = f"{', '.join(unread)} did not answer" if unread else "what the devices noted is incomplete"
        raise NotReady(f"nothing is known of the traced requests: {who}", hint="update the agents there")
    return timeline


def _read(admin: Admin) -> tuple[api.Traces, Reading]:
    """The agents' clocks as the dispatcher reads them, and this process's as it stands to the dispatcher's."""
    readings = []
    for _ in range(ROUNDS):
        begun = time.monotonic_ns()
        answer = admin.ask(api.GetTraces(0), api.Traces, timeout=ANSWER_S)
        readings.append(Reading.of(begun, answer.clock_ns, time.monotonic_ns()))
    seen = best_reading(readings)
    # Told from the dispatcher's side: at its time, so much ahead is the client.
    own = Reading(seen.at_ns + seen.ahead_ns, -seen.ahead_ns, seen.error_ns)
    return admin.ask(api.GetTraces(0, rounds=ROUNDS), api.Traces, timeout=ANSWER_S), own


def _send(client: Requests, model: str, inputs: Inputs, requests: int, window: int) -> list[ClientTrace]:
    ended: dict[str, int] = {}
    noted = threading.Condition()
    begun: dict[str, tuple[int, int]] = {}
    under_way: set[Future[Outputs]] = set()
    for _ in range(requests):
        if len(under_way) >= window:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        trace = new_trace()

        def note(_: Future[Outputs], trace: str = trace) -> None:
            with noted:
                ended[trace] = time.monotonic_ns()
                noted.notify()

        start = time.monotonic_ns()
        submit = client.prepare(inputs, model, (), None, copy=False, trace=trace)
        # From here on it may leave at any time: another thread sends it.
        begun[trace] = (start, time.monotonic_ns())
        future = client.launch(submit)
        future.add_done_callback(note)
        under_way.add(future)
    for future in under_way:
        future.result()
    with noted:
        # Who waits for a future may be woken before what it calls when it is done.
        noted.wait_for(lambda: len(ended) == requests, 1.0)
        return [ClientTrace(trace, *begun[trace], ended[trace]) for trace in begun if trace in ended]
