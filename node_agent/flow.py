"""Credit windows: a receiver says how much may be under way, so that a queue never grows. Pure.

One rule on both sides. Every `Item` or `Failure` takes one item credit and as many byte credits as its tensor
frames have bytes (none for a `Failure`). It may be sent while at least one item credit and at least one byte
credit are left, so the byte credits may go below zero by part of one item: an item larger than the whole
window still passes, and what is under way never exceeds the window by more than that one item. The receiver
gives credit back when it no longer holds the item, in batches, so that a small item does not cost a second
message.
"""

from __future__ import annotations

from dataclasses import dataclass

from node_agent.errors import FlowError
from node_agent.limits import MIB
from node_agent.messages import Credit

_LARGEST = 1 << 48
"""More than any process can hold; a peer that grants more is not believed."""


@dataclass(frozen=True, slots=True)
class Window:
    """How much a receiver lets be under way on one connection."""

    items: int = 32
    nbytes: int = 64 * MIB


class SendWindow:
    """The sender's side: what it may still send.

    Attributes:
        items: Items that may be sent.
        nbytes: Bytes that may be sent; below zero after an item that was larger than what was left.
    """

    __slots__ = ("items", "nbytes")

    def __init__(self) -> None:
        self.items = 0
        self.nbytes = 0

    @property
    def ready(self) -> bool:
        """Whether another item may be sent now."""
        return self.items > 0 and self.nbytes > 0

    def add(self, credit: Credit) -> None:
        """Takes credit from the receiver.

        Raises:
            FlowError: The credit is negative or absurd.
        """
        if credit.items < 0 or credit.nbytes < 0:
            raise FlowError(f"A peer granted negative credit ({credit.items} items, {credit.nbytes} bytes).")
        self.items += credit.items
        self.nbytes += credit.nbytes
        if self.items > _LARGEST or self.nbytes > _LARGEST:
            raise FlowError("A peer granted more credit than any process can hold.")

    def take(self, nbytes: int) -> None:
        """Spends the credit for one item of `nbytes`.

        Raises:
            FlowError: There is none: the caller did not ask `ready`.
        """
        if not self.ready:
            raise FlowError("An item was to be sent without credit.")
        self.items -= 1
        self.nbytes -= nbytes

    def reset(self) -> None:
        """Forgets all credit: a new connection starts without."""
        self.items = 0
        self.nbytes = 0


class ReceiveWindow:
    """The receiver's side: what it has let the sender send, and what it owes.

    `open` once the connection stands, `receive` for each arrival, `release` when an item is no longer held.
    """

    __slots__ = (
        "_held",
        "_left_bytes",
        "_left_items",
        "_owed_bytes",
        "_owed_items",
        "_paused",
        "window",
    )

    def __init__(self, window: Window) -> None:
        self.window = window
        self._left_items = 0
        self._left_bytes = 0
        self._owed_items = window.items
        self._owed_bytes = window.nbytes
        self._held = 0
        self._paused = False

    @property
    def held(self) -> int:
        """Items that have been received and not released."""
        return self._held

    def open(self) -> Credit | None:
        """The credit to send now whatever the batch: the whole window at first; None when nothing is owed."""
        # Below zero after the window was made smaller: what is released pays that off first.
        items, nbytes = max(0, self._owed_items), max(0, self._owed_bytes)
        if self._paused or not (items or nbytes):
            return None
        self._left_items += items
        self._left_bytes += nbytes
        self._owed_items -= items
        self._owed_bytes -= nbytes
        return Credit(items, nbytes)

    def receive(self, nbytes: int) -> None:
        """Notes an arrival.

        Raises:
            FlowError: The sender had no credit for it.
        """
        if self._left_items <= 0 or self._left_bytes <= 0:
            raise FlowError(
                f"A peer sent an item of {nbytes} bytes without credit ({self._held} items are held here)."
            )
        self._left_items -= 1
        self._left_bytes -= nbytes
        self._held += 1

    def release(self, nbytes: int) -> Credit | None:
        """Notes that an item of `nbytes` bytes is no longer held; the credit to send now, if a batch is full.

        Raises:
            FlowError: None is held.
        """
        if self._held <= 0:
            raise FlowError("More items were released than received.")
        self._held -= 1
        self._owed_items += 1
        self._owed_bytes += nbytes
        # A quarter: the sender never has less than three quarters of the window because of batching. And two of a small
        # window: each message wakes a thread at both ends, which costs a busy box more than the rest of the item's way.
        window = self.window
        if (
            4 * self._owed_items >= window.items and self._owed_items >= min(2, window.items // 2)
        ) or 4 * self._owed_bytes >= window.nbytes:
            return self.open()
        return None

    def resize(self, window: Window) -> Credit | None:
        """Lets more or fewer items be under way from now on; the credit to send now on a connection that stands."""
        self._owed_items += window.items - self.window.items
        self._owed_bytes += window.nbytes - self.window.nbytes
        self.window = window
        return self.open() if self._owed_items > 0 or self._owed_bytes > 0 else None

    def renewed(self) -> ReceiveWindow:
        """A window for a sender that lost its credit but not its connection: what is held stays counted."""
        fresh = ReceiveWindow(self.window)
        fresh._owed_items = max(0, self.window.items - self._held)
        fresh._held = self._held
        fresh._paused = self._paused
        return fresh

    @property
    def paused(self) -> bool:
        """Whether it grants nothing more."""
        return self._paused

    def pause(self) -> None:
        """Grants nothing more, so that the sender runs dry: the process is draining."""
        self._paused = True
