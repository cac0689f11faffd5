"""Which shapes an engine is built for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.engines.profiles import Bounds, admits, choose_profile, parse_range
from node_agent.errors import LoadFailedError
from node_agent.messages import TensorSpec

IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 8))
TOKENS = TensorSpec("ids", "int64", ("batch", "sequence"))


def test_a_fixed_shape_needs_no_range():
    spec = TensorSpec("x", "float32", (2, 3))
    assert choose_profile([spec])["x"] == Bounds((2, 3), (2, 3), (2, 3))
    assert choose_profile([spec])["x"].fixed


def test_a_free_batch_gets_a_range():
    assert choose_profile([IMAGE])["image"] == Bounds((1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8))


def test_the_usual_shape_is_what_kernels_are_chosen_for_and_stretches_the_range():
    profile = choose_profile([TOKENS], {"ids": (32, 77)})
    assert profile["ids"] == Bounds((1, 1), (32, 77), (32, 512))


def test_an_option_binds_a_dimension_wherever_it_occurs():
    profile = choose_profile([IMAGE, TOKENS], {"ids": (32, 77)}, {"dim.batch": "2:4:6", "slots": "3"})
    assert profile["image"] == Bounds((2, 3, 8, 8), (4, 3, 8, 8), (6, 3, 8, 8))
    assert profile["ids"] == Bounds((2, 1), (4, 77), (6, 512))


def test_a_scalar():
    assert choose_profile([TensorSpec("t", "float32", ())])["t"] == Bounds((), (), ())


@pytest.mark.parametrize(("text", "numbers"), [("4", (4, 4, 4)), ("1:8", (1, 8, 8)), ("1:4:16", (1, 4, 16))])
def test_ranges(text, numbers):
    assert parse_range(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "0", "4:2", "1:2:3:4", "2:1:3", "-1:1"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(LoadFailedError, match="range"):
        parse_range(text)


def test_a_usual_shape_of_another_rank_is_refused():
    with pytest.raises(LoadFailedError, match="2 dimensions, not 1"):
        choose_profile([TOKENS], {"ids": (4,)})


@pytest.mark.parametrize(
    ("shapes", "part"),
    [
        ({"image": (1, 3, 8, 8)}, ""),
        ({"image": (8, 3, 8, 8)}, ""),
        ({"image": (9, 3, 8, 8)}, "[1, 3, 8, 8] to [8, 3, 8, 8]"),
        ({"image": (0, 3, 8, 8)}, "outside"),
        ({"image": (1, 3, 8)}, "outside"),
        ({}, "missing"),
    ],
)
def test_what_a_profile_admits(shapes, part):
    reason = admits(choose_profile([IMAGE]), shapes)
    assert bool(reason) == bool(part)
    assert part in reason


@given(
    dims=st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["a", "b"])), max_size=4),
    data=st.data(),
)
def test_the_usual_shape_is_always_admitted(dims, data):
    spec = TensorSpec("x", "float32", tuple(dims))
    usual = tuple(dim if isinstance(dim, int) else data.draw(st.integers(1, 2000)) for dim in dims)
    profile = choose_profile([spec], {"x": usual})
    assert admits(profile, {"x": usual}) == ""
    bounds = profile["x"]
    assert all(a <= b <= c for a, b, c in zip(bounds.least, bounds.usual, bounds.greatest, strict=True))
