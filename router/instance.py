"""A problem as arrays: names become indices, every check is made, solvers work on nothing else.

Resources are one vector of busy seconds per request: devices first, then links, then shared media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.errors import InvalidProblem
from router.problem import CodecCost, Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Instance:
    """Arrays of one problem: n devices, L blocks, K codecs, m links.

    Attributes:
        block: (n, L) seconds, inf where a device must not or cannot run a block.
        overhead, wait: (n,) seconds per stage.
        memory: (n,) bytes, inf = no limit.
        stage_bytes: (L+1, L+1) memory of a stage [a, b) at [a, b], inf where a >= b.
        wire: (K, L+1) bytes on the wire.
        encode, decode: (K, n, L+1) seconds, inf = cannot. error: (K, L+1).
        src, dst: (m,) device indices; seconds_per_byte, delay, hop_wait: (m,).
        crypt: (m, 2) seconds per byte at the sending and receiving end.
        medium: (m,) index of the shared medium or -1.
        free: (n + m + media,) share of each resource that is free.
        power, price: (n,); link_power, link_price: (m,) per byte.
    """

    problem: Problem
    names: tuple[str, ...]
    index: Mapping[str, int]
    source: int
    sink: int
    block: Floats
    overhead: Floats
    wait: Floats
    memory: Floats
    stage_bytes: Floats
    wire: Floats
    encode: Floats
    decode: Floats
    error: Floats
    src: Ints
    dst: Ints
    seconds_per_byte: Floats
    delay: Floats
    hop_wait: Floats
    crypt: Floats
    medium: Ints
    media: tuple[str, ...]
    free: Floats
    power: Floats
    price: Floats
    link_power: Floats
    link_price: Floats
    edge: Mapping[tuple[int, int], int]

    @property
    def n(self) -> int:
        """Number of devices."""
        return len(self.names)

    @property
    def blocks(self) -> int:
        """Number of blocks, L."""
        return int(self.block.shape[1])

    @property
    def codecs(self) -> int:
        """Number of codecs, K."""
        return len(self.wire)

    @property
    def resources(self) -> int:
        """Length of a load vector."""
        return len(self.free)

    def resource_name(self, resource: int) -> str:
        """Name of one entry of a load vector, as a person reads it."""
        if resource < self.n:
            return f"device {self.names[resource]}"
        link = resource - self.n
        if link < len(self.src):
            return f"link {self.names[self.src[link]]} -> {self.names[self.dst[link]]}"
        return f"medium {self.media[link - len(self.src)]}"


def _row(values: float | Sequence[float], length: int, what: str) -> Floats:
    row = np.full(length, values, float) if np.isscalar(values) else np.asarray(values, float)
    if row.shape != (length,):
        raise InvalidProblem(f"{what} has {row.size} numbers, {length} are needed")
    if np.isnan(row).any() or (row < 0).any():
        raise InvalidProblem(f"{what} has a number that is negative or not a number")
    return row


def _finite_row(values: float | Sequence[float], length: int, what: str) -> Floats:
    row = _row(values, length, what)
    if not np.isfinite(row).all():
        raise InvalidProblem(f"{what} has an infinite number")
    return row


def _per_device(table: Mapping[str, float], index: Mapping[str, int], what: str) -> Floats:
    row = np.zeros(len(index))
    for name, value in table.items():
        if name not in index:
            raise InvalidProblem(f"{what} names device {name!r}, which is not in the cluster")
        row[index[name]] = value
    return _finite_row(row.tolist(), len(row), what)


def _codec_table(
    codec: CodecCost, table: Mapping[str, Sequence[float]], index: Mapping[str, int], length: int, what: str
) -> Floats:
    result = np.full((len(index), length), np.inf if table else 0.0)
    for name, values in table.items():
        if name not in index:
            raise InvalidProblem(f"codec {codec.name!r} names device {name!r}, which is not in the cluster")
        result[index[name]] = _row(values, length, f"{what} seconds of codec {codec.name!r} on {name!r}")
    return result


def stage_memory(problem: Problem) -> Floats:
    """Bytes that a stage [a, b) needs, at [a, b]: weights, largest activation, buffers and runtime."""
    blocks = problem.blocks
    weights = _finite_row(problem.block_memory or 0.0, blocks, "block_memory")
    peaks = _finite_row(problem.block_activation or 0.0, blocks, "block_activation")
    size = _finite_row(problem.boundary_bytes, blocks + 1, "boundary_bytes")
    total = np.concatenate([[0.0], np.cumsum(weights)])
    use = problem.buffers
    entering = use.input * size + np.where(np.arange(blocks + 1) > 0, use.receive, 0) * size
    leaving = (use.send + use.output) * size
    table = np.full((blocks + 1, blocks + 1), np.inf)
    for a in range(blocks):
        stop = slice(a + 1, blocks + 1)
        peak = np.maximum.accumulate(peaks[a:])
        table[a, stop] = total[stop] - total[a] + peak + entering[a] + leaving[stop] + problem.stage_memory
    return table


def _blocks_allowed(problem: Problem, index: Mapping[str, int]) -> Floats:
    """(n, L) seconds with the pins applied."""
    blocks, pins = problem.blocks, problem.pins
    table = np.full((len(index), blocks), np.inf)
    for name, seconds in problem.block_seconds.items():
        if name not in index:
            raise InvalidProblem(f"block_seconds names device {name!r}, which is not in the cluster")
        table[index[name]] = _row(seconds, blocks, f"block_seconds of {name!r}")
    for device in problem.cluster.devices:
        if not device.computes:
            table[index[device.name]] = np.inf

    def known(name: str) -> int:
        if name not in index:
            raise InvalidProblem(f"a pin names device {name!r}, which is not in the cluster")
        return index[name]

    def block(number: int) -> int:
        if not 0 <= number < blocks:
            raise InvalidProblem(f"a pin names block {number}; blocks are 0 … {blocks - 1}")
        return number

    for name in {*pins.excluded, *pins.banned}:
        table[known(name)] = np.inf
    for number, name in pins.forbidden:
        table[known(name), block(number)] = np.inf
    for number, name in pins.blocks.items():
        others = np.arange(len(index)) != known(name)
        table[others, block(number)] = np.inf
    return table


def compile_problem(problem: Problem) -> Instance:
    """Check a problem and turn it into arrays.

    Raises:
        InvalidProblem: what is wrong and where.
    """
    cluster, blocks = problem.cluster, problem.blocks
    if blocks < 1:
        raise InvalidProblem("a model needs at least one block", hint="boundary_bytes has L + 1 entries")
    for limit, what in ((problem.max_stages, "max_stages"), (problem.stages_per_device, "stages_per_device")):
        if limit is not None and limit < 1:
            raise InvalidProblem(f"{what} must be at least 1, not {limit}")
    names = tuple(device.name for device in cluster.devices)
    index = {name: at for at, name in enumerate(names)}
    for what, name in (("source", problem.source), ("sink", problem.sink)):
        if name not in index:
            raise InvalidProblem(f"{what} {name!r} is not in the cluster", hint="known: " + ", ".join(names))
        if name in problem.pins.banned:
            raise InvalidProblem(f"{what} {name!r} is banned by a pin")
    banned = set(problem.pins.banned)
    links = [link for link in cluster.links if link.source not in banned and link.target not in banned]
    ends = [(index[link.source], index[link.target]) for link in links]
    media = tuple(sorted({link.medium for link in cluster.links if link.medium is not None}))
    crypt = np.array([device.crypt_seconds_per_byte for device in cluster.devices], float)
    size = _finite_row(problem.boundary_bytes, blocks + 1, "boundary_bytes")
    codecs = tuple(problem.codecs)
    if not codecs or len({codec.name for codec in codecs}) < len(codecs):
        raise InvalidProblem("codecs must be one or more, each with its own name")
    wire, error, encode, decode = [], [], [], []
    for codec in codecs:
        ratio = _finite_row(codec.ratio, blocks + 1, f"ratio of codec {codec.name!r}")
        if not (ratio > 0).all():
            raise InvalidProblem(f"ratio of codec {codec.name!r} must be positive")
        wire.append(size / ratio)
        error.append(_finite_row(codec.error, blocks + 1, f"error of codec {codec.name!r}"))
        encode.append(_codec_table(codec, codec.encode, index, blocks + 1, "encode"))
        decode.append(_codec_table(codec, codec.decode, index, blocks + 1, "decode"))
    src = np.array([a for a, _ in ends], np.int64)
    dst = np.array([b for _, b in ends], np.int64)
    encrypted = np.array([link.encrypted for link in links], float)
    load = problem.load
    busy = [
        _per_device(load.device_busy, index, "device_busy"),
        np.array([load.link_busy.get((link.source, link.target), 0.0) for link in links], float),
        np.array([load.medium_busy.get(name, 0.0) for name in media], float),
    ]
    free = 1.0 - np.concatenate(busy)
    if ((free <= 0) | (free > 1)).any():
        raise InvalidProblem("a busy share must lie in [0, 1)")
    for (source, target), seconds in load.link_wait.items():
        cluster.link(source, target)
        if not seconds >= 0:
            raise InvalidProblem(f"wait of link {source!r} -> {target!r} must not be negative")
    return Instance(
        problem=problem,
        names=names,
        index=index,
        source=index[problem.source],
        sink=index[problem.sink],
        block=_blocks_allowed(problem, index),
        overhead=_per_device(problem.stage_overhead, index, "stage_overhead"),
        wait=_per_device(load.device_wait, index, "device_wait"),
        memory=np.array([np.inf if d.memory is None else float(d.memory) for d in cluster.devices]),
        stage_bytes=stage_memory(problem),
        wire=np.array(wire),
        encode=np.array(encode),
        decode=np.array(decode),
        error=np.array(error),
        src=src,
        dst=dst,
        seconds_per_byte=np.array([1.0 / link.bandwidth for link in links], float),
        delay=np.array([link.delay for link in links], float),
        hop_wait=np.array([load.link_wait.get((link.source, link.target), 0.0) for link in links], float),
        crypt=np.stack([crypt[src] * encrypted, crypt[dst] * encrypted], axis=1),
        medium=np.array(
            [-1 if link.medium is None else media.index(link.medium) for link in links], np.int64
        ),
        media=media,
        free=free,
        power=np.array([device.power for device in cluster.devices], float),
        price=np.array([device.price for device in cluster.devices], float),
        link_power=np.array([link.joules_per_byte for link in links], float),
        link_price=np.array([link.price_per_byte for link in links], float),
        edge={pair: at for at, pair in enumerate(ends)},
    )
