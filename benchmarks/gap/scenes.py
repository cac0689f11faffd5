"""What happens on the stand: each scene breaks or changes one thing under load and tells what the clients saw of it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from statistics import median

from benchmarks.chaos import model
from benchmarks.chaos.bed import BANDWIDTH
from benchmarks.chaos.history import read_agent
from benchmarks.gap.stand import DEADLINE_S, NAME, Stand, failed, gap, p99

BEFORE_S = 3.0
"""Of load before something happens."""

AFTER_S = 5.0
"""In which results come again; as long before, nothing is wrong, and the longest gap is what the load has by itself."""

HANG_S = 20.0


@dataclass
class Seen:
    """What a scene came to: seconds, unless the name says something else.

    Attributes:
        gaps: Longest time without a result, of each round.
        natural: The same in an equally long window before anything happened.
        detected: From the fault to the dispatcher's note of it, of each round.
        bounds: What the gap may be: detection, 1.3 times what the link takes for what was sent, loading.
        without_load: Rounds in which a deployment that stood by took over, and nothing was loaded before.
        failed: Requests without one right result.
        sent: Requests.
        more: Whatever else.
    """

    gaps: list[float] = field(default_factory=list)
    natural: list[float] = field(default_factory=list)
    detected: list[float] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)
    without_load: int = 0
    failed: int = 0
    sent: int = 0
    more: dict[str, float] = field(default_factory=dict)


def kills(stand: Stand, rounds: int, by: str) -> Seen:
    """SIGKILL of the agent with a stage in the middle, which comes back when results do; `by` is what was prepared."""
    seen, home = Seen(), stand.stages()
    for number in range(rounds):
        covered = stand.settle(home, by)
        seen.more["stages whose loss was prepared for so"] = len(covered)
        seen.more["stages"] = len(home)
        chosen = [name for name in home[1:] if name in covered] or covered
        victim = chosen[number % len(chosen)]
        if by == "none":
            stand.empty_stores()  # the round before left what it needed
        load = stand.load(BEFORE_S + 2 * AFTER_S)
        time.sleep(BEFORE_S + AFTER_S)
        wall, at, sent = time.time(), time.monotonic(), stand.running.traffic()
        stand.running.kill(victim)
        time.sleep(AFTER_S)
        most_sent = _most_sent(stand, sent)
        asked = load.asked()
        seen.failed += failed(asked)
        seen.sent += len(asked)
        seen.gaps.append(gap(asked, at, at + AFTER_S))
        seen.natural.append(gap(asked, at - AFTER_S, at, whole=True))
        events = stand.events(wall, "took-over", "mended")
        mended = [one["text"] for one in events if one["kind"] == "mended"]
        seen.without_load += not mended and any(one["kind"] == "took-over" for one in events)
        lost = [one["at"] - wall for one in stand.events(wall, "agent-lost") if one["device"] == victim]
        seen.detected.append(min(lost, default=float("inf")))
        loading = [float(text.rpartition("loaded in ")[2].split()[0]) for text in mended]
        # What is brought for the next loss, later, is none of it.
        needed = [1e6 * float(text.rpartition(" MB sent")[0].split()[-1]) for text in mended]
        bytes_sent = min(most_sent, max(needed, default=0.0))
        seen.bounds.append(seen.detected[-1] + 1.3 * bytes_sent / BANDWIDTH + max(loading, default=0.0))
        stand.bed.start_agent(victim)
    stand.settle(home, by)
    return seen


def _most_sent(stand: Stand, before: dict[tuple[str, str], int]) -> int:
    """Bytes that the dispatcher has sent to the device that got most."""
    home = stand.running.spec.dispatcher
    now = stand.running.traffic()
    return max(now[pair] - before[pair] for pair in now if pair[0] == home)


def hangs(stand: Stand, rounds: int, by: str) -> Seen:
    """A stage whose run does not end, while its agent's heartbeats go on; `by` is what was prepared for its loss."""
    seen, home = Seen(), stand.stages()
    predicted = max(
        (stage["run_s"] for each in stand.status()["deployments"] for stage in each["stages"]), default=0.0
    )
    seen.more["slowest stage, mean run"] = predicted
    for number in range(rounds):
        covered = stand.settle(home, by)
        chosen = [name for name in home[1:] if name in covered] or home[1:]
        victim = chosen[number % len(chosen)]
        slow = stand.bed.history_of(victim).with_suffix(".runs.slow")
        load = stand.load(BEFORE_S + 2 * AFTER_S)
        time.sleep(BEFORE_S + AFTER_S)
        wall, at = time.time(), time.monotonic()
        slow.write_text(f"wait {HANG_S}")
        time.sleep(AFTER_S)
        asked = load.asked()
        seen.failed += failed(asked)
        seen.sent += len(asked)
        seen.gaps.append(gap(asked, at, at + AFTER_S))
        seen.natural.append(gap(asked, at - AFTER_S, at, whole=True))
        lines = stand.bed.history_of(victim).read_text().splitlines(keepends=True)
        begun = min((run.at for run in read_agent(victim, lines) if run.at > at), default=at)
        hung = [one["at"] - wall for one in stand.events(wall, "stage-hangs") if one["device"] == victim]
        seen.detected.append(min(hung, default=float("inf")) - (begun - at))
        slow.unlink()
    stand.settle(home, by)
    return seen


