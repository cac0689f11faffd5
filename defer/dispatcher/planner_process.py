"""The process behind `defer.dispatcher.planner`: answers questions that come over a socket, until that closes."""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from defer.accuracy import parse_budget
from defer.blocks import planning_chain
from defer.dispatcher import questions as q
from defer.dispatcher.framing import receive, send
from defer.dispatcher.planner import SPARE_S
from defer.documents.blocks import BlocksDocument
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.documents.profile import CostProfile
from defer.translating import translate

if TYPE_CHECKING:
    from defer.pieces import Pieces
    from defer.replanning import Replanned
    from partitioner import BlockChain

OnProgress = Callable[[str, float], None]


class Answers:
    """Answers questions, and remembers what it has learnt of a model.

    Args:
        on_progress: Told what is being done.
    """

    def __init__(self, on_progress: OnProgress = lambda _what, _fraction: None) -> None:
        self._on_progress = on_progress
        self._chains: dict[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]], BlockChain] = {}

    def answer(self, question: q.Question) -> object:
        """The answer; its kind is said where the question is.

        Raises:
            Exception: Whatever analysing, planning and cutting raise.
        """
        match question:
            case q.Analyse():
                return self._analyse(question.topic)
            case q.Describe():
                return self._describe(question.topic, question.profile)
            case q.Piece():
                return self._piece(question)
            case q.MakePlan():
                return self._plan(question)
            case q.Cut():
                return self._cut(question.topic, question.plan, question.precisions)
            case q.Foresee():
                return tuple(self._foresee(question, lost) for lost in question.without)
            case q.WhatIf():
                return self._predict(question)

    def _analyse(self, topic: q.Topic) -> q.Analysed:
        from defer.parts import signature_of

        chain = self._chain(topic)
        return q.Analysed(chain.digest, signature_of(chain))

    def _describe(self, topic: q.Topic, profile: CostProfile | None) -> q.Described:
        from defer.codec_profiling import client_costs

        chain = self._blocks(topic, profile)
        return q.Described(BlocksDocument.from_chain(chain), client_costs(chain))

    def _piece(self, question: q.Piece) -> dict[str, Pieces]:
        from defer.pieces import write_pieces

        topic = question.topic
        blocks = self._blocks(topic, question.profile)
        ranges = self._ranges(topic, question.precisions)
        return write_pieces(Path(topic.model), blocks, Path(topic.parts), question.precisions, ranges)

    def _plan(self, question: q.MakePlan) -> Plan:
        from defer.branches import branches_of
        from defer.planning import make_plan
        from defer.wishes import Rules

        topic, cluster, profile = question.topic, question.cluster, question.profile
        blocks, model = self._blocks(topic, profile), Path(topic.model)
        objective, rules = question.objective, Rules(replicas=question.replicas)
        if not question.budget:
            branches = branches_of(model, topic.shapes)
            return make_plan(blocks, cluster, profile, objective=objective, rules=rules, branches=branches)
        from defer.guarded_planning import Wish, plan_on_calibration

        return plan_on_calibration(
            model,
            blocks,
            cluster,
            profile,
            parse_budget(question.budget),
            Wish(objective, rules=rules),
            calibration=_calibration(topic),
            parts=Path(topic.parts),
            on_step=self._on_progress,
        )

    def _cut(self, topic: q.Topic, plan: Plan, precisions: tuple[str, ...]) -> q.Foreseen:
        from defer.parts import signature_of, write_parts

        chain, parts = self._chain(topic), Path(topic.parts)
        ranges = self._ranges(topic, precisions)
        written = write_parts(Path(topic.model), chain, plan.cuts, parts, precisions, ranges, plan.order)
        return q.Foreseen(plan, tuple(each.part for each in written), signature=signature_of(chain))

    def _foresee(self, question: q.Foresee, lost: tuple[str, ...]) -> q.Foreseen:
        """Plan without devices, and cut the model by that; that it cannot be done is an answer."""
        from defer.planning import make_plan
        from defer.precision import precisions_of
        from defer.staying import staying

        topic, profile, reason = question.topic, question.profile, ""
        blocks = self._blocks(topic, profile)
        left = without(question.cluster, lost)
        try:
            if question.running is None:
                plan = make_plan(blocks, left, profile, objective=question.objective)
                if question.staying is not None:
                    plan = staying(plan, question.staying, blocks, left, profile, lost)
            else:
                weighed = _weigh(question, question.running, blocks, left)
                if not weighed.change:
                    return q.Foreseen(reason=weighed.reason)
                plan, reason = weighed.plan, weighed.reason
            made = self._cut(topic, plan, precisions_of(left, (stage.device for stage in plan.stages)))
        except Exception as error:
            told = translate(error)
            return q.Foreseen(code=told.code, problem=str(told))
        return msgspec.structs.replace(made, reason=reason)

    def _predict(self, asked: q.WhatIf) -> tuple[Plan, ...]:
        from defer.live.what_if import changes_of, predict

        blocks = self._blocks(asked.topic, asked.profile)
        each = (changes_of(*changes) for changes in asked.changes)
        return tuple(
            predict(asked.running, blocks, asked.cluster, asked.profile, asked.objective, changes, asked.lost)
            for changes in each
        )

    def _chain(self, topic: q.Topic) -> BlockChain:
        """A model, one block per op."""
        import partitioner

        key = topic.model, tuple(sorted(topic.shapes.items()))
        if key not in self._chains:
            self._chains[key] = partitioner.analyze(Path(topic.model), topic.shapes or None)
        return self._chains[key]

    def _blocks(self, topic: q.Topic, profile: CostProfile | None) -> BlockChain:
        return planning_chain(self._chain(topic), topic.blocks, profile)

    def _ranges(self, topic: q.Topic, precisions: tuple[str, ...]) -> Any:
        from defer.precision import ranges_for

        chain, parts = self._chain(topic), Path(topic.parts)
        return ranges_for(precisions, Path(topic.model), chain, parts, _calibration(topic))


