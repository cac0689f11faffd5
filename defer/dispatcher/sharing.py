"""What a dispatcher that leads others has of their shared state, and what it brings there for the next leader."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from defer.dispatcher.bringup import Order
from defer.dispatcher.leadership import Leadership
from defer.dispatcher.store import KeptModel, Snapshot
from defer.dispatcher.store_nats import NatsStore
from defer.model_files import calibration_file, model_files

logger = logging.getLogger("defer.dispatcher")


APART = ("source", "digest", "given")
"""What of an order says nothing about what is served."""


def content_digest(order: Order) -> str:
    """Equal for two orders that ask for the same on two machines: files count by their content, wherever they lie.

    Raises:
        DeferError: A file of the model is missing.
    """
    asked = [
        (each.name, _content(getattr(order, each.name), model=each.name == "model"))
        for each in fields(order)
        if each.name not in APART
    ]
    return hashlib.sha256(repr(asked).encode()).hexdigest()


def _content(value: object, *, model: bool) -> object:
    if isinstance(value, Path):
        graph, *others = model_files(value) if model else calibration_file(value)
        return graph.file.sha256, sorted((each.path, each.file.sha256) for each in others)
    if isinstance(value, msgspec.Struct):
        return msgspec.json.encode(value)
    return sorted(value.items()) if isinstance(value, Mapping) else repr(value)


@dataclass(frozen=True, slots=True)
class Shared:
    """A state that this process leads.

    Attributes:
        leadership: Its lease.
        order: What its own command line asks for; the next leader's asks for the same.
    """

    leadership: Leadership
    order: Order | None = None

    @property
    def name(self) -> str:
        """What the dispatchers that share it call it."""
        return self.leadership.url.name

    @property
    def term(self) -> int:
        """The term by which this process leads."""
        return self.leadership.term

    def acts(self) -> bool:
        """Whether it still leads, at this moment."""
        return self.leadership.acts()

    def store(self) -> NatsStore:
        """The state."""
        return NatsStore(self.leadership.link)

    def brought_home(self, snapshot: Snapshot) -> Snapshot:
        """What the leader before left, with the models' files where they lie on this machine."""
        return msgspec.structs.replace(
            snapshot, models=tuple(self._at_home(each) for each in snapshot.models)
        )

    def _at_home(self, kept: KeptModel) -> KeptModel:
        mine = self.order
        if mine is not None and kept.source == "serve" and kept.digest == mine.digest:
            calibration = "" if mine.calibration is None else str(mine.calibration.resolve())
            return msgspec.structs.replace(kept, model=str(mine.model.resolve()), calibration=calibration)
        return kept
