"""Control messages by which a dispatcher has an agent greet it, take files, load and unload partitions, and drain."""

from __future__ import annotations

import msgspec

from node_agent.messages.values import AUTO_ENGINE, FileRef, HopSpec, Offer


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="t"):
    """Opens a control connection; from the dispatcher, or from an agent that dials out.

    Attributes:
        minimum: Oldest protocol version that the sender understands.
        version: Newest one.
        name: Who it is: a device's name, or the dispatcher's.
        role: `dispatcher` or `agent`.
        register: The offer of an agent that dials out.
        boot: Changes with each start of the sender's process.
        realm: Name of the state that several dispatchers share; empty for a dispatcher that shares none.
        term: Number of the leadership under which the dispatcher leads its realm: each leader has a higher one.
    """

    id: int
    minimum: int
    version: int
    name: str
    role: str
    register: Offer | None = None
    boot: str = ""
    realm: str = ""
    term: int = 0


class Welcome(msgspec.Struct, frozen=True, tag="welcome", tag_field="t"):
    """Answers `Hello`: the version both will speak, who answers, which start of its process, its offer."""

    id: int
    version: int
    name: str
    boot: str
    offer: Offer | None = None


class Fault(msgspec.Struct, frozen=True, tag="fault", tag_field="t"):
    """Answers any request that failed: a code from the error table, what was wrong, and what to do."""

    id: int
    code: str
    message: str
    hint: str = ""


class Done(msgspec.Struct, frozen=True, tag="done", tag_field="t"):
    """Answers a request that has nothing else to say."""

    id: int


class Progress(msgspec.Struct, frozen=True, tag="progress", tag_field="t"):
    """Before the answer to a long request: what is being done and how far it is, 0 to 1."""

    id: int
    what: str
    fraction: float


CHUNK_BYTES = 1024 * 1024
"""Most bytes of a file in one `Chunk`."""

CHUNK_WINDOW = 16
"""Most `Chunk`s that may be unanswered on one connection; more are answered with `Fault`."""


class Want(msgspec.Struct, frozen=True, tag="want", tag_field="t"):
    """Asks which bytes of these files the agent lacks."""

    id: int
    files: tuple[FileRef, ...]


class Have(msgspec.Struct, frozen=True, tag="have", tag_field="t"):
    """Answers `Want`: per file the offset to send from; its size when the file is complete and verified."""

    id: int
    offsets: tuple[int, ...]


class Chunk(msgspec.Struct, frozen=True, tag="chunk", tag_field="t"):
    """A piece of a file, in the frame that follows; the last one is checked against the sha256.

    At most `CHUNK_BYTES` each, and at most `CHUNK_WINDOW` unanswered on a connection.
    """

    id: int
    file: FileRef
    offset: int


class Taken(msgspec.Struct, frozen=True, tag="taken", tag_field="t"):
    """Answers `Chunk`: the file is now held up to `offset`."""

    id: int
    offset: int


class Load(msgspec.Struct, frozen=True, tag="load", tag_field="t"):
    """Load partitions and take part in a plan. Answered by `Loaded` once every partition is warm."""

    id: int
    epoch: int
    model: str
    hops: tuple[HopSpec, ...]
    engine: str = AUTO_ENGINE
    options: dict[str, str] = {}


class Loaded(msgspec.Struct, frozen=True, tag="loaded", tag_field="t"):
    """Answers `Load`."""

    id: int
    epoch: int
    seconds: float
    resident_bytes: int
    engine: str = ""
    notes: tuple[str, ...] = ()
    """Why other engines were not taken, one sentence each."""


class Unload(msgspec.Struct, frozen=True, tag="unload", tag_field="t"):
    """Forget an epoch: finish the item in work, drop the rest, free the memory. Answered by `Done`."""

    id: int
    epoch: int


class Drain(msgspec.Struct, frozen=True, tag="drain", tag_field="t"):
    """Take no new load, finish what is queued. Answered by `Done` when nothing is left."""

    id: int
