"""Draws the weights of convolutions and dense layers so that what comes out has chosen moments.

A filter is drawn from a normal distribution, freed of the component that would pass on the mean of its input,
scaled to the wanted variance, and given back just as much of that component as makes the wanted mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from models.signals import Moments, Vector

Weights = npt.NDArray[np.float32]

_CHUNK = 1 << 22
"""Elements worked on at a time: keeps temporary arrays small beside the weight itself."""


def draw(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    x: Moments,
    want: Moments,
    seen: float = 1.0,
) -> Weights:
    """Weights of filters that read every input channel.

    Args:
        rng: Source of randomness; the result depends on its state alone.
        shape: (filters, input channels, taps), where taps is 1 for a dense layer.
        x: Moments of the input channels.
        want: Moments that the outputs are to have; a mean other than 0 takes an input that has one.
        seen: Mean share of the taps that lie inside the image (the others read padding).

    Returns:
        float32 of `shape`.
    """
    filters, _, taps = shape
    length = float(np.sqrt(np.sum(x.mean**2)))
    direction = x.mean / length if length > 0 else x.mean
    power = float(np.sum(x.var * (1 - direction**2))) * taps * seen
    scale = np.sqrt(want.var / power).astype(np.float32)[:, None, None]
    shift = (want.mean / max(length * taps, 1e-30)).astype(np.float32)[:, None]
    along = direction.astype(np.float32)
    weights: Weights = np.empty(shape, dtype=np.float32)
    rows = max(1, _CHUNK // (shape[1] * taps))
    for start in range(0, filters, rows):
        part = weights[start : start + rows]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= scale[start : start + rows]
        if length > 0:
            # In float64 and without BLAS: sums in float32 differ with the processor, BLAS's with the threads too.
            remains = shift[start : start + rows] - np.einsum("oik,i->ok", part, direction).astype(np.float32)
            part += remains[:, None, :] * along[None, :, None]
    return weights


def draw_depthwise(
    rng: np.random.Generator, taps: int, x: Moments, std: Vector, seen: float
) -> tuple[Weights, Vector]:
    """Weights of filters that read one channel each, and the means that they make.

    Removing the mean would leave only edge detectors, so the filter keeps it and batch norm takes it off.

    Returns:
        float32 of (channels, 1, taps), and the mean of each output channel.
    """
    weights = rng.standard_normal((len(x.mean), 1, taps))
    weights *= (std / np.sqrt(x.var * seen * np.sum(weights**2, axis=(1, 2))))[:, None, None]
    return weights.astype(np.float32), x.mean * seen * np.sum(weights, axis=(1, 2))


def normal(
    rng: np.random.Generator, shape: int | tuple[int, ...], mean: float = 0.0, std: float = 1.0
) -> Weights:
    """Normal values as float32."""
    drawn: Weights = rng.standard_normal(shape, dtype=np.float32)
    drawn *= np.float32(std)
    drawn += np.float32(mean)
    return drawn


def transposed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A (filters, inputs, 1) weight as the (inputs, filters) that MatMul reads."""
    return np.ascontiguousarray(array[:, :, 0].T)
