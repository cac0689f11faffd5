"""Changes to bytes that were once a message; seeded."""

from __future__ import annotations

import random
from collections.abc import Sequence

Message = list[bytes]
"""A header and its frames."""

NASTY = (
    b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc0", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8, b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6, b"\xcb\x7f\xf0" + b"\0" * 6, b"\x91" * 64, b"\x81\xa1t" * 16, b"\xa4item", b"\xd9\xff",
)  # fmt: skip
"""Lengths that lie, numbers at the ends of their range, not-a-number, deep nesting."""


def mutated(draw: random.Random, message: Message, others: Sequence[Message]) -> Message:
    """One message, changed in one to four places; now and then not at all.

    Args:
        draw: The source of all choices.
        message: Header and frames.
        others: Messages to take pieces from.
    """
    frames = list(message)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 4))):
        at = 0 if draw.random() < 0.8 else draw.randrange(len(frames))
        kind = draw.randrange(9)
        if kind < 7:
            frames[at] = _changed(draw, frames[at], kind, draw.choice(others)[0])
        elif kind == 7 and len(frames) < 8:
            frames.insert(draw.randint(0, len(frames)), draw.choice(others)[0][: draw.randint(0, 64)])
        elif len(frames) > 1:
            del frames[draw.randrange(len(frames))]
    return frames


def _changed(draw: random.Random, data: bytes, kind: int, other: bytes) -> bytes:
    at = draw.randint(0, len(data))
    match kind:
        case 0 if data:  # a bit
            at = draw.randrange(len(data))
            return data[:at] + bytes((data[at] ^ 1 << draw.randrange(8),)) + data[at + 1 :]
        case 1:  # a byte, or what is worse
            nasty = draw.choice(NASTY)
            return data[:at] + nasty + data[at + len(nasty) :]
        case 2:
            return data[:at] + draw.choice(NASTY) + data[at:]
        case 3:
            return data[:at]
        case 4:
            end = draw.randint(at, len(data))
            return data[:at] + data[end:]
        case 5:  # the rest of another
            return data[:at] + other[draw.randint(0, len(other)) :]
        case _:
            return data[:at] + draw.randbytes(draw.choice((1, 2, 8, 100)))


def stream(seed: int, corpus: Sequence[Message], count: int) -> Sequence[Message]:
    """`count` mutated messages.

    Args:
        seed: The same gives the same.
        corpus: What is mutated.
        count: How many.
    """
    draw = random.Random(seed)
    return [mutated(draw, draw.choice(corpus), corpus) for _ in range(count)]
