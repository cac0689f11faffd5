"""Block times that add up: a device whose cuts cost something is found out by its spans."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from defer.block_profiling import BLOCK_COSTS, BlockCosts
from defer.documents.profile import CodecProfile
from defer.span_costs import Adding, Span, _least_squares, adding_up, levels, slowed

SECONDS = st.floats(1e-4, 0.1)


def test_levels_halve_until_a_span_is_short() -> None:
    assert list(levels(1)) == []
    assert list(levels(2)) == [((0, 2),)]
    assert list(levels(5)) == [((0, 5),), ((0, 2), (2, 5))]
    assert [len(level) for level in levels(64)] == [1, 2, 4, 8]
    assert list(levels(64))[-1][-1] == (56, 64)


@given(
    st.lists(st.tuples(SECONDS, st.integers(1, 10**6)), min_size=2, max_size=40), SECONDS, st.floats(0, 1e-8)
)
def test_the_truth_is_found_where_cuts_cost_what_the_model_says(
    rows: list[tuple[float, int]], per_cut: float, per_byte: float
) -> None:
    sizes = [size for _, size in rows] + [7]
    cuts = [0.0] + [per_cut + per_byte * size for size in sizes[1:-1]] + [0.0]
    truth = Adding(tuple(seconds for seconds, _ in rows), tuple(cuts))
    count = len(rows)
    alone = [truth.seconds(block, block + 1) for block in range(count)]
    spans = [Span(a, b, truth.seconds(a, b)) for level in levels(count) for a, b in level]
    found = adding_up(alone, sizes, spans)
    for span in spans:
        assert found.seconds(span.start, span.stop) == pytest.approx(span.seconds, rel=0.05)
    assert found.seconds(0, count) == pytest.approx(sum(truth.blocks), rel=0.05)


def test_blocks_that_add_up_already_stay_as_they_are() -> None:
    alone = [0.01, 0.02, 0.03, 0.04]
    spans = [Span(0, 4, 0.1), Span(0, 2, 0.03), Span(2, 4, 0.07)]
    found = adding_up(alone, [10, 20, 30, 40, 50], spans)
    assert found.blocks == pytest.approx(alone)
    assert found.cuts == pytest.approx([0.0] * 5)


def test_a_span_is_never_slower_than_its_blocks() -> None:
    found = adding_up([0.01, 0.01], [1, 1, 1], [Span(0, 2, 0.03)])
    assert found.cuts == (0.0, 0.0, 0.0)
    assert found.seconds(0, 2) == pytest.approx(0.02)


def test_without_spans_nothing_changes() -> None:
    assert adding_up([0.5, 0.25], [1, 2, 3], []) == Adding((0.5, 0.25), (0.0, 0.0, 0.0))


def test_company_makes_the_blocks_of_a_span_slower_by_one_factor() -> None:
    alone = Adding((0.01, 0.02, 0.03, 0.04), (0.0, 0.0, 0.002, 0.0, 0.0))
    found = slowed(alone, [Span(0, 2, 0.046), Span(2, 4, 0.05)])
    assert found.seconds(0, 2) == pytest.approx(0.046)
    assert found.blocks[1] == pytest.approx(2 * found.blocks[0])
    assert found.blocks[2:] == pytest.approx(alone.blocks[2:]), "company helps nobody"
    assert found.cuts == alone.cuts


def test_company_slows_codecs_and_moving_as_much_as_the_spans_on_the_whole() -> None:
    codec = CodecProfile(encode_s=(0.0, 0.1, 0.0), decode_s=(0.0, 0.2, 0.0))
    costs = BlockCosts(BLOCK_COSTS, "e", (0.1, 0.3), (1, 1), {"c": codec}, {}, 1e-3, 1e-9)
    found = costs.beside([Span(0, 1, 0.2), Span(1, 2, 0.3)])
    assert found.block_seconds == pytest.approx((0.2, 0.3))
    assert found.codecs["c"].decode_s == pytest.approx((0.0, 0.25, 0.0))
    assert (found.item_s, found.byte_s) == pytest.approx((1.25e-3, 1.25e-9))
    assert costs.beside([]) == costs


@given(
    st.lists(st.tuples(st.integers(1, 20), st.floats(0, 2), st.floats(-0.1, 0.1)), min_size=1, max_size=15)
)
def test_what_cuts_cost_is_fitted_as_the_known_solver_does(rows: list[tuple[int, float, float]]) -> None:
    matrix = np.array([[cuts, size] for cuts, size, _ in rows], np.float64)
    wanted = np.array([excess for *_, excess in rows])
    found = np.array(_least_squares(matrix, wanted))
    _, known = nnls(matrix, wanted)
    assert (found >= 0).all()
    assert np.linalg.norm(matrix @ found - wanted) == pytest.approx(known, rel=1e-6, abs=1e-9)