def slows(stand: Stand, seconds: float, each_s: float) -> Seen:
    """A stage that takes many times as long as was predicted, and ends each item: nobody may take it for lost."""
    seen, home = Seen(), stand.stages()
    slow = stand.bed.history_of(home[1]).with_suffix(".runs.slow")
    load = stand.load(seconds, rate=0.5 / each_s)
    wall = time.time()
    slow.write_text(f"work {each_s}")
    asked = load.asked()
    slow.unlink()
    seen.failed, seen.sent = failed(asked), len(asked)
    told = stand.events(wall, "agent-lost", "stage-hangs", "link-lost")
    seen.more["devices taken for lost"] = len(told)
    return seen


def dispatcher_dies(stand: Stand, seconds: float) -> Seen:
    """SIGKILL of the dispatcher under durable requests, and the same command again."""
    seen = Seen()
    with stand.serving(fresh=False, standby="none"):
        stand.stages()
        loads = {each["name"]: each["loads"] for each in stand.status()["devices"]}
        load = stand.load(seconds + BEFORE_S, rate=min(20.0, stand.rate), durable=True)
        time.sleep(BEFORE_S)
        at = time.monotonic()
        os.kill(stand.dispatcher, signal.SIGKILL)
    with stand.serving(fresh=False, standby="none"):
        asked = load.asked()
        after = {each["name"]: each["loads"] for each in stand.status()["devices"]}
    seen.sent, seen.failed = len(asked), failed(asked)
    seen.gaps.append(gap(asked, at, at + seconds))
    seen.more["partitions loaded again"] = sum(after[name] - loads[name] for name in loads)
    return seen


def changes(stand: Stand, what: str, rounds: int) -> Seen:
    """New plans (`replan`), there and back, or new versions (`roll-out`) of what serves, under load."""
    seen, home = Seen(), stand.stages()
    model_file, usual, other = (stand.work / name for name in (f"{NAME}.onnx", "plan.json", "other.json"))
    shape = ["--input", f"a0={model.ROWS},{model.WIDTH}"]
    profile = ["--profile", str(stand.work / "profile.json"), "--objective", "throughput"]
    if what == "replan":
        words = ["plan", str(model_file), "--cluster", str(stand.running.cluster_file), *profile]
        stand.defer(*words, "--exclude", home[0], *shape, "--force", "-o", str(other))
    found: list[tuple[float, float, float]] = []
    for number in range(rounds):
        if what == "replan":
            plan = usual if number % 2 else other
            command = ["deploy", str(model_file), "--name", NAME, "--plan", str(plan)]
        else:
            path = shutil.copy(model_file, stand.work / f"new-{number}.onnx")
            command = ["deploy", str(path), "--name", NAME, *profile]
        load = stand.load(30.0)
        time.sleep(BEFORE_S)
        before = time.monotonic()
        time.sleep(9.0)
        begin = time.monotonic()
        stand.defer(*command, *shape)
        end = time.monotonic() + 1.0
        asked = load.asked()
        seen.sent += len(asked)
        seen.failed += failed(asked)
        seen.gaps.append(gap(asked, begin, end))
        found.append((p99(asked, before, begin), p99(asked, begin, end), end - begin))
    usually, during, took = (median(each) for each in zip(*found, strict=True))
    ratio = median(there / here for here, there, _ in found)
    seen.more = {
        "p99 before": usually,
        "p99 during": during,
        "p99 during by p99 before": ratio,
        "took": took,
    }
    return seen


assert DEADLINE_S > HANG_S
