"""Where everything is in an emulated network, and the `ip` and `tc` lines that make it. Text only: nothing runs.

Each device has a namespace with one interface, `eth0`, whose other end is a port of a bridge in the bed's own
switch namespace. What enters a port is redirected to one interface, `line`, whose HTB has a class per directed
link (under a class per medium), and goes on to the bridge from there. So every rate, every medium and every
counter is in one place, outside of the devices, and TCP in the sender feels the queue (its small-queue limit
sees packets until the bridge delivers them). Frames of a delayed link are addressed to a MAC address that
stands for the pair: the bridge hands those to the delay line (`delay_line`), which sends them on to the real
one. Addresses are from 198.18.0.0/15 (RFC 2544: for benchmarks) and known by heart: no ARP, no default route,
no interface of the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.testbed.spec import Link, Spec

LINE = "line"
DELAY = "delay"
MTU = 1500
SEGMENT = 1448
"""Payload of a full TCP segment on Ethernet, with timestamps."""
UNLIMITED = 12.5e9
"""Bytes/s of a link without a bandwidth: more than the machine can, so that it only counts."""
BURST_S = 0.00025
"""How much of its rate a link may save up while idle: timers of the kernel come late by about this much."""
AGGREGATE_S = 0.0005
"""The longest that one super-packet of a sender may take: it enters the link as a whole."""
QUEUE_PACKETS = 4000
_MEDIUM_CLASS = 0x10
_FIRST_LINK_CLASS = 0x100


@dataclass(frozen=True, slots=True)
class Layout:
    """Names and numbers of one bed.

    Attributes:
        spec: What is laid out.
        tag: Beginning of all names of this bed outside of its namespaces.
        subnet: 0 to 511, its part of 198.18.0.0/15.
    """

    spec: Spec
    tag: str
    subnet: int
    _numbers: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = {name: number for number, name in enumerate(self.spec.names, start=1)}
        object.__setattr__(self, "_numbers", numbers)

    @property
    def switch(self) -> str:
        """Namespace of the bridge."""
        return f"{self.tag}-switch"

    @property
    def namespaces(self) -> tuple[str, ...]:
        """All namespaces, the switch first."""
        return (self.switch, *(self.namespace(name) for name in self.spec.names))

    def number(self, name: str) -> int:
        """A device's number, 1 and up: the last byte of its addresses."""
        if name not in self._numbers:
            self.spec.device(name)  # raises, with the names that there are
        return self._numbers[name]

    def namespace(self, name: str) -> str:
        """A device's namespace."""
        return f"{self.tag}-{self.number(name)}"

    def address(self, name: str) -> str:
        """A device's IP address."""
        return f"198.{18 + self.subnet // 256}.{self.subnet % 256}.{self.number(name)}"

    def port(self, name: str) -> str:
        """The bridge port that leads to a device."""
        return f"port{self.number(name)}"

    def mac(self, name: str) -> str:
        """A device's Ethernet address."""
        return f"02:de:00:00:00:{self.number(name):02x}"

    def detour(self, source: str, target: str) -> str:
        """The Ethernet address that leads through the delay line."""
        return f"02:de:01:00:{self.number(source):02x}:{self.number(target):02x}"

    def classid(self, source: str, target: str) -> str:
        """HTB class of a directed link."""
        width = len(self.spec.devices)
        return f"1:{_FIRST_LINK_CLASS + (self.number(source) - 1) * width + self.number(target) - 1:x}"

    def parent(self, link: Link) -> str:
        """HTB class above a link's."""
        if link.medium is None:
            return "1:"
        return f"1:{_MEDIUM_CLASS + sorted(self.spec.media).index(link.medium):x}"


def namespace_lines(layout: Layout) -> list[str]:
    """For `ip -batch`: the namespaces."""
    return [f"netns add {name}" for name in layout.namespaces]


def switch_lines(layout: Layout) -> list[str]:
    """For `ip -batch` in the switch namespace: the bridge, its ports, and the line that all traffic passes."""
    lines = ["link set lo up", "link add br0 type bridge stp_state 0 mcast_snooping 0"]
    lines += [f"link add {LINE} type ifb", f"link set {LINE} mtu {MTU} up"]
    for name in layout.spec.names:
        port = layout.port(name)
        lines += [
            f"link add {port} mtu {MTU} type veth peer name eth0 address {layout.mac(name)}"
            f" mtu {MTU} netns {layout.namespace(name)}",
            f"link set {port} master br0 up",
            f"link set {port} type bridge_slave learning off flood off mcast_flood off bcast_flood off",
        ]
    return [*lines, "link set br0 up"]


def fdb_lines(layout: Layout) -> list[str]:
    """For `bridge -batch` in the switch namespace: where each device is."""
    return [f"fdb add {layout.mac(name)} dev {layout.port(name)} master static" for name in layout.spec.names]


