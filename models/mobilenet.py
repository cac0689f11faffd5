"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381), width 1.0, as torchvision builds it."""

from __future__ import annotations

from models.convnet import ConvNet, Feature
from models.graph import Recipe

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and first stride of each stage: table 2 of the paper."""


def mobilenet_v2(seed: int) -> Recipe:
    """MobileNet v2 for 224 × 224 images and 1000 classes."""
    net = ConvNet("mobilenet_v2", seed, surprise=1.075)
    x = _conv(net, net.image(224), 32, 3, "features.0", stride=2)
    index = 1
    for expansion, channels, blocks, first_stride in _STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            x = _inverted_residual(net, x, expansion, channels, stride, f"features.{index}")
            index += 1
    x = _conv(net, x, 1280, 1, f"features.{index}")
    x = net.global_pool(x, name="avgpool")
    return net.finish(net.linear(x, 1000, name="classifier.1", std=1.5, output="logits"))


def _inverted_residual(
    net: ConvNet, x: Feature, expansion: int, channels: int, stride: int, name: str
) -> Feature:
    wide = x.channels * expansion
    y = _conv(net, x, wide, 1, f"{name}.conv.0") if expansion != 1 else x
    first = 0 if expansion == 1 else 1
    y = _conv(net, y, wide, 3, f"{name}.conv.{first}", stride=stride, groups=wide)
    y = net.conv(y, channels, 1, name=f"{name}.conv.{first + 1}")
    residual = stride == 1 and x.channels == channels
    y = net.batch_norm(y, name=f"{name}.conv.{first + 2}", scale=0.5 if residual else 1.0, bias=0.0)
    return net.add([x, y], name=f"{name}.add") if residual else y


def _conv(
    net: ConvNet, x: Feature, channels: int, kernel: int, name: str, *, stride: int = 1, groups: int = 1
) -> Feature:
    x = net.conv(
        x, channels, kernel, name=f"{name}.0", stride=stride, padding=(kernel - 1) // 2, groups=groups
    )
    return net.relu6(net.batch_norm(x, name=f"{name}.1"), name=f"{name}.2")
