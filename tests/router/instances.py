"""Random small problems for the property tests: drawn from a seed, because that is a hundred times faster."""

from __future__ import annotations

import math
from random import Random

from hypothesis import strategies as st

from router import Buffers, Cluster, CodecCost, Device, Link, Load, Pins, Problem


def make(
    seed: int, devices: int = 3, blocks: int = 3, codecs: int = 2, memory: bool = True, several: bool = False
) -> Problem:
    rng = Random(seed)
    n, length = rng.randint(2, devices), rng.randint(1, blocks)
    names = [f"d{i}" for i in range(n)]

    def few() -> int:
        return rng.randint(0, 8)

    members = [
        Device(
            name,
            memory=rng.choice([None, 4, 8, 12]) if memory else None,
            computes=rng.random() < 0.85,
            power=few(),
            price=few(),
            crypt_seconds_per_byte=rng.choice([0.0, 0.0, 0.25]),
        )
        for name in names
    ]
    links = [
        Link(
            a,
            b,
            bandwidth=rng.choice([0.5, 1.0, 2.0, 4.0, math.inf]),
            delay=rng.choice([0.0, 0.5, 3.0]),
            medium=rng.choice([None, None, "air"]),
            encrypted=rng.random() < 0.5,
            joules_per_byte=few(),
            price_per_byte=few(),
        )
        for a in names
        for b in names
        if a != b and rng.random() < 0.75
    ]
    seconds = {
        name: [math.inf if rng.random() < 0.1 else float(few()) for _ in range(length)]
        for name in names
        if rng.random() < 0.95
    }
    offered = [CodecCost("raw")]
    for c in range(rng.randint(1, codecs) - 1):
        table = {name: [few() / 4 for _ in range(length + 1)] for name in names}
        offered.append(
            CodecCost(
                f"c{c}",
                ratio=[rng.choice([1.0, 2.0, 4.0]) for _ in range(length + 1)],
                encode=table,
                decode={k: [x / 2 for x in v] for k, v in table.items()},
                error=float(rng.randint(0, 2)),
            )
        )
    return Problem(
        cluster=Cluster(members, links),
        source=rng.choice(names),
        sink=rng.choice(names),
        block_seconds=seconds,
        boundary_bytes=[few() for _ in range(length + 1)],
        block_memory=[rng.randint(0, 5) for _ in range(length)],
        block_activation=[rng.randint(0, 3) for _ in range(length)] if rng.random() < 0.5 else (),
        stage_overhead={name: float(rng.randint(0, 2)) for name in names},
        codecs=offered,
        max_stages=rng.choice([None, None, 1, 2]),
        stages_per_device=rng.choice([1, 2, None]) if several else 1,
        pins=Pins(excluded=[names[0]] if rng.random() < 0.1 else []),
        load=Load(
            device_wait={names[0]: float(few())},
            device_busy={names[-1]: rng.choice([0.0, 0.5])},
            medium_busy={"air": rng.choice([0.0, 0.25])},
        ),
        buffers=Buffers(*(rng.randint(0, 1) for _ in range(4))) if rng.random() < 0.5 else Buffers(),
    )


def problems(
    devices: int = 3, blocks: int = 3, codecs: int = 2, memory: bool = True, several: bool = False
) -> st.SearchStrategy[Problem]:
    return st.builds(lambda seed: make(seed, devices, blocks, codecs, memory, several), st.integers(0, 2**40))