def device_lines(layout: Layout, name: str, links: Iterable[Link], *, detour: bool) -> list[str]:
    """For `ip -batch` in a device's namespace: its address, and a route to each device that it may talk to."""
    address = layout.address(name)
    lines = ["link set lo up", "link set eth0 up", f"addr add {address}/32 dev eth0"]
    for link in links:
        if link.source == name:
            lines.append(f"route add {layout.address(link.target)}/32 dev eth0 src {address}")
            lines.append(neighbour_line(layout, link, detour=detour))
    return lines


def neighbour_line(layout: Layout, link: Link, *, detour: bool) -> str:
    """For `ip` in the source's namespace: send to the target directly, or through the delay line."""
    through = detour and link.delay > 0
    mac = layout.detour(link.source, link.target) if through else layout.mac(link.target)
    return f"neigh replace {layout.address(link.target)} lladdr {mac} dev eth0 nud permanent"


def aggregate_line(links: Sequence[Link], media: dict[str, float]) -> str:
    """For `ip` in a device's namespace: how many segments it may hand over as one.

    A super-packet of 64 KiB is on the link at once: on a slow one, that would be far ahead of the wire.
    """
    rates = [rate_of(link, media) for link in links]
    segments = int(min(rates, default=UNLIMITED) * AGGREGATE_S / SEGMENT)
    return f"link set eth0 gso_max_segs {min(max(segments, 2), 45)}"


def rate_of(link: Link, media: dict[str, float]) -> float:
    """Bytes/s at which a link can send."""
    if link.medium is not None:
        return media[link.medium]
    return UNLIMITED if link.bandwidth is None else link.bandwidth


def shaping_lines(layout: Layout, *, netem: bool) -> list[str]:
    """For `tc -batch` in the switch namespace: redirect all ports to the line, a class per link and medium."""
    spec = layout.spec
    lines = [f"qdisc add dev {LINE} root handle 1: htb default 0"]
    for name, rate in spec.media.items():
        lines.append(medium_line(layout, name, rate, "add"))
    hashing = f"filter add dev {LINE} parent 1: protocol ip prio 1"
    # Two steps instead of one list of all pairs: the source's last byte chooses a bucket, the target's address
    # the class.
    lines.append(f"{hashing} handle 2: u32 divisor 256")
    lines.append(f"{hashing} u32 ht 800:: match ip src 0.0.0.0/0 hashkey mask 0x000000ff at 12 link 2:")
    for link in spec.links:
        lines.append(class_line(layout, link, dict(spec.media), "add"))
        lines.append(queue_line(layout, link, cut=False, netem=netem))
        target = layout.address(link.target)
        lines.append(
            f"{hashing} u32 ht 2:{layout.number(link.source):x}: match ip dst {target}/32"
            f" flowid {layout.classid(link.source, link.target)}"
        )
    for name in spec.names:
        port = layout.port(name)
        lines.append(f"qdisc add dev {port} clsact")
        lines.append(
            f"filter add dev {port} ingress protocol ip prio 1 u32 match u32 0 0"
            f" action mirred egress redirect dev {LINE}"
        )
    return lines


def class_line(layout: Layout, link: Link, media: dict[str, float], verb: str) -> str:
    """For `tc`: `add` or `change` the class of a link."""
    rate = ceiling = rate_of(link, media)
    if link.medium is not None:
        # Borrowing from the medium's class is what shares it; a class may always have its own rate, so
        # the sum of those must not exceed the medium's.
        rate = ceiling / sum(other.medium == link.medium for other in layout.spec.links)
    number = layout.classid(link.source, link.target)
    return f"class {verb} dev {LINE} parent {layout.parent(link)} classid {number} {_htb(rate, ceiling)}"


def medium_line(layout: Layout, name: str, rate: float, verb: str) -> str:
    """For `tc`: `add` or `change` the class of a medium."""
    number = f"1:{_MEDIUM_CLASS + sorted(layout.spec.media).index(name):x}"
    return f"class {verb} dev {LINE} parent 1: classid {number} {_htb(rate, rate)}"


def queue_line(layout: Layout, link: Link, *, cut: bool, netem: bool) -> str:
    """For `tc`: what holds a link's packets while they wait. A cut link has a queue that nothing fits into."""
    kind = f"pfifo limit {QUEUE_PACKETS}"
    if cut:
        kind = "bfifo limit 1"
    elif netem and link.delay > 0:
        kind = f"netem delay {link.delay * 1e6:.0f}us limit {10 * QUEUE_PACKETS}"
    return f"qdisc replace dev {LINE} parent {layout.classid(link.source, link.target)} {kind}"


def _htb(rate: float, ceiling: float) -> str:
    burst = int(min(max(ceiling * BURST_S, MTU + 100), 1 << 20))
    return f"htb rate {max(int(rate), 1)}bps ceil {int(ceiling)}bps burst {burst} cburst {burst} quantum {MTU + 14}"
