"""The dispatcher's neighbours on its routes: the first stages, which take items from it.

Who can be dialled is dialled, once for all routes that start there: an agent takes a second connection of the same
name for the first one come back. A first stage that cannot be dialled comes to the fetch ROUTER. Last stages come to
the data-in ROUTER, which is in `defer.dispatcher.shell`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec

from defer.dialled import Dialled
from defer.dispatcher import events as e
from defer.dispatcher.links import Fetchers
from defer.socket_loop import SocketLoop
from node_agent.connection import Handshake, ReceivingEnd
from node_agent.errors import FrameError, WireError, said
from node_agent.frames import encode_header, inlined
from node_agent.lending import Lender
from node_agent.link import Sent, Socket, incoming, send
from node_agent.messages import (
    Cancel,
    Credit,
    DataHeader,
    Failure,
    Greeting,
    Item,
    PeerRef,
    Probe,
    ProbeEcho,
    Refusal,
)

logger = logging.getLogger("defer.dispatcher")

BURST = 64
"""Messages taken from one socket before the others get their turn."""

AGAIN_S = 1.0
"""Pause before a peer that refused is dialled again."""

Feed = Callable[[e.Event], None]
Handler = Callable[[bytes, DataHeader | FrameError, list[Any]], None]


def drain(socket: Socket, handle: Handler, *, routed: bool) -> None:
    """Hand over what waits on a socket, up to a burst."""
    for identity, header, frames in incoming(socket, routed=routed, most=BURST):
        handle(identity, header, frames)


def take(
    end: ReceivingEnd, header: Item | Failure, frames: Sequence[Any], feed: Feed
) -> Credit | WireError | None:
    """Take what a last stage handed over; the credit that it gets back, if it is time for some."""
    nbytes = len(frames[0]) if len(frames) == 1 else sum(len(frame) for frame in frames)
    try:
        end.window.receive(nbytes)
    except WireError as error:
        return error
    feed(e.FailureReturned(header) if isinstance(header, Failure) else e.ItemReturned(header, frames))
    return end.window.release(nbytes)


def refuse(socket: Socket, identity: bytes, code: str, message: str) -> None:
    """Tell a ROUTER's peer that its message was not accepted."""
    send(socket, encode_header(Refusal(code, message)), (), identity)


def link_of(first: PeerRef) -> str:
    """Key of the connection to a first stage; all routes that start there share it."""
    return f"to {first.name} at {first.endpoint}" if first.endpoint else _fetched_by(first.name)


def _fetched_by(device: str) -> str:
    return f"fetched by {device}"


