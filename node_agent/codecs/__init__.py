"""How a tensor becomes a frame and back: one registry, encode beside decode. Pure.

A codec's `decode` trusts nothing: whatever the bytes, it returns an array of exactly the promised type and
shape or raises `CodecError`, and takes memory for no more than a small multiple of the promised size. What a codec
needs to decode, such as scales, travels in its frame; docs/codecs.md describes every frame.
"""

from __future__ import annotations

from node_agent.codecs.base import Array, Codec, byte_view, from_bytes, item_bytes
from node_agent.codecs.binary import Bit
from node_agent.codecs.bitmap import Bitmap
from node_agent.codecs.fine import Fine
from node_agent.codecs.halves import Bfloat16, Float16
from node_agent.codecs.int4 import Int4
from node_agent.codecs.int8 import Int8
from node_agent.codecs.lz4_block import Lz4
from node_agent.codecs.raw import Raw
from node_agent.codecs.zfp import AVAILABLE as _ZFP
from node_agent.codecs.zfp import Zfp
from node_agent.errors import CodecError

__all__ = [
    "CODECS",
    "EVERYWHERE",
    "Array",
    "Codec",
    "byte_view",
    "codec_named",
    "from_bytes",
    "is_lossless",
    "register",
]


def _half_bytes(dtype: str) -> int:
    """Bytes of an element behind float16 or bfloat16, which leave all but wider floats as they are."""
    return 2 if dtype in ("float32", "float64") else item_bytes(dtype)


def _int_bytes(dtype: str) -> int:
    """Bytes of an element behind int8, which leaves all but floats as they are."""
    return 1 if dtype in ("float16", "float32", "float64") else item_bytes(dtype)


_INT8, _INT8_CHANNEL = Int8("int8", by_channel=False), Int8("int8-channel", by_channel=True)

_ALWAYS: tuple[Codec, ...] = (
    Raw(),
    Lz4("lz4", Raw()),
    Lz4("shuffle-lz4", Raw(), item_bytes),
    Bitmap("bitmap", Raw(), item_bytes),
    Bit(),
    Float16(),
    Lz4("float16-lz4", Float16(), _half_bytes),
    Bitmap("float16-bitmap", Float16(), _half_bytes),
    Bfloat16(),
    Lz4("bfloat16-lz4", Bfloat16(), _half_bytes),
    Bitmap("bfloat16-bitmap", Bfloat16(), _half_bytes),
    Fine("int12", bits=12, sparse=False),
    Fine("int12-bitmap", bits=12, sparse=True),
    Fine("int10", bits=10, sparse=False),
    Fine("int10-bitmap", bits=10, sparse=True),
    _INT8,
    Lz4("int8-lz4", _INT8),
    Bitmap("int8-bitmap", _INT8, _int_bytes),
    _INT8_CHANNEL,
    Lz4("int8-channel-lz4", _INT8_CHANNEL),
    Bitmap("int8-channel-bitmap", _INT8_CHANNEL, _int_bytes),
    Int4(),
    Lz4("int4-lz4", Int4()),
)

_WITH_ZFP: tuple[Codec, ...] = (
    Zfp("zfp", tolerance=0.0, packed=False),
    Zfp("zfp-lz4", tolerance=0.0, packed=True),
    Zfp("zfp8", tolerance=2.0**-8, packed=False),
    Zfp("zfp8-lz4", tolerance=2.0**-8, packed=True),
)

CODECS: dict[str, Codec] = {codec.name: codec for codec in (*_ALWAYS, *(_WITH_ZFP if _ZFP else ()))}
"""Every codec that this process knows, by name; `register` adds to it."""

EVERYWHERE = frozenset(codec.name for codec in _ALWAYS)
"""Codecs that every build knows, whatever extras it has: clients may be sent these."""


def register(codec: Codec) -> None:
    """Adds a codec; both ends of a link need it, and clients are never sent it.

    Raises:
        ValueError: Its name is taken, or its `values` names no codec: neither `raw`, itself nor another.
    """
    if codec.name in CODECS:
        raise ValueError(f"there is a codec {codec.name!r} already")
    if codec.values not in (codec.name, *CODECS):
        raise ValueError(f"its values are those of {codec.values!r}, which is no codec")
    CODECS[codec.name] = codec


def codec_named(name: str) -> Codec:
    """The codec called `name`.

    Raises:
        CodecError: There is none.
    """
    try:
        return CODECS[name]
    except KeyError:
        extra = " The extra `zfp` brings it." if name.startswith("zfp") else ""
        raise CodecError(
            f"Codec {name!r} is unknown here.", hint=f"This build has: {', '.join(CODECS)}.{extra}"
        ) from None


def is_lossless(name: str) -> bool:
    """Whether a codec that this build knows gives back every bit."""
    return codec_named(name).values == "raw"
