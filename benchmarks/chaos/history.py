"""What clients and agents noted, and whether the promises were kept. Pure: lines in, a verdict out."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

REFUSALS = frozenset({"overloaded", "not-ready", "unknown-model"})
"""The dispatcher has not accepted such a request."""

LATE_S = 1.0
"""What a busy machine may add to a deadline."""

AFTER_S = 15.0
"""A gap in the results belongs to the fault before it for so long."""


@dataclass(slots=True)
class Asked:
    """One request at its client."""

    sent: float
    ends: list[tuple[float, str, str]] = field(default_factory=list)
    again: int = 0


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a partition for one request."""

    at: float
    device: str
    epoch: int
    hop: int
    number: int


@dataclass(slots=True)
class Verdict:
    """What a history comes to.

    Attributes:
        sent: Requests.
        results: Of those, ended with the right result.
        lost: Ended with nothing, or too late.
        duplicated: Ended twice, or whose result came again unasked.
        wrong: Ended with a result that is not the whole network's, or that no one deployment's partitions made.
        refused: Not accepted, by code.
        errors: Accepted and ended with an error, by code.
        texts: An example of each error.
        longest_gap_s: Longest time without a result while one was waited for.
        runs: Runs of partitions; `again` of them for a request that the partition had run before.
        gaps: By kind of fault, the longest time without a result after each.
        problems: What was lost, duplicated or wrong, the first few.
    """

    sent: int = 0
    results: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)
    longest_gap_s: float = 0.0
    runs: int = 0
    again: int = 0
    gaps: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def availability(self) -> float:
        """Part of the requests that got their result."""
        return self.results / self.sent if self.sent else 1.0


def read_client(lines: Iterable[str]) -> dict[int, Asked]:
    """A client's notes, by the request's number."""
    asked: dict[int, Asked] = {}
    for line in lines:
        kind, at, number, *rest = json.loads(line)
        match kind:
            case "sent":
                asked[number] = Asked(at)
            case "end":
                asked[number].ends.append((at, *rest))
            case "again" if number in asked:
                asked[number].again += 1
    return asked


def read_agent(device: str, lines: Iterable[str]) -> list[Ran]:
    """An agent's notes; a last line that was cut off is left out."""
    ran = []
    for line in lines:
        words = line.split()
        if len(words) == 4 and line.endswith("\n"):
            ran.append(Ran(float(words[0]), device, *map(int, words[1:])))
    return ran


def judge(
    asked: Mapping[int, Asked],
    ran: Sequence[Ran],
    faults: Sequence[tuple[float, str]],
    deadline_s: float,
) -> Verdict:
    """Whether everything that was promised was kept.

    Args:
        asked: What clients noted.
        ran: What agents noted.
        faults: When what began, on the clock of the notes.
        deadline_s: Of each request.
    """
    ran = [run for run in ran if run.number in asked]
    verdict = Verdict(sent=len(asked), runs=len(ran))
    hops: dict[int, set[int]] = defaultdict(set)
    by_request: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for run in ran:
        verdict.again += run.hop in by_request[run.number][run.epoch]
        hops[run.epoch].add(run.hop)
        by_request[run.number][run.epoch].add(run.hop)
    for number, request in asked.items():
        problem = _outcome(verdict, number, request, deadline_s)
        if not problem and request.ends[0][1] == "result":
            whole = any(hops[epoch] <= seen for epoch, seen in by_request[number].items())
            if whole:
                verdict.results += 1
            else:
                verdict.wrong += 1
                problem = f"no deployment ran all its partitions for request {number}, which has a result"
        if problem and len(verdict.problems) < 20:
            verdict.problems.append(problem)
    _gaps(verdict, asked, faults)
    return verdict


def _outcome(verdict: Verdict, number: int, request: Asked, deadline_s: float) -> str:
    """Count how a request ended; what is wrong with that, or nothing."""
    if len(request.ends) + request.again > 1:
        verdict.duplicated += 1
        return f"request {number} ended {len(request.ends)} times, {request.again} results came unasked"
    if not request.ends:
        verdict.lost += 1
        return f"request {number} never ended"
    at, outcome, text = request.ends[0]
    if at > request.sent + deadline_s + LATE_S:
        verdict.lost += 1
        return f"request {number} ended {at - request.sent:.1f} s after it was sent: {outcome}"
    if outcome == "wrong":
        verdict.wrong += 1
        return f"request {number} got a result that is not the whole network's"
    if outcome != "result":
        (verdict.refused if outcome in REFUSALS else verdict.errors)[outcome] += 1
        verdict.texts.setdefault(outcome, text)
    return ""


def _gaps(verdict: Verdict, asked: Mapping[int, Asked], faults: Sequence[tuple[float, str]]) -> None:
    """Longest times without a result: in all, and after each fault."""
    if not asked:
        return
    begin = min(request.sent for request in asked.values())
    ends = [begin, *sorted(end[0][0] for r in asked.values() if (end := r.ends) and end[0][1] == "result")]
    gaps = [(one, other - one) for one, other in pairwise(ends)]
    last = max(request.sent for request in asked.values())
    if last > ends[-1]:
        gaps.append((ends[-1], last - ends[-1]))
    verdict.longest_gap_s = max((gap for _, gap in gaps), default=0.0)
    starts = [start for start, _ in gaps]
    for number, (at, kind) in enumerate(faults):
        until = min(at + AFTER_S, faults[number + 1][0] if number + 1 < len(faults) else at + AFTER_S)
        first = max(0, bisect_right(starts, at) - 1)
        mine = [gap for start, gap in gaps[first:] if start < until]
        verdict.gaps.setdefault(kind, []).append(max(mine, default=0.0))
