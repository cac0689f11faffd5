"""Short frames travel in an item's header, to whoever takes them so; what is believed is checked as ever."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from node_agent import messages as m
from node_agent.errors import FrameError
from node_agent.frames import INLINE_BYTES, INLINE_FRAMES, encode_header, inlined, pack_item, unpack
from node_agent.link import bind, open_socket, receive, send


@pytest.fixture
def sockets() -> Iterator[tuple[Any, Any]]:
    context: zmq.Context[Any] = zmq.Context()
    router = open_socket(context, zmq.ROUTER, purpose="data")
    dealer = open_socket(context, zmq.DEALER, purpose="data")
    dealer.connect(f"tcp://127.0.0.1:{bind(router, '127.0.0.1', 0)}")
    assert dealer.poll(5000, zmq.POLLOUT)
    yield dealer, router
    context.destroy(linger=0)


def passed(sockets: tuple[Any, Any], header: m.Item, *frames: bytes) -> tuple[Any, list[Any]]:
    dealer, router = sockets
    send(dealer, encode_header(header), frames)
    assert router.poll(5000)
    _, got, came = receive(router, routed=True)
    return got, came


@given(st.lists(st.integers(0, INLINE_BYTES + 1), max_size=INLINE_FRAMES + 1), st.booleans())
def test_short_frames_go_inline_all_or_none(lengths: list[int], view: bool) -> None:
    frames = [bytes(each) for each in lengths]
    fits = sum(lengths) <= INLINE_BYTES and len(lengths) <= INLINE_FRAMES
    given = [memoryview(frame) for frame in frames] if view else frames
    assert inlined(given) == (tuple(frames) if fits else ())


def test_an_item_arrives_as_if_its_frames_had_come_after_it(sockets: tuple[Any, Any]) -> None:
    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.array([1, 2], np.int64)}
    tensors, frames = pack_item(arrays)
    short = [bytes(each) for each in frames]
    item = m.Item(1, 2, 3, 4, tensors, "", 0, inlined(short))
    assert item.inline
    got, came = passed(sockets, item)
    assert came == short
    for name, array in unpack(got.tensors, came).items():
        np.testing.assert_array_equal(array, arrays[name])


X, Y = (m.TensorHeader(name, "uint8", (4,), "raw", 4) for name in "xy")


@pytest.mark.parametrize(
    ("header", "frames"),
    [
        (m.Item(1, 2, 3, 4, (X,), inline=(b"123",)), ()),
        (m.Item(1, 2, 3, 4, (X,), inline=(b"1234", b"5678")), ()),
        (m.Item(1, 2, 3, 4, (X, Y), inline=(b"1234",)), ()),
        (m.Item(1, 2, 3, 4, (X,), inline=(b"1234",)), (b"1234",)),
        (m.Item(1, 2, 3, 4, (), inline=(b"1234",)), ()),
    ],
    ids=["short", "many", "few", "twice", "unannounced"],
)
def test_what_does_not_fit_the_header_is_refused(
    sockets: tuple[Any, Any], header: m.Item, frames: tuple[bytes, ...]
) -> None:
    got, came = passed(sockets, header, *frames)
    assert isinstance(got, FrameError)
    assert came == []
