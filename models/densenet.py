"""DenseNet-121 (Huang et al. 2016, arXiv:1608.06993) as torchvision builds it."""

from __future__ import annotations

from models.convnet import ConvNet, Feature
from models.graph import Recipe

_GROWTH, _BOTTLENECK = 32, 4
_BLOCKS = (6, 12, 24, 16)


def densenet121(seed: int) -> Recipe:
    """DenseNet-121 for 224 × 224 images and 1000 classes."""
    net = ConvNet("densenet121", seed)
    x = net.conv(net.image(224), 2 * _GROWTH, 7, name="features.conv0", stride=2, padding=3)
    x = net.relu(net.batch_norm(x, name="features.norm0"), name="features.relu0")
    x = net.max_pool(x, 3, 2, name="features.pool0", padding=1)
    for number, layers in enumerate(_BLOCKS, start=1):
        x = _dense_block(net, x, layers, f"features.denseblock{number}")
        if number < len(_BLOCKS):
            x = _transition(net, x, f"features.transition{number}")
    x = net.relu(net.batch_norm(x, name="features.norm5"), name="relu")
    x = net.global_pool(x, name="avgpool")
    return net.finish(net.linear(x, 1000, name="classifier", std=1.5, output="logits"))


def _dense_block(net: ConvNet, x: Feature, layers: int, block: str) -> Feature:
    """Each layer reads all features before it, so each but the first starts with a Concat of all of them."""
    features = [x]
    for layer in range(1, layers + 1):
        name = f"{block}.denselayer{layer}"
        y = net.concat(features, name=f"{name}.concat") if len(features) > 1 else x
        y = net.relu(net.batch_norm(y, name=f"{name}.norm1"), name=f"{name}.relu1")
        y = net.conv(y, _BOTTLENECK * _GROWTH, 1, name=f"{name}.conv1")
        y = net.relu(net.batch_norm(y, name=f"{name}.norm2"), name=f"{name}.relu2")
        features.append(net.conv(y, _GROWTH, 3, name=f"{name}.conv2", padding=1))
    return net.concat(features, name=f"{block}.concat")


def _transition(net: ConvNet, x: Feature, name: str) -> Feature:
    x = net.relu(net.batch_norm(x, name=f"{name}.norm"), name=f"{name}.relu")
    x = net.conv(x, x.channels // 2, 1, name=f"{name}.conv")
    return net.average_pool(x, 2, 2, name=f"{name}.pool")
