"""`cluster.toml`: devices, links, and where the dispatcher runs. The one document that people write.

    [dispatcher]
    device = "desk"
    listen = "0.0.0.0:7600"
    advertise = "192.168.1.2"

    [[device]]
    name = "desk"
    computes = false

    [[device]]
    name = "jetson"
    address = "192.168.1.11:7700"
    memory = "4 GiB"

    [[link]]
    between = ["desk", "jetson"]
    bandwidth = "100 Mbit/s"
    delay = "2 ms"

Any two devices may talk unless `[network] mesh = false`; what no `[[link]]` says is measured.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec

from defer import units
from defer.documents.address import parse_address
from defer.documents.base import Document, convert
from defer.documents.cluster_checks import check_cluster, check_serving
from defer.documents.files import name_of, read_bytes
from defer.errors import InvalidCluster, InvalidDocument, UnknownDevice


def _quantity(quantity: units.Quantity) -> msgspec.Meta:
    """Describes a text with a unit in JSON Schema; `units.parse` checks it, with a better message."""
    about = {"pattern": quantity.pattern, "examples": [quantity.example]}
    return msgspec.Meta(description=f"{quantity.name}, as in {quantity.example!r}", extra_json_schema=about)


Size = Annotated[str, _quantity(units.SIZE)]
Bandwidth = Annotated[str, _quantity(units.BANDWIDTH)]
Duration = Annotated[str, _quantity(units.DURATION)]
Speed = Annotated[str, _quantity(units.SPEED)]
Power = Annotated[str, _quantity(units.POWER)]
Price = Annotated[
    float, msgspec.Meta(ge=0, description="Money, in whatever currency the whole file is written in")
]

Replan = Literal["own", "every", "never"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "int8-fp16", "fp8"]

DEFAULT_DISPATCHER = "dispatcher"
"""Device of the dispatcher where the file names none: it is added, without an agent, and computes nothing."""


class Dispatcher(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the dispatcher runs.

    Attributes:
        device: Name of its device: source and sink of every route.
        listen: `host:port` of its first port; it takes that one and the next two.
        advertise: Host that agents reach it at; needed when `listen` names all interfaces.
        routing_v: Where a request may take several routes: how its own delay is weighed against the delay that it causes
            later requests (drift plus penalty); without it, half of what the routes' busiest devices or links take.
        state: Where `defer serve` keeps what must survive it: a directory, or the URL of a state that dispatchers share;
            `--state` goes before it.
        join: Agents that the file does not name may register (`defer agent --dial`), and are planned with from then on.
        replan: Which plans the dispatcher replaces while it serves, because devices or links have become slower or
            faster, or there are more of them: those that it made (`own`), given ones as well (`every`), or none
            (`never`).
        replan_after: How long a change must last before it counts.
        replan_pause: Least time between two such changes of one model; it doubles when they follow each other.
        replan_gain: Least relative gain of a new plan.
        replan_horizon: Time in which the gain must make up for loading.
        canary: How long nothing may be heard of a model before a request of the dispatcher's own is sent through it;
            `0 s` sends none.
    """

    device: str = DEFAULT_DISPATCHER
    listen: str = "127.0.0.1:7600"
    advertise: str = ""
    routing_v: Duration | None = None
    state: str = ""
    join: bool = False
    replan: Replan = "own"
    replan_after: Duration = "30 s"
    replan_pause: Duration = "5 min"
    replan_gain: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.15
    replan_horizon: Duration = "10 min"
    canary: Duration = "10 s"

    @property
    def routing_v_s(self) -> float | None:
        """`routing_v` in seconds."""
        return None if self.routing_v is None else units.parse_duration(self.routing_v)


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine of the cluster.

    Attributes:
        name: Its name in plans, messages and tables.
        address: `host:port` of its agent's control endpoint; empty when it dials out, or has no agent.
        also: Further addresses of the same agent, on other networks; the fastest that answers is used.
        dials: Its agent sits behind NAT: it dials the dispatcher and its neighbours, nobody dials it.
        memory: Memory that partitions may take in all; without it, what the agent offers.
        computes: False for a device that only relays, or only holds the dispatcher.
        engine: Which engine its agent uses; `auto` takes the agent's default.
        engine_options: Passed to the engine, by name; see docs/engines.md.
        precision: How its partitions compute; neighbours in one of fp16 and bf16 exchange that type.
        speed: Static speed, used only where nothing was measured.
        price: Money per hour in which it works.
        power: What it draws while it works.
        idle_power: What it draws anyway; a request is charged only with what comes on top.
        encryption: Bytes per second that it encrypts or decrypts, where a link is encrypted.
    """

    name: str
    address: str = ""
    also: tuple[str, ...] = ()
    dials: bool = False
    memory: Size | None = None
    computes: bool = True
    engine: str = "auto"
    engine_options: dict[str, str] = {}
    precision: Precision = "fp32"
    speed: Speed | None = None
    price: Price = 0.0
    power: Power | None = None
    idle_power: Power | None = None
    encryption: Bandwidth | None = None

    @property
    def price_per_s(self) -> float:
        """`price` per second."""
        return self.price / 3600

    @property
    def added_watts(self) -> float:
        """Watts that working adds: `power` less `idle_power`."""
        busy = units.parse(self.power, units.POWER) if self.power else 0.0
        return busy - (units.parse(self.idle_power, units.POWER) if self.idle_power else 0.0)

    @property
    def crypt_s_per_byte(self) -> float:
        """Seconds to encrypt or decrypt a byte; 0 where `encryption` does not say."""
        return 1 / units.parse_bandwidth(self.encryption) if self.encryption else 0.0

    @property
    def memory_bytes(self) -> int | None:
        """`memory` in bytes."""
        return None if self.memory is None else units.parse_size(self.memory)

    @property
    def flop_per_s(self) -> float | None:
        """`speed` in FLOP/s."""
        return None if self.speed is None else units.parse_speed(self.speed)

    @property
    def has_agent(self) -> bool:
        """Whether an agent runs there."""
        return bool(self.address) or self.dials


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of a link: both ways with `between`, one way with `from` and `to`.

    Attributes:
        between: The two devices.
        source: `from` in the file.
        target: `to` in the file.
        bandwidth: Declared bandwidth; it goes before a measured one. Without it, the link is measured.
        delay: Declared one-way delay, likewise.
        medium: Links with the same medium share one capacity (a radio cell, a switch port).
        half_duplex: Both ways share one capacity, and nothing else does.
        encrypted: What travels is encrypted: each end pays its device's `encryption` for every byte.
        price_per_gb: Money for sending 10⁹ bytes.
        joules_per_gb: Energy of sending 10⁹ bytes, both ends together.
    """

    between: tuple[str, str] | None = None
    source: str = msgspec.field(name="from", default="")
    target: str = msgspec.field(name="to", default="")
    bandwidth: Bandwidth | None = None
    delay: Duration | None = None
    medium: str | None = None
    half_duplex: bool = False
    encrypted: bool = False
    price_per_gb: Price = 0.0
    joules_per_gb: Annotated[float, msgspec.Meta(ge=0)] = 0.0

    @property
    def shared(self) -> str | None:
        """Name of the capacity that its directions share: `medium`, or one of its own where it is half-duplex."""
        if self.half_duplex and self.between is not None:
            return " <-> ".join(self.between)
        return self.medium

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The directions that this entry describes, as (source, target)."""
        if self.between is not None:
            first, second = self.between
            return ((first, second), (second, first))
        return ((self.source, self.target),)

    @property
    def bytes_per_s(self) -> float | None:
        """`bandwidth` in bytes per second."""
        return None if self.bandwidth is None else units.parse_bandwidth(self.bandwidth)

    @property
    def delay_s(self) -> float | None:
        """`delay` in seconds."""
        return None if self.delay is None else units.parse_duration(self.delay)


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for devices that no link mentions.

    Attributes:
        mesh: Every two devices may talk; with False, only those that a link joins.
        bandwidth: Bandwidth of links that declare none; without it, links are measured.
        delay: Delay of links that declare none, likewise.
        codec: How tensors travel; `auto` lets the planner choose from what was measured.
    """

    mesh: bool = True
    bandwidth: Bandwidth | None = None
    delay: Duration | None = None
    codec: str = "auto"

    @property
    def bytes_per_s(self) -> float | None:
        """`bandwidth` in bytes per second."""
        return None if self.bandwidth is None else units.parse_bandwidth(self.bandwidth)

    @property
    def delay_s(self) -> float | None:
        """`delay` in seconds."""
        return None if self.delay is None else units.parse_duration(self.delay)


