"""The dispatcher's planner: a process of its own, which is asked one question after the other, and told of progress.

One conversation has one process. It imports the planner's packages once, while the dispatcher does something else, and
keeps what it knows of a model from one question to the next. It ends with the conversation, and with the dispatcher.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import IO, Final, Self, TypeVar

import msgspec

from defer.dispatcher.framing import receive, send
from defer.dispatcher.questions import Answer, Failed, Progress, Question, Reply
from defer.dispatcher.withdrawal import given_up
from defer.errors import DeferError, from_code
from node_agent.interpreter import python

LIMIT_S: Final = 1800.0
"""Seconds that a question may take without a word of progress."""

PATIENT: Final = 10
"""What is added to the niceness of a process that has more time than the requests which it would delay."""

SPARE_S: Final = 60.0
"""Seconds that a process which was started ahead waits for its first question."""

KILL_S: Final = 10.0
"""Seconds that a process has to end after it was killed."""

SAID: Final = 4096
"""Bytes, the last of what a process printed, that are looked at when it has ended."""

T = TypeVar("T")

OnProgress = Callable[[str, float], None]


class Planner:
    """Starts the processes, and ends them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[_Process] = set()
        self._spare: _Process | None = None
        self._closed = False

    def warm(self) -> None:
        """Start a process for a question that will be asked within a minute, so that it has its packages by then."""
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = _Process.start()

    def conversation(self, patient: Callable[[], bool]) -> Conversation:
        """Several questions for one process, which is started by the first; use it as a context manager.

        Args:
            patient: Whether it is to leave the processor to others, because requests are served meanwhile and none of
                them waits for this; asked when it is started.
        """
        return Conversation(self, patient)

    def ask(self, question: Question, kind: type[T], *, patient: bool = False) -> T:
        """One question; see `Conversation.ask`."""
        with self.conversation(lambda: patient) as planning:
            return planning.ask(question, kind)

    def close(self) -> None:
        """End what runs; whoever waits for it gets an error, and so does everybody who asks from now on."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
            for process in self._running:
                process.kill()
        if spare is not None:
            spare.close()

    @property
    def closed(self) -> bool:
        """Whether the dispatcher is shutting down."""
        return self._closed

    def take(self) -> _Process:
        """A process, which is to be given back.

        Raises:
            NotReady: `close` was called.
            OSError: The system has no process, socket or file left.
        """
        stale: _Process | None = None
        try:
            with self._lock:
                if self._closed:
                    raise ended()
                spare, self._spare = self._spare, None
                if spare is not None and time.monotonic() - spare.begun >= SPARE_S / 2:
                    spare, stale = None, spare
                process = spare if spare is not None else _Process.start()
                self._running.add(process)
        finally:  # also where none could be started
            if stale is not None:
                stale.close()
        return process

    def give_back(self, process: _Process) -> None:
        """A process is not needed any more."""
        with self._lock:
            self._running.discard(process)
        process.close()


class Conversation:
    """Questions to one process; see `Planner.conversation`. For one thread."""

    def __init__(self, planner: Planner, patient: Callable[[], bool]) -> None:
        self._planner, self._patient = planner, patient
        self._process: _Process | None = None
        self._given_up = False

    def begin(self) -> None:
        """Start the process, so that it imports what it needs while the first question is not known yet.

        Raises:
            NotReady: The dispatcher is shutting down.
            Cancelled: `give_up` was called.
        """
        if self._process is None:
            self._process = self._planner.take()
            if self._patient():
                self._process.yield_to_others()
        if self._given_up:
            self.close()
            raise given_up()

    def give_up(self) -> None:
        """End the process, whatever it does: whoever waits for an answer is told that; from any thread."""
        self._given_up = True
        process = self._process
        if process is not None:
            process.kill()

    def ask(
        self, question: Question, kind: type[T], on_progress: OnProgress = lambda _what, _fraction: None
    ) -> T:
        """Ask; blocks.

        Args:
            question: What; see `questions`.
            kind: Of the answer.
            on_progress: Told what is being done, in this thread.

        Raises:
            DeferError: What the other process could not do, as if it had been tried here; or it ended, took too long,
                `give_up` was called, or the dispatcher is shutting down.
        """
        self.begin()
        assert self._process is not None
        try:
            reply = self._process.ask(question, on_progress)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            if self._planner.closed:
                why: DeferError = ended()
            else:
                why = given_up() if self._given_up else self._process.why(error)
            self.close()  # what it may say yet is no answer to the next question
            raise why from error
        except BaseException:  # whoever is told of progress wants no more of it
            self.close()
            raise
        if isinstance(reply, Failed):
            raise reply.error()
        return msgspec.msgpack.decode(reply.body, type=kind)

    def close(self) -> None:
        """The conversation is over."""
        if self._process is not None:
            self._planner.give_back(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    """One process, and the socket to it; made by `start`."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket, said: IO[bytes]) -> None:
        self.begun = time.monotonic()
        self._process, self._connection, self._said = process, connection, said

    @classmethod
    def start(cls) -> Self:
        """Start it.

        Raises:
            OSError: The system has no process, socket or file left.
        """
        with ExitStack() as failing:
            said = failing.enter_context(tempfile.TemporaryFile())
            ours, theirs = map(failing.enter_context, socket.socketpair())
            # Its own process group: Ctrl-C in the terminal reaches the parent alone, which then stops it in order.
            process = subprocess.Popen(
                [*python(), "-m", "defer.dispatcher.planner_process", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
            theirs.close()  # so that its end is seen here
            failing.pop_all()
        return cls(process, ours, said)

    def yield_to_others(self) -> None:
        """Have all its threads run when others leave time."""
        with suppress(ProcessLookupError):  # it has ended: whoever asks is told
            nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + PATIENT)
            os.setpriority(os.PRIO_PGRP, self._process.pid, nice)

    def ask(self, question: Question, on_progress: OnProgress) -> Answer | Failed:
        """Ask, and wait.

        Raises:
            OSError, EOFError, msgspec.MsgspecError: It ended, took too long or talks nonsense.
        """
        send(self._connection, msgspec.msgpack.encode(question), LIMIT_S)
        while True:
            reply: Reply = msgspec.msgpack.decode(receive(self._connection, LIMIT_S), type=Reply)
            if not isinstance(reply, Progress):
                return reply
            on_progress(reply.what, reply.fraction)

    def why(self, error: Exception) -> DeferError:
        """What became of a question that was not answered."""
        if isinstance(error, TimeoutError):
            return from_code("internal", f"the process that plans said nothing for {LIMIT_S:g} s")
        if isinstance(error, msgspec.MsgspecError):
            self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)  # its socket is closed: it has ended, or is about to
        size = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size - SAID))
        told = self._said.read().decode(errors="replace").strip().splitlines()
        code = self._process.returncode
        why = told[-1] if told else f"exit status {code}"
        hint = "perhaps the machine has no memory left; `dmesg` tells" if code == -signal.SIGKILL else ""
        return from_code("internal", f"the process that plans has ended: {why}", hint)

    def kill(self) -> None:
        """End it; whoever waits for an answer gets an error."""
        self._process.kill()

    def close(self) -> None:
        """End it, and forget it."""
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_S)
        self._connection.close()
        self._said.close()


def ended() -> DeferError:
    """Why nothing is planned any more."""
    return from_code("not-ready", "the dispatcher is shutting down")
