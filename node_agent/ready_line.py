"""The line with which an agent says that it is ready, and where."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node_agent.agent import Agent

Where = tuple[str, int]
"""Host and port."""


def ready_line(agent: Agent, as_json: bool, metrics: Where | None = None) -> str:
    """For people, or one JSON object for programs.

    Args:
        agent: Started.
        as_json: For whom.
        metrics: Where it serves metrics, if anywhere.
    """
    config = agent.config
    control, data, fetch = agent.ports
    host = shown_host(config.host)
    observed = f"{shown_host(metrics[0])}:{metrics[1]}" if metrics else ""
    if as_json:
        told = {
            "name": config.name,
            "pid": os.getpid(),
            "boot": agent.boot,
            "control": f"tcp://{host}:{control}",
            "data": f"tcp://{host}:{data}",
            "fetch": f"tcp://{host}:{fetch}",
        }
        return json.dumps(told | ({"metrics": f"http://{observed}/metrics"} if observed else {}))
    dials = f", registers with {', '.join(config.dials)}" if config.dials else ""
    beside = f", metrics {observed}" if observed else ""
    return (
        f"Agent {config.name} is ready: control {host}:{control}, data {data}, fetch {fetch}{beside}{dials}."
    )


def shown_host(host: str) -> str:
    """A host as it stands before a port."""
    return f"[{host}]" if ":" in host else host
