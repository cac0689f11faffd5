"""The one option of an engine that is ours: whether the CPU may take over what the engine cannot run."""

from __future__ import annotations

from collections.abc import Mapping

from node_agent.errors import LoadFailedError

FALLBACK = "fallback"
"""Its name; `yes` or `no`."""


def may_fall_back(options: Mapping[str, str], engine: str = "") -> bool:
    """Whether another engine may take over what the one that was asked for cannot run: option `fallback`, yes or no.

    Args:
        options: By name.
        engine: Whose option it may be as well, as `ENGINE.fallback`.

    Raises:
        LoadFailedError: It is neither.
    """
    said = options.get(f"{engine}.{FALLBACK}", options.get(FALLBACK, "yes"))
    if said not in ("yes", "no"):
        raise LoadFailedError(
            f"Option {FALLBACK}={said} is neither yes nor no.",
            hint=f"{FALLBACK}=yes (the usual) lets the CPU take over what the engine cannot run; no makes it an error.",
        )
    return said == "yes"
