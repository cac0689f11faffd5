"""What the dispatcher does beside its own threads, where nobody waits for the outcome."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

logger = logging.getLogger("defer.dispatcher")


class Background:
    """A few threads for work that takes long; what fails is logged.

    Args:
        threads: How many.
        name: What theirs begin with.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def do(self, action: Callable[[], None]) -> None:
        """Have something done, soon; nothing where `stop` was called."""

        def run() -> None:
            try:
                action()
            except Exception:
                logger.exception("background work failed")

        try:
            self._threads.submit(run)
        except RuntimeError:
            logger.debug("not done any more: the dispatcher is closing")

    def stop(self) -> None:
        """Begin nothing any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """`stop`, and wait for what runs."""
        self._threads.shutdown(wait=True, cancel_futures=True)
