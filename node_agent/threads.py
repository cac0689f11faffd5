"""A thread of the agent: it starts or says why not, takes turns until told to stop, and leaves nothing open."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Shell:
    """Base of the agent's threads; whatever a subclass opens, it opens and closes in its own thread.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self.stopping = False
        self.error: BaseException | None = None
        """What ended the thread, if not `stop`."""
        self.on_crash: Callable[[], None] = _ignore
        """Called in the thread when a turn raised; set before `start`."""
        self._opened: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def open(self) -> None:
        """Opens what the thread owns; an exception keeps the agent from starting."""

    def turn(self) -> None:
        """Waits for something to do and does it."""
        raise NotImplementedError

    def shut(self) -> None:
        """Closes what `open` and later turns opened."""

    def wake(self) -> None:
        """Ends the wait of `turn`; from any thread."""
        raise NotImplementedError

    def start(self) -> None:
        """Starts the thread and waits until it has opened what it owns.

        Raises:
            AgentError: It could not.
        """
        self._thread.start()
        failed = self._opened.get()
        if failed is not None:
            self._thread.join()
            raise failed

    def stop(self) -> None:
        """Asks the thread to end after its present turn."""
        self.stopping = True
        self.wake()

    def join(self, timeout: float) -> bool:
        """Waits for the end; whether it came within `timeout` seconds."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.open()
        except BaseException as error:
            self._close()
            self._opened.put(error)
            return
        self._opened.put(None)
        try:
            while not self.stopping:
                self.turn()
        except BaseException as error:
            self.error = error
            log.critical("The %s thread failed.", self._thread.name, exc_info=error)
            self.on_crash()
        finally:
            self._close()

    def _close(self) -> None:
        try:
            self.shut()
        except Exception:
            log.exception("The %s thread could not close what it owns.", self._thread.name)


def _ignore() -> None:
    """For a thread whose end nobody waits for."""
