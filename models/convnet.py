"""Layers of convolutional networks: each adds its nodes and weights, and foretells what leaves it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models import filters, signals
from models.graph import Dimensions, Graph, Recipe, Value
from models.signals import Moments, Signal

_MAXIMUM_OF, _AVERAGE_OF, _GLOBAL_OF = 0.9, 0.45, 0.7
"""Neighbours are correlated: pooling n of them is like pooling n to this power that are independent."""

Pair = int | tuple[int, int]


@dataclass(frozen=True, slots=True)
class Feature:
    """A tensor (batch, channels, height, width), or (batch, channels) once flat, and its channels' values."""

    value: Value
    signal: Signal

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.signal.channels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        _, _, height, width = self.value.shape
        assert isinstance(height, int)
        assert isinstance(width, int)
        return height, width


class ConvNet:
    """Builds a network of images layer by layer.

    Args:
        name: Name of the graph.
        seed: Seed of its weights.
        batch: The batch dimension; free unless a number.
        surprise: By what factor the variance before a batch norm exceeds what is foretold. Small errors in the
            foretold means add up over the layers; this factor, found by running the network, keeps them down.
    """

    def __init__(self, name: str, seed: int, batch: int | str = "batch", *, surprise: float = 1.0) -> None:
        self.graph = Graph(name, seed)
        self.batch = batch
        self.surprise = surprise

    def image(self, size: int, channels: int = 3, name: str = "input") -> Feature:
        """Declare an input of standardised images."""
        value = self.graph.input(name, (self.batch, channels, size, size))
        return Feature(value, signals.normal(self.graph.rng(name), np.zeros(channels), np.ones(channels)))

    def vector(self, units: int, *, name: str) -> Feature:
        """Declare an input of standardised vectors."""
        value = self.graph.input(name, (self.batch, units))
        return Feature(value, signals.normal(self.graph.rng(name), np.zeros(units), np.ones(units)))

    def conv(
        self,
        x: Feature,
        channels: int,
        kernel: Pair,
        *,
        name: str,
        stride: int = 1,
        padding: Pair = 0,
        groups: int = 1,
        bias: bool = False,
    ) -> Feature:
        """Convolution whose output channels get means and variances that differ a little, as trained ones do.

        `groups` is 1 or the number of channels (depthwise). With `bias`, the mean comes from the bias.
        """
        (kh, kw), (ph, pw) = _pair(kernel), _pair(padding)
        height, width = x.size
        seen = _seen(height, kh, stride, ph) * _seen(width, kw, stride, pw)
        rng = self.graph.rng(f"{name}.spread")
        spread = np.exp(0.2 * rng.standard_normal(channels))
        mean = (0.3 if not bias else 0.1) * rng.standard_normal(channels)
        shape = (channels, x.channels // groups, kh, kw)
        inputs = [x.value]
        if groups == 1:
            positive = bool(np.any(x.signal.mean))
            made = mean if positive and not bias else np.zeros(channels)
            want, moments = Moments(made, spread**2), x.signal.moments

            def make() -> filters.Weights:
                flat = (channels, x.channels, kh * kw)
                drawn = filters.draw(self.graph.rng(f"{name}.weight"), flat, moments, want, seen)
                return drawn.reshape(shape)

            inputs.append(self.graph.lazy_weight(f"{name}.weight", shape, make))
        else:
            rng = self.graph.rng(f"{name}.weight")
            weights, made = filters.draw_depthwise(rng, kh * kw, x.signal.moments, spread, seen)
            inputs.append(self.graph.weight(f"{name}.weight", weights.reshape(shape)))
        if bias:
            made = made + mean
            inputs.append(self.graph.weight(f"{name}.bias", mean.astype(np.float32)))
        value = self.graph.op(
            "Conv",
            inputs,
            name=name,
            shape=self._shape(channels, height, width, (kh, kw), stride, (ph, pw)),
            dilations=[1, 1],
            group=groups,
            kernel_shape=[kh, kw],
            pads=[ph, pw, ph, pw],
            strides=[stride, stride],
        )
        return Feature(value, signals.normal(self.graph.rng(f"{name}.output"), made, spread))

    def batch_norm(
        self, x: Feature, *, name: str, scale: float = 1.0, bias: float = -0.1, epsilon: float = 1e-5
    ) -> Feature:
        """Batch norm in inference mode; its running statistics are the moments that its input has.

        Args:
            x: Its input.
            name: Name of the node.
            scale: About what standard deviation the output gets.
            bias: About what mean it gets, in units of `scale`.
            epsilon: The attribute of that name.
        """
        rng = self.graph.rng(name)
        gamma = (scale * np.exp(0.2 * rng.standard_normal(x.channels))).astype(np.float32)
        beta = (scale * (bias + 0.2 * rng.standard_normal(x.channels))).astype(np.float32)
        mean, var = x.signal.mean.astype(np.float32), (self.surprise * x.signal.var).astype(np.float32)
        inputs = [
            x.value,
            self.graph.weight(f"{name}.weight", gamma),
            self.graph.weight(f"{name}.bias", beta),
            self.graph.weight(f"{name}.running_mean", mean, statistic=True),
            self.graph.weight(f"{name}.running_var", var, statistic=True),
        ]
        value = self.graph.op(
            "BatchNormalization", inputs, name=name, shape=x.value.shape, epsilon=epsilon, momentum=0.9
        )
        return Feature(value, x.signal.scaled(beta.astype(np.float64), gamma.astype(np.float64)))

    def relu(self, x: Feature, *, name: str) -> Feature:
        """ReLU."""
        value = self.graph.op("Relu", [x.value], name=name, shape=x.value.shape)
        return Feature(value, x.signal.rectified())

    def relu6(self, x: Feature, *, name: str) -> Feature:
        """ReLU6, which exporters write as Clip."""
        low = self.graph.constant(f"{name}.min", 0.0, "float32")
        high = self.graph.constant(f"{name}.max", 6.0, "float32")
        value = self.graph.op("Clip", [x.value, low, high], name=name, shape=x.value.shape)
        return Feature(value, x.signal.map(lambda v: np.clip(v, 0.0, 6.0)))

    def max_pool(self, x: Feature, kernel: int, stride: int, *, name: str, padding: int = 0) -> Feature:
        """Max pooling."""
        value = self._pool("MaxPool", x, kernel, stride, padding, name, ceil_mode=0)
        window = round((kernel * kernel) ** _MAXIMUM_OF)
        return Feature(value, x.signal.pooled(lambda v: v.max(axis=0), window))

    def average_pool(self, x: Feature, kernel: int, stride: int, *, name: str, padding: int = 0) -> Feature:
        """Average pooling that counts the padding, PyTorch's default."""
        value = self._pool("AveragePool", x, kernel, stride, padding, name, ceil_mode=0, count_include_pad=1)
        window = round((kernel * kernel) ** _AVERAGE_OF)
        return Feature(value, x.signal.pooled(lambda v: v.mean(axis=0), window))

    def add(self, parts: Sequence[Feature], *, name: str, output: str | None = None) -> Feature:
        """Sum of two features."""
        values = [part.value for part in parts]
        value = self.graph.op("Add", values, name=name, shape=values[0].shape, output=output)
        return Feature(value, signals.total([part.signal for part in parts]))

    def concat(self, parts: Sequence[Feature], *, name: str) -> Feature:
        """Features side by side along the channels."""
        channels = sum(part.channels for part in parts)
        shape = (self.batch, channels, *parts[0].size)
        value = self.graph.op("Concat", [part.value for part in parts], name=name, shape=shape, axis=1)
        return Feature(value, signals.concatenation([part.signal for part in parts]))

    def flatten(self, x: Feature, *, name: str) -> Feature:
        """(batch, C, H, W) → (batch, C·H·W)."""
        height, width = x.size
        positions = height * width
        shape = (self.batch, x.channels * positions)
        value = self.graph.op("Flatten", [x.value], name=name, shape=shape, axis=1)
        return Feature(value, Signal(np.repeat(x.signal.samples, positions, axis=0)))

    def global_pool(self, x: Feature, *, name: str) -> Feature:
        """Average over all positions, and flat."""
        height, width = x.size
        window = round((height * width) ** _GLOBAL_OF)
        shape = (self.batch, x.channels, 1, 1)
        value = self.graph.op("GlobalAveragePool", [x.value], name=name, shape=shape)
        return self.flatten(
            Feature(value, x.signal.pooled(lambda v: v.mean(axis=0), window)), name=f"{name}.flatten"
        )

    def linear(
        self, x: Feature, units: int, *, name: str, std: float = 1.0, output: str | None = None
    ) -> Feature:
        """Dense layer with bias whose outputs get the standard deviation `std`."""
        bias = filters.normal(self.graph.rng(f"{name}.bias"), units, 0.0, 0.1 * std)
        shape = (units, x.channels)
        want, moments = Moments(np.zeros(units), np.full(units, std**2)), x.signal.moments

        def make() -> filters.Weights:
            return filters.draw(self.graph.rng(f"{name}.weight"), (*shape, 1), moments, want).reshape(shape)

        inputs = [
            x.value,
            self.graph.lazy_weight(f"{name}.weight", shape, make),
            self.graph.weight(f"{name}.bias", bias),
        ]
        value = self.graph.op(
            "Gemm",
            inputs,
            name=name,
            shape=(self.batch, units),
            output=output,
            alpha=1.0,
            beta=1.0,
            transB=1,
        )
        drawn = signals.normal(self.graph.rng(f"{name}.output"), bias.astype(np.float64), np.full(units, std))
        return Feature(value, drawn)

    def finish(self, *outputs: Feature) -> Recipe:
        """Declare the outputs and return the recipe."""
        self.graph.output(*(feature.value for feature in outputs))
        return self.graph.finish()

    def _pool(
        self, op_type: str, x: Feature, kernel: int, stride: int, padding: int, name: str, **attributes: Any
    ) -> Value:
        shape = self._shape(x.channels, *x.size, (kernel, kernel), stride, (padding, padding))
        return self.graph.op(
            op_type,
            [x.value],
            name=name,
            shape=shape,
            kernel_shape=[kernel, kernel],
            pads=[padding] * 4,
            strides=[stride, stride],
            **attributes,
        )

    def _shape(
        self,
        channels: int,
        height: int,
        width: int,
        kernel: tuple[int, int],
        stride: int,
        padding: tuple[int, int],
    ) -> Dimensions:
        sizes = zip((height, width), kernel, padding, strict=True)
        return (self.batch, channels, *((size + 2 * pad - taps) // stride + 1 for size, taps, pad in sizes))


def _pair(value: Pair) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _seen(size: int, kernel: int, stride: int, padding: int) -> float:
    """Mean share of a kernel's taps that lie inside the image, along one axis."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    inside = [min(start + kernel, size) - max(start, 0) for start in starts]
    return math.fsum(inside) / (len(inside) * kernel)
