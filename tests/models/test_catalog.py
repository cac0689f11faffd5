"""Names and descriptions, checked against the graphs that they describe (whose weights need not be made)."""

import subprocess
import sys
from pathlib import Path

import pytest

import models
from models.building import recipe

ROOT = Path(models.__file__).parent.parent

# torchvision model documentation (https://docs.pytorch.org/vision/stable/models.html) and Hugging Face's BertModel.
PUBLISHED = {
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "mobilenet_v2": 3_504_872,
    "densenet121": 7_978_856,
    "inception_v3": 27_161_264 - 3_326_696,  # less the auxiliary head
    "vit_b16": 86_567_656,
    "bert_base": 109_482_240,
}


def test_the_zoo_comes_first_and_the_tiny_ones_say_so():
    kinds = [models.describe(name).kind for name in models.NAMES]
    assert kinds == sorted(kinds, reverse=True)
    assert models.NAMES[: len(PUBLISHED)] == tuple(PUBLISHED)
    assert all(name.startswith("tiny_") for name in models.NAMES[len(PUBLISHED) :])


def test_the_auxiliary_head_of_inception_has_what_was_taken_off():
    def conv_and_norm(inputs, outputs, taps):
        return inputs * outputs * taps + 2 * outputs

    assert conv_and_norm(768, 128, 1) + conv_and_norm(128, 768, 25) + 768 * 1000 + 1000 == 3_326_696


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    assert recipe(name).parameters == models.describe(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", models.NAMES)
def test_descriptions_are_true(name):
    description = models.describe(name)
    made = recipe(name)
    graph = made.model.graph
    listed = {weight.name for weight in made.weights}
    inputs = {info.name: info for info in graph.input if info.name not in listed}
    assert description.input_shapes == {key: shape_of(info) for key, info in inputs.items()}
    assert list(description.input_shapes) == list(inputs)
    assert description.output_shapes == {info.name: shape_of(info) for info in graph.output}
    assert made.parameters == description.parameters
    assert description.summary
    assert bool(description.source) == (description.kind == "zoo")
    for key in inputs:
        assert models.example_inputs(name)[key].dtype == description.dtypes.get(key, "float32")


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_zoo_model_has_a_free_batch(name):
    description = models.describe(name)
    assert description.free_batch
    for shapes in (description.input_shapes, description.output_shapes):
        assert all(shape[0] == "batch" for shape in shapes.values())


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("resnet-50", "did you mean 'resnet50'?"),
        ("ViT_B_16", "did you mean 'vit_b16'?"),
        ("", "the names are resnet50"),
    ],
)
def test_an_unknown_name_gets_the_closest_one(wrong, hint):
    for ask in (models.describe, models.build, models.example_inputs):
        with pytest.raises(models.UnknownModelError) as caught:
            ask(wrong)
        assert repr(wrong) in str(caught.value)
        assert hint in caught.value.hint
        assert caught.value.code == "unknown-model"


def test_errors_have_codes_of_their_own():
    errors = models.ModelsError.__subclasses__()
    assert len({error.code for error in errors}) == len(errors) == 4


def test_asking_for_names_loads_neither_numpy_nor_onnx():
    run(
        "import models, sys; models.describe(models.NAMES[0]); assert not {'numpy', 'onnx'} & set(sys.modules)"
    )


def test_without_onnx_the_error_names_the_extra():
    run(
        "import sys; sys.modules['onnx'] = None\n"
        "import models\n"
        "try: models.build('tiny_chain')\n"
        "except models.MissingPackageError as error: assert 'onnx' in str(error) and 'planner' in error.hint\n"
        "else: raise SystemExit('no error')"
    )


def run(code):
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def shape_of(info):
    return tuple(dim.dim_param or dim.dim_value for dim in info.type.tensor_type.shape.dim)
