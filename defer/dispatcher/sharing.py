"""What a dispatcher that leads others has of their shared state, and what it brings there for the next leader."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import msgspec

from defer.dispatcher.bringup import Order
from defer.dispatcher.leadership import Leadership
from defer.dispatcher.restoring import APART
from defer.dispatcher.shared_files import FileList, Publisher, at_home, read_lists
from defer.dispatcher.store import KeptModel, Snapshot
from defer.dispatcher.store_nats import NatsStore
from defer.dispatcher.uploads import Uploads
from defer.model_files import calibration_file, model_files

logger = logging.getLogger("defer.dispatcher")


def content_digest(order: Order) -> str:
    """Equal for two orders that ask for the same on two machines: files count by their content, wherever they lie.

    Raises:
        DeferError: A file of the model is missing.
    """
    asked = [
        (each.name, _content(getattr(order, each.name), model=each.name == "model"))
        for each in fields(order)
        if each.compare and each.name not in APART
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
        folder: This dispatcher's own directory.
        order: What its own command line asks for; the next leader's asks for the same.
    """

    leadership: Leadership
    folder: Path
    order: Order | None = None
    files: Publisher = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", Publisher(self.leadership.link))

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
        return NatsStore(self.leadership.link, self.files.told)

    def brought_home(self, snapshot: Snapshot) -> Snapshot:
        """What the leader before left, with the models' files where they lie on this machine.

        From here on, what is deployed is brought to the state.
        """
        link = self.leadership.link
        lists = link.run(read_lists(link), 30.0)
        uploads = Uploads.open(self.folder)
        self.files.start(lists)
        return msgspec.structs.replace(
            snapshot, models=tuple(self._at_home(each, lists, uploads) for each in snapshot.models)
        )

    def _at_home(self, kept: KeptModel, lists: Mapping[str, FileList], uploads: Uploads) -> KeptModel:
        mine = self.order
        if mine is not None and kept.source == "serve" and kept.digest == mine.digest:
            calibration = "" if mine.calibration is None else str(mine.calibration.resolve())
            return msgspec.structs.replace(kept, model=str(mine.model.resolve()), calibration=calibration)
        if kept.name in lists and not Path(kept.model).is_file():
            model, requests = at_home(uploads, lists[kept.name])
            if model is not None:
                return msgspec.structs.replace(kept, model=str(model), calibration=str(requests or ""))
            logger.warning(
                "model %s goes on, but its files are not here: it cannot be planned anew", kept.name
            )
        return kept

    def close(self) -> None:
        """Bring nothing more to the state."""
        self.files.close()
