"""Models' files in the shared state: what `defer deploy` brought to the leader, for whoever leads next.

Agents hold their partitions themselves, so a takeover needs no file. Planning anew does, and an agent that has lost its
store. What `--model` names is not kept here: each dispatcher was started with the file.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from defer.api import ModelFile
from defer.dispatcher.nats_connection import CONNECT_S
from defer.dispatcher.nats_link import LIST, RECORDS, Fenced, NatsLink
from defer.dispatcher.private import make_private
from defer.dispatcher.state_lock import lock
from defer.dispatcher.state_url import StateUrl
from defer.dispatcher.store import KeptModel, ModelDropped, ModelKept
from defer.dispatcher.uploads import Uploads
from defer.errors import NotReady
from defer.model_files import calibration_file, model_files
from defer.translating import translate
from node_agent.messages import Chunk, FileRef

if TYPE_CHECKING:
    from nats.js.object_store import ObjectStore

logger = logging.getLogger("defer.dispatcher")

LOOK_S: Final = 2.0
"""How often whoever stands by looks for new files."""

TRANSFER_S: Final = 3600.0
"""Longest transfer of one file."""


class FileList(msgspec.Struct, frozen=True):
    """A model's files: the graph first, then its external data; and its calibration requests."""

    model: tuple[ModelFile, ...]
    calibration: tuple[ModelFile, ...] = ()

    @property
    def every(self) -> tuple[FileRef, ...]:
        """All of them by content."""
        return tuple(each.file for each in (*self.model, *self.calibration))


_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(FileList).decode


async def bucket(link: NatsLink) -> ObjectStore:
    """Where the files are; made where it does not exist."""
    from nats.js.api import ObjectStoreConfig
    from nats.js.errors import NotFoundError

    name = f"DEFER_{link.url.name}_files"
    try:
        return await link.jetstream().object_store(name)
    except NotFoundError:
        return await link.jetstream().create_object_store(name, ObjectStoreConfig(replicas=link.url.replicas))


