"""The testbed's file: TOML for people, with units, and what it means as a `Spec`.

[network]
bandwidth = "100 Mbit/s"
delay = "2 ms"

[[device]]
name = "box"
count = 4
cpu = 0.2
memory = "512 MiB"

[[link]]
between = ["dispatcher", "box-*"]
bandwidth = "1 Gbit/s"
"""

from __future__ import annotations

import fnmatch
import tomllib
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec

from benchmarks.testbed.spec import DISPATCHER, Device, Link, Spec
from defer import units
from defer.documents.base import Document, convert
from defer.documents.cluster import Bandwidth, Duration, Size
from defer.documents.files import name_of, read_bytes
from defer.errors import DeferError, InvalidCluster, InvalidDocument

Count = Annotated[int, msgspec.Meta(ge=1, le=200)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[testbed]`: what holds for the whole bed.

    Attributes:
        threads: Threads of engines and BLAS where the device does not say.
        cfs_period: How often the CPU shares are refilled.
        declare: Write bandwidths and delays into the cluster file, instead of leaving them to be measured.
        delay_by: `auto`, `netem` or `tun`.
    """

    threads: Count = 1
    cfs_period: Duration = "10 ms"
    declare: bool = False
    delay_by: str = "auto"


class DispatcherEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[dispatcher]`: on which device commands run; one without an agent is added when no entry has that name."""

    device: str = DISPATCHER


class DeviceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[device]]`: one device, or with `count` several named `name-1`, `name-2`, …; else as in `spec.Device`."""

    name: str
    count: Count | None = None
    cpu: float | None = None
    memory: Size | None = None
    threads: Count | None = None
    computes: bool = True
    agent: bool = True
    arguments: tuple[str, ...] = ()


class LinkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[link]]`: both ways with `between`, one way with `from` and `to`; names may be patterns as in `box-*`."""

    between: tuple[str, str] | None = None
    source: str = msgspec.field(name="from", default="")
    target: str = msgspec.field(name="to", default="")
    bandwidth: Bandwidth | None = None
    delay: Duration | None = None
    medium: str | None = None

    def matches(self, source: str, target: str) -> bool:
        """Whether this entry is about this direction."""
        if self.between is not None:
            one, other = self.between
            return _match((source, target), (one, other)) or _match((source, target), (other, one))
        return _match((source, target), (self.source, self.target))


class NetworkEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[network]`: what holds where no link says otherwise; with `mesh = false` only what links join may talk."""

    mesh: bool = True
    bandwidth: Bandwidth | None = None
    delay: Duration | None = None
    medium: str | None = None


class MediumEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[[medium]]`: a capacity that all links on it share, both ways."""

    name: str
    bandwidth: Bandwidth


