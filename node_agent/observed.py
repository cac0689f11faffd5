"""An agent's pages for scrapers and probes: `/metrics`, `/healthz`, `/readyz`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final, Protocol

from node_agent.agent_metrics import agent_families
from node_agent.errors import AgentError
from node_agent.events import Gauge
from node_agent.exposition import CONTENT_TYPE, render
from node_agent.messages import AgentStatus
from node_agent.pages import Page, Pages, PageServer
from node_agent.ready_line import Where

ANSWER_S: Final = 2.0
"""A look that takes longer than this fails; the thread that takes it may be writing a file."""

HANG_S: Final = 300.0
"""A request that is older than this is a hang, as for `python -m node_agent.probe`."""


class Observed(Protocol):
    """What is looked at."""

    @property
    def failed(self) -> bool:
        """Whether one of its threads ended by an error."""

    def look(self, timeout: float) -> tuple[AgentStatus, Gauge]:
        """Its state now; raises `AgentError` where it does not come in time."""


def agent_pages(agent: Observed, version: str) -> Pages:
    """The pages of an agent.

    Args:
        agent: Which.
        version: Of its build.
    """

    def metrics() -> Page:
        status, gauge = agent.look(ANSWER_S)
        families = agent_families(
            status,
            version=version,
            progress=gauge.progress,
            queued=gauge.queued,
            item_age_s=gauge.item_age_s,
        )
        return Page(render(families), kind=CONTENT_TYPE)

    def alive() -> Page:
        if agent.failed:
            return Page("a thread has failed\n", 503)
        _, gauge = agent.look(ANSWER_S)
        if gauge.item_age_s > HANG_S:
            return Page(f"a request is in work for {gauge.item_age_s:.0f} s\n", 503)
        return Page("alive\n")

    def ready() -> Page:
        try:
            status, _ = agent.look(ANSWER_S)
        except AgentError as error:
            return Page(f"{error}\n", 503)
        if agent.failed or status.state != "serving":
            return Page(f"{'failed' if agent.failed else status.state}\n", 503)
        return Page("ready\n")

    return {"/metrics": metrics, "/healthz": alive, "/readyz": ready}


@contextlib.contextmanager
def observing(agent: Observed, where: Where | None, version: str) -> Iterator[Where | None]:
    """Serves an agent's pages while the block runs; yields where, the port resolved.

    Args:
        agent: Started.
        where: Host and port; None for nowhere.
        version: Of its build.

    Raises:
        StartError: The address cannot be used.
    """
    if where is None:
        yield None
        return
    with PageServer(*where, agent_pages(agent, version)) as server:
        yield where[0], server.port
