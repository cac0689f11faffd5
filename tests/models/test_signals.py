"""Foretold statistics, held against what many random values show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import filters, signals
from models.signals import Moments, Signal


def rng(seed=0):
    return np.random.default_rng(seed)


def test_normal_signals_have_exactly_the_moments_asked_for():
    mean, std = np.array([0.0, -2.0, 5.0]), np.array([1.0, 0.1, 3.0])
    signal = signals.normal(rng(), mean, std)
    np.testing.assert_allclose(signal.mean, mean, atol=1e-12)
    np.testing.assert_allclose(signal.var, std**2, rtol=1e-12)
    assert signal.channels == 3


def test_rectified_signals_have_the_moments_of_the_rectified_normal_distribution():
    rectified = signals.normal(rng(), np.zeros(500), np.ones(500)).rectified()
    assert rectified.mean.mean() == pytest.approx(1 / np.sqrt(2 * np.pi), abs=0.01)
    assert rectified.var.mean() == pytest.approx(0.5 - 1 / (2 * np.pi), abs=0.01)


def test_scaled_signals_have_the_scale_and_bias_of_the_norm():
    signal = signals.normal(rng(), np.full(4, 3.0), np.full(4, 2.0)).rectified()
    scaled = signal.scaled(np.arange(4.0), np.full(4, 0.5))
    np.testing.assert_allclose(scaled.mean, np.arange(4.0), atol=1e-12)
    np.testing.assert_allclose(scaled.var, 0.25, rtol=1e-12)


@pytest.mark.parametrize(("window", "expected"), [(1, 0.0), (4, 1.03), (7, 1.35)])
def test_a_maximum_of_independent_values_is_that_of_order_statistics(window, expected):
    pooled = signals.normal(rng(), np.zeros(500), np.ones(500)).pooled(lambda v: v.max(axis=0), window)
    assert pooled.mean.mean() == pytest.approx(expected, abs=0.02)


def test_an_average_of_independent_values_loses_variance():
    pooled = signals.normal(rng(), np.ones(500), np.ones(500)).pooled(lambda v: v.mean(axis=0), 4)
    assert pooled.mean.mean() == pytest.approx(1)
    assert pooled.var.mean() == pytest.approx(0.25, abs=0.01)


def test_sums_and_concatenations():
    a, b = (signals.normal(rng(seed), np.full(300, seed), np.ones(300)) for seed in (1, 2))
    both = signals.total([a, b])
    assert both.mean.mean() == pytest.approx(3)
    assert both.var.mean() == pytest.approx(2, abs=0.02)
    assert signals.concatenation([a, b]).channels == 600


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(24, 200),
    st.sampled_from([1, 3, 9]),
    st.floats(0.05, 3),
    st.floats(-1, 1),
)
def test_filters_make_the_moments_asked_for(seed, channels, taps, std, mean):
    x = Moments(np.abs(rng(seed).standard_normal(channels)) + 0.1, rng(seed + 1).uniform(0.2, 2, channels))
    count = 64
    weights = filters.draw(
        rng(seed), (count, channels, taps), x, Moments(np.full(count, mean), np.full(count, std**2))
    )
    assert weights.dtype == np.float32
    # For independent inputs: the mean is exact, the variance right on average over the filters.
    made = np.einsum("oik,i->o", weights.astype(np.float64), x.mean)
    np.testing.assert_allclose(made, mean, atol=1e-4 * max(1, std) * channels * taps)
    of_mean = (mean * x.mean / (np.sum(x.mean**2) * taps)) ** 2 @ x.var * taps
    var = np.einsum("oik,i->o", weights.astype(np.float64) ** 2, x.var).mean()
    assert var == pytest.approx(std**2 + of_mean, rel=0.25)


def test_filters_drawn_in_chunks_are_those_drawn_at_once(monkeypatch):
    x, want = Moments(np.ones(8), np.ones(8)), Moments(np.zeros(40), np.ones(40))
    whole = filters.draw(rng(), (40, 8, 9), x, want)
    monkeypatch.setattr(filters, "_CHUNK", 8 * 9 * 3)
    np.testing.assert_array_equal(filters.draw(rng(), (40, 8, 9), x, want), whole)


def test_depthwise_filters_say_what_means_they_make():
    x = signals.normal(rng(), np.full(16, 0.5), np.full(16, 2.0))
    std = np.full(16, 1.5)
    weights, mean = filters.draw_depthwise(rng(), 9, x.moments, std, seen=1.0)
    assert weights.shape == (16, 1, 9)
    np.testing.assert_allclose(weights.sum(axis=(1, 2)) * 0.5, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose((weights.astype(float) ** 2).sum(axis=(1, 2)) * 4, std**2, rtol=1e-5)


def test_flat_signals_keep_their_samples():
    signal = Signal(np.arange(2.0 * signals.SAMPLES).reshape(2, -1))
    assert signal.map(np.negative).mean.tolist() == (-signal.mean).tolist()
