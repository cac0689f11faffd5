"""A data connection that this side dials, opened anew when it breaks."""

from __future__ import annotations

from collections.abc import Sequence

import zmq

from node_agent.connection import Handshake
from node_agent.errors import AgentError
from node_agent.frames import encode_header
from node_agent.link import Context, Monitor, Socket, dial, open_socket, send
from node_agent.messages import DataHeader, PeerRef


class Dialled:
    """A DEALER to one peer, opened anew when its connection breaks, so that nothing old is left in its queue.

    Args:
        context: The data thread's.
        peer: Whom to dial.
        handshake: This side of the greeting.
    """

    def __init__(self, context: Context, peer: PeerRef, handshake: Handshake) -> None:
        self.peer = peer
        self.handshake = handshake
        self._context = context
        self.open()

    def open(self) -> None:
        """Dial."""
        self.socket: Socket = open_socket(self._context, zmq.DEALER, purpose="data")
        self.monitor = Monitor(self.socket)
        self.refusal: AgentError | None = None
        """Why keys keep this side from the peer; the socket is of no use until it is opened anew."""
        try:
            dial(self.socket, self.peer.endpoint, self.peer.name, self.handshake.lender)
        except AgentError as error:
            self.refusal = error

    def close(self) -> None:
        """Hang up; what is queued is dropped."""
        self.handshake.closed()
        self.monitor.close()
        self.socket.close(linger=0)

    def say(self, messages: Sequence[DataHeader]) -> None:
        """Send messages without frames."""
        for message in messages:
            send(self.socket, encode_header(message))

    def happened(self) -> list[bool]:
        """What the monitor saw: True where the connection now stands, False where one that stood broke.

        Attempts that fail before they stand are ZeroMQ's to repeat, with growing pauses; but for those that `refusal`
        then tells of.
        """
        seen: list[bool] = []
        stands = self.handshake.state != "down"
        for event in self.monitor.events():
            if event == "up":
                stands = True
                seen.append(True)
            elif stands:
                stands = False
                seen.append(False)
            elif event == "failed":
                self.refusal = self.monitor.refusal
        return seen
