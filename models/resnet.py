"""ResNet-50 (He et al. 2015, arXiv:1512.03385) as torchvision builds it: version 1.5, stride in the 3×3."""

from __future__ import annotations

from models.convnet import ConvNet, Feature
from models.graph import Recipe

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
_EXPANSION = 4

_BRANCH = 0.12
"""What a branch adds to the stream, relative to one: keeps it of order one over a stage of six blocks.

Small, as where training starts from branches of zero (Goyal et al. 2017, arXiv:1706.02677). With 0.5 the network is
chaotic, as no trained one is: a change of the input grows 120-fold on its way to the logits, here
5-fold.
"""


def resnet50(seed: int) -> Recipe:
    """ResNet-50 for 224 × 224 images and 1000 classes."""
    net = ConvNet("resnet50", seed)
    x = net.conv(net.image(224), 64, 7, name="conv1", stride=2, padding=3)
    x = net.relu(net.batch_norm(x, name="bn1"), name="relu")
    x = net.max_pool(x, 3, 2, name="maxpool", padding=1)
    for stage, (width, blocks) in enumerate(_STAGES, start=1):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _bottleneck(net, x, width, stride, f"layer{stage}.{block}", downsample=block == 0)
    x = net.global_pool(x, name="avgpool")
    return net.finish(net.linear(x, 1000, name="fc", std=1.5, output="logits"))


def _bottleneck(net: ConvNet, x: Feature, width: int, stride: int, name: str, *, downsample: bool) -> Feature:
    y = net.conv(x, width, 1, name=f"{name}.conv1")
    y = net.relu(net.batch_norm(y, name=f"{name}.bn1"), name=f"{name}.relu1")
    y = net.conv(y, width, 3, name=f"{name}.conv2", stride=stride, padding=1)
    y = net.relu(net.batch_norm(y, name=f"{name}.bn2"), name=f"{name}.relu2")
    y = net.conv(y, _EXPANSION * width, 1, name=f"{name}.conv3")
    y = net.batch_norm(y, name=f"{name}.bn3", scale=_BRANCH, bias=-0.3)
    if downsample:
        x = net.conv(x, _EXPANSION * width, 1, name=f"{name}.downsample.0", stride=stride)
        x = net.batch_norm(x, name=f"{name}.downsample.1")
    return net.relu(net.add([y, x], name=f"{name}.add"), name=f"{name}.relu")
