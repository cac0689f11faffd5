"""Request bodies: read into one buffer, as long as they may be, and decompressed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from defer.errors import TooLarge, UnknownCoding, WrongInput

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

BESIDE = 64 << 10
"""Bodies of at least so many bytes are compressed and decompressed beside the event loop."""

_WINDOW = {b"gzip": 31, b"deflate": 15}
"""zlib's `wbits` of the codings that are understood; `deflate` is zlib's format, as HTTP means it."""


class Gone(Exception):  # noqa: N818 - it says what happened
    """The client went before its request was whole."""


def stated_length(headers: MutableMapping[bytes, bytes], limit: int) -> int | None:
    """The length of the body that the headers state; None where they do not.

    Raises:
        TooLarge: It is over the limit.
    """
    stated = headers.get(b"content-length")
    if stated is None:
        return None
    length = int(stated)  # the HTTP parser lets nothing else pass
    if length > limit:
        raise too_large(limit)
    return length


async def read_body(receive: Receive, length: int | None, limit: int) -> Any:
    """The whole body, in one buffer that is nobody else's.

    Args:
        receive: ASGI's.
        length: What was stated; None where it was not.
        limit: Most bytes.

    Raises:
        TooLarge: It is over the limit.
        Gone: The client went.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    first = message.get("body", b"")
    if not message.get("more_body", False):
        if len(first) > limit:
            raise too_large(limit)
        return first
    # With its length known it is written where it stays: pieces are never joined.
    whole = bytearray(length or 0)
    at = len(first)
    whole[:at] = first
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        piece = message.get("body", b"")
        whole[at : at + len(piece)] = piece
        at += len(piece)
        if at > limit:
            raise too_large(limit)
    return whole


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit."""
    return TooLarge(
        f"the request's body is over the limit of {limit} bytes", hint="the server's --body-limit sets it"
    )


async def decompressed(body: Any, coding: bytes, limit: int) -> Any:
    """A body without its compression.

    Raises:
        UnknownCoding: Neither gzip nor deflate.
        TooLarge: It is over the limit when decompressed.
        WrongInput: It is not what its header says.
    """
    if coding in (b"", b"identity"):
        return body
    window = _WINDOW.get(coding)
    if window is None:
        raise UnknownCoding(
            f"Content-Encoding {coding.decode('latin-1')!r} is not understood", hint="gzip and deflate are"
        )
    if len(body) < BESIDE:
        return _inflated(body, window, limit)
    return await asyncio.to_thread(_inflated, body, window, limit)


def _inflated(body: Any, window: int, limit: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        plain = inflater.decompress(body, limit + 1)
    except zlib.error as error:
        raise WrongInput(f"the body is not compressed as its Content-Encoding says: {error}") from None
    if len(plain) > limit:
        raise too_large(limit)
    if not inflater.eof or inflater.unused_data:
        raise WrongInput("the compressed body is cut off, or something follows it")
    return plain


def accepted_coding(accept: bytes, *, binary: bool) -> bytes:
    """How to compress a response; empty for not at all.

    Tensors in binary form are compressed only for a client that names one coding: many HTTP libraries list what they
    could read with every request, and a tensor costs more to compress than it saves on any network but a slow one.
    """
    named = [
        part.partition(b";")[0].strip().lower()
        for part in accept.split(b",")
        if b"q=0" not in part.replace(b" ", b"")
    ]
    known = [coding for coding in named if coding in _WINDOW]
    if not known or (binary and len(named) > 1):
        return b""
    return known[0]


async def compressed(parts: Any, coding: bytes) -> bytes:
    """A response's body, compressed."""
    if sum(len(part) for part in parts) < BESIDE:
        return _deflated(parts, coding)
    return await asyncio.to_thread(_deflated, parts, coding)


def _deflated(parts: Any, coding: bytes) -> bytes:
    deflater = zlib.compressobj(1, wbits=_WINDOW[coding])
    return b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])
