"""`defer top`: the dispatcher's stages, queues, rates and events in a terminal, as they change."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

import click

from defer import api
from defer.admin import CONNECT_S, Admin
from defer.cli.dispatcher import address_option
from defer.cli.output import common_options, console, examples, print_json
from defer.cli.stopping import Stop, stopping
from defer.errors import DispatcherUnreachable, UsageError
from defer.event_log import EventInfo
from node_agent.finite import Finite

if TYPE_CHECKING:
    from rich.console import Group

EVENTS: Final = 8
"""Events at the foot of the screen."""

END_KEYS: Final = ("q", "\x03", "\x04")


@click.command(epilog=examples("defer top", "defer top --interval 0.5", "defer top --once"))
@click.option("--interval", default=1.0, show_default=True, type=Finite(0.1, 60), help="Seconds per frame.")
@click.option("--once", is_flag=True, help="Print one frame, of the time of one interval, and leave.")
@address_option
@common_options
def command(interval: float, once: bool, address: str, as_json: bool) -> None:
    """Watch a dispatcher: how busy each stage is, and which is the bottleneck; queues, rates, latencies, events.

    q or Ctrl-C leaves.
    """
    if not (once or as_json) and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("there is no terminal to draw on", hint="`defer top --once` prints one frame")
    watched = _Watched(address)
    try:
        watched.look()
        if once or as_json:
            time.sleep(interval)
            watched.look()
            if as_json:
                print_json(watched.told())
            else:
                console().print(watched.frame())
            return
        _watch(watched, interval)
    finally:
        watched.close()


class _Watched:
    """The last two looks at a dispatcher and its last events."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._admin: Admin | None = None
        self._looks: list[api.ServerStatus] = []
        self._events: list[EventInfo] = []
        self._boot = ""
        self._trouble = ""

    def look(self) -> None:
        """Ask once more; after the first time, a dispatcher that does not answer is shown as such.

        Raises:
            DispatcherUnreachable: It has never answered.
        """
        try:
            if self._admin is None:
                admin = Admin(self._address)
                admin.open()
                self._admin = admin
            status = self._admin.ask(api.GetStatus(0), api.ServerStatus, timeout=CONNECT_S)
            after = self._events[-1].seq if self._events else 0
            told = self._admin.ask(api.GetEvents(0, after, EVENTS), api.Events, timeout=CONNECT_S)
        except DispatcherUnreachable as error:
            self.close()
            if not self._looks:
                raise
            self._trouble = f"no answer: {error}"
            return
        if told.boot != self._boot:  # another process: its counters and numbers begin anew
            self._looks, self._events, self._boot = [], [], told.boot
        self._trouble = ""
        self._looks = [*self._looks[-1:], status]
        self._events = [*self._events, *told.events][-EVENTS:]

    def frame(self) -> Group:
        """What to draw."""
        from defer.live.top_page import frame

        before = self._looks[0] if len(self._looks) > 1 else None
        return frame(self._address, before, self._looks[-1], self._events, trouble=self._trouble)

    def told(self) -> dict[str, object]:
        """The same for programs."""
        from defer.live.rates import stage_loads

        before = self._looks[0] if len(self._looks) > 1 else None
        return {
            "stages": stage_loads(before, self._looks[-1]),
            "status": self._looks[-1],
            "events": self._events,
        }

    def close(self) -> None:
        """Hang up."""
        admin, self._admin = self._admin, None
        if admin is not None:
            admin.close()


def _watch(watched: _Watched, interval: float) -> None:
    from rich.live import Live

    # A signal sets a flag: one that raised in the middle of a frame could leave the terminal half drawn.
    try:
        with (
            stopping() as stop,
            _keys(stop) as pressed,
            Live(watched.frame(), console=console(), screen=True, auto_refresh=False) as live,
        ):
            while True:
                live.update(watched.frame(), refresh=True)
                if pressed(interval).lower() in END_KEYS:
                    return
                watched.look()
    except OSError as error:
        if error.errno != errno.EIO:  # the terminal was closed: nobody looks any more
            raise


@contextlib.contextmanager
def _keys(stop: Stop) -> Iterator[Callable[[float], str]]:
    """Single keys of the terminal without echo; yields a function that waits so many seconds for one.

    A signal counts as Ctrl-C, and a terminal that is gone as Ctrl-D.
    """
    import termios
    import tty

    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([number, stop], [], [], seconds)
        if stop in ready:
            return "\x03"
        return os.read(number, 1).decode(errors="replace") or "\x04" if ready else " "

    try:
        tty.setcbreak(number)
        yield pressed
    finally:
        with contextlib.suppress(termios.error):  # the terminal was closed
            termios.tcsetattr(number, termios.TCSADRAIN, before)
