"""What a request asks of devices and links on its way, as a plan predicts it. Pure."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

from defer.documents.plan import Plan


def work_of(plan: Plan) -> tuple[tuple[str, float], ...]:
    """Busy seconds per request of each device, link and shared medium on a plan's one route, by name."""
    rates = {(link.source, link.target): link for link in plan.link_loads}
    busy: defaultdict[str, float] = defaultdict(float)
    for stage in plan.stages:
        busy[f"device {stage.device}"] += stage.seconds
    for transfer in plan.transfers:
        busy[f"device {transfer.path[0]}"] += transfer.encode_s
        busy[f"device {transfer.path[-1]}"] += transfer.decode_s
        for device, seconds in transfer.encrypt_s.items():
            busy[f"device {device}"] += seconds
        for ends in pairwise(transfer.path):
            link = rates.get(ends)
            if link is not None:
                name = f"medium {link.medium}" if link.medium else f"link {ends[0]} -> {ends[1]}"
                busy[name] += transfer.wire_bytes / link.bytes_per_s
    return tuple((name, seconds) for name, seconds in busy.items() if seconds > 0)


def latency_of(plan: Plan) -> float:
    """Seconds of one request on a plan's one route when nothing waits."""
    return sum(stage.seconds for stage in plan.stages) + sum(each.seconds for each in plan.transfers)
