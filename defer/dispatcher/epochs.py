"""Numbers of deployments, on disk: none is used twice, and those that agents may still hold are known after a crash."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from defer.documents.files import write_bytes
from defer.errors import translate


class _Saved(msgspec.Struct):
    """The file's content."""

    last: int = 0
    open: dict[str, tuple[str, ...]] = {}


class EpochLog:
    """The dispatcher's epochs; safe to use from several threads.

    Args:
        path: The file; read by `load`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saved = _Saved()
        self._lock = threading.Lock()

    def load(self) -> dict[int, tuple[str, ...]]:
        """Read the file; returns the epochs that an earlier process left open, with their devices."""
        try:
            self._saved = msgspec.json.decode(self._path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            raise translate(error) from error
        return {int(epoch): devices for epoch, devices in self._saved.open.items()}

    def begin(self, devices: tuple[str, ...]) -> int:
        """A new epoch, noted as held by `devices` before any of them hears of it.

        Milliseconds of the wall clock, so that dispatchers that share an agent do not meet in a number; never less
        than the one before, whatever the clock says.
        """
        with self._lock:
            epoch = max(self._saved.last + 1, int(time.time() * 1000))
            self._saved.last = epoch
            self._saved.open[str(epoch)] = devices
            self._save()
            return epoch

    def end(self, epoch: int) -> None:
        """Note that no agent holds the epoch any more."""
        with self._lock:
            if self._saved.open.pop(str(epoch), None) is not None:
                self._save()

    def _save(self) -> None:
        write_bytes(self._path, msgspec.json.encode(self._saved))
