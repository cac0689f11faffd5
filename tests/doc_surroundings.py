"""What the pages take to be there when their commands are run: ports, small models, other people's packages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def small_models(folder: Path) -> None:
    """Models with the names and shapes that the pages speak of, and next to nothing inside."""
    for name in ("my", "resnet50", "resnet", "resnet-new", "model"):
        vision(folder / f"{name}.onnx", "batch" if name == "model" else 1)
    value = helper.make_tensor_value_info
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    save(
        folder / "add.onnx",
        [helper.make_node("Add", ["x", "one"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
        [one],
    )
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["logits"], to=TensorProto.FLOAT),
    ]
    inputs = [value(name, TensorProto.INT64, [1, 5]) for name in ("input_ids", "attention_mask")]
    save(folder / "bert.onnx", nodes, inputs, [value("logits", TensorProto.FLOAT, [1, 5])], [])
    (folder / "x.bin").write_bytes(np.ones(2, np.float32).tobytes())
    np.save(folder / "image.npy", np.zeros((1, 3, 224, 224), np.float32))


def vision(path: Path, batch: int | str) -> None:
    value = helper.make_tensor_value_info
    weight = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["input"], ["pooled"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Relu", ["pooled"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    save(
        path,
        nodes,
        [value("input", TensorProto.FLOAT, [batch, 3, 224, 224])],
        [value("logits", TensorProto.FLOAT, [batch, 1000])],
        [numpy_helper.from_array(weight, "weight")],
    )


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: list) -> None:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def stand_ins(folder: Path) -> None:
    """Other people's packages and machines, as far as the pages call them; what is ours is real."""
    (folder / "cv2.py").write_text(
        "import numpy as np\n"
        "class VideoCapture:\n"
        "    def __init__(self, number): self.left = 3\n"
        "    def read(self):\n"
        "        self.left -= 1\n"
        "        return self.left >= 0, np.zeros((480, 640, 3), np.uint8)\n"
        "def resize(image, size): return image[:size[1], :size[0]]\n"
    )
    (folder / "tokenizers.py").write_text(
        "class Tokenizer:\n"
        "    ids, attention_mask = [101, 7, 8, 9, 102], [1] * 5\n"
        "    from_file = classmethod(lambda cls, path: cls())\n"
        "    def encode(self, text): return self\n"
    )
    (folder / "torch.py").write_text(
        "import numpy as np\n"
        "class Tensor:\n"
        "    def __init__(self, array): self.array = array\n"
        "    def __dlpack__(self, **more): return self.array.__dlpack__(**more)\n"
        "    def __dlpack_device__(self): return self.array.__dlpack_device__()\n"
        "def rand(*shape): return Tensor(np.random.default_rng(0).random(shape, np.float32))\n"
    )
    ssh = folder / "ssh"
    ssh.write_text(
        '#!/bin/sh\nshift\ncd "$REMOTE"\n'
        'export HOME="$REMOTE" DEFER_KEYS="$REMOTE/.config/defer/keys"\nexec bash -c "$*"\n'
    )
    ssh.chmod(0o755)
