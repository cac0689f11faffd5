"""Removes partitions' files that nothing needs any more, but none while some are being cut, or about to be loaded."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class Tidying:
    """See the module. Methods are safe to use from several threads.

    Args:
        folder: Where the files lie.
        used: Names of those that are needed.
    """

    def __init__(self, folder: Path, used: Callable[[], set[str]]) -> None:
        self._folder, self._used = folder, used
        self._lock = threading.Lock()
        self._under_way = 0
        self._due = False

    @contextmanager
    def spared(self) -> Iterator[None]:
        """While this lasts nothing is removed: what is being cut is not known to be needed yet."""
        with self._lock:
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                due = self._due
            if due:
                self.tidy()

    def tidy(self) -> None:
        """Remove what is not needed, now or when nothing is spared any more."""
        with self._lock:
            self._due = self._under_way > 0
            if self._due or not self._folder.is_dir():
                return
            used = self._used()
            for path in self._folder.iterdir():
                if path.name not in used and path.is_file():
                    path.unlink(missing_ok=True)
