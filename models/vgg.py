"""VGG-16 and VGG-19 (Simonyan & Zisserman 2014, arXiv:1409.1556), as torchvision builds them without batch norm.

Dropout is left out, being nothing in inference, and so is the adaptive pooling to 7 × 7, which changes nothing at
this image size.
"""

from __future__ import annotations

from models.convnet import ConvNet
from models.graph import Recipe

_WIDTHS = (64, 128, 256, 512, 512)


def vgg16(seed: int) -> Recipe:
    """VGG-16, configuration D, for 224 × 224 images and 1000 classes."""
    return _vgg("vgg16", seed, (2, 2, 3, 3, 3))


def vgg19(seed: int) -> Recipe:
    """VGG-19, configuration E, for 224 × 224 images and 1000 classes."""
    return _vgg("vgg19", seed, (2, 2, 4, 4, 4))


def _vgg(name: str, seed: int, depths: tuple[int, ...]) -> Recipe:
    net = ConvNet(name, seed)
    x = net.image(224)
    index = 0
    for width, depth in zip(_WIDTHS, depths, strict=True):
        for _ in range(depth):
            x = net.conv(x, width, 3, name=f"features.{index}", padding=1, bias=True)
            x = net.relu(x, name=f"features.{index + 1}")
            index += 2
        x = net.max_pool(x, 2, 2, name=f"features.{index}")
        index += 1
    x = net.flatten(x, name="flatten")
    for layer in (0, 3):
        x = net.linear(x, 4096, name=f"classifier.{layer}")
        x = net.relu(x, name=f"classifier.{layer + 1}")
    return net.finish(net.linear(x, 1000, name="classifier.6", std=1.5, output="logits"))
