"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567) as torchvision builds it, without the auxiliary head.

The auxiliary classifier takes part in training only, so no exported inference graph has it.
"""

from __future__ import annotations

from models.convnet import ConvNet, Feature, Pair
from models.graph import Recipe

_EPSILON = 1e-3


def inception_v3(seed: int) -> Recipe:
    """Inception v3 for 299 × 299 images and 1000 classes."""
    net = ConvNet("inception_v3", seed, surprise=1.035)
    x = _conv(net, net.image(299), 32, 3, "Conv2d_1a_3x3", stride=2)
    x = _conv(net, x, 32, 3, "Conv2d_2a_3x3")
    x = _conv(net, x, 64, 3, "Conv2d_2b_3x3", padding=1)
    x = net.max_pool(x, 3, 2, name="maxpool1")
    x = _conv(net, x, 80, 1, "Conv2d_3b_1x1")
    x = _conv(net, x, 192, 3, "Conv2d_4a_3x3")
    x = net.max_pool(x, 3, 2, name="maxpool2")
    for name, width in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = _block_a(net, x, width, name)
    x = _block_b(net, x, "Mixed_6a")
    for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = _block_c(net, x, width, name)
    x = _block_d(net, x, "Mixed_7a")
    for name in ("Mixed_7b", "Mixed_7c"):
        x = _block_e(net, x, name)
    x = net.global_pool(x, name="avgpool")
    return net.finish(net.linear(x, 1000, name="fc", std=1.5, output="logits"))


def _block_a(net: ConvNet, x: Feature, pool_width: int, name: str) -> Feature:
    one = _conv(net, x, 64, 1, f"{name}.branch1x1")
    five = _conv(net, x, 48, 1, f"{name}.branch5x5_1")
    five = _conv(net, five, 64, 5, f"{name}.branch5x5_2", padding=2)
    three = _conv(net, x, 64, 1, f"{name}.branch3x3dbl_1")
    three = _conv(net, three, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    three = _conv(net, three, 96, 3, f"{name}.branch3x3dbl_3", padding=1)
    return net.concat([one, five, three, _pooled(net, x, pool_width, name)], name=f"{name}.concat")


def _block_b(net: ConvNet, x: Feature, name: str) -> Feature:
    three = _conv(net, x, 384, 3, f"{name}.branch3x3", stride=2)
    double = _conv(net, x, 64, 1, f"{name}.branch3x3dbl_1")
    double = _conv(net, double, 96, 3, f"{name}.branch3x3dbl_2", padding=1)
    double = _conv(net, double, 96, 3, f"{name}.branch3x3dbl_3", stride=2)
    pool = net.max_pool(x, 3, 2, name=f"{name}.branch_pool")
    return net.concat([three, double, pool], name=f"{name}.concat")


def _block_c(net: ConvNet, x: Feature, width: int, name: str) -> Feature:
    one = _conv(net, x, 192, 1, f"{name}.branch1x1")
    seven = _conv(net, x, width, 1, f"{name}.branch7x7_1")
    seven = _conv(net, seven, width, (1, 7), f"{name}.branch7x7_2", padding=(0, 3))
    seven = _conv(net, seven, 192, (7, 1), f"{name}.branch7x7_3", padding=(3, 0))
    double = _conv(net, x, width, 1, f"{name}.branch7x7dbl_1")
    double = _conv(net, double, width, (7, 1), f"{name}.branch7x7dbl_2", padding=(3, 0))
    double = _conv(net, double, width, (1, 7), f"{name}.branch7x7dbl_3", padding=(0, 3))
    double = _conv(net, double, width, (7, 1), f"{name}.branch7x7dbl_4", padding=(3, 0))
    double = _conv(net, double, 192, (1, 7), f"{name}.branch7x7dbl_5", padding=(0, 3))
    return net.concat([one, seven, double, _pooled(net, x, 192, name)], name=f"{name}.concat")


def _block_d(net: ConvNet, x: Feature, name: str) -> Feature:
    three = _conv(net, x, 192, 1, f"{name}.branch3x3_1")
    three = _conv(net, three, 320, 3, f"{name}.branch3x3_2", stride=2)
    seven = _conv(net, x, 192, 1, f"{name}.branch7x7x3_1")
    seven = _conv(net, seven, 192, (1, 7), f"{name}.branch7x7x3_2", padding=(0, 3))
    seven = _conv(net, seven, 192, (7, 1), f"{name}.branch7x7x3_3", padding=(3, 0))
    seven = _conv(net, seven, 192, 3, f"{name}.branch7x7x3_4", stride=2)
    pool = net.max_pool(x, 3, 2, name=f"{name}.branch_pool")
    return net.concat([three, seven, pool], name=f"{name}.concat")


def _block_e(net: ConvNet, x: Feature, name: str) -> Feature:
    one = _conv(net, x, 320, 1, f"{name}.branch1x1")
    three = _conv(net, x, 384, 1, f"{name}.branch3x3_1")
    three = _fork(net, three, f"{name}.branch3x3_2")
    double = _conv(net, x, 448, 1, f"{name}.branch3x3dbl_1")
    double = _conv(net, double, 384, 3, f"{name}.branch3x3dbl_2", padding=1)
    double = _fork(net, double, f"{name}.branch3x3dbl_3")
    return net.concat([one, three, double, _pooled(net, x, 192, name)], name=f"{name}.concat")


def _fork(net: ConvNet, x: Feature, name: str) -> Feature:
    wide = _conv(net, x, 384, (1, 3), f"{name}a", padding=(0, 1))
    high = _conv(net, x, 384, (3, 1), f"{name}b", padding=(1, 0))
    return net.concat([wide, high], name=f"{name}.concat")


def _pooled(net: ConvNet, x: Feature, width: int, name: str) -> Feature:
    pool = net.average_pool(x, 3, 1, name=f"{name}.avg_pool", padding=1)
    return _conv(net, pool, width, 1, f"{name}.branch_pool")


def _conv(
    net: ConvNet, x: Feature, channels: int, kernel: Pair, name: str, *, stride: int = 1, padding: Pair = 0
) -> Feature:
    x = net.conv(x, channels, kernel, name=f"{name}.conv", stride=stride, padding=padding)
    return net.relu(net.batch_norm(x, name=f"{name}.bn", epsilon=_EPSILON), name=f"{name}.relu")
