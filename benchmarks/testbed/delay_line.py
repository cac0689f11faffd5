"""Holds Ethernet frames back for a while: the propagation delay of links, where the kernel has no netem.

A process of its own, outside of what is measured. It owns a TAP interface; the bed's bridge gives it the frames
whose target address stands for a delayed link (`02:de:01:00:source:target`), and it gives each back, addressed to
the target itself, when its time has come. Being below TCP it leaves connections, windows and losses alone, and it
works for any port. The interface passes super-packets (TSO with virtio headers), so that one read and one write
move up to 64 KiB.

    python delay_line.py NAME    in the namespace where the interface shall be; prints `ready`

Standard input: a line `SOURCE TARGET SECONDS` per link, any time; `SOURCE TARGET flip BYTES` has one bit in about so
many bytes turned over on the way, 0 none. The process ends when its input is closed, so also when its owner is killed.
Runs without any package, in a fraction of the time that importing one takes.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import heapq
import os
import random
import select
import struct
import sys
import time
from collections.abc import Callable

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4 = 0x01, 0x02
NEEDS_CSUM = 0x01
"""Flag of the virtio header: the sender left the checksum to the hardware, and the receiver takes it as right."""
TCP, ETHERNET = 6, 14
PR_SET_TIMERSLACK = 29

HEADER = 10
"""Bytes of the virtio header before each frame; the target's Ethernet address follows."""
LONGEST = HEADER + 14 + 65535
TARGET_PREFIX = b"\x02\xde\x00\x00\x00"
PER_TURN = 32
"""Frames to take before looking at the clock again."""
CAPACITY = 512 << 20
"""Bytes held at most; a frame beyond is lost, as in a router."""


class DelayLine:
    """Frames on their way, by due time. Pure: time comes in, due frames go out."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self.held = 0
        self.lost = 0
        self._capacity = capacity
        self._delays: dict[bytes, float] = {}
        self._due: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._flips: dict[bytes, int] = {}
        self._draw = random.Random(0)
        self.flipped = 0

    def set_delay(self, source: int, target: int, seconds: float) -> None:
        """Changes a link's delay for the frames that enter from now on."""
        self._delays[bytes((source, target))] = seconds

    def set_flips(self, source: int, target: int, nbytes: int) -> None:
        """Turns one bit over in about `nbytes` bytes that TCP carries on a link; 0 in none."""
        if nbytes > 0:
            self._flips[bytes((source, target))] = nbytes
        else:
            self._flips.pop(bytes((source, target)), None)

    def enter(self, now: float, frame: bytes) -> None:
        """Takes a frame, virtio header first; one for an unknown link leaves at once."""
        every = self._flips.get(frame[HEADER + 4 : HEADER + 6]) if self._flips else None
        if every is not None:
            frame = self._turned(frame, every)
        if self.held + len(frame) > self._capacity:
            self.lost += 1
            return
        self.held += len(frame)
        self._number += 1
        due = now + self._delays.get(frame[HEADER + 4 : HEADER + 6], 0.0)
        heapq.heappush(self._due, (due, self._number, frame))

    def _turned(self, frame: bytes, every: int) -> bytes:
        """A frame with a bit of its TCP payload turned over, if its turn has come.

        No checksum tells: that of a frame which the sender's kernel left to the hardware is taken as right. So this is
        what a broken box in the middle does, which computes new checksums over what it has spoilt.
        """
        begin = payload(frame)
        if begin == 0 or self._draw.random() >= (len(frame) - begin) / every:
            return frame
        at = self._draw.randrange(begin, len(frame))
        self.flipped += 1
        return frame[:at] + bytes((frame[at] ^ 1 << self._draw.randrange(8),)) + frame[at + 1 :]

    def leave(self, now: float) -> bytes | None:
        """The next frame that is due, or None."""
        if not self._due or self._due[0][0] > now:
            return None
        frame = heapq.heappop(self._due)[2]
        self.held -= len(frame)
        return frame

    def wait(self, now: float) -> float | None:
        """Seconds until the next frame is due; None when there is none."""
        return max(0.0, self._due[0][0] - now) if self._due else None


def payload(frame: bytes) -> int:
    """Where the TCP payload of a frame with a virtio header begins; 0 if it has none, or a checksum of its own."""
    at = HEADER + ETHERNET
    if len(frame) < at + 40 or not frame[0] & NEEDS_CSUM or frame[at] >> 4 != 4 or frame[at + 9] != TCP:
        return 0
    tcp = at + 4 * (frame[at] & 15)
    begin = tcp + 4 * (frame[tcp + 12] >> 4)
    return begin if begin < len(frame) else 0


def open_tap(name: str) -> int:
    """Makes a TAP interface that passes super-packets; it lives as long as the descriptor."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    return tap


def run(tap: int, commands: int, clock: Callable[[], float] = time.monotonic) -> None:
    """Moves frames until the commands' end is closed."""
    line = DelayLine()
    text = b""
    while True:
        ready, _, _ = select.select((tap, commands), (), (), line.wait(clock()))
        if commands in ready:
            received = os.read(commands, 65536)
            if not received:
                return
            *lines, text = (text + received).split(b"\n")
            for words in map(bytes.split, lines):
                if words[2] == b"flip":
                    line.set_flips(int(words[0]), int(words[1]), int(words[3]))
                else:
                    line.set_delay(int(words[0]), int(words[1]), float(words[2]))
        if tap in ready:
            _take(tap, line, clock)
        while (frame := line.leave(clock())) is not None:
            _give(tap, frame)


def _take(tap: int, line: DelayLine, clock: Callable[[], float]) -> None:
    for _ in range(PER_TURN):
        try:
            frame = os.read(tap, LONGEST)
        except BlockingIOError:
            return
        line.enter(clock(), frame)


def _give(tap: int, frame: bytes) -> None:
    view = memoryview(frame)
    target = TARGET_PREFIX + frame[HEADER + 5 : HEADER + 6]
    try:
        os.writev(tap, (view[:HEADER], target, view[HEADER + 6 :]))
    except OSError:
        return  # the interface is not up yet, or the kernel refuses the frame: it is lost, as on a wire


def _be_punctual() -> None:
    """Woken before everybody else, and within microseconds: this process stands for wires, which do not queue."""
    gc.disable()
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1000)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        os.nice(-20)


def main() -> None:
    """The command."""
    tap = open_tap(sys.argv[1])
    _be_punctual()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    run(tap, sys.stdin.fileno())


if __name__ == "__main__":
    main()
