"""A partition in parts, each on its own engine: tensors go from one to the next by reference.

Where neighbours run on one CUDA device, what passes between them stays there (`DeviceChain`): the later part reads the
buffer that the earlier one wrote, after the event that says when, and nobody waits on the CPU in between.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy.typing as npt

from node_agent.engines.base import Arrays, Session
from node_agent.engines.slots import Slot
from node_agent.engines.streamed import StreamedSession, Value
from node_agent.errors import RunFailedError
from node_agent.messages import TensorSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts, loaded.

    Attributes:
        session: What runs it.
        inputs: Names of what it consumes.
        outputs: What it makes.
    """

    session: Session
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]


def chain(parts: Sequence[Part], outputs: Sequence[TensorSpec]) -> Session:
    """One session of several parts, in their order; it closes theirs.

    Args:
        parts: Two or more.
        outputs: What is wanted of all of them together.
    """
    grouped: list[Part] = []
    groups = [list(group) for _, group in groupby(parts, key=_device)]
    for index, group in enumerate(groups):
        if len(group) == 1:
            grouped += group
            continue
        later = {name for other in groups[index + 1 :] for part in other for name in part.inputs}
        wanted = later | {spec.name for spec in outputs}
        made = tuple(spec for part in group for spec in part.outputs if spec.name in wanted)
        names = {spec.name for part in group for spec in part.outputs}
        inputs = tuple(dict.fromkeys(name for part in group for name in part.inputs if name not in names))
        grouped.append(Part(DeviceChain(group, made), inputs, made))
    if len(grouped) == 1:
        return grouped[0].session
    return HostChain(grouped, outputs)


def _device(part: Part) -> tuple[int, int] | int:
    """Equal for neighbours that can be chained on their device; parts without one differ from all others."""
    session = part.session
    return (0, session.ordinal) if isinstance(session, StreamedSession) else id(part)


class HostChain:
    """See `Session`. Each part runs when the one before has ended; what nobody needs any more is let go."""

    def __init__(self, parts: Sequence[Part], outputs: Sequence[TensorSpec]) -> None:
        self.outputs: Sequence[TensorSpec] = tuple(outputs)
        self._parts = tuple(parts)
        self._wanted = tuple(spec.name for spec in outputs)
        self._over = [
            frozenset(part.inputs)
            - {name for later in self._parts[index + 1 :] for name in later.inputs}
            - set(self._wanted)
            for index, part in enumerate(self._parts)
        ]

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        held: Arrays = dict(inputs)
        for part, over in zip(self._parts, self._over, strict=True):
            held |= part.session.run(_of(held, part.inputs))
            for name in over:
                del held[name]
        return {name: held[name] for name in self._wanted}

    def close(self) -> None:
        """See `Session.close`."""
        for part in self._parts:
            part.session.close()


class DeviceChain:
    """Parts on one CUDA device, see the module and `OverlappingSession`. A run holds one slot of each part."""

    def __init__(self, parts: Sequence[Part], outputs: Sequence[TensorSpec]) -> None:
        self.outputs: Sequence[TensorSpec] = tuple(outputs)
        self._parts = [(part, _streamed(part)) for part in parts]
        self.slots = min(session.slots for _, session in self._parts)
        wanted = {spec.name for spec in outputs}
        self._fetched = [tuple(spec.name for spec in part.outputs if spec.name in wanted) for part in parts]
        self._busy: deque[list[Slot] | Arrays | Exception] = deque()

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """See `Session.run`."""
        self.submit(inputs)
        return self.collect()

    def submit(self, inputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `OverlappingSession.submit`. A request of unusual shapes has run when this returns."""
        if sum(isinstance(entry, list) for entry in self._busy) >= self.slots:
            raise RunFailedError("Every slot is in flight; collect a result first.")
        held: dict[str, Value] = dict(inputs)
        taken: list[Slot] = []
        usual = True
        try:
            for (part, session), fetched in zip(self._parts, self._fetched, strict=True):
                values = _of(held, part.inputs)
                usual = not session.rigid or not session.refuses(_shapes(values))
                if not usual:
                    break
                slot = session.launch(values, fetched)
                taken.append(slot)
                held |= {spec.name: session.tensor(slot, spec.name) for spec in part.outputs}
        except BaseException:
            self._give_back(taken)
            raise
        if usual:
            self._busy.append(taken)
            return
        self._give_back(taken)
        for index, entry in enumerate(self._busy):
            if isinstance(entry, list):
                self._busy[index] = self._outcome(entry)
        self._busy.append(self._on_the_host(inputs))

    def collect(self) -> Arrays:
        """See `OverlappingSession.collect`."""
        if not self._busy:
            raise RunFailedError("No request is in flight.")
        oldest = self._busy.popleft()
        if isinstance(oldest, Exception):
            raise oldest
        return self._land(oldest) if isinstance(oldest, list) else oldest

    def close(self) -> None:
        """See `Session.close`."""
        while self._busy:
            oldest = self._busy.popleft()
            if isinstance(oldest, list):
                self._land(oldest)
        for _, session in self._parts:
            session.close()

    def _land(self, slots: Sequence[Slot]) -> Arrays:
        """Waits for every part's run, also where one of them failed: each holds a slot."""
        made: Arrays = {}
        failed: Exception | None = None
        for (_, session), slot, fetched in zip(self._parts, slots, self._fetched, strict=True):
            try:
                made |= session.land(slot, fetched)
            except Exception as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return made

    def _outcome(self, slots: Sequence[Slot]) -> Arrays | Exception:
        try:
            return self._land(slots)
        except Exception as error:
            return error

    def _give_back(self, slots: Sequence[Slot]) -> None:
        for (_, session), slot in zip(self._parts, slots, strict=False):
            session.land(slot, ())

    def _on_the_host(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        held: Arrays = dict(inputs)
        for part, session in self._parts:
            held |= session.run(_of(held, part.inputs))
        return {spec.name: held[spec.name] for spec in self.outputs}


def _streamed(part: Part) -> StreamedSession:
    assert isinstance(part.session, StreamedSession)
    return part.session


def _shapes(values: Mapping[str, Value]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in values.items()}


def _of(held: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    missing = [name for name in names if name not in held]
    if missing:
        raise RunFailedError(f"Input {missing[0]!r} is missing.")
    return {name: held[name] for name in names}
