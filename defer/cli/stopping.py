"""Signals that end a command: one that serves in order at the first, at once at the second; others as Ctrl-C does."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """Whether a signal ends the command.

    Attributes:
        number: Which; 0 where none came.
    """

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def ending_in_order(*, last: bool = False) -> Iterator[Ending]:
    """SIGTERM and a closed terminal end the block as Ctrl-C does: by an exception, so that nothing is left behind.

    Signals that this process was started to ignore stay ignored, and those that somebody else looks after are theirs.

    Args:
        last: Nothing but the interpreter's own end comes after the block: a terminal that closes then, when all is
            done, no longer changes what the command ends with.
    """
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        ending.number = number
        for each in before:  # closing a terminal is told twice; asking twice to end is another matter
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        raise SystemExit(128 + number)

    ours = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    before = {number: signal.signal(number, leave) for number in ours}
    try:
        yield ending
    finally:
        for number in before:
            # SIGTERM still ends what hangs in the interpreter's end.
            ignored = last and number == signal.SIGHUP
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)


class StopNow(BaseException):
    """Told to stop while something was under way that need not be finished."""


class Stop:
    """Set by a signal or by another thread.

    A pipe, not a `threading.Event`: a handler that runs in the middle of the event's own lock would wait for ever.
    The system writes to it too (`signal.set_wakeup_fd`): a signal that comes just before `select` begins to wait, or to
    another thread, would else be heard of when the next one comes.
    """

    def __init__(self) -> None:
        self._signals = 0
        self.number = 0
        """The last signal; 0 before the first."""
        self._interrupts = False
        self._told = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def set(self) -> None:
        """Stop serving."""
        self._told = True
        with suppress(BlockingIOError):  # full: there is enough to be woken by
            os.write(self._write, b"\0")

    def wait(self) -> None:
        """Serve until told to stop."""
        while not self._told:
            select.select([self._read], [], [])
            if not self._told:  # a signal of somebody else's; what it wrote must not wake again
                os.read(self._read, 4096)

    def fileno(self) -> int:
        """Readable once it is set: for a `select` that waits for other things too."""
        return self._read

    @property
    def waker(self) -> int:
        """Written to by the system when a signal comes."""
        return self._write

    def with_stdin(self) -> None:
        """Stop as if by SIGTERM when standard input ends: the system closes it however the parent process ends."""

        def watch() -> None:
            with suppress(OSError):
                while os.read(0, 4096):
                    pass
            os.kill(os.getpid(), signal.SIGTERM)

        # A daemon: nothing can wake a thread that reads, and nothing has to.
        threading.Thread(target=watch, name="stdin", daemon=True).start()

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """What is done in here ends with `StopNow` when a signal comes, or where one has come already."""
        self._interrupts = True
        try:
            if self._signals:
                raise StopNow
            yield
        finally:
            self._interrupts = False

    def signalled(self, number: int, _frame: FrameType | None) -> None:
        """A signal came, in the main thread."""
        self._signals += 1
        self.number = number
        # Whoever asks twice does not want to wait for anything; a terminal that closes says so twice by itself, its
        # shell and the system one after the other.
        if self._signals > 1 and number != signal.SIGHUP:
            os._exit(128 + number)
        self.set()
        if self._interrupts:
            self._interrupts = False
            raise StopNow

    def close(self) -> None:
        """Let go of the pipe."""
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Signals stop instead of killing, except those that this process was started to ignore (`nohup`)."""
    stop = Stop()
    ours = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    waker = signal.set_wakeup_fd(stop.waker, warn_on_full_buffer=False)
    before = {number: signal.signal(number, stop.signalled) for number in ours}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waker)
        stop.close()
