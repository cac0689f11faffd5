"""`profile.json`: what the blocks of one model cost on each device, and what the links carry."""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec

from defer import units
from defer.documents.base import Document
from defer.documents.cluster import Bandwidth, Duration
from defer.errors import DeferError, InvalidDocument

Method = Literal["measured", "static"]
"""Whether a figure was measured on the device or derived from FLOPs and declared speeds."""


class CodecProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one codec costs on one device: seconds per boundary, all its tensors together."""

    encode_s: tuple[float, ...]
    decode_s: tuple[float, ...]


class DeviceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What the blocks cost on one device.

    Attributes:
        fingerprint: The agent's; the profile holds for any device with the same one.
        engine: What ran the blocks.
        method: Whether the seconds were measured.
        block_seconds: What each block takes inside a partition; they add up.
        cut_seconds: Per boundary, what a cut there costs the run of the partitions at both its sides, half each; empty
            where not measured.
        block_resident: Memory that each block's session takes, in bytes; empty where not measured.
        stage_overhead_s: Seconds that a stage costs per request beside its blocks: receive, dispatch, send.
        byte_s: Seconds that a byte costs a device that receives and sends it; half for one that does one of both.
        memory_bytes: Memory that the agent offers; 0 when it did not say.
        codecs: Per codec.
        unsupported: For each block why the device's compiling engine (TensorRT) cannot run it, empty where it can;
            no entries where it can run all. `block_seconds` are then those of the engine that takes over.
        crossing_bytes: Bytes at each boundary between partitions in this device's precision; empty where not measured.
        apart: Whether a stage that holds such a block runs its other ops on the compiling engine all the same.
    """

    fingerprint: str
    engine: str
    method: Method
    block_seconds: tuple[float, ...]
    cut_seconds: tuple[float, ...] = ()
    block_resident: tuple[int, ...] = ()
    stage_overhead_s: float = 0.0
    byte_s: float = 0.0
    memory_bytes: int = 0
    codecs: dict[str, CodecProfile] = msgspec.field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    apart: bool = False
    crossing_bytes: tuple[int, ...] = ()


class LinkProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One direction between two devices that may talk.

    Attributes:
        source: Device that sends.
        target: Device that receives.
        bandwidth: With its unit, as in "94.1 Mbit/s".
        delay: One way, with its unit.
        method: Whether they were measured.
        send_byte_s: Seconds that sending a byte over this link takes the device that sends; 0 where not measured.
        receive_byte_s: The same of the device that receives.
    """

    source: str
    target: str
    bandwidth: Bandwidth
    delay: Duration
    method: Method
    send_byte_s: float = 0.0
    receive_byte_s: float = 0.0

    @classmethod
    def of(
        cls, source: str, target: str, bytes_per_s: float, delay_s: float, method: Method = "measured"
    ) -> LinkProfile:
        """From bytes per second and seconds, kept exactly."""
        return cls(
            source=source,
            target=target,
            bandwidth=units.format_bandwidth(bytes_per_s),
            delay=units.format_duration(delay_s),
            method=method,
        )

    @property
    def bytes_per_s(self) -> float:
        """`bandwidth` in bytes per second."""
        return units.parse_bandwidth(self.bandwidth)

    @property
    def delay_s(self) -> float:
        """`delay` in seconds."""
        return units.parse_duration(self.delay)


class Created(msgspec.Struct, frozen=True, kw_only=True):
    """Where a profile comes from; told by whoever measured, because what builds documents has no clock.

    Attributes:
        at: Time in ISO 8601.
        by: Command or host that measured.
        software: Versions by distribution name.
    """

    at: str = ""
    by: str = ""
    software: dict[str, str] = msgspec.field(default_factory=dict)


class CostProfile(Document, frozen=True, kw_only=True):
    """Costs of one model's blocks on the devices of one cluster.

    Attributes:
        model: Name of the model.
        digest: Its block chain's digest.
        positions: Op positions of the chain's L + 1 boundaries.
        bindings: Value used for each free dimension.
        devices: By device name.
        links: Directions that were measured.
        codecs: Per codec its ratio at each boundary: raw bytes over encoded bytes.
        client: Per codec that every client knows, what it costs where requests come from.
        encryption: Seconds per byte that each device takes to encrypt or decrypt; empty where its connections had no
            keys when it was measured. The links' bandwidths are then those without it.
        created: Where it comes from.
    """

    KIND: ClassVar[str] = "profile"
    MADE_BY: ClassVar[str] = "defer profile MODEL --cluster cluster.toml -o profile.json"

    model: str
    digest: str
    positions: tuple[int, ...]
    bindings: dict[str, int] = msgspec.field(default_factory=dict)
    devices: dict[str, DeviceProfile]
    links: tuple[LinkProfile, ...] = ()
    codecs: dict[str, tuple[float, ...]] = msgspec.field(default_factory=dict)
    client: dict[str, CodecProfile] = msgspec.field(default_factory=dict)
    encryption: dict[str, float] = msgspec.field(default_factory=dict)
    created: Created = Created()

    def problems(self) -> None:
        """Checks that every list has one entry per block or boundary, and that no figure is impossible."""
        if (
            len(self.positions) < 2
            or self.positions[0] != 0
            or list(self.positions) != sorted(set(self.positions))
        ):
            raise InvalidDocument("positions must rise from 0", where="positions", hint=f"`{self.MADE_BY}`")
        for name, device in self.devices.items():
            self._check_device(device, f"devices.{name}")
        self._check_codecs(self.client, "client")
        for name, seconds in self.encryption.items():
            self._check((seconds,), 1, f"encryption.{name}", "devices")
        for codec, ratios in self.codecs.items():
            self._check(ratios, len(self.positions), f"codecs.{codec}", "boundaries")
            if 0.0 in ratios:
                raise InvalidDocument(
                    "a ratio must be above 0", where=f"codecs.{codec}", hint=f"`{self.MADE_BY}`"
                )
        for number, link in enumerate(self.links):
            try:
                good = link.bytes_per_s > 0 and link.delay_s >= 0
            except DeferError as exc:
                exc.where = f"links[{number}]"
                raise
            if not good:
                raise InvalidDocument(
                    "a bandwidth must be above 0", where=f"links[{number}]", hint=f"`{self.MADE_BY}`"
                )

    def _check_device(self, device: DeviceProfile, place: str) -> None:
        blocks = len(self.positions) - 1
        self._check(device.block_seconds, blocks, f"{place}.block_seconds", "blocks")
        if device.cut_seconds:
            self._check(device.cut_seconds, blocks + 1, f"{place}.cut_seconds", "boundaries")
        if device.crossing_bytes:
            self._check(device.crossing_bytes, blocks + 1, f"{place}.crossing_bytes", "boundaries")
        if device.block_resident:
            self._check(device.block_resident, blocks, f"{place}.block_resident", "blocks")
        if device.unsupported and len(device.unsupported) != blocks:
            raise InvalidDocument(
                f"{len(device.unsupported)} values for {blocks} blocks",
                where=f"{place}.unsupported",
                hint=f"`{self.MADE_BY}` measures again",
            )
        self._check((device.stage_overhead_s,), 1, f"{place}.stage_overhead_s", "stages")
        self._check((device.byte_s,), 1, f"{place}.byte_s", "devices")
        self._check_codecs(device.codecs, f"{place}.codecs")

    def _check_codecs(self, codecs: dict[str, CodecProfile], place: str) -> None:
        for codec, cost in codecs.items():
            self._check(cost.encode_s, len(self.positions), f"{place}.{codec}.encode_s", "boundaries")
            self._check(cost.decode_s, len(self.positions), f"{place}.{codec}.decode_s", "boundaries")

    def _check(self, values: tuple[float, ...], count: int, place: str, of: str) -> None:
        if len(values) != count:
            raise InvalidDocument(
                f"{len(values)} values for {count} {of}", where=place, hint=f"`{self.MADE_BY}` measures again"
            )
        for value in values:
            if not 0 <= value < float("inf"):
                raise InvalidDocument(
                    f"{value} cannot be: values are finite and not negative",
                    where=place,
                    hint=f"`{self.MADE_BY}` measures again",
                )
