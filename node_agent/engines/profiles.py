"""Which shapes a TensorRT engine is built for: one optimisation profile, chosen from declarations and options. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node_agent.errors import LoadFailedError
from node_agent.messages import TensorSpec

DEFAULT_BATCH = (1, 1, 8)
"""Least, usual and greatest size of a free first dimension that nobody bound."""

DEFAULT_FREE = (1, 128, 512)
"""The same for any other free dimension, a sequence length as a rule."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Shapes of one input: least, the one to optimise for, greatest."""

    least: tuple[int, ...]
    usual: tuple[int, ...]
    greatest: tuple[int, ...]

    @property
    def fixed(self) -> bool:
        """Whether only one shape is possible."""
        return self.least == self.greatest


Profile = dict[str, Bounds]


def parse_range(text: str) -> tuple[int, int, int]:
    """`4`, `1:8` or `1:4:8` as least, usual and greatest.

    Raises:
        LoadFailedError: It is none of these, or not increasing from 1.
    """
    try:
        numbers = [int(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers = numbers * 3
    elif len(numbers) == 2:
        numbers = [numbers[0], numbers[1], numbers[1]]
    if len(numbers) != 3 or not 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        raise LoadFailedError(
            f"{text!r} is no range of sizes.", hint="Write LEAST:USUAL:GREATEST, for example 1:4:16."
        )
    return numbers[0], numbers[1], numbers[2]


def choose_profile(
    inputs: Sequence[TensorSpec],
    usual: Mapping[str, Sequence[int]] | None = None,
    options: Mapping[str, str] | None = None,
) -> Profile:
    """The profile of a partition.

    Args:
        inputs: Its inputs; a free dimension is a name.
        usual: Shapes that will be common, by input; the warm-up's. The usual size of a free dimension is taken
            from there and its range is stretched to hold it.
        options: `dim.NAME=LEAST:USUAL:GREATEST` binds the free dimension NAME everywhere.

    Raises:
        LoadFailedError: An option is no range, or a usual shape does not fit its input.
    """
    ranges = {
        name.removeprefix("dim."): parse_range(text)
        for name, text in (options or {}).items()
        if name.startswith("dim.")
    }
    profile: Profile = {}
    for spec in inputs:
        wanted = (usual or {}).get(spec.name)
        if wanted is not None and len(wanted) != len(spec.shape):
            raise LoadFailedError(f"Input {spec.name!r} has {len(spec.shape)} dimensions, not {len(wanted)}.")
        bounds = []
        for axis, dim in enumerate(spec.shape):
            if isinstance(dim, int):
                bounds.append((dim, dim, dim))
                continue
            least, middle, greatest = ranges.get(dim, DEFAULT_BATCH if axis == 0 else DEFAULT_FREE)
            if wanted is not None and dim not in ranges:
                middle = wanted[axis]
                least, greatest = min(least, middle), max(greatest, middle)
            bounds.append((least, middle, greatest))
        columns = tuple(zip(*bounds, strict=True)) or ((), (), ())
        profile[spec.name] = Bounds(*columns)
    return profile


def admits(profile: Profile, shapes: Mapping[str, Sequence[int]]) -> str:
    """Why these shapes are outside the profile, as a sentence; empty if they are inside."""
    for name, bounds in profile.items():
        shape = shapes.get(name)
        if shape is None:
            return f"input {name!r} is missing"
        inside = len(shape) == len(bounds.least) and all(
            low <= size <= high for low, size, high in zip(bounds.least, shape, bounds.greatest, strict=True)
        )
        if not inside:
            return (
                f"input {name!r} of shape {list(shape)} is outside what the engine was built for, "
                f"{list(bounds.least)} to {list(bounds.greatest)}"
            )
    return ""
