"""Puts the simulated clock, network and threads in the place of the real ones, for as long as a simulation runs.

What is replaced is what touches the world outside: `node_agent.link` and with it ZeroMQ, the two event loops,
`time`, `secrets`, and the threads' own loops, whose turns the scheduler takes. Everything else is the product's code.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.simulation import wire
from benchmarks.simulation.network import Network
from benchmarks.simulation.world import Process, World
from defer import socket_loop
from node_agent import data_loop, link, machine

_PRODUCT = ("node_agent.", "defer.")


class Stage:
    """What is simulated now, and whose code is running where a constructor asks."""

    world: World
    net: Network
    process: Process


class _Time:
    """In place of the module `time`."""

    @staticmethod
    def monotonic() -> float:
        return Stage.world.now

    @staticmethod
    def monotonic_ns() -> int:
        return int(Stage.world.now * 1e9)

    perf_counter, perf_counter_ns = monotonic, monotonic_ns

    @staticmethod
    def time() -> float:
        return 1.7e9 + Stage.world.now

    @staticmethod
    def sleep(_: float) -> None:
        """The clock stands still while code runs."""


class _Secrets:
    """In place of the module `secrets`."""

    @staticmethod
    def token_bytes(count: int) -> bytes:
        return Stage.world.random.randbytes(count)

    @staticmethod
    def token_hex(count: int) -> str:
        return Stage.world.random.randbytes(count).hex()


class Loop:
    """What both event loops share: sockets with handlers, commands from elsewhere, one turn at a time."""

    def __init__(self) -> None:
        self.process = Stage.process
        self.commands: deque[Callable[[], None]] = deque()
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._planned = False
        self._wake = float("inf")

    def watch(self, socket: Any, handler: Callable[[], None]) -> None:
        """Call `handler` whenever something waits on `socket`."""
        self._handlers[socket] = handler
        socket.on_readable = self.notify
        if socket.inbox:
            self.notify()

    def unwatch(self, socket: Any) -> None:
        """Before it is closed."""
        del self._handlers[socket]
        socket.on_readable = None

    def notify(self) -> None:
        """Something waits: take a turn soon."""
        if not self._planned:
            self._planned = True
            self.process.soon(self._turn)

    def _turn(self) -> None:
        self._planned = False
        for socket, handler in [(s, h) for s, h in self._handlers.items() if s.inbox]:
            if socket in self._handlers:
                handler()
        while self.commands:
            self.commands.popleft()()
        self.turned()
        if any(socket.inbox for socket in self._handlers):
            self.notify()
        self._set_alarm()

    def turned(self) -> None:
        """After the sockets and commands of a turn."""

    def due(self) -> float:
        """When the next turn must be, whatever arrives."""
        return float("inf")

    def _set_alarm(self) -> None:
        due, now = self.due(), Stage.world.now
        if due < float("inf") and not now < self._wake <= due:
            self._wake = max(due, now + 0.001)
            self.process.after(self._wake - now, self._alarm, self._wake)

    def _alarm(self, wake: float) -> None:
        if wake == self._wake:
            self._wake = float("inf")
            self.notify()


class SimulatedSocketLoop(Loop):
    """In place of `defer.socket_loop.SocketLoop`."""

    def __init__(
        self,
        name: str,
        *,
        opened: Callable[[], None],
        next_wake: Callable[[], float],
        turned: Callable[[], None],
        closed: Callable[[], None],
        **_: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.context = wire.Context(Stage.net, self.process)
        self._opened, self._closed = opened, closed
        self.due = next_wake  # type: ignore[method-assign]
        self.turned = turned  # type: ignore[method-assign]
        self.running = False

    def start(self) -> None:
        """Open."""
        self.running = True
        self._opened()

    def close(self) -> None:
        """End."""
        if self.running:
            self.running = False
            self._closed()

    def enqueue(self, command: Callable[[], None]) -> bool:
        """Run `command` in the loop."""
        if not self.process.alive:
            return False
        self.commands.append(command)
        self.notify()
        return True


class SimulatedDataLoop(Loop):
    """In place of `node_agent.data_loop.DataLoop`."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: tuple[Any, ...] = ()
        self.submit: Callable[[Any], None]
        self._due = float("inf")

    def put(self, entry: Any) -> None:
        """Submit an item, or make a call."""
        self.commands.append(entry if callable(entry) else functools.partial(self.submit, entry))
        self.notify()

    def remind(self) -> None:
        """See `DataLoop.remind`."""
        self._due = min(self._due, Stage.world.now + data_loop.GREET_AGAIN_S)
        self._set_alarm()

    def due(self) -> float:
        """When `greet_again` is due."""
        return self._due

    def turned(self) -> None:
        """Greet again where that is due."""
        if Stage.world.now >= self._due:
            self._due = float("inf")
            for part in self.parts:
                part.greet_again(Stage.world.now)

    def close(self) -> None:
        """Nothing is to be given back."""


class _Errors(logging.Handler):
    """An error that the product logs with a traceback is one that nobody expected."""

    def emit(self, record: logging.LogRecord) -> None:
        Stage.world.note("log", record.name, record.getMessage())
        if record.exc_info:
            Stage.world.broken(f"{record.name} logged {record.getMessage()!r}: {record.exc_info[1]!r}")


def _replacements() -> dict[int, Any]:
    """What stands in for what, by the identity of the real thing."""
    return ({id(link.dial): wire.dial} if hasattr(link, "dial") else {}) | {
        id(time): _Time,
        id(secrets): _Secrets,
        id(link.open_socket): wire.open_socket,
        id(link.bind): wire.bind,
        id(link.send): wire.send,
        id(link.incoming): wire.incoming,
        id(link.receive): wire.receive,
        id(link.Monitor): wire.Monitor,
        id(socket_loop.SocketLoop): SimulatedSocketLoop,
        id(data_loop.DataLoop): SimulatedDataLoop,
        id(machine.resident_bytes): lambda: 0,
    }


@contextlib.contextmanager
def simulated() -> Iterator[None]:
    """Have the product's modules use what is simulated."""
    table = _replacements()
    undo: list[tuple[Any, str, Any]] = []
    for name, module in list(sys.modules.items()):
        if not name.startswith(_PRODUCT) or module in (link, socket_loop, data_loop, machine):
            continue
        for attribute, value in list(vars(module).items()):
            stand_in = table.get(id(value))
            if stand_in is not None:
                undo.append((module, attribute, value))
                setattr(module, attribute, stand_in)
    handler = _Errors(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("node_agent", "defer")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
        for module, attribute, value in reversed(undo):
            setattr(module, attribute, value)
