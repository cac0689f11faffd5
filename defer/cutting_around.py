"""What planning makes of blocks that a device's compiling engine lacks an op of. Pure.

TensorRT takes a graph whole or not at all. Most agents cut a partition themselves and run the rest on another engine:
such a block costs what was measured, wherever it is. Where an agent cannot, one op would leave the whole stage to the
engine that takes over, however fast the other blocks would be: then the block goes to another device, and stages are
cut there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import router
from defer.documents.profile import CostProfile

Refusals = Literal["avoid", "bear", "ignore"]
"""Keep refused blocks off the device; only say what they cost; or neither, where an operator places every block."""


def cut_around(
    profile: CostProfile | None,
    block_seconds: Mapping[str, Sequence[float]],
    pins: router.Pins,
    refusals: Refusals = "avoid",
) -> tuple[router.Pins, tuple[str, ...]]:
    """The operator's pins, and those that keep refused blocks away from the devices that refuse them.

    Args:
        profile: What was measured, and which blocks an engine refused.
        block_seconds: Seconds per block of every device that computes.
        pins: The operator's; a block that they put on a device stays there.
        refusals: What is done about refused blocks.

    Returns:
        The pins, and a sentence for each device and reason: what the plan does, or what it could not avoid.
    """
    if profile is None or refusals == "ignore":
        return pins, ()
    forbidden = set(pins.forbidden)
    out = {*pins.excluded, *pins.banned}
    refused = {
        name: {block: why for block, why in enumerate(profile.devices[name].unsupported) if why}
        for name in block_seconds
        if name in profile.devices
    }
    added: set[tuple[int, str]] = set()
    notes: dict[tuple[str, str, bool], list[int]] = {}
    apart: dict[tuple[str, str], list[int]] = {}
    for name, blocks in refused.items():
        if profile.devices[name].apart:
            for block, why in blocks.items():
                apart.setdefault((name, why), []).append(block)
            continue
        for block, why in blocks.items():
            others = [
                other
                for other in block_seconds
                if other not in out
                and other != name
                and (block, other) not in forbidden
                and block not in refused.get(other, ())
            ]
            free = refusals == "avoid" and bool(others) and block not in pins.blocks
            if free:
                added.add((block, name))
            notes.setdefault((name, why, free), []).append(block)
    told = tuple(_note(name, why, free, blocks) for (name, why, free), blocks in notes.items())
    told += tuple(
        f"{_blocks(blocks)} on {name} in parts, of which another engine runs some: {why}"
        for (name, why), blocks in apart.items()
    )
    return replace(pins, forbidden=(*pins.forbidden, *sorted(added))), told


def _note(name: str, why: str, free: bool, blocks: Sequence[int]) -> str:
    which = _blocks(blocks)
    if free:
        return f"{which} kept off {name}: {why}"
    return (
        f"{which} cannot be kept off {name}: {why}; a stage there that holds one runs whole on the engine that takes "
        "over, slower than predicted"
    )


def _blocks(numbers: Sequence[int]) -> str:
    return f"block{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
