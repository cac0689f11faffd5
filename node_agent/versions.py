"""Which protocol version two processes speak with each other. Pure.

Every process states the oldest and the newest version that it understands. They speak the newest that both
understand; a build understands at least its own version and the one before, so adjacent releases
interoperate.
"""

from __future__ import annotations

from dataclasses import dataclass

from node_agent.errors import VersionError
from node_agent.messages import PROTOCOL_MINIMUM, PROTOCOL_VERSION


@dataclass(frozen=True, slots=True)
class VersionRange:
    """The versions `minimum` to `newest`, both included."""

    minimum: int = PROTOCOL_MINIMUM
    newest: int = PROTOCOL_VERSION

    def __str__(self) -> str:
        if self.minimum == self.newest:
            return f"version {self.newest}"
        return f"versions {self.minimum} to {self.newest}"


OURS = VersionRange()
"""What this build speaks."""


def negotiate(ours: VersionRange, theirs: VersionRange, peer: str = "the peer") -> int:
    """The version to speak with a peer.

    Args:
        ours: What this side understands.
        theirs: What the other side says it understands.
        peer: Name of the other side, for the message.

    Returns:
        The newest version that both understand.

    Raises:
        VersionError: There is none, or the peer's range is empty.
    """
    if theirs.minimum > theirs.newest or theirs.newest < 1:
        raise VersionError(
            f"{peer} states an empty range of protocol versions ({theirs.minimum} to {theirs.newest})."
        )
    common = min(ours.newest, theirs.newest)
    if common < max(ours.minimum, theirs.minimum):
        older = peer if theirs.newest < ours.minimum else "this side"
        raise VersionError(
            f"{peer} speaks protocol {theirs}, this side speaks {ours}.",
            hint=f"Update {older}: releases next to each other interoperate.",
        )
    return common
