"""Example inputs fit their models and look like what the models would meet."""

import numpy as np
import pytest

import models


@pytest.mark.parametrize("name", models.NAMES)
def test_inputs_have_the_declared_names_and_shapes(name):
    description = models.describe(name)
    batch = 3 if description.free_batch else 1
    inputs = models.example_inputs(name, batch=batch)
    bound = {"batch": batch, **description.sizes}
    assert list(inputs) == list(description.input_shapes)
    for key, shape in description.input_shapes.items():
        assert inputs[key].shape == tuple(bound.get(size, size) for size in shape)


@pytest.mark.parametrize("name", ["resnet50", "bert_base", "tiny_int64"])
def test_a_seed_gives_the_same_inputs_and_another_gives_others(name):
    first, again, other = (next(iter(models.example_inputs(name, seed=seed).values())) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_images_are_standardised():
    image = models.example_inputs("inception_v3", batch=2)["input"]
    assert image.shape == (2, 3, 299, 299)
    assert image.mean() == pytest.approx(0, abs=0.01)
    assert image.std() == pytest.approx(1, abs=0.01)
    assert np.abs(image[0] - image[1]).mean() > 0.5


@pytest.mark.parametrize("sequence", [1, 2, 7, 128])
def test_sentences_look_like_a_tokenizers(sequence):
    made = models.example_inputs("bert_base", batch=8, sizes={"sequence": sequence})
    ids, mask, segments = (made[key] for key in ("input_ids", "attention_mask", "token_type_ids"))
    assert ids.shape == mask.shape == segments.shape == (8, sequence)
    assert (ids[:, 0] == 101).all()
    assert ((ids >= 0) & (ids < 30_522)).all()
    assert mask[0].all()
    assert (np.diff(mask, axis=1) <= 0).all(), "padding comes last"
    assert (ids[mask == 0] == 0).all()
    assert (segments <= mask).all()
    if sequence == 128:
        assert set(np.unique(segments)) == {0, 1}
        assert not mask.all()
        assert ((ids == 102).sum(axis=1) >= 2).all()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tiny_chain", {"batch": 2}, "fixed batch of 1, not 2"),
        ("resnet50", {"batch": 0}, "batch of 'resnet50' is 0"),
        ("resnet50", {"sizes": {"sequence": 4}}, "no free dimension 'sequence'"),
        ("bert_base", {"sizes": {"sequence": 0}}, "sequence of 'bert_base' is 0"),
        ("bert_base", {"sizes": {"sequence": 513}}, "at most 512"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name, arguments, message):
    with pytest.raises(models.WrongArgumentError, match=message) as caught:
        models.example_inputs(name, **arguments)
    assert caught.value.hint