class TestbedFile(Document, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file as it is written."""

    KIND: ClassVar[str] = "testbed"
    MADE_BY: ClassVar[str] = "your editor"
    __test__: ClassVar[bool] = False

    testbed: Settings = Settings()
    network: NetworkEntry = NetworkEntry()
    dispatcher: DispatcherEntry = DispatcherEntry()
    devices: tuple[DeviceEntry, ...] = msgspec.field(name="device", default=())
    links: tuple[LinkEntry, ...] = msgspec.field(name="link", default=())
    media: tuple[MediumEntry, ...] = msgspec.field(name="medium", default=())


def load(path: str | Path) -> Spec:
    """Reads a testbed's file.

    Raises:
        InvalidCluster: Not TOML, an unknown key, a wrong value, or a contradiction; says where.
        FileMissing, PermissionDenied, FileProblem: From the file system.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidCluster("not text in UTF-8", where=name_of(path), hint="save it as UTF-8") from exc
    return loads(text, name_of(path))


def loads(text: str, where: str = "testbed.toml") -> Spec:
    """A testbed from TOML; errors as in `load`, without those of the file system."""
    hint = "docs/testbed.md describes the format"
    try:
        plain = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise InvalidCluster(f"not TOML: {exc}", where=where, hint=hint) from exc
    try:
        return _spec(convert(TestbedFile, plain, where))
    except InvalidDocument as exc:
        place = exc.where if exc.where.startswith(where) else f"{where}: {exc.where}".rstrip(": ")
        known = "" if "defer schema" in exc.hint else exc.hint
        raise InvalidCluster(exc.message, where=place, hint=known or hint) from exc


def _match(names: tuple[str, str], patterns: tuple[str, str]) -> bool:
    return all(fnmatch.fnmatchcase(name, pattern) for name, pattern in zip(names, patterns, strict=True))


def _spec(file: TestbedFile) -> Spec:
    devices = _devices(file)
    if not any(device.computes for device in devices):
        raise InvalidCluster("no device computes", where="device", hint="add [[device]] with a name")
    return Spec(
        devices=devices,
        links=_links(file, [device.name for device in devices]),
        media={
            entry.name: _parsed(units.BANDWIDTH, entry.bandwidth, f"medium[{number}].bandwidth") or 0.0
            for number, entry in enumerate(file.media)
        },
        dispatcher=file.dispatcher.device,
        period=_parsed(units.DURATION, file.testbed.cfs_period, "testbed.cfs_period") or 0.0,
        declare=file.testbed.declare,
        delay_by=file.testbed.delay_by,
    )


def _devices(file: TestbedFile) -> tuple[Device, ...]:
    found = []
    for number, entry in enumerate(file.devices):
        memory = _parsed(units.SIZE, entry.memory, f"device[{number}].memory")
        names = [entry.name]
        if entry.count is not None:
            names = [f"{entry.name}-{one + 1}" for one in range(entry.count)]
        found += [
            Device(
                name=name,
                cpu=entry.cpu,
                memory=None if memory is None else int(memory),
                threads=entry.threads or file.testbed.threads,
                computes=entry.computes and entry.agent,
                agent=entry.agent,
                arguments=entry.arguments,
            )
            for name in names
        ]
    home = file.dispatcher.device
    if all(device.name != home for device in found):
        found.insert(0, Device(home, threads=file.testbed.threads, computes=False, agent=False))
    return tuple(found)


def _links(file: TestbedFile, names: list[str]) -> tuple[Link, ...]:
    for number, entry in enumerate(file.links):
        _check_entry(entry, names, f"link[{number}]")
    found = []
    for source in names:
        for target in names:
            # The last entry counts, so that a rule for many comes first and its exceptions follow.
            matching = [n for n, entry in enumerate(file.links) if entry.matches(source, target)]
            if source == target or not (matching or file.network.mesh):
                continue
            place, entry = "network", LinkEntry()
            if matching:
                place, entry = f"link[{matching[-1]}]", file.links[matching[-1]]
            medium, width = entry.medium, entry.bandwidth
            if medium is None and width is None:
                medium, width = file.network.medium, file.network.bandwidth
            bandwidth = _parsed(units.BANDWIDTH, width, f"{place}.bandwidth")
            delay = _parsed(units.DURATION, entry.delay or file.network.delay, f"{place}.delay")
            found.append(Link(source, target, bandwidth, delay or 0.0, medium))
    return tuple(found)


def _check_entry(entry: LinkEntry, names: list[str], place: str) -> None:
    one_way = bool(entry.source and entry.target)
    if (entry.between is not None) == bool(entry.source or entry.target) or (
        entry.between is None and not one_way
    ):
        raise InvalidCluster(
            "say either between = [a, b] or from = a and to = b",
            where=place,
            hint='for example between = ["dispatcher", "box-*"]',
        )
    if not any(entry.matches(a, b) for a in names for b in names if a != b):
        raise InvalidCluster(
            "no two devices match this link", where=place, hint=f"devices are {', '.join(names)}"
        )


def _parsed(quantity: units.Quantity, text: str | None, place: str) -> float | None:
    if text is None:
        return None
    try:
        return units.parse(text, quantity)
    except DeferError as exc:
        raise InvalidCluster(exc.message, where=place, hint=exc.hint) from exc
