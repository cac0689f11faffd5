"""What the gateway counts of each model, in the shape of the protocol's statistics. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from defer import api

_NS = 1_000_000_000


@dataclass(slots=True)
class Tally:
    """Requests of one model that came through this gateway.

    Attributes:
        succeeded: Requests that ended with a result.
        failed: Requests that ended with an error.
        succeeded_ns: Nanoseconds of the former in all.
        failed_ns: Nanoseconds of the latter in all.
        inferences: Elements of the first dimension of the former, as the protocol counts inferences.
        last_ms: When the last one came, in milliseconds since the epoch.
    """

    succeeded: int = 0
    failed: int = 0
    succeeded_ns: int = 0
    failed_ns: int = 0
    inferences: int = 0
    last_ms: int = 0

    def ended(self, seconds: float, wall: float, *, batch: int, ok: bool) -> None:
        """A request ended at `wall` (seconds since the epoch), `seconds` after it came."""
        self.last_ms = int((wall - seconds) * 1000)
        if ok:
            self.succeeded += 1
            self.succeeded_ns += int(seconds * _NS)
            self.inferences += batch
        else:
            self.failed += 1
            self.failed_ns += int(seconds * _NS)


def statistics(
    name: str, version: str, tally: Tally, deployments: Iterable[api.DeploymentInfo]
) -> dict[str, Any]:
    """One model's statistics as the protocol's object.

    `success` and `fail` are this gateway's. `queue` and `compute_*` are what the agents count, summed over the stages
    of the version's present deployments, for the requests of all clients.
    """
    stages = [stage for info in deployments for stage in info.stages]

    def spent(what: str) -> dict[str, int]:
        return {
            "count": max((stage.items for stage in stages), default=0),
            "ns": int(sum(getattr(stage, what) * stage.items for stage in stages) * _NS),
        }

    return {
        "name": name,
        "version": version,
        "last_inference": tally.last_ms,
        "inference_count": tally.inferences,
        "execution_count": tally.succeeded,
        "inference_stats": {
            "success": {"count": tally.succeeded, "ns": tally.succeeded_ns},
            "fail": {"count": tally.failed, "ns": tally.failed_ns},
            "queue": spent("wait_s"),
            "compute_input": spent("decode_s"),
            "compute_infer": spent("run_s"),
            "compute_output": spent("encode_s"),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
