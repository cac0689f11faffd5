"""Which engine runs each stage and why others do not, as the verbs say it that deploy and that look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from defer.api import DeploymentInfo


@dataclass(frozen=True, slots=True)
class EngineNote:
    """A stage that does not run on every engine that was asked for or tried.

    Attributes:
        model: The deployment's model.
        stage: From 1 on.
        device: Where it runs.
        engine: What it runs on.
        notes: Why others were not taken, one sentence each.
    """

    model: str
    stage: int
    device: str
    engine: str
    notes: tuple[str, ...]


def engine_notes(deployments: Iterable[DeploymentInfo], model: str = "") -> tuple[EngineNote, ...]:
    """The stages that there is something to say about.

    Args:
        deployments: As `ServerStatus` has them.
        model: Only those of this model; of all by default.
    """
    found = (
        EngineNote(each.model, number, stage.device, stage.engine, stage.engine_notes)
        for each in deployments
        if model in ("", each.model)
        for number, stage in enumerate(each.stages, 1)
        if stage.engine_notes
    )
    return tuple(dict.fromkeys(found))  # a stage that several routes share is told once


def engine_lines(notes: Iterable[EngineNote]) -> Iterator[str]:
    """A line each, for people."""
    for each in notes:
        for why in each.notes:
            yield f"stage {each.stage} on {each.device}, engine {each.engine}: {why}"
