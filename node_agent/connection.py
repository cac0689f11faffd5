"""One data connection from its first byte: greeting, version, credit. Pure; the shells own the sockets.

The side that dialled says `Greeting` first, the other answers with its own or with a `Refusal`. Then the
receiver grants credit and the sender sends. A connection that breaks is forgotten with all its credit; the
next one starts from the greeting.

    down ──opened──▶ greeting ──Greeting──▶ ready ──closed──▶ down
                         └──wrong version, Refusal──▶ refused ──closed──▶ down
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from node_agent.errors import VersionError, WireError, said
from node_agent.flow import ReceiveWindow, SendWindow, Window
from node_agent.messages import Credit, DataHeader, Greeting, Refusal
from node_agent.versions import OURS, VersionRange, negotiate

if TYPE_CHECKING:
    from node_agent.lending import Lender
    from node_agent.messages import Offered

State = Literal["down", "greeting", "ready", "refused"]


@dataclass(slots=True)
class Handshake:
    """The greeting of one connection, seen from one side.

    Attributes:
        name: This side's device name.
        dialled: Whether this side dialled.
        ours: The protocol versions of this side.
        state: See the module's drawing; the side that was dialled starts in `greeting`.
        peer: The other side's name, once greeted.
        version: The version both speak, once `ready`.
        reason: Why the state is `refused`.
        lender: What this side lends to a peer on its own machine, if it dialled to send items.
        inline: Whether the other side takes items that bring short frames in their header, once greeted.
    """

    name: str
    dialled: bool
    ours: VersionRange = OURS
    state: State = "down"
    peer: str = ""
    version: int = 0
    reason: str = ""
    lender: Lender | None = None
    inline: bool = False

    def greeting(self, lends: Offered | None = None) -> Greeting:
        """What this side says of itself."""
        return Greeting(self.ours.minimum, self.ours.newest, self.name, lends, inline=True)

    def opened(self) -> list[DataHeader]:
        """The transport stands; what to send."""
        self.state = "greeting"
        self.reason = ""
        if not self.dialled:
            return []
        return [self.greeting(self.lender.offer() if self.lender is not None else None)]

    def closed(self) -> None:
        """The transport broke."""
        self.state = "down"
        self.version, self.inline = 0, False
        if self.lender is not None:
            self.lender.end()

    def greeted(self, message: Greeting) -> list[DataHeader]:
        """The other side introduced itself; what to answer. The state is `ready` or `refused` afterwards."""
        self.peer, self.inline = message.name, message.inline
        try:
            self.version = negotiate(self.ours, VersionRange(message.minimum, message.version), message.name)
        except VersionError as error:
            self.refused(Refusal(error.code, said(error)))
            return [] if self.dialled else [Refusal(error.code, self.reason)]
        self.state = "ready"
        if self.dialled:
            if self.lender is not None:
                self.lender.answered(message)
            return []
        # What could not be opened is no longer in it: see `node_agent.link.receive`.
        return [self.greeting(message.lends)]

    def refused(self, message: Refusal) -> None:
        """The other side, or this one, will not talk."""
        self.state = "refused"
        self.reason = message.message


@dataclass(slots=True)
class SendingEnd:
    """The end of a connection that sends items."""

    handshake: Handshake
    window: SendWindow = field(default_factory=SendWindow)

    @property
    def ready(self) -> bool:
        """Whether an item may be sent now."""
        return self.handshake.state == "ready" and self.window.ready

    def opened(self) -> list[DataHeader]:
        """The transport stands; what to send."""
        self.window.reset()
        return self.handshake.opened()

    def closed(self) -> None:
        """The transport broke: credit is void."""
        self.window.reset()
        self.handshake.closed()

    def handle(self, message: DataHeader) -> list[DataHeader]:
        """A message from the receiver; what to answer.

        Raises:
            WireError: The message has no place here.
        """
        if isinstance(message, Credit):
            if self.handshake.state == "ready":
                self.window.add(message)
            return []
        if isinstance(message, Greeting):
            self.window.reset()
            return self.handshake.greeted(message)
        if isinstance(message, Refusal):
            self.handshake.refused(message)
            self.window.reset()
            return []
        raise WireError(f"A receiver of items sent {type(message).__name__}.")


@dataclass(slots=True)
class ReceivingEnd:
    """The end of a connection that receives items."""

    handshake: Handshake
    size: Window = field(default_factory=Window)
    window: ReceiveWindow = field(init=False)

    def __post_init__(self) -> None:
        self.window = ReceiveWindow(self.size)

    @property
    def ready(self) -> bool:
        """Whether items are expected."""
        return self.handshake.state == "ready"

    def opened(self) -> list[DataHeader]:
        """The transport stands; what to send."""
        paused = self.window.paused
        self.window = ReceiveWindow(self.size)
        if paused:
            self.window.pause()
        return self.handshake.opened()

    def closed(self) -> None:
        """The transport broke."""
        self.handshake.closed()

    def handle(self, message: DataHeader) -> list[DataHeader]:
        """A message other than `Item`, `Failure` and `Probe` from the sender; what to answer.

        Raises:
            WireError: The message has no place here.
        """
        if isinstance(message, Greeting):
            again = self.handshake.state == "ready"
            answers = self.handshake.greeted(message)
            if self.handshake.state == "ready":
                if again:
                    # The sender forgot its credit; what is held still counts, so only the rest is granted
                    # anew.
                    self.window = self.window.renewed()
                credit = self.window.open()
                if credit is not None:
                    answers.append(credit)
            return answers
        if isinstance(message, Refusal):
            self.handshake.refused(message)
            return []
        raise WireError(f"A sender of items sent {type(message).__name__}.")
