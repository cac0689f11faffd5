"""Frames lent in shared memory: what goes in comes out, nothing is used twice, nothing strange is opened."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent import lending
from node_agent.connection import Handshake
from node_agent.errors import FrameError
from node_agent.frames import encode_header
from node_agent.lending import LENT_BYTES, REFERENCE_BYTES, Borrowing, Lender
from node_agent.limits import COPY_BELOW
from node_agent.link import bind, borrow, dial, new_context, open_socket, receive, send
from node_agent.messages import Greeting, Item, Offered, TensorHeader

pytestmark = pytest.mark.skipif(not lending.possible(), reason="this system lends no memory")

PEER = b"peer"


class Watched:
    """What a loop would watch."""

    def __init__(self) -> None:
        self.calls: dict[int, object] = {}

    def borrowing(self) -> Borrowing:
        return Borrowing(self.calls.__setitem__, self.calls.__delitem__)

    def turn(self) -> None:
        poll = select.poll()
        for number in self.calls:
            poll.register(number, select.POLLIN)
        for number, _ in poll.poll(5_000):
            self.calls[number]()  # type: ignore[operator]


def greeting(offered: Offered | None) -> Greeting:
    return Greeting(1, 1, "edge", offered)


@contextlib.contextmanager
def lent(nbytes: int = LENT_BYTES) -> Iterator[tuple[Lender, Borrowing]]:
    lender, watched = Lender(nbytes), Watched()
    borrowing = watched.borrowing()
    answer = borrowing.greeted(PEER, greeting(lender.offer()))
    lender.answered(answer)
    assert lender.active
    yield lender, borrowing
    borrowing.close()
    lender.end()
    assert not watched.calls


def tensor(nbytes: int) -> TensorHeader:
    return TensorHeader("x", "uint8", (nbytes,), "raw", nbytes)


def taken(borrowing: Borrowing, reference: bytes, nbytes: int) -> memoryview:
    frames = [reference]
    borrowing.resolve(PEER, (tensor(nbytes),), frames)
    return frames[0]  # type: ignore[return-value]


def test_a_frame_is_read_where_it_was_written_and_its_place_used_again() -> None:
    with lent() as (lender, borrowing):
        data = os.urandom(COPY_BELOW + 7)
        first = lender.lend(data)
        assert first is not None
        assert len(first) == REFERENCE_BYTES
        frame = taken(borrowing, first, len(data))
        assert frame.readonly
        assert bytes(frame) == data
        part = frame[5:9]
        del frame
        second = lender.lend(bytes(len(data)))
        assert bytes(part) == data[5:9]  # a part is held, so nothing was written there
        del part
        again = lender.lend(data)
        # The cells may be others; the lowest place is taken first.
        assert second is not None
        assert again is not None
        assert again[8:] == first[8:]


def test_a_frame_that_finds_no_place_and_one_that_is_short_travel_as_they_are() -> None:
    with lent(1 << 20) as (lender, _):
        large, short = bytes(600 << 10), bytes(COPY_BELOW - 1)
        assert [len(each) for each in lender.lent([large, short, large])] == [
            REFERENCE_BYTES,
            len(short),
            len(large),
        ]


def test_what_was_not_sent_is_taken_back() -> None:
    with lent(1 << 20) as (lender, _):
        for _ in range(5):
            assert len(lender.lent([bytes(600 << 10)])[0]) == REFERENCE_BYTES
            lender.take_back()


@given(
    st.lists(
        st.one_of(st.integers(COPY_BELOW, 6 * COPY_BELOW), st.just(-1), st.just(-2)), min_size=1, max_size=60
    )
)
@settings(max_examples=60, deadline=None)
def test_frames_that_are_held_stay_as_they_are(steps: list[int]) -> None:
    """A number lends so many bytes; −1 lets go of the oldest that is held, −2 of the youngest."""
    with lent(1 << 20) as (lender, borrowing):
        held: list[tuple[bytes, memoryview]] = []
        for number, step in enumerate(steps):
            if step > 0:
                data = bytes([number % 251]) * step
                reference = lender.lend(data)
                if reference is not None:
                    held.append((data, taken(borrowing, reference, step)))
                elif not held:
                    raise AssertionError("an empty memory has room for anything below its size")
            elif held:
                held.pop(0 if step == -1 else -1)
            assert all(bytes(view) == data for data, view in held)


@pytest.mark.parametrize(
    ("cell", "zero", "offset"),
    [(0, 0, 0), (0, 0, LENT_BYTES), (0, 0, (1 << 64) - 1), (5000, 0, 1 << 20), (1, 1, 1 << 20)],
)
def test_a_reference_that_leads_elsewhere_is_refused(cell: int, zero: int, offset: int) -> None:
    import struct

    with lent() as (_, borrowing), pytest.raises(FrameError):
        taken(borrowing, struct.pack("<IIQ", cell, zero, offset), COPY_BELOW)


def test_a_reference_of_somebody_who_lends_nothing_is_refused() -> None:
    frames: list[object] = [bytes(REFERENCE_BYTES)]
    with pytest.raises(FrameError):
        Watched().borrowing().resolve(b"other", (tensor(COPY_BELOW),), frames)


def test_a_short_tensor_of_a_references_length_is_no_reference() -> None:
    frames: list[object] = [bytes(REFERENCE_BYTES)]
    Watched().borrowing().resolve(b"other", (tensor(REFERENCE_BYTES),), frames)
    assert frames == [bytes(REFERENCE_BYTES)]


def test_an_offer_of_what_is_no_such_memory_is_not_opened() -> None:
    lender = Lender()
    good = lender.offer()
    assert good is not None
    with Path("/dev/zero").open("rb") as other:
        wrong = [
            Offered(good.pid, good.fd, good.nbytes, bytes(16), good.network),
            Offered(good.pid, good.fd, good.nbytes, b"", good.network),
            Offered(good.pid, good.fd, good.nbytes + 1, good.nonce, good.network),
            Offered(good.pid, good.fd, good.nbytes, good.nonce, "net:[1]"),
            Offered(good.pid, other.fileno(), good.nbytes, good.nonce, good.network),
            Offered(good.pid, 1 << 40, good.nbytes, good.nonce, good.network),
            Offered(-1, good.fd, good.nbytes, good.nonce, good.network),
            Offered(1 << 62, good.fd, good.nbytes, good.nonce, good.network),
            Offered(good.pid, good.fd, -5, good.nonce, good.network),
        ]
        for offered in wrong:
            watched = Watched()
            assert watched.borrowing().greeted(PEER, greeting(offered)).lends is None
            assert not watched.calls
    lender.answered(greeting(None))
    assert not lender.active
    assert lender.lend(bytes(COPY_BELOW)) is None


def test_the_switch_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lending.SWITCH, "off")
    assert Lender().offer() is None


def test_what_is_held_stays_readable_when_the_lender_ends_it_and_the_next_greeting_forgets_it() -> None:
    lender, watched = Lender(), Watched()
    borrowing = watched.borrowing()
    lender.answered(borrowing.greeted(PEER, greeting(lender.offer())))
    data = os.urandom(COPY_BELOW)
    reference = lender.lend(data)
    assert reference is not None
    frame = taken(borrowing, reference, len(data))
    lender.end()
    borrowing.greeted(b"another", greeting(None))
    assert len(borrowing) == 1, "another of its items may be waiting"
    assert bytes(frame) == data
    del frame
    borrowing.greeted(b"another", greeting(None))
    assert len(borrowing) == 0
    assert not watched.calls


LENDS = """
import os, sys
from node_agent.lending import Lender
from node_agent.messages import Greeting
import msgspec
lender = Lender()
offered = lender.offer()
lender.answered(Greeting(1, 1, "edge", offered))
references = [lender.lend(os.urandom(100_000)), lender.lend(bytes(100_000))]
sys.stdout.buffer.write(msgspec.json.encode([offered, *references]) + b"\\n")
sys.stdout.flush()
sys.stdin.read()
"""


def test_a_lender_that_is_killed_leaves_nothing_but_what_is_held() -> None:
    import msgspec

    watched = Watched()
    borrowing = watched.borrowing()
    with subprocess.Popen(
        [sys.executable, "-c", LENDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as lends:
        assert lends.stdout is not None
        offered, *references = msgspec.json.decode(lends.stdout.readline(), type=tuple[Offered, bytes, bytes])
        assert borrowing.greeted(PEER, greeting(offered)).lends == offered
        lends.send_signal(signal.SIGKILL)
        watched.turn()
        # Both were sent before it was killed, and arrive after that.
        frames = [taken(borrowing, reference, 100_000) for reference in references]
    assert not watched.calls
    assert len(borrowing) == 1
    assert bytes(frames[1]) == bytes(100_000)
    frames.clear()
    assert len(borrowing) == 0


@pytest.mark.integration
@pytest.mark.parametrize("borrows", [True, False])
def test_an_item_over_sockets(borrows: bool) -> None:
    """Greetings and items as `link` moves them; a peer that does not borrow gets the bytes."""
    context = new_context()
    watched = Watched()
    router = open_socket(context, zmq.ROUTER, purpose="data")
    dealer = open_socket(context, zmq.DEALER, purpose="data")
    try:
        port = bind(router, "127.0.0.1", 0)
        if borrows:
            borrow(router, watched.calls.__setitem__, watched.calls.__delitem__)
        ours = Handshake("up", True, lender=Lender())
        dial(dealer, f"tcp://127.0.0.1:{port}", "down", ours.lender)
        assert dealer.poll(5_000, zmq.POLLOUT)
        for message in ours.opened():
            send(dealer, encode_header(message))
        assert router.poll(5_000)
        identity, greeted, _ = receive(router, routed=True)
        assert isinstance(greeted, Greeting)
        theirs = Handshake("down", False)
        theirs.opened()
        for message in theirs.greeted(greeted):
            send(router, encode_header(message), identity=identity)
        assert dealer.poll(5_000)
        answer = receive(dealer, routed=False)[1]
        assert isinstance(answer, Greeting)
        ours.greeted(answer)
        assert ours.lender is not None
        assert ours.lender.active is borrows
        data = os.urandom(300_000)
        send(dealer, encode_header(Item(1, 2, 0, -1, (tensor(len(data)),))), [data])
        assert router.poll(5_000)
        _, item, frames = receive(router, routed=True)
        assert isinstance(item, Item)
        assert isinstance(frames[0], memoryview) is borrows
        assert bytes(getattr(frames[0], "buffer", frames[0])) == data
    finally:
        dealer.close()
        router.close()
        context.term()
    assert not watched.calls
