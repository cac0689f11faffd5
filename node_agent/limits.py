"""How large anything from the network may be. Pure.

Every limit is checked on the header, before memory is taken for what the header promises.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a data message; a process may use tighter ones.

    Attributes:
        header_bytes: Encoded header.
        tensors: Tensors in one item.
        rank: Dimensions of a tensor; NumPy's own limit before 2.0.
        name_chars: Characters of a tensor's name.
        tensor_bytes: One tensor, decoded.
        item_bytes: All tensors of an item, decoded.
        frame_bytes: One frame as it travels; larger ones never leave libzmq (ZMQ_MAXMSGSIZE).
    """

    header_bytes: int = MIB
    tensors: int = 4096
    rank: int = 32
    name_chars: int = 4096
    tensor_bytes: int = 2 * GIB
    item_bytes: int = 4 * GIB
    frame_bytes: int = 2 * GIB + MIB


DEFAULT = Limits()
"""What an agent and a dispatcher use unless told otherwise."""

CONTROL_BYTES = 16 * MIB
"""Largest frame on a control socket: a request, or the piece of a file that follows `Chunk`."""

COPY_BELOW = 64 * KIB
"""Frames shorter than this are copied: libzmq's bookkeeping of a shared buffer costs more than the copy."""

CONNECTIONS = 256
"""Data connections that one socket accepts at a time."""