def without(cluster: Cluster, lost: Collection[str]) -> Cluster:
    """The cluster that is left; the dispatcher's own device stays, but computes nothing."""
    home = cluster.dispatcher.device
    devices = tuple(
        msgspec.structs.replace(device, computes=False, address="", dials=False)
        if device.name in lost
        else device
        for device in cluster.devices
        if device.name == home or device.name not in lost
    )
    gone = set(lost) - {home}
    links = tuple(link for link in cluster.links if not gone & {end for pair in link.pairs for end in pair})
    return msgspec.structs.replace(cluster, devices=devices, links=links)


def _calibration(topic: q.Topic) -> Path | None:
    return Path(topic.calibration) if topic.calibration else None


def _weigh(question: q.Foresee, running: Plan, blocks: BlockChain, left: Cluster) -> Replanned:
    """Whether the best plan for the devices that are left pays for loading it."""
    from defer.branches import branches_of
    from defer.replanning import Prospect, replan
    from defer.wishes import Rules

    topic = question.topic
    return replan(
        running,
        blocks,
        left,
        question.profile,
        objective=question.objective,
        rules=Rules(replicas=question.replicas),
        prospect=Prospect(question.horizon, question.rate, question.threshold),
        branches=branches_of(Path(topic.model), topic.shapes),
    )


def failed(error: Exception) -> q.Failed:
    """An error as it crosses."""
    told = translate(error)
    trace = "".join(traceback.format_exception(error))
    return q.Failed(told.code, told.message, told.hint, told.where, trace)


def serve(connection: socket.socket) -> None:
    """Answer what comes, one question after the other; ends the process when the connection closes."""
    asked: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with suppress(Exception):
            while True:
                asked.put(receive(connection, None))
        os._exit(0)  # nobody wants what is being computed

    threading.Thread(target=read, name="questions", daemon=True).start()
    _import()

    def reply(message: q.Reply) -> None:
        # Without a limit: a socket has but one, which is the reading thread's as well, and that one waits for any time.
        # It also ends the process when nobody is there to take this.
        send(connection, msgspec.msgpack.encode(message), None)

    answers = Answers(lambda what, fraction: reply(q.Progress(what, fraction)))
    wait: float | None = SPARE_S
    while True:
        try:
            frame = asked.get(timeout=wait)
        except queue.Empty:
            return
        wait = None  # between two questions agents are measured, which takes as long as it takes
        try:
            made = answers.answer(msgspec.msgpack.decode(frame, type=q.Question))
            reply(q.Answer(msgspec.Raw(msgspec.msgpack.encode(made))))
        except Exception as error:
            reply(failed(error))


def _import() -> None:
    """What every question needs, before there is one; what is missing is told to whoever asks."""
    with suppress(ImportError):
        import partitioner  # noqa: F401


def main() -> None:
    """Serve the socket whose number is the argument."""
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        serve(connection)


if __name__ == "__main__":
    main()
