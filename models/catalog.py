"""Names, published figures and shapes of the reference networks: plain data, cheap to import."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from models.errors import UnknownModelError

Shapes = Mapping[str, tuple[int | str, ...]]

_TORCHVISION = "torchvision model documentation, https://docs.pytorch.org/vision/stable/models.html"


@dataclass(frozen=True, slots=True)
class Description:
    """What a reference network is, known without building it.

    Attributes:
        name: Its name in this room.
        kind: `zoo` for a published network, `tiny` for one that shows a single difficulty.
        summary: One line for a table.
        parameters: Number of trainable parameters (running statistics of batch norm are not counted).
        input_shapes: Shape of each input, by name and in order; a string is a free dimension.
        output_shapes: Shape of each output.
        source: Where the parameter count and the output shapes were published; empty for tiny ones.
        builder: Module of this room and its function that builds the network.
        dtypes: NumPy dtype names of the inputs that are not float32.
        sizes: A usual size for each free dimension other than the batch.
    """

    name: str
    kind: Literal["zoo", "tiny"]
    summary: str
    parameters: int
    input_shapes: Shapes
    output_shapes: Shapes
    source: str
    builder: tuple[str, str]
    dtypes: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def free_batch(self) -> bool:
        """Whether any batch size will do."""
        return any("batch" in shape for shape in self.input_shapes.values())


def _vision(
    name: str, module: str, summary: str, parameters: int, size: int = 224, source: str = ""
) -> Description:
    return Description(
        name=name,
        kind="zoo",
        summary=summary,
        parameters=parameters,
        input_shapes={"input": ("batch", 3, size, size)},
        output_shapes={"logits": ("batch", 1000)},
        source=source or f"{_TORCHVISION}: {name}",
        builder=(module, name),
    )


_TOKENS = ("batch", "sequence")

_BERT = Description(
    name="bert_base",
    kind="zoo",
    summary="BERT base, uncased, with pooler: 12 layers of width 768",
    parameters=109_482_240,
    input_shapes={"input_ids": _TOKENS, "attention_mask": _TOKENS, "token_type_ids": _TOKENS},
    output_shapes={"last_hidden_state": (*_TOKENS, 768), "pooler_output": ("batch", 768)},
    source="Hugging Face transformers, BertModel of https://huggingface.co/google-bert/bert-base-uncased; "
    "Devlin et al. 2018 (arXiv:1810.04805) round it to 110M",
    builder=("bert", "bert_base"),
    dtypes={"input_ids": "int64", "attention_mask": "int64", "token_type_ids": "int64"},
    sizes={"sequence": 128},
)


def _tiny(
    name: str,
    summary: str,
    parameters: int,
    inputs: Shapes,
    outputs: Shapes,
    *,
    module: str = "tiny",
    dtypes: Mapping[str, str] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Description:
    builder = (module, name)
    return Description(
        name, "tiny", summary, parameters, inputs, outputs, "", builder, dtypes or {}, sizes or {}
    )


_IMAGE: Shapes = {"input": (1, 3, 16, 16)}
_ROW: Shapes = {"input": (1, 16)}
_LOGITS: Shapes = {"logits": (1, 10)}

_ALL = (
    _vision("resnet50", "resnet", "ResNet-50 v1.5", 25_557_032),
    _vision("vgg16", "vgg", "VGG-16, configuration D", 138_357_544),
    _vision("vgg19", "vgg", "VGG-19, configuration E", 143_667_240),
    _vision("mobilenet_v2", "mobilenet", "MobileNet v2, width 1.0", 3_504_872),
    _vision("densenet121", "densenet", "DenseNet-121", 7_978_856),
    _vision(
        "inception_v3",
        "inception",
        "Inception v3, the graph of inference, without the auxiliary head",
        23_834_568,
        299,
        f"{_TORCHVISION}: inception_v3 counts 27,161,264 with the auxiliary head of training, whose "
        "3,326,696 are not part of inference; inception_v3(aux_logits=False) has the rest",
    ),
    _vision(
        "vit_b16",
        "vit",
        "Vision transformer, base, patches of 16 × 16",
        86_567_656,
        224,
        f"{_TORCHVISION}: vit_b_16",
    ),
    _BERT,
    _tiny("tiny_chain", "A chain of convolutions and a dense layer", 1_562, _IMAGE, _LOGITS),
    _tiny("tiny_residual", "Two residual blocks with batch norm", 2_682, _IMAGE, _LOGITS),
    _tiny("tiny_diamond", "Branches of unequal length that meet again", 1_646, _IMAGE, _LOGITS),
    _tiny(
        "tiny_two_inputs",
        "An image and a vector join in one network",
        1_034,
        {**_IMAGE, "context": (1, 8)},
        _LOGITS,
    ),
    _tiny(
        "tiny_late_input",
        "A second input that is first used near the end",
        898,
        {**_IMAGE, "bias": (1, 10)},
        _LOGITS,
    ),
    _tiny(
        "tiny_early_output",
        "An output made early, which the rest reads too",
        1_572,
        _IMAGE,
        {"early": (1, 10), **_LOGITS},
    ),
    _tiny("tiny_shared_weight", "One weight read by two ops far apart", 512, _ROW, {"output": (1, 16)}),
    _tiny(
        "tiny_initializer_inputs", "Initializers listed as graph inputs too", 442, _ROW, {"output": (1, 10)}
    ),
    _tiny(
        "tiny_constants",
        "Weights made by Constant, Transpose and ConstantOfShape nodes",
        160,
        _ROW,
        {"output": (1, 10)},
    ),
    _tiny(
        "tiny_dynamic_batch",
        "Batch and length free; shapes computed in the graph",
        768,
        {"input": ("batch", "length", 16)},
        {"output": ("batch", "length", 16)},
        module="tiny_special",
        sizes={"length": 12},
    ),
    _tiny(
        "tiny_int64",
        "Token ids in, logits and their int64 argmax out",
        1_760,
        {"input": (1, 12)},
        {**_LOGITS, "label": (1,)},
        module="tiny_special",
        dtypes={"input": "int64"},
    ),
    _tiny(
        "tiny_if",
        "If, whose bodies capture values of the graph around",
        1_024,
        _ROW,
        {"output": (1, 16)},
        module="tiny_special",
    ),
    _tiny(
        "tiny_loop",
        "Loop, whose body captures, with a carried state and a scan output",
        1_024,
        _ROW,
        {"output": (1, 16), "trajectory": (3, 1, 16)},
        module="tiny_special",
    ),
    _tiny(
        "tiny_function",
        "A model-local function, called twice",
        768,
        _ROW,
        {"output": (1, 16)},
        module="tiny_special",
    ),
    _tiny(
        "tiny_float16",
        "float16 from end to end",
        704,
        _ROW,
        {"output": (1, 10)},
        module="tiny_special",
        dtypes={"input": "float16"},
    ),
    _tiny(
        "tiny_quantized",
        "QuantizeLinear and DequantizeLinear around int8 convolutions",
        2_124,
        _IMAGE,
        _LOGITS,
        module="tiny_special",
    ),
)

_BY_NAME = {description.name: description for description in _ALL}

NAMES: tuple[str, ...] = tuple(_BY_NAME)
"""All names: the zoo first, then the tiny ones."""


def describe(name: str) -> Description:
    """What the network is.

    Raises:
        UnknownModelError: There is none of that name.
    """
    found = _BY_NAME.get(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"the names are {', '.join(NAMES)}"
    raise UnknownModelError(f"there is no reference network called {name!r}", hint=hint)
