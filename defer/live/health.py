"""Whether a dispatcher lives, and whether it is ready: the truth, for probes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from defer.api import ModelInfo


def unready(models: Sequence[ModelInfo], *, starting: bool = False, draining: bool = False) -> str:
    """Why requests should not come here; empty where every model that was deployed takes them.

    A model is ready once a first request has gone through its whole pipeline, and for as long as one of its routes
    has all its devices and answers requests, or canaries where there are none.

    Args:
        models: What clients may ask for.
        starting: The dispatcher has not finished starting.
        draining: It was told to stop.
    """
    if draining:
        return "the dispatcher is shutting down"
    if starting:
        return "the dispatcher is starting"
    if not models:
        return "no model is deployed"
    bad = [f"model {model.name} is not ready: {model.reason}" for model in models if model.state != "ready"]
    bad += [f"model {model.name} does not answer: {model.failing}" for model in models if model.failing]
    return "; ".join(bad)
