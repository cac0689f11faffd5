"""How the values of each channel are distributed, followed through a network without running it.

Weights drawn without care make a deep network useless as a test object: activations explode or die, or every
image gives the same output, because the positive mean behind each ReLU adds up until it drowns what differs.
Trained networks are kept from this by batch norm, whose statistics were measured. Here they are *foretold*:
every tensor carries a few hundred sample values per channel; what leaves a convolution is normal, with a mean
and variance that follow from its weights, and everything else is applied to the samples as it is to the
tensor. So weights, batch-norm statistics and gains can be chosen to fit. Unlike a calibration run this needs no
engine, takes milliseconds, and gives the same bytes whatever the processor and its number of threads.

The ideas are those of He et al. 2015 (arXiv:1502.01852: keep the variance), and of Brock et al. 2021
(arXiv:2101.08692: remove the mean that a filter would pass on, and know the moments beforehand).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

SAMPLES = 256
"""Values per channel: enough that a mean is known to a few percent of a standard deviation."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each channel; two vectors of one length."""

    mean: Vector
    var: Vector


@dataclass(frozen=True, slots=True)
class Signal:
    """Sample values of each channel: a matrix (channels, SAMPLES), the samples in no order."""

    samples: Matrix

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.samples)

    @property
    def mean(self) -> Vector:
        """Mean of each channel, rounded: a mean of 0 is to be 0, and the same on every processor."""
        mean: Vector = self.samples.mean(axis=1).round(9) + 0.0  # no negative zeros
        return mean

    @property
    def var(self) -> Vector:
        """Variance of each channel."""
        var: Vector = self.samples.var(axis=1)
        return var

    @property
    def moments(self) -> Moments:
        """Both."""
        return Moments(self.mean, self.var)

    def map(self, function: Callable[[Matrix], Matrix]) -> Signal:
        """What an elementwise operator makes of it."""
        return Signal(function(self.samples))

    def rectified(self) -> Signal:
        """After a ReLU."""
        return self.map(lambda x: np.maximum(x, 0.0))

    def scaled(self, mean: Vector, std: Vector) -> Signal:
        """After a batch norm whose running statistics are this signal's moments."""
        scale = std / np.sqrt(self.var)
        return Signal((self.samples - self.mean[:, None]) * scale[:, None] + mean[:, None])

    def pooled(self, reduce: Callable[[Matrix], Matrix], window: int) -> Signal:
        """After pooling over `window` neighbours as good as independent; `reduce` works on the first axis."""
        shifts = [step * SAMPLES // window for step in range(window)]
        return Signal(reduce(np.stack([np.roll(self.samples, shift, axis=1) for shift in shifts])))


def normal(rng: np.random.Generator, mean: Vector, std: Vector) -> Signal:
    """Normally distributed channels with exactly these means and standard deviations."""
    drawn = rng.standard_normal((len(mean), SAMPLES))
    drawn -= drawn.mean(axis=1, keepdims=True)
    drawn /= drawn.std(axis=1, keepdims=True)
    return Signal(drawn * std[:, None] + mean[:, None])


def total(parts: Sequence[Signal]) -> Signal:
    """Sum of independent signals."""
    return Signal(np.sum([part.samples for part in parts], axis=0))


def concatenation(parts: Sequence[Signal]) -> Signal:
    """Signals put side by side along the channels."""
    return Signal(np.concatenate([part.samples for part in parts]))
