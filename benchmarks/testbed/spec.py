"""What a testbed is made of: devices with their shares, directed links with their rates. Plain data, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from defer.errors import InvalidCluster, UnknownDevice

MAX_DEVICES = 200
"""The device's number is the last byte of its address."""
MAX_MEDIA = 15

DISPATCHER = "dispatcher"
PERIOD_S = 0.01
AGENT_PORT = 7610
DISPATCHER_PORT = 7600


@dataclass(frozen=True, slots=True)
class Device:
    """One emulated machine.

    Attributes:
        name: As in the cluster file that the testbed writes.
        cpu: Cores that all its processes may use together, 0.2 is a fifth of one; None for no limit.
        memory: Bytes that its processes may hold together; None for no limit.
        threads: Threads of its engine and of BLAS.
        computes: False for one that only relays.
        agent: Whether an agent runs there; the dispatcher's device needs none.
        arguments: More arguments for its agent.
    """

    name: str
    cpu: float | None = None
    memory: int | None = None
    threads: int = 1
    computes: bool = True
    agent: bool = True
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """One direction between two devices.

    Attributes:
        source: Device that sends.
        target: Device that receives.
        bandwidth: Bytes/s on the wire, Ethernet, IP and TCP headers included; None for as fast as the machine
            goes, and on a medium, which has the rate.
        delay: One-way propagation delay in seconds.
        medium: Name of the medium whose rate this link shares with others.
    """

    source: str
    target: str
    bandwidth: float | None = None
    delay: float = 0.0
    medium: str | None = None


@dataclass(frozen=True, slots=True)
class Spec:
    """A whole testbed.

    Attributes:
        devices: In the order of their addresses; the dispatcher's is among them.
        links: Every direction in which two devices may talk; no other can.
        media: Bytes/s of each shared medium.
        dispatcher: Name of the device where commands run.
        period: CFS period in seconds.
        declare: Whether the cluster file that is written says what the links are; else they are measured.
        delay_by: What delays packets: `auto`, `netem` or `tun`.

    Raises:
        InvalidCluster: A contradiction; says where.
    """

    devices: tuple[Device, ...]
    links: tuple[Link, ...]
    media: Mapping[str, float] = field(default_factory=dict)
    dispatcher: str = DISPATCHER
    period: float = PERIOD_S
    declare: bool = False
    delay_by: str = "auto"

    def __post_init__(self) -> None:
        check(self)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all devices."""
        return tuple(device.name for device in self.devices)

    @property
    def full_mesh(self) -> bool:
        """Whether every two devices may talk."""
        return len(self.links) == len(self.devices) * (len(self.devices) - 1)

    def device(self, name: str) -> Device:
        """The device with this name.

        Raises:
            UnknownDevice: There is none.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise UnknownDevice(
            f"the testbed has no device {name!r}", hint=f"its devices are {', '.join(self.names)}"
        )


def check(spec: Spec) -> None:
    """Finds the first contradiction; see `Spec`."""
    _check_devices(spec)
    _check_media(spec)
    seen = set()
    names = set(spec.names)
    for link in spec.links:
        # By name: one entry of a file may have become many devices and links.
        place = f"link {link.source} → {link.target}"
        for name in (link.source, link.target):
            if name not in names:
                raise InvalidCluster(
                    f"no device is named {name!r}",
                    where=place,
                    hint=f"devices are {', '.join(spec.names)}",
                )
        if link.source == link.target or (link.source, link.target) in seen:
            raise InvalidCluster(
                f"the link {link.source} → {link.target} is there twice or leads back to its start",
                where=place,
                hint="describe each pair of devices once",
            )
        seen.add((link.source, link.target))
        _check_link(spec, link, place)


