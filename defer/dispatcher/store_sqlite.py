"""A dispatcher's state in one SQLite file beside its other files.

WAL with `synchronous=FULL`: a transaction that was committed survives the process and the machine, and a crash in the
middle of one leaves the state before it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

import msgspec

from defer.dispatcher import store as s
from defer.dispatcher.rollout import Split
from defer.errors import CorruptFile, DeferError, DiskFull, FileProblem, PermissionDenied
from defer.translating import translate
from node_agent.messages import Infer, Rejection, Result

BUSY_S = 5.0
"""Another process that reads the file may hold it this long."""

_STEPS = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, devices BLOB NOT NULL);
CREATE TABLE models (name TEXT PRIMARY KEY, kept BLOB NOT NULL);
CREATE TABLE requests (
  number INTEGER PRIMARY KEY, request BLOB UNIQUE NOT NULL, infer BLOB NOT NULL, frames BLOB NOT NULL,
  deadline REAL NOT NULL
);
CREATE TABLE answers (
  number INTEGER PRIMARY KEY, request BLOB UNIQUE NOT NULL, message BLOB NOT NULL, frames BLOB NOT NULL,
  at REAL NOT NULL
);
INSERT INTO meta VALUES ('last_epoch', 0);
""",
    "CREATE TABLE splits (name TEXT PRIMARY KEY, kept BLOB NOT NULL);",
)
"""What makes the tables, one step after the other: an older file lacks the last ones, a newer one is refused."""

SCHEMA = len(_STEPS)

_encode = msgspec.msgpack.encode
_model = msgspec.msgpack.Decoder(s.KeptModel)
_infer = msgspec.msgpack.Decoder(Infer)
_message = msgspec.msgpack.Decoder(Result | Rejection)
_split = msgspec.msgpack.Decoder(Split)
_devices = msgspec.msgpack.Decoder(tuple[str, ...])


class SqliteStore:
    """See `defer.dispatcher.store.Store`.

    Args:
        path: The file; made with mode 0600 where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None

    def open(self) -> s.Snapshot:
        """See `Store`.

        Raises:
            CorruptFile: It is no file of ours, or damaged, or of a newer build.
            FileProblem: It cannot be read or written.
        """
        try:
            # SQLite gives the files beside it the same mode.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            self._prepare(self._db)
            return self._read(self._db)
        except (OSError, sqlite3.Error, msgspec.MsgspecError) as error:
            self.close()
            raise self._told(error) from error
        except BaseException:
            self.close()
            raise

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 67108864")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA:
            steps = "".join(_STEPS[version:])
            db.executescript(f"BEGIN IMMEDIATE;{steps}PRAGMA user_version = {SCHEMA};COMMIT;")
        elif version > SCHEMA:
            raise CorruptFile(
                f"it was written by a newer version of defer (schema {version}, this one knows {SCHEMA})",
                where=str(self._path),
                hint="start that version again, or give this one a directory of its own with --state",
            )

    def _read(self, db: sqlite3.Connection) -> s.Snapshot:
        (last,) = db.execute("SELECT value FROM meta WHERE key = 'last_epoch'").fetchone()
        epochs = db.execute("SELECT epoch, devices FROM epochs ORDER BY epoch").fetchall()
        models = db.execute("SELECT kept FROM models ORDER BY name").fetchall()
        requests = db.execute("SELECT infer, frames, deadline FROM requests ORDER BY number")
        answers = db.execute("SELECT request, length(frames), at FROM answers ORDER BY number")
        splits = db.execute("SELECT kept FROM splits ORDER BY name").fetchall()
        return s.Snapshot(
            last,
            {epoch: _devices.decode(devices) for epoch, devices in epochs},
            tuple(_model.decode(kept) for (kept,) in models),
            tuple(
                s.KeptRequest(_infer.decode(infer), frames, deadline) for infer, frames, deadline in requests
            ),
            tuple(s.Spent(*row) for row in answers),
            tuple(_split.decode(kept) for (kept,) in splits),
        )

    def apply(self, changes: Sequence[s.Change]) -> None:
        """See `Store`."""
        db = self._opened()
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                for change in changes:
                    _write(db, change)
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error, OverflowError) as error:
            raise self._told(error) from error

    def answer(self, request: bytes) -> s.KeptAnswer | None:
        """See `Store`."""
        try:
            with closing(
                self._opened().execute(
                    "SELECT message, frames, at FROM answers WHERE request = ?", (request,)
                )
            ) as rows:
                row = rows.fetchone()
                return None if row is None else s.KeptAnswer(_message.decode(row[0]), row[1], row[2])
        except (sqlite3.Error, msgspec.MsgspecError) as error:
            raise self._told(error) from error

    def close(self) -> None:
        """See `Store`."""
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise FileProblem("it is not open", where=str(self._path))
        return self._db

    def _told(self, error: Exception) -> DeferError:
        where = str(self._path)
        if isinstance(error, OSError):
            told = translate(error)
            told.where = where
            return told
        kind = getattr(error, "sqlite_errorname", "")
        if kind == "SQLITE_FULL":
            return DiskFull("no space left for the dispatcher's state", where=where, hint="free some space")
        if kind.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or isinstance(error, msgspec.MsgspecError):
            return CorruptFile(
                f"the dispatcher's state is damaged: {error}",
                where=where,
                hint="move the file away to start anew; models must be deployed again then",
            )
        if kind.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return PermissionDenied(
                f"the dispatcher's state cannot be written: {error}",
                where=where,
                hint="check owner and mode, or choose another directory with --state",
            )
        return FileProblem(f"the dispatcher's state cannot be kept: {error}", where=where)


def _write(db: sqlite3.Connection, change: s.Change) -> None:
    match change:
        case s.EpochBegun(epoch, devices):
            db.execute("INSERT OR REPLACE INTO epochs VALUES (?, ?)", (epoch, _encode(devices)))
            db.execute("UPDATE meta SET value = max(value, ?) WHERE key = 'last_epoch'", (epoch,))
        case s.EpochEnded(epoch):
            db.execute("DELETE FROM epochs WHERE epoch = ?", (epoch,))
        case s.ModelKept(model):
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (model.name, _encode(model)))
        case s.ModelDropped(name):
            db.execute("DELETE FROM models WHERE name = ?", (name,))
        case s.RequestKept(s.KeptRequest(infer, frames, deadline)):
            db.execute(
                "INSERT OR REPLACE INTO requests (request, infer, frames, deadline) VALUES (?, ?, ?, ?)",
                (infer.request, _encode(infer), frames, deadline),
            )
        case s.AnswerKept(s.KeptAnswer(message, frames, at)):
            db.execute("DELETE FROM requests WHERE request = ?", (message.request,))
            db.execute(
                "INSERT OR IGNORE INTO answers (request, message, frames, at) VALUES (?, ?, ?, ?)",
                (message.request, _encode(message), frames, at),
            )
        case s.SplitKept(split):
            db.execute("INSERT OR REPLACE INTO splits VALUES (?, ?)", (split.name, _encode(split)))
        case s.SplitDropped(name):
            db.execute("DELETE FROM splits WHERE name = ?", (name,))
        case s.AnswersDropped(requests):
            db.executemany("DELETE FROM answers WHERE request = ?", ((name,) for name in requests))