class Neighbours:
    """Connections to first stages; used in the data thread alone.

    Args:
        name: How the dispatcher introduces itself.
        loop: The data thread.
        fetch: The fetch ROUTER.
        feed: Takes events to the core.
        visited: Told what comes to the fetch ROUTER that is not credit.
    """

    def __init__(
        self,
        name: str,
        loop: SocketLoop,
        fetch: Socket,
        feed: Feed,
        visited: Callable[[DataHeader | FrameError], None],
    ) -> None:
        self._name = name
        self._loop = loop
        self._fetch = fetch
        self._feed = feed
        self._visited = visited
        self._dialled: dict[str, Dialled] = {}
        self._users: dict[str, set[int]] = {}
        self.again: dict[str, float] = {}
        """When to dial links again whose peers refused."""
        self._fetchers = Fetchers()
        loop.watch(fetch, partial(drain, fetch, self._on_fetch, routed=True))

    def open(self, epoch: int, first: PeerRef) -> None:
        """Dial a route's first stage where it can be dialled, and is not yet."""
        if first.endpoint:
            self._dial(link_of(first), epoch, first)

    def close(self, epoch: int) -> None:
        """Hang up on a route's first stage where no other route starts there."""
        for key, users in list(self._users.items()):
            users.discard(epoch)
            if not users:
                self._hang_up(key)
                self._feed(e.LinkDown(key))

    def next_wake(self) -> float:
        """When `turned` must be called next, on the monotonic clock."""
        return min(self.again.values(), default=math.inf)

    def turned(self) -> None:
        """Dial those again that refused, after a pause."""
        now = time.monotonic()
        for key in [key for key, at in self.again.items() if at <= now]:
            self.redial(key)

    def close_all(self) -> None:
        """Hang up on everyone."""
        for key in list(self._dialled):
            self._hang_up(key)

    def send_item(self, link: str, item: Item, frames: e.Frames) -> None:
        """Send an item to a first stage; where that fails the core learns that the connection is down."""
        dialled = self._dialled.get(link)
        if dialled is not None and dialled.handshake.state != "ready":
            return  # it broke under an item before this one, and the core knows
        if dialled is not None:
            if dialled.handshake.inline and (inline := inlined(frames)):
                item, frames = msgspec.structs.replace(item, inline=inline), ()
            sent = send(dialled.socket, encode_header(item), frames)
        else:
            fetcher = self._fetchers.at(link)
            sent = Sent.GONE if fetcher is None else send(self._fetch, encode_header(item), frames, fetcher)
        if sent is not Sent.YES:  # credits keep us below the queue's bound, so the connection is gone
            self.redial(link)
            self._feed(e.LinkDown(link))

    def cancel(self, link: str, cancel: Cancel) -> None:
        """Tell a first stage that nobody waits for an item any more, if that can be said at once."""
        dialled, fetcher = self._dialled.get(link), self._fetchers.at(link)
        if dialled is not None and dialled.handshake.state == "ready":
            send(dialled.socket, encode_header(cancel))
        elif fetcher is not None:
            send(self._fetch, encode_header(cancel), (), fetcher)

    def redial(self, key: str) -> None:
        """Drop a connection with all that is queued on it, and open it anew."""
        self._fetchers.drop(key)
        if key in self._dialled:
            self.again.pop(key, None)
            dialled = self._dialled[key]
            self._unwatch(dialled)
            dialled.close()
            dialled.open()
            self._watch(key, dialled)
            self._check_keys(key, dialled)

    # ------------------------------------------------------------------------------------------------- inside

    def _dial(self, key: str, epoch: int, peer: PeerRef) -> None:
        self._users.setdefault(key, set()).add(epoch)
        if key in self._dialled:
            return
        dialled = Dialled(self._loop.context, peer, Handshake(self._name, True, lender=Lender()))
        self._dialled[key] = dialled
        self._watch(key, dialled)
        self._check_keys(key, dialled)

    def _check_keys(self, key: str, dialled: Dialled) -> None:
        """Where keys keep a device from us it is dialled again in a while: they may be put right."""
        if dialled.refusal is not None and key not in self.again:
            logger.error("device %r: %s", dialled.peer.name, said(dialled.refusal))
            self.again[key] = time.monotonic() + AGAIN_S

    def _watch(self, key: str, dialled: Dialled) -> None:
        handle = partial(self._on_first, key)
        self._loop.watch(dialled.socket, partial(drain, dialled.socket, handle, routed=False))
        self._loop.watch(dialled.monitor.socket, partial(self._on_monitor, key))

    def _unwatch(self, dialled: Dialled) -> None:
        self._loop.unwatch(dialled.socket)
        self._loop.unwatch(dialled.monitor.socket)

    def _hang_up(self, key: str) -> None:
        dialled = self._dialled.pop(key, None)
        self._users.pop(key, None)
        self.again.pop(key, None)
        if dialled is not None:
            self._unwatch(dialled)
            dialled.close()

    def _on_monitor(self, key: str) -> None:
        dialled = self._dialled[key]
        for stands in dialled.happened():
            if stands:
                dialled.say(dialled.handshake.opened())
                continue
            self.redial(key)
            self._feed(e.LinkDown(key))
            return  # what else was seen is of the connection that is gone
        self._check_keys(key, dialled)

    def _on_first(self, key: str, _: bytes, header: DataHeader | FrameError, __: list[Any]) -> None:
        """A message from a first stage that we dialled."""
        dialled = self._dialled[key]
        match header:
            case Greeting():
                dialled.say(dialled.handshake.greeted(header))
                if dialled.handshake.state == "ready":
                    self._feed(e.LinkUp(key))
                else:
                    logger.error("device %r: %s", dialled.peer.name, dialled.handshake.reason)
                    self.again[key] = time.monotonic() + AGAIN_S
            case Credit():
                self._feed(e.CreditArrived(key, header))
            case Refusal():
                logger.error("device %r refused our connection: %s", dialled.peer.name, header.message)
                dialled.handshake.refused(header)
                self.again[key] = time.monotonic() + AGAIN_S
                self._feed(e.LinkDown(key))
            case FrameError():
                # Credit may have been in it: what both sides know of it differs from now on.
                logger.warning("device %r sent what cannot be read: %s", dialled.peer.name, header)
                self.redial(key)
                self._feed(e.LinkDown(key))
            case _:
                logger.warning("device %r sent what has no place here: %s", dialled.peer.name, header)

    def _on_fetch(self, identity: bytes, header: DataHeader | FrameError, _: list[Any]) -> None:
        """A message from a first stage that dialled us."""
        if type(header) is not Credit:
            self._visited(header)
        match header:
            case Greeting():
                handshake = Handshake(self._name, dialled=False, state="greeting")
                for answer in handshake.greeted(header):
                    send(self._fetch, encode_header(answer), (), identity)
                if handshake.state == "ready":
                    fetched = _fetched_by(header.name)
                    for down in self._fetchers.greet(fetched, identity):
                        self._feed(e.LinkDown(down))
                    self._feed(e.LinkUp(fetched))
            case Credit() if (link := self._fetchers.link(identity)) is not None:
                self._feed(e.CreditArrived(link, header))
            case Probe():
                send(self._fetch, encode_header(ProbeEcho(header.id, time.process_time())), (), identity)
            case FrameError():
                refuse(self._fetch, identity, header.code, str(header))
            case _:
                refuse(self._fetch, identity, "bad-message", f"{type(header).__name__} has no place here")