class Publisher:
    """Brings a leader's models to the state, in a thread of its own, from `start` to `close`.

    Args:
        link: The leader's connection.
    """

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self._lists: dict[str, FileList] = {}
        self._queue: SimpleQueue[ModelKept | ModelDropped | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, lists: Mapping[str, FileList]) -> None:
        """Begin; `lists` is what the state lists already, by model."""
        self._lists = dict(lists)
        self._thread = threading.Thread(target=self._run, name="defer-files", daemon=True)
        self._thread.start()

    def told(self, change: ModelKept | ModelDropped) -> None:
        """What is served has changed; returns at once."""
        self._queue.put(change)

    def close(self) -> None:
        """End; what is under way ends with the connection."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join(1.0)

    def _run(self) -> None:
        while (what := self._queue.get()) is not None:
            try:
                if isinstance(what, ModelDropped):
                    self._drop(what.name)
                elif what.model.source == "deploy":
                    self._publish(what.model)
            except Fenced:
                return
            except Exception as error:
                logger.warning("a model's files are not in the shared state: %s", translate(error))

    def _publish(self, model: KeptModel) -> None:
        files = model_files(Path(model.model))
        requests = calibration_file(Path(model.calibration)) if model.calibration else {}
        listed = FileList(tuple(files), tuple(requests))
        if self._lists.get(model.name) == listed:
            return
        others = {ref for name, each in self._lists.items() if name != model.name for ref in each.every}
        needed = sum(ref.nbytes for ref in {*others, *listed.every})
        if needed > self._link.url.files_bytes:
            raise NotReady(
                f"with them the models' files take {needed} bytes, and {self._link.url.files_bytes} are kept",
                hint="give the state more with ?files=, or start each dispatcher with --model",
            )
        for each, path in {**files, **requests}.items():
            self._link.run(self._put(each.file, path), TRANSFER_S)
        self._link.run(self._link.append(_subject(model.name), _encode(listed)), 10.0)
        self._lists[model.name] = listed
        self._link.run(self._sweep(), 60.0)

    def _drop(self, name: str) -> None:
        if self._lists.pop(name, None) is not None:
            number = self._link.run(self._link.append(_subject(name), b""), 10.0)
            logger.debug("the files of %s are dropped by record %d", name, number)
            self._link.run(self._sweep(), 60.0)

    async def _put(self, ref: FileRef, path: Path) -> None:
        from nats.js.errors import NotFoundError

        store = await bucket(self._link)
        try:
            if (await store.get_info(_name(ref))).size == ref.nbytes:
                return
        except NotFoundError:
            pass
        with await asyncio.to_thread(path.open, "rb") as source:
            await store.put(_name(ref), source)

    async def _sweep(self) -> None:
        """Remove files that no model has any more."""
        from nats.js.errors import NotFoundError

        used = {_name(ref) for each in self._lists.values() for ref in each.every}
        store = await bucket(self._link)
        try:
            held = await store.list(ignore_deletes=True)
        except NotFoundError:
            return
        for each in held:
            if each.name not in used and not each.deleted:
                await store.delete(each.name)


class Follower:
    """Fetches the files while a dispatcher stands by, in a thread and over a connection of its own; a context manager.

    Args:
        url: The shared state.
        folder: Its own directory, where a leader looks for uploaded models.
        listen: Where it listens when it leads.
    """

    def __init__(self, url: StateUrl, folder: Path, listen: str) -> None:
        self._url = url
        self._link: NatsLink | None = None
        self._linking = threading.Lock()
        self._ended = False
        self._folder, self._listen = folder, listen
        self._ending: SimpleQueue[None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="defer-files", daemon=True)

    def __enter__(self) -> Self:
        make_private(self._folder)
        self._lock = lock(self._folder / "lock", self._listen)
        self._uploads = Uploads.open(self._folder)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.put(None)
        with self._linking:
            self._ended = True
            if self._link is not None:
                self._link.close()  # what is under way ends by that; what has come of it goes on next time
        self._thread.join(CONNECT_S + 10.0)
        self._lock.close()

    def _run(self) -> None:
        seen: dict[str, FileList] = {}
        while True:
            try:
                link = self._connected()
                lists = link.run(read_lists(link), 30.0)
                if lists != seen:
                    self._uploads.tidy(path for each in lists.values() for path in self._fetched(link, each))
                    seen = lists
            except Exception as error:
                logger.debug("models' files are not fetched: %s", translate(error))
            try:
                self._ending.get(timeout=LOOK_S)
            except Empty:
                continue
            return

    def _connected(self) -> NatsLink:
        """The connection; a state that cannot be reached now is tried again: who stands by can wait for it."""
        if self._link is None:
            made = NatsLink(self._url)
            made.start()
            with self._linking:
                self._link = made
                if self._ended:
                    made.close()
        return self._link

    def _fetched(self, link: NatsLink, files: FileList) -> list[Path]:
        for ref in files.every:
            link.run(fetch(link, self._uploads, ref), TRANSFER_S)
        return [assembled for assembled in at_home(self._uploads, files) if assembled is not None]


async def read_lists(link: NatsLink) -> dict[str, FileList]:
    """What the state lists, by model."""
    prefix = f"{RECORDS}.{LIST}."
    found = {}
    for subject in await link.subjects(prefix):
        entry = await link.get(subject)
        if entry is not None and entry.data:
            found[bytes.fromhex(subject.removeprefix(prefix)).decode()] = _decode(entry.data)
    return found


async def fetch(link: NatsLink, uploads: Uploads, ref: FileRef) -> None:
    """Bring one file from the state; nothing where it is held."""
    (offset,) = uploads.offsets((ref,))
    if offset >= ref.nbytes:
        return
    store = await bucket(link)
    await store.get(_name(ref), writeinto=_Into(uploads, ref))  # type: ignore[arg-type]  # it only calls `write`


class _Into:
    """Takes the bytes of a file as they come; the store checks them against its name."""

    def __init__(self, uploads: Uploads, ref: FileRef) -> None:
        self._uploads, self._ref = uploads, ref
        self._at = 0

    def write(self, data: bytes) -> int:
        """Take a piece."""
        (held,) = self._uploads.offsets((self._ref,))
        if self._at + len(data) > held:
            self._uploads.chunk(Chunk(0, self._ref, held), data[held - self._at :])
        self._at += len(data)
        return len(data)


def at_home(uploads: Uploads, files: FileList) -> tuple[Path | None, Path | None]:
    """A model's ONNX file and its calibration on this machine; None where one is not held, or there is none."""
    try:
        model = uploads.assemble(files.model)
        return model, uploads.assemble(files.calibration) if files.calibration else None
    except Exception as error:
        logger.debug("a model's files are not here: %s", translate(error))
        return None, None


def _subject(name: str) -> str:
    return f"{RECORDS}.{LIST}.{name.encode().hex()}"


def _name(ref: FileRef) -> str:
    return f"{ref.sha256}{ref.suffix}"
