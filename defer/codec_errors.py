"""What codecs do to a model's output, measured: by boundary and codec, and by a whole plan. Needs ONNX Runtime.

A tensor is encoded and decoded by the agents' own code, and the blocks behind the boundary run on what came back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from defer.accuracy import Arrays, Budget, combined, deviation
from defer.block_runner import BlockRunner
from defer.documents.plan import Plan
from node_agent.codecs import CODECS, is_lossless
from node_agent.frames import pack_tensor, unpack_tensor

SCREENED = 2
"""Inputs on which every boundary and codec is measured; finished plans are checked on all."""

OnStep = Callable[[str, float], None]
"""Told what is being done and how far it is, 0 to 1."""


def through(codec: str, array: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """A tensor as it arrives: encoded and decoded like an agent does, raw where the codec does not take it."""
    header, frame = pack_tensor("", array, codec, dtype)
    back = unpack_tensor(header, frame)
    return array if header.codec == "raw" else np.array(back)


def error_table(
    runner: BlockRunner,
    inputs: Sequence[Arrays],
    codecs: Iterable[str],
    budget: Budget,
    on_step: OnStep | None = None,
) -> dict[str, tuple[float, ...]]:
    """Per lossy codec, the output's deviation when it alone is used at each of the boundaries 0 to L.

    Args:
        runner: The model's blocks.
        inputs: Calibration requests; the first `SCREENED` are used.
        codecs: Names; those that decode to the same values are measured once.
        budget: Its metric is used; where one input is above its limit, no other is tried.
        on_step: Told of progress.
    """
    chain = runner.chain
    names = [name for name in codecs if name in CODECS and not is_lossless(name)]
    families = list(dict.fromkeys(CODECS[name].values for name in names))
    found: dict[str, list[list[float]]] = {family: [[] for _ in chain.boundaries] for family in families}
    chosen = inputs[:SCREENED]
    for number, request in enumerate(chosen):
        states = runner.states(request)
        for boundary, state in enumerate(states):
            if on_step is not None:
                done = (number + boundary / len(states)) / len(chosen)
                on_step(f"codec errors at boundary {boundary} of {len(states) - 1}", done)
            for family in families:
                row = found[family][boundary]
                if not row or combined(budget.metric, row) <= budget.limit:
                    row.append(_error_at(runner, boundary, state, states[-1], family, budget))
    table = {family: tuple(combined(budget.metric, row) for row in rows) for family, rows in found.items()}
    return {name: table[CODECS[name].values] for name in names}


def _error_at(
    runner: BlockRunner, boundary: int, state: Arrays, exact: Arrays, codec: str, budget: Budget
) -> float:
    kinds = runner.chain.tensors
    changed = {name: through(codec, array, kinds[name].dtype) for name, array in state.items()}
    if all(changed[name] is state[name] for name in state):
        return 0.0
    return deviation(budget.metric, exact, runner.run(changed, boundary))


def plan_error(
    runner: BlockRunner, inputs: Sequence[Arrays], plan: Plan, budget: Budget, on_step: OnStep | None = None
) -> float:
    """The output's deviation with all codecs of a plan together, over all `inputs`.

    Args:
        runner: The model's blocks; the plan's boundaries are theirs.
        inputs: Calibration requests.
        plan: The finished plan.
        budget: Its metric is used.
        on_step: Told of progress.
    """
    if all(not _loses(transfer.codec) for transfer in plan.transfers):
        return 0.0
    found = []
    for number, request in enumerate(inputs):
        if on_step is not None:
            on_step("checking the plan's codecs end to end", number / len(inputs))
        exact = runner.states(request)[-1]
        found.append(deviation(budget.metric, exact, _through_plan(runner, request, plan)))
    return combined(budget.metric, found)


def _loses(codec: str) -> bool:
    return codec not in CODECS or not is_lossless(codec)


def _through_plan(runner: BlockRunner, request: Arrays, plan: Plan) -> Mapping[str, npt.NDArray[Any]]:
    """The outputs of one request that passes every transfer of a plan.

    A tensor that a stage only hands on stays encoded as it is where the codec is the same (see the agent's sender), so
    it is not spoiled twice.
    """
    kinds = runner.chain.tensors
    held: dict[str, npt.NDArray[Any]] = dict(request)
    coded: dict[str, str] = {}
    for number, transfer in enumerate(plan.transfers):
        names = runner.chain.boundaries[transfer.boundary].tensors
        for name in names:
            if coded.get(name) != transfer.codec:
                held[name] = through(transfer.codec, held[name], kinds[name].dtype)
        coded = dict.fromkeys(names, transfer.codec)
        if number < len(plan.stages):
            stage = plan.stages[number]
            after = runner.run({name: held[name] for name in names}, stage.start, stage.stop)
            coded = {name: codec for name, codec in coded.items() if after.get(name) is held[name]}
            held = after
    return held
