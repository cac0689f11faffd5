"""Who may give this agent orders: dispatchers that said `Hello`, and dispatchers that it registers with. Pure."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from node_agent import events as ev
from node_agent.errors import AgentError, StaleLeaderError, VersionError, code_of, said, sentences
from node_agent.messages import ControlMessage, Fault, Hello, Offer, Welcome
from node_agent.noise import Seldom
from node_agent.versions import VersionRange, negotiate

HELLO_AGAIN_S = 2.0
"""An agent that dials out repeats its `Hello` after this long without an answer."""

REFUSED_AGAIN_S = 30.0
"""And after this long when it was refused: somebody has to update one of the two first."""


PATIENCE_S = 5.0
"""Registered nowhere for this long, an agent says so: without a dispatcher it is of no use."""

REMIND_S = 300.0
"""And says so again after this long; so it repeats why it was refused."""

MOST_REALMS = 64
"""Shared states that an agent remembers the terms of; a peer could make up any number of them."""


@dataclass(slots=True)
class _Dial:
    """A dispatcher that this agent registers with."""

    up: bool = False
    welcomed: bool = False
    next_hello: float = 0.0
    id: int = 0
    tell_at: float | None = None
    """When it is worth a line that nobody answers; None until time has passed since it last did."""
    seen: bool = False
    """Whether it has ever registered here."""
    told: bool = False
    """Whether the log says that it is not registered here."""
    refusal: str = ""


class Controllers:
    """The control connections, by what has been said on them.

    Args:
        name: This device's name.
        boot: Differs for each start of the process.
        offer: What the device brings.
        dials: Connections that this agent opens to dispatchers.
        ours: Protocol versions of this build.
    """

    def __init__(
        self, name: str, boot: str, offer: Offer, dials: tuple[ev.Connection, ...], ours: VersionRange
    ) -> None:
        self._name = name
        self._boot = boot
        self._offer = offer
        self._ours = ours
        self._names: dict[ev.Connection, str] = {}
        self._terms: dict[str, int] = {}
        self._led: dict[ev.Connection, tuple[str, int]] = {}
        self._dials = {connection: _Dial() for connection in dials}
        self._ids = 0
        self._noise = Seldom()

    @property
    def connections(self) -> tuple[ev.Connection, ...]:
        """Connections whose other end is known; heartbeats go to all of them."""
        return tuple(self._names)

    def knows(self, connection: ev.Connection) -> bool:
        """Whether the other end has introduced itself."""
        return connection in self._names

    def received(
        self, connection: ev.Connection, message: ControlMessage, now: float
    ) -> list[ev.Instruction] | None:
        """Takes the messages that open a connection; None for any other."""
        if isinstance(message, Hello):
            return self._hello(connection, message, now)
        dial = self._dials.get(connection)
        if dial is None:
            return None
        if isinstance(message, Welcome):
            return self._welcome(connection, dial, message, now)
        if isinstance(message, Fault) and message.id == dial.id and not dial.welcomed:
            text = f"{connection[0]} refused this agent: {sentences(message.message, message.hint)}"
            return self._refused(dial, text, now)
        return None

    def explained(self, connection: ev.Connection, now: float) -> None:
        """The log says already why there is no connection to a dispatcher that is dialled."""
        dial = self._dials[connection]
        dial.told, dial.tell_at = True, now + REMIND_S

    def _refused(self, dial: _Dial, text: str, now: float) -> list[ev.Instruction]:
        dial.next_hello = now + REFUSED_AGAIN_S
        if text == dial.refusal and dial.tell_at is not None and now < dial.tell_at:
            return []
        dial.refusal, dial.told, dial.tell_at = text, True, now + REMIND_S
        return [ev.Log(logging.ERROR, text)]

    def dialled(self, connection: ev.Connection, now: float) -> list[ev.Instruction]:
        """A connection to a dispatcher stands, perhaps for the second time: register."""
        self._names.pop(connection, None)
        dial = self._dials[connection]
        dial.up = True
        dial.welcomed = False
        return self._say_hello(connection, dial, now)

    def lost(self, connection: ev.Connection) -> list[ev.Instruction]:
        """A connection is gone."""
        dial = self._dials.get(connection)
        self._led.pop(connection, None)
        if dial is not None:
            if dial.welcomed:
                dial.tell_at = None
            dial.up = dial.welcomed = False
        name = self._names.pop(connection, None)
        return [] if name is None else [ev.Log(logging.INFO, f"The control connection of {name} is gone.")]

    @property
    def calm(self) -> bool:
        """Whether nobody who was dialled has to be asked again, and nothing is to be said of them."""
        if self._dials and not self._names:
            return False
        return all(dial.welcomed or not dial.up for dial in self._dials.values())

    def tick(self, now: float) -> list[ev.Instruction]:
        """Registers again where no answer came."""
        due: list[ev.Instruction] = []
        for connection, dial in self._dials.items():
            if dial.up and not dial.welcomed and now >= dial.next_hello:
                due += self._say_hello(connection, dial, now)
        # Of dispatchers that share a state only one answers; and one that is dialled here has no need to dial.
        if not self._names:
            due += self._complain(now)
        return due

    def _complain(self, now: float) -> list[ev.Instruction]:
        lines: list[ev.Instruction] = []
        for (endpoint, _), dial in self._dials.items():
            if dial.tell_at is None:
                dial.tell_at = now + PATIENCE_S
            elif now >= dial.tell_at and not (dial.up and dial.refusal):
                dial.told, dial.tell_at = True, now + REMIND_S
                text = f"No dispatcher answers at {endpoint}; it is dialled on."
                if dial.up:
                    text = (
                        f"Somebody takes connections at {endpoint}, and answers nothing as a dispatcher does; it is "
                        "asked on. Agents register at the first of a dispatcher's ports."
                    )
                lines.append(ev.Log(logging.WARNING, text))
        return lines

    def _hello(self, connection: ev.Connection, message: Hello, now: float) -> list[ev.Instruction]:
        ticket = ev.Ticket(connection, message.id)
        try:
            version = negotiate(self._ours, VersionRange(message.minimum, message.version), message.name)
        except VersionError as error:
            self._names.pop(connection, None)
            refused: list[ev.Instruction] = [fault(ticket, error)]
            more = self._noise.told(now)
            if more is not None:
                refused.append(ev.Log(logging.WARNING, f"Refused a controller: {said(error)}{more}"))
            return refused
        led = self._lead(connection, message)
        if isinstance(led, StaleLeaderError):
            return [fault(ticket, led), *self._told(led, now)]
        known = connection in self._names
        self._names[connection] = message.name
        welcome = Welcome(message.id, version, self._name, self._boot, self._offer)
        instructions: list[ev.Instruction] = [ev.Say(connection, welcome), *led]
        if not known:
            instructions.append(ev.Log(logging.INFO, f"{message.name} took control."))
        return instructions

    def _lead(self, connection: ev.Connection, message: Hello) -> list[ev.Instruction] | StaleLeaderError:
        """Of the dispatchers that share a state only the one with the highest term gives orders."""
        if not message.realm:
            return []
        highest = self._terms.get(message.realm, 0)
        if message.term < highest:
            self._names.pop(connection, None)
            self._led.pop(connection, None)
            return StaleLeaderError(
                f"Dispatcher {message.name} leads {message.realm} by term {message.term}; another one does by {highest}."
            )
        if highest == 0 and len(self._terms) >= MOST_REALMS:
            del self._terms[next(iter(self._terms))]
        self._terms[message.realm] = message.term
        self._led[connection] = (message.realm, message.term)
        older = [
            each
            for each, (realm, term) in self._led.items()
            if realm == message.realm and term < message.term
        ]
        for each in older:
            del self._led[each]
            self._names.pop(each, None)
        if not older:
            return []
        text = f"Takes no more orders from {len(older)} dispatchers that led {message.realm} before term {message.term}."
        return [ev.Log(logging.INFO, text)]

    def _told(self, error: AgentError, now: float) -> list[ev.Instruction]:
        more = self._noise.told(now)
        return [] if more is None else [ev.Log(logging.WARNING, f"Refused a controller: {error}{more}")]

    def _welcome(
        self, connection: ev.Connection, dial: _Dial, message: Welcome, now: float
    ) -> list[ev.Instruction]:
        if message.offer is not None:
            text = f"{connection[0]} is the agent {message.name!r:.80}, and no dispatcher; correct --dial."
            return self._refused(dial, text, now)
        try:
            # The dispatcher chose; a choice outside of what this side understands would be its bug.
            negotiate(self._ours, VersionRange(message.version, message.version), message.name)
        except VersionError as error:
            return [ev.Log(logging.ERROR, f"{connection[0]}: {said(error)}")]
        fresh = not dial.welcomed
        # Registering is news, and so is that it has been put right; that a short break is over is not.
        news, dial.seen = dial.told or not dial.seen, True
        dial.welcomed, dial.told, dial.refusal, dial.tell_at = True, False, "", None
        self._names[connection] = message.name
        text = f"Registered with {message.name} at {connection[0]}."
        return [ev.Log(logging.INFO, text, news)] if fresh else []

    def _say_hello(self, connection: ev.Connection, dial: _Dial, now: float) -> list[ev.Instruction]:
        self._ids += 1
        dial.id = self._ids
        dial.next_hello = now + HELLO_AGAIN_S
        hello = Hello(
            dial.id, self._ours.minimum, self._ours.newest, self._name, "agent", self._offer, self._boot
        )
        return [ev.Say(connection, hello)]


def fault(ticket: ev.Ticket, error: AgentError) -> ev.Say:
    """The answer to a request that failed."""
    return ev.Say(ticket.connection, Fault(ticket.id, code_of(error), str(error), error.hint))
