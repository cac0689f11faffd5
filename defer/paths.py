"""Where defer keeps what it can make again, after the XDG base directory specification."""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """`$XDG_CACHE_HOME/defer`, by default `~/.cache/defer`; not made here."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "defer"


def profile_cache() -> Path:
    """Directory of block times that were measured before."""
    return cache() / "profiles"
