"""The emulated network of one bed while it lives: built, changed, counted."""

from __future__ import annotations

import re
import selectors
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import IO

from benchmarks.testbed import commands, layout
from benchmarks.testbed.cgroups import Group
from benchmarks.testbed.enter import entering
from benchmarks.testbed.layout import Layout
from benchmarks.testbed.spec import Link
from defer.errors import Internal, UsageError

START_TIMEOUT_S = 20.0
_SENT = re.compile(r"class htb (?P<id>1:[0-9a-f]+) .*?\n Sent (?P<bytes>[0-9]+) bytes")

Pair = tuple[str, str]


class Network:
    """Namespaces, links and their present state.

    Args:
        where: Names and addresses.
        group: Control group for the delay line.
        netem: Whether the kernel delays packets itself.
    """

    def __init__(self, where: Layout, group: Group, *, netem: bool) -> None:
        self.layout = where
        self._group = group
        self._netem = netem
        self._links: dict[Pair, Link] = {(link.source, link.target): link for link in where.spec.links}
        self._media = dict(where.spec.media)
        self._cut: set[Pair] = set()
        self._delay_line: subprocess.Popen[bytes] | None = None

    def build(self) -> None:
        """Makes everything. What is half made when it fails is removed with the bed."""
        where = self.layout
        links = where.spec.links
        commands.batch("ip", layout.namespace_lines(where))
        for namespace in where.namespaces:
            _quieten(namespace)
        commands.batch("ip", layout.switch_lines(where), where.switch)
        commands.batch("bridge", layout.fdb_lines(where), where.switch)
        commands.batch("tc", layout.shaping_lines(where, netem=self._netem), where.switch)
        for link in links:
            if link.delay:
                self._hold(link)
        for name in where.spec.names:
            lines = layout.device_lines(where, name, links, detour=not self._netem)
            commands.batch("ip", [*lines, self._aggregate(name)], where.namespace(name))

    def link(self, source: str, target: str) -> Link:
        """A directed link as it is now.

        Raises:
            UnknownDevice: There is no such device.
            UsageError: The two have no link.
        """
        for name in (source, target):
            self.layout.spec.device(name)
        try:
            return self._links[source, target]
        except KeyError:
            raise UsageError(
                f"there is no link {source} → {target}",
                hint="only links of the testbed's file can be changed",
            ) from None

    def change(self, link: Link) -> None:
        """Gives a directed link other properties; what is on its way keeps the delay that it started with."""
        before = self.link(link.source, link.target)
        if link.medium != before.medium or (link.medium and link.bandwidth is not None):
            raise UsageError(
                f"{link.source} → {link.target} has the bandwidth of medium {before.medium!r}",
                hint="set_medium changes it",
            )
        pair = link.source, link.target
        self._links[pair] = link
        where = self.layout
        if link.delay != before.delay and not self._netem:
            self._hold(link)
        lines = [layout.class_line(where, link, self._media, "change")]
        if self._netem and link.delay != before.delay:
            lines.append(layout.queue_line(where, link, cut=pair in self._cut, netem=True))
        commands.batch("tc", lines, where.switch)
        neighbour = layout.neighbour_line(where, link, detour=not self._netem)
        commands.batch("ip", [neighbour, self._aggregate(link.source)], where.namespace(link.source))

    def change_medium(self, name: str, bandwidth: float) -> None:
        """Gives a medium another rate.

        Raises:
            UsageError: There is no such medium.
        """
        if name not in self._media:
            raise UsageError(
                f"there is no medium {name!r}", hint=f"media are {', '.join(self._media) or 'none'}"
            )
        self._media[name] = bandwidth
        where = self.layout
        lines = [layout.medium_line(where, name, bandwidth, "change")]
        members = [link for link in self._links.values() if link.medium == name]
        lines += [layout.class_line(where, link, self._media, "change") for link in members]
        commands.batch("tc", lines, where.switch)
        for source in dict.fromkeys(link.source for link in members):
            commands.batch("ip", [self._aggregate(source)], where.namespace(source))

    def cut(self, source: str, target: str, *, cut: bool) -> None:
        """Loses every packet of a directed link from now on, or no more."""
        link = self.link(source, target)
        line = layout.queue_line(self.layout, link, cut=cut, netem=self._netem)
        commands.batch("tc", [line], self.layout.switch)
        if cut:
            self._cut.add((source, target))
        else:
            self._cut.discard((source, target))

    def bytes_sent(self, source: str, target: str) -> int:
        """Bytes that have left on a directed link, with Ethernet, IP and TCP headers."""
        self.link(source, target)
        return self.traffic()[source, target]

    def traffic(self) -> dict[Pair, int]:
        """`bytes_sent` of every link."""
        listing = commands.query("tc", f"-s class show dev {layout.LINE}", self.layout.switch)
        sent = {found["id"]: int(found["bytes"]) for found in _SENT.finditer(listing)}
        return {pair: sent[self.layout.classid(*pair)] for pair in self._links}

    def close(self) -> None:
        """Ends the delay line; the namespaces are removed by the bed's record."""
        if self._delay_line is None:
            return
        process, self._delay_line = self._delay_line, None
        _close(process.stdin)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        _close(process.stdout)

    def _aggregate(self, source: str) -> str:
        links = [link for link in self._links.values() if link.source == source]
        return layout.aggregate_line(links, self._media)

    def flip(self, source: str, target: str, every: int) -> None:
        """Turns one bit over in about `every` bytes of TCP payload on a directed link from now on; 0: no more.

        Raises:
            UsageError: The link's packets do not pass the delay line.
        """
        link = self.link(source, target)
        if self._netem or not link.delay:
            raise UsageError(
                f"no bit of {source} → {target} can be turned over",
                hint='give the link a delay, and the testbed delay_by = "tun"',
            )
        self._tell(link, f"flip {every}")

    def _hold(self, link: Link) -> None:
        """Tells the delay line a link's delay; starts it when this is the first delayed link."""
        if self._netem:
            return
        if self._delay_line is None:
            self._delay_line = self._start_delay_line()
        self._tell(link, repr(link.delay))

    def _tell(self, link: Link, what: str) -> None:
        numbers = self.layout.number(link.source), self.layout.number(link.target)
        assert self._delay_line is not None
        assert self._delay_line.stdin is not None
        try:
            self._delay_line.stdin.write(f"{numbers[0]} {numbers[1]} {what}\n".encode())
            self._delay_line.stdin.flush()
        except BrokenPipeError as exc:
            raise Internal("the delay line has ended") from exc

    def _start_delay_line(self) -> subprocess.Popen[bytes]:
        where = self.layout
        program = str(Path(__file__).with_name("delay_line.py"))
        process = subprocess.Popen(
            # -I -S: the standard library alone, so that it starts fast and depends on no environment. It stays
            # out of the CPU group: one with real-time tasks would need a share of real time.
            entering(
                self._group.entrances(cpu=False),
                where.switch,
                [sys.executable, "-ISu", program, layout.DELAY],
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._delay_line = process  # from here on, close() ends it
        if not _ready(process):
            raise Internal("the delay line did not start", hint="it needs /dev/net/tun: modprobe tun")
        port = f"link set {layout.DELAY}"
        lines = [
            f"{port} mtu {layout.MTU} txqueuelen {layout.QUEUE_PACKETS} master br0 up",
            f"{port} type bridge_slave learning off flood on mcast_flood off bcast_flood off",
        ]
        commands.batch("ip", lines, where.switch)
        return process


def changed(link: Link, bandwidth: float | None, delay: float | None) -> Link:
    """The link with what is not None replaced."""
    if bandwidth is not None:
        link = replace(link, bandwidth=bandwidth)
    return link if delay is None else replace(link, delay=delay)


def _ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        return bool(selector.select(deadline - time.monotonic())) and bool(process.stdout.readline())


def _close(stream: IO[bytes] | None) -> None:
    if stream is not None:
        try:
            stream.close()
        except BrokenPipeError:
            return


def _quieten(namespace: str) -> None:
    """No IPv6 (its discovery would be traffic of nobody), and no packet filter on the bridge."""
    settings = [
        "/proc/sys/net/ipv6/conf/default/disable_ipv6=1",
        "/proc/sys/net/ipv6/conf/all/disable_ipv6=1",
        *(f"/proc/sys/net/bridge/bridge-nf-call-{kind}tables=0" for kind in ("ip", "ip6", "arp")),
    ]
    script = 'for s in "$@"; do if [ -w "${s%=*}" ]; then echo "${s#*=}" > "${s%=*}"; fi; done'
    done = commands.call(["nsenter", f"--net=/run/netns/{namespace}", "sh", "-c", script, "sh", *settings])
    if done.returncode != 0:
        raise Internal(f"cannot configure namespace {namespace}: {done.stderr.strip()}")
