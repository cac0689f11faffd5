"""Errors of the planner.

```
RouterError
├── InvalidProblem   the numbers or names given contradict each other (a caller's mistake)
└── NoRoute          the problem is sound, but no plan can exist; says which limit forbids it
```
"""

from __future__ import annotations

from typing import ClassVar


class RouterError(Exception):
    """Base of every error raised by `router`.

    Attributes:
        code: stable kebab-case name of the kind of error.
        hint: what to do about it, or an empty string.
    """

    code: ClassVar[str] = "router-error"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class InvalidProblem(RouterError):  # noqa: N818
    """A cluster, problem, route or objective that contradicts itself."""

    code: ClassVar[str] = "invalid-problem"


class NoRoute(RouterError):  # noqa: N818
    """No plan satisfies the limits.

    Attributes:
        limit: which limit forbids it: `block`, `memory`, `reachability`, `pins`, `stages`, `latency`,
            `period`, `cost`, `energy`, `error`, `capacity`; `effort` when none was found, yet none is proved
            impossible.
    """

    code: ClassVar[str] = "no-route"

    def __init__(self, message: str, *, limit: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.limit = limit
