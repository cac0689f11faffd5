"""Credit windows: never more under way than allowed, and never a standstill."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.errors import FlowError
from node_agent.flow import ReceiveWindow, SendWindow, Window
from node_agent.messages import Credit


@given(
    window=st.builds(Window, items=st.integers(1, 20), nbytes=st.integers(1, 1000)),
    sizes=st.lists(st.integers(0, 3000), max_size=200),
    choices=st.lists(st.integers(0, 2), max_size=2000),
)
def test_any_schedule_stays_within_the_window_and_delivers_everything(
    window: Window, sizes: list[int], choices: list[int]
) -> None:
    """The network and the receiver may be as slow as they like, in any order."""
    sender, receiver = SendWindow(), ReceiveWindow(window)
    to_send, under_way, held = deque(sizes), deque[int](), deque[int]()
    granted = deque([receiver.open()])
    schedule = iter(choices)
    delivered = 0
    while delivered < len(sizes):
        choice = next(schedule, None)
        moved = False
        if granted and choice in (None, 0):
            credit = granted.popleft()
            assert credit is not None
            sender.add(credit)
            moved = True
        if to_send and sender.ready and choice in (None, 1):
            sender.take(to_send[0])
            under_way.append(to_send.popleft())
            moved = True
        if choice in (None, 2):
            if under_way:
                receiver.receive(under_way[0])
                held.append(under_way.popleft())
                moved = True
            elif held:
                if (credit := receiver.release(held.popleft())) is not None:
                    granted.append(credit)
                delivered += 1
                moved = True
        assert receiver.held == len(held)
        assert len(under_way) + len(held) <= window.items
        there = [*held, *under_way]
        assert sum(there) - (there[-1] if there else 0) < window.nbytes or len(there) <= 1
        assert choice is not None or moved, "a standstill"


def test_an_item_larger_than_the_window_passes_and_is_paid_back() -> None:
    sender, receiver = SendWindow(), ReceiveWindow(Window(4, 100))
    first = receiver.open()
    assert first == Credit(4, 100)
    sender.add(first)
    sender.take(1000)
    assert not sender.ready
    receiver.receive(1000)
    credit = receiver.release(1000)
    assert credit == Credit(1, 1000)
    sender.add(credit)
    assert (sender.items, sender.nbytes) == (4, 100)


def test_small_items_are_paid_back_in_batches() -> None:
    receiver = ReceiveWindow(Window(16, 1000))
    receiver.open()
    for _ in range(4):
        receiver.receive(1)
    assert [receiver.release(1) for _ in range(4)] == [None, None, None, Credit(4, 4)]


def test_sending_without_credit_is_refused_on_both_sides() -> None:
    with pytest.raises(FlowError, match="without credit"):
        SendWindow().take(1)
    receiver = ReceiveWindow(Window(1, 10))
    with pytest.raises(FlowError, match="without credit"):
        receiver.receive(1)
    receiver.open()
    receiver.receive(1)
    with pytest.raises(FlowError, match="1 items are held"):
        receiver.receive(1)


def test_absurd_credit_is_not_believed() -> None:
    for credit in (Credit(-1, 5), Credit(1, -5), Credit(1 << 60, 5), Credit(1, 1 << 60)):
        with pytest.raises(FlowError):
            SendWindow().add(credit)


def test_a_draining_receiver_grants_nothing_more() -> None:
    receiver = ReceiveWindow(Window(2, 10))
    receiver.open()
    receiver.receive(10)
    receiver.pause()
    assert receiver.release(10) is None
    assert receiver.open() is None


def test_a_sender_that_greets_again_gets_what_is_not_held() -> None:
    receiver = ReceiveWindow(Window(8, 100))
    receiver.open()
    receiver.receive(10)
    receiver.receive(10)
    assert receiver.renewed().open() == Credit(6, 100)
    assert receiver.renewed().held == 2


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    choices=st.lists(st.integers(0, 3), max_size=400),
)
def test_a_window_that_changes_neither_stands_still_nor_grows(sizes: list[int], choices: list[int]) -> None:
    sender, receiver = SendWindow(), ReceiveWindow(Window(sizes[0], 1000))
    windows = deque(sizes[1:])
    sender.add(receiver.open() or Credit(0, 0))
    under_way = 0
    for choice in [*choices, *[1, 2] * 200]:
        if choice == 0 and windows:
            credit = receiver.resize(Window(windows.popleft(), 1000))
            if credit is not None:
                sender.add(credit)
        elif choice == 1 and sender.ready:
            sender.take(1)
            receiver.receive(1)
            under_way += 1
        elif choice == 2 and under_way:
            under_way -= 1
            if (credit := receiver.release(1)) is not None:
                sender.add(credit)
        # What a larger window has granted may still be used once; what is released pays it back first.
        assert under_way + sender.items <= max(sizes)
    while under_way:
        under_way -= 1
        if (credit := receiver.release(1)) is not None:
            sender.add(credit)
    assert 0 < sender.items <= max(receiver.window.items, sender.items)
    assert sender.items >= receiver.window.items * 3 // 4
