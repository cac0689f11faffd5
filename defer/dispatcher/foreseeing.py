"""The process behind `defer.dispatcher.foresight`: one question on standard input, the answers on standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from defer.blocks import planning_chain
from defer.dispatcher.foresight import Foreseen, Question, without
from defer.documents.cluster import Cluster
from defer.documents.plan import Plan
from defer.translating import translate

if TYPE_CHECKING:
    from defer.replanning import Replanned
    from partitioner import BlockChain


def answer(question: Question, chain: BlockChain | None = None) -> tuple[Foreseen, ...]:
    """Plan for each set of lost devices, and cut the model by each plan; `chain` is the model's analysis, if known."""
    import partitioner
    from defer.parts import signature_of, write_parts
    from defer.planning import make_plan
    from defer.precision import precisions_of, ranges_for
    from defer.staying import staying

    model, parts = Path(question.model), Path(question.parts)
    calibration = Path(question.calibration) if question.calibration else None
    chain = chain or partitioner.analyze(model, question.shapes or None)
    blocks = planning_chain(chain, question.blocks, question.profile)

    def foresee(lost: tuple[str, ...]) -> Foreseen:
        left = without(question.cluster, lost)
        reason = ""
        try:
            if question.running is None:
                plan = make_plan(blocks, left, question.profile, objective=question.objective)
                if question.staying is not None:
                    plan = staying(plan, question.staying, blocks, left, question.profile, lost)
            else:
                weighed = _weigh(question, question.running, blocks, left)
                if not weighed.change:
                    return Foreseen(reason=weighed.reason)
                plan, reason = weighed.plan, weighed.reason
            precisions = precisions_of(left, (stage.device for stage in plan.stages))
            ranges = ranges_for(precisions, model, chain, parts, calibration)
            written = write_parts(model, chain, plan.cuts, parts, precisions, ranges, plan.order)
        except Exception as error:
            told = translate(error)
            return Foreseen(code=told.code, problem=str(told))
        parts_made = tuple(each.part for each in written)
        return Foreseen(plan, parts_made, reason=reason, signature=signature_of(chain))

    return tuple(map(foresee, question.without))


def _weigh(question: Question, running: Plan, blocks: BlockChain, left: Cluster) -> Replanned:
    """Whether the best plan for the devices that are left pays for loading it."""
    from defer.branches import branches_of
    from defer.replanning import Prospect, replan

    return replan(
        running,
        blocks,
        left,
        question.profile,
        objective=question.objective,
        prospect=Prospect(question.horizon, question.rate, question.threshold),
        branches=branches_of(Path(question.model), question.shapes),
    )


def main() -> None:
    """Read, answer, end."""
    out = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints is no answer
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Question)
    with os.fdopen(out, "wb") as file:
        file.write(msgspec.msgpack.encode(answer(question)))


if __name__ == "__main__":
    main()