def _check_devices(spec: Spec) -> None:
    names = set()
    for device in spec.devices:
        place = f"device {device.name:.64}"
        good = 0 < len(device.name) <= 63 and all(c.isalnum() or c in "-_." for c in device.name)
        if not good or not device.name.isascii() or not device.name[0].isalnum():
            raise InvalidCluster(
                f"{device.name!r:.80} is not a name",
                where=place,
                hint="use 1 to 63 letters, digits, '-', '_' and '.', a letter or digit first",
            )
        if device.name in names:
            raise InvalidCluster(
                f"the name {device.name!r} is there twice", where=place, hint="give each device its own name"
            )
        names.add(device.name)
        if device.cpu is not None and not 0.001 <= device.cpu <= 1024:
            raise InvalidCluster(
                f"cpu = {device.cpu} is not a number of cores",
                where=place,
                hint="0.2 is a fifth of one core",
            )
        if device.memory is not None and device.memory < 1 << 20:
            raise InvalidCluster("memory is less than 1 MiB", where=place, hint='for example "512 MiB"')
        if device.threads < 1:
            raise InvalidCluster("threads must be at least 1", where=place, hint="for example threads = 1")
        if device.computes and not device.agent:
            raise InvalidCluster(
                f"{device.name!r} computes and has no agent", where=place, hint="write computes = false"
            )
    if len(names) > MAX_DEVICES:
        raise InvalidCluster(
            f"{len(names)} devices are too many", where="device", hint=f"use at most {MAX_DEVICES}"
        )
    if spec.dispatcher not in names:
        raise InvalidCluster(
            f"no device is named {spec.dispatcher!r}, where the dispatcher should run",
            where="dispatcher.device",
            hint="name one of the devices",
        )
    if not 0.001 <= spec.period <= 1:
        raise InvalidCluster(
            "the CFS period is out of range", where="testbed.cfs_period", hint='use "1 ms" to "1 s"'
        )
    if spec.delay_by not in ("auto", "netem", "tun"):
        raise InvalidCluster(
            f"{spec.delay_by!r} is nothing that delays packets",
            where="testbed.delay_by",
            hint="use auto, netem or tun",
        )


def _check_media(spec: Spec) -> None:
    if len(spec.media) > MAX_MEDIA:
        raise InvalidCluster(
            f"{len(spec.media)} media are too many", where="medium", hint=f"use at most {MAX_MEDIA}"
        )
    for name, rate in spec.media.items():
        if rate < 1000:
            raise InvalidCluster(
                f"medium {name!r} is slower than 8 kbit/s", where="medium", hint='for example "50 Mbit/s"'
            )


def _check_link(spec: Spec, link: Link, place: str) -> None:
    if link.medium is not None and link.medium not in spec.media:
        raise InvalidCluster(
            f"no medium is named {link.medium!r}",
            where=place,
            hint="add [[medium]] with its name and bandwidth",
        )
    if link.medium is not None and link.bandwidth is not None:
        raise InvalidCluster(
            f"a link on medium {link.medium!r} has the medium's bandwidth",
            where=f"{place}: bandwidth",
            hint="remove the link's",
        )
    if link.bandwidth is not None and link.bandwidth < 1000:
        raise InvalidCluster(
            "the link is slower than 8 kbit/s", where=f"{place}: bandwidth", hint='for example "20 Mbit/s"'
        )
    if not 0 <= link.delay <= 10:
        raise InvalidCluster("the delay is not 0 to 10 s", where=f"{place}: delay", hint='for example "2 ms"')


def uniform(
    count: int,
    *,
    cpu: float | None = None,
    memory: int | None = None,
    bandwidth: float | None = None,
    delay: float = 0.0,
    threads: int = 1,
    period: float = PERIOD_S,
    prefix: str = "box",
    arguments: Sequence[str] = (),
) -> Spec:
    """Equal devices `box-1` … `box-N` and a dispatcher without limits, every two joined by equal links.

    Args:
        count: Number of devices besides the dispatcher's.
        cpu: Cores of each.
        memory: Bytes of each.
        bandwidth: Bytes/s of each direction of each link.
        delay: One-way delay of each link in seconds.
        threads: Threads of each engine.
        period: CFS period in seconds.
        prefix: What the names begin with.
        arguments: More arguments for each agent.
    """
    boxes = tuple(
        Device(f"{prefix}-{number + 1}", cpu, memory, threads, arguments=tuple(arguments))
        for number in range(count)
    )
    devices = (Device(DISPATCHER, threads=threads, computes=False, agent=False), *boxes)
    names = [device.name for device in devices]
    links = tuple(Link(a, b, bandwidth, delay) for a in names for b in names if a != b)
    return Spec(devices, links, period=period)
