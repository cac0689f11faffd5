"""Single messages that promise what would hurt: each must be refused by a word, at once, and be logged at most once."""

from __future__ import annotations

from dataclasses import dataclass

import lz4.block

from benchmarks.hostile.mutate import Message
from node_agent import messages as m
from node_agent.frames import encode_header

NOTHING = b"0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Attack:
    """One message.

    Attributes:
        name: For people.
        message: What is sent after an honest greeting, or without one.
        greeted: Whether it comes after a greeting.
    """

    name: str
    message: Message
    greeted: bool = True


def _tensor(shape: tuple[int, ...], nbytes: int, codec: str = "raw") -> m.TensorHeader:
    return m.TensorHeader("t0", "float32", shape, codec, nbytes)


def _item(tensors: tuple[m.TensorHeader, ...], *frames: bytes) -> Message:
    return [encode_header(m.Item(1, 2, 0, m.NO_DEADLINE, tensors)), *frames]


_BOMB = lz4.block.compress(bytes(1 << 20), store_size=False)

ATTACKS = (
    Attack("a tensor of 2^40 elements", _item((_tensor((1 << 40,), 8),), bytes(8))),
    Attack("2^40 elements and a dimension of 0", _item((_tensor((1 << 40, 0), 0),), b"")),
    Attack("2^20 dimensions", _item((_tensor((1,) * (1 << 17), 4),), bytes(4))),
    Attack("100,000 tensors", _item(tuple(_tensor((), 4) for _ in range(100_000)), bytes(4))),
    Attack("a bomb: 1 GiB in 4 KiB of LZ4", _item((_tensor((1 << 28,), len(_BOMB), "lz4"),), _BOMB)),
    Attack("a list of 2^32 entries", [b"\xdd\xff\xff\xff\xff"]),
    Attack("a text of 2^32 bytes", [b"\x93\xa6refuse\xdb\xff\xff\xff\xff"]),
    Attack("100,000 lists in one another", [b"\x91" * 100_000]),
    Attack("a header of 2 MiB", [b"\x91" + bytes(2 << 20)]),
    Attack("frames that were not announced", _item((), *(b"x" for _ in range(100)))),
    Attack("a frame shorter than announced", _item((_tensor((16,), 64),), bytes(63))),
    Attack("an item before the greeting", _item((_tensor((16,), 64),), bytes(64)), greeted=False),
)


def refused(answer: bytes) -> bool:
    """Whether an answer on a data port is a refusal."""
    return answer[1:8] == b"\xa6refuse"
