"""What each of defer's error codes means to a shell and to an HTTP client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an error means outside of Python.

    Attributes:
        exit_code: Exit code of the command line, after BSD's sysexits.h; 2 for usage as click has it.
        http_status: Status of the gateway's answer.
    """

    exit_code: int
    http_status: int


OUTCOMES: Final[dict[str, Outcome]] = {
    "usage": Outcome(2, 400),
    "invalid-model": Outcome(65, 422),
    "unsupported-op": Outcome(65, 422),
    "invalid-document": Outcome(65, 422),
    "invalid-cluster": Outcome(78, 422),
    "wrong-input": Outcome(65, 400),
    "too-large": Outcome(65, 413),
    "unknown-coding": Outcome(65, 415),
    "unknown-device": Outcome(78, 404),
    "unknown-model": Outcome(65, 404),
    "no-route": Outcome(69, 409),
    "agent-unreachable": Outcome(69, 503),
    "agent-fault": Outcome(69, 502),
    "dispatcher-unreachable": Outcome(69, 503),
    "protocol-mismatch": Outcome(76, 502),
    "request-failed": Outcome(69, 502),
    "deadline-exceeded": Outcome(75, 504),
    "agent-lost": Outcome(75, 503),
    "cancelled": Outcome(130, 499),
    "overloaded": Outcome(75, 429),
    "not-ready": Outcome(75, 503),
    "standby": Outcome(75, 503),
    "file-problem": Outcome(74, 500),
    "file-missing": Outcome(66, 404),
    "output-exists": Outcome(73, 409),
    "permission-denied": Outcome(77, 403),
    "disk-full": Outcome(74, 507),
    "corrupt-file": Outcome(65, 422),
    "unauthorised": Outcome(77, 401),
    "not-allowed": Outcome(77, 403),
    "invalid-key": Outcome(78, 500),
    "port-in-use": Outcome(69, 503),
    "state-in-use": Outcome(75, 503),
    "out-of-memory": Outcome(69, 507),
    "missing-extra": Outcome(69, 501),
    "internal": Outcome(70, 500),
}
"""The one table from code to exit code and HTTP status."""
