from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.testbed.delay_line import HEADER, NEEDS_CSUM, DelayLine, payload


def frame(source: int, target: int, number: int) -> bytes:
    return bytes(HEADER) + bytes((2, 0xDE, 1, 0, source, target)) + number.to_bytes(8, "big")


@given(
    st.dictionaries(
        st.tuples(st.integers(1, 3), st.integers(1, 3)), st.integers(0, 9).map(lambda n: n / 8), max_size=5
    ),
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 4).map(lambda n: n / 8))),
)
def test_each_frame_leaves_when_due_and_in_order_of_its_link(
    delays: dict[tuple[int, int], float], arrivals: list[tuple[int, int, float]]
) -> None:
    line = DelayLine()
    for (source, target), seconds in delays.items():
        line.set_delay(source, target, seconds)
    now, expected = 0.0, []
    for number, (source, target, pause) in enumerate(arrivals):
        now += pause
        one = frame(source, target, number)
        line.enter(now, one)
        expected.append((now + delays.get((source, target), 0.0), number, one))
    left = []
    while (wait := line.wait(0.0)) is not None:
        assert wait == 0.0 or line.leave(wait - 1e-9) is None
        one = line.leave(wait)
        assert one is not None
        left.append((wait, one))
    assert left == [(due, one) for due, _, one in sorted(expected)]
    assert line.held == line.lost == 0


def test_what_does_not_fit_is_lost_and_counted() -> None:
    size = len(frame(1, 2, 0))
    line = DelayLine(capacity=2 * size)
    for number in range(3):
        line.enter(0.0, frame(1, 2, number))
    assert (line.held, line.lost) == (2 * size, 1)
    assert [line.leave(0.0) for _ in range(3)] == [frame(1, 2, 0), frame(1, 2, 1), None]
    line.enter(0.0, frame(1, 2, 4))
    assert line.leave(0.0) == frame(1, 2, 4)


def test_a_changed_delay_counts_for_what_enters_afterwards() -> None:
    line = DelayLine()
    line.set_delay(1, 2, 1.0)
    line.enter(0.0, frame(1, 2, 0))
    line.set_delay(1, 2, 0.25)
    line.enter(0.0, frame(1, 2, 1))
    assert line.wait(0.0) == 0.25
    assert line.leave(0.25) == frame(1, 2, 1)
    assert line.wait(0.25) == 0.75


def segment(source: int, target: int, carried: bytes, *, protocol: int = 6, flags: int = NEEDS_CSUM) -> bytes:
    """A TCP segment in an Ethernet frame with a virtio header."""
    ip = bytes((0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol)) + bytes(10)
    tcp = bytes(12) + bytes((0x50,)) + bytes(7)
    ethernet = bytes((2, 0xDE, 1, 0, source, target)) + bytes(6) + b"\x08\x00"
    return bytes((flags,)) + bytes(HEADER - 1) + ethernet + ip + tcp + carried


@given(st.binary(min_size=1, max_size=64))
def test_one_bit_of_what_tcp_carries_is_turned_over(carried: bytes) -> None:
    line = DelayLine()
    line.set_flips(1, 2, 1)  # at least one in each segment
    sent, other = segment(1, 2, carried), segment(2, 1, carried)
    for one in (sent, other):
        line.enter(0.0, one)
    came, untouched = line.leave(0.0), line.leave(0.0)
    assert untouched == other
    assert came is not None
    assert line.flipped == 1
    begin = payload(sent)
    assert came[:begin] == sent[:begin]
    assert len(came) == len(sent)
    assert sum((a ^ b).bit_count() for a, b in zip(came, sent, strict=True)) == 1
    line.set_flips(1, 2, 0)
    line.enter(0.0, sent)
    assert line.leave(0.0) == sent


def test_what_has_a_checksum_of_its_own_or_carries_nothing_is_left_alone() -> None:
    line = DelayLine()
    line.set_flips(1, 2, 1)
    frames = [
        segment(1, 2, b""),
        segment(1, 2, b"udp", protocol=17),
        segment(1, 2, b"checked", flags=0),
        frame(1, 2, 7),
    ]
    for one in frames:
        line.enter(0.0, one)
    assert [line.leave(0.0) for _ in frames] == frames
    assert line.flipped == 0