class DirectedLink(msgspec.Struct, frozen=True):
    """One direction of a link as declared; None where it is to be measured. Bytes/s, seconds; money, joules per byte."""

    source: str
    target: str
    bandwidth: float | None
    delay: float | None
    medium: str | None = None
    encrypted: bool = False
    price: float = 0.0
    joules: float = 0.0


class Cluster(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`cluster.toml`. The dispatcher's device is always in `devices`: added when it has the default name."""

    KIND: ClassVar[str] = "cluster"
    MADE_BY: ClassVar[str] = "your editor"

    dispatcher: Dispatcher = Dispatcher()
    network: Network = Network()
    devices: tuple[Device, ...] = msgspec.field(name="device", default=())
    links: tuple[Link, ...] = msgspec.field(name="link", default=())

    def __post_init__(self) -> None:
        names = {device.name for device in self.devices}
        if self.dispatcher.device == DEFAULT_DISPATCHER and DEFAULT_DISPATCHER not in names:
            home = Device(name=DEFAULT_DISPATCHER, computes=False)
            msgspec.structs.force_setattr(self, "devices", (*self.devices, home))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all devices in the order of the file."""
        return tuple(device.name for device in self.devices)

    @property
    def agents(self) -> tuple[Device, ...]:
        """Devices that run an agent."""
        return tuple(device for device in self.devices if device.has_agent)

    def device(self, name: str) -> Device:
        """The device with this name.

        Raises:
            UnknownDevice: There is none; the hint lists the names.
        """
        for device in self.devices:
            if device.name == name:
                return device
        raise UnknownDevice(
            f"the cluster has no device {name!r}", hint=f"its devices are {', '.join(self.names)}"
        )

    def directed_links(self) -> tuple[DirectedLink, ...]:
        """Every direction in which two devices may talk, ordered by source and target.

        A link of the file first, completed by `[network]`; with `mesh`, all other pairs as well, except two
        devices that both dial out, which cannot reach each other.
        """
        declared = {pair: link for link in self.links for pair in link.pairs}
        found = []
        for source in self.devices:
            for target in self.devices:
                link = declared.get((source.name, target.name))
                if source is target or (link is None and not self._meshed(source, target)):
                    continue
                link = link or Link()
                bandwidth = link.bytes_per_s if link.bandwidth else self.network.bytes_per_s
                delay = link.delay_s if link.delay else self.network.delay_s
                found.append(
                    DirectedLink(
                        source.name,
                        target.name,
                        bandwidth,
                        delay,
                        link.shared,
                        link.encrypted,
                        link.price_per_gb / 1e9,
                        link.joules_per_gb / 1e9,
                    )
                )
        return tuple(found)

    def _meshed(self, source: Device, target: Device) -> bool:
        return self.network.mesh and not (source.dials and target.dials)

    @classmethod
    def load(cls, path: str | Path) -> Cluster:
        """Reads `cluster.toml`; errors as in `loads_cluster`, or of the file."""
        try:
            text = read_bytes(path).decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise InvalidCluster("not text in UTF-8", where=name_of(path), hint="save it as UTF-8") from exc
        return loads_cluster(text, name_of(path))

    def problems(self) -> None:
        """Checks what types cannot say; see `Document.problems`."""
        check_cluster(self)

    def check_serving(self) -> None:
        """Checks what a dispatcher that starts on this file needs; see `cluster_checks.check_serving`."""
        check_serving(self)

    @property
    def dispatcher_host(self) -> str:
        """Host that agents dial to reach the dispatcher."""
        if self.dispatcher.advertise:
            return self.dispatcher.advertise
        listen = parse_address(self.dispatcher.listen, "dispatcher.listen")
        return "127.0.0.1" if listen.is_wildcard else listen.host


def loads_cluster(text: str, where: str = "cluster.toml") -> Cluster:
    """A cluster from TOML.

    Raises:
        InvalidCluster: Not TOML, an unknown or missing key, a wrong value, or a contradiction; says where.
    """
    try:
        plain = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise InvalidCluster(f"not TOML: {exc}", where=where, hint="see `defer schema cluster`") from exc
    if plain.pop("kind", "cluster") != "cluster":
        raise InvalidCluster("this is not a cluster document", where=where, hint="see `defer schema cluster`")
    try:
        return convert(Cluster, plain, where)
    except InvalidCluster:
        raise
    except InvalidDocument as exc:
        raise InvalidCluster(exc.message, where=exc.where, hint=exc.hint) from exc
