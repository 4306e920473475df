"""Estimators on curves whose answers are known."""

import numpy as np
import pytest
import xarray as xr

from uturn.statistics import crossing, estimate, grammar_means, inversion, resampled_curves, shift, transition

X = np.linspace(0, 1, 101)


def logistic(centre, width):
    return 1 / (1 + np.exp((X - centre) / width))


def test_crossing():
    assert crossing([0, 1, 2], [1, 0.5, 0], 0.25) == pytest.approx(1.5)
    assert np.isnan(crossing([0, 1], [1, 0.5], 0.25))
    assert crossing([0, 1, 2, 3], [1, 0, 1, 0], 0.5) == pytest.approx(2.5)  # the last fall
    assert crossing([0, 1, 2, 3], [1, 0, 1, 0], 0.5, first=True) == pytest.approx(0.5)


def test_transition_of_a_logistic():
    found = transition(X, logistic(0.4, 0.03), 1.0, 0.0)
    assert found.location == pytest.approx(0.4, abs=1e-3)
    assert found.width == pytest.approx(2 * np.log(3) * 0.03, rel=0.02)
    assert found.sharpness == pytest.approx(found.location / found.width)


def test_inversion():
    high, low = logistic(0.5, 0.02), logistic(0.5, 0.1)
    assert inversion(X, high, low) == pytest.approx(0.5, abs=1e-2)
    assert np.isnan(inversion(X, low - 1, low))


def test_shift_finds_displacements_of_either_sign():
    for d in (-0.05, 0.0, 0.013):
        assert shift(X, logistic(0.5 + d, 0.04), X, logistic(0.5, 0.04)) == pytest.approx(d, abs=1e-4)


def data(items=40, trajectories=3, grammars=4, seed=0):
    rng = np.random.default_rng(seed)
    grammar = np.arange(items) * grammars // items
    height = 0.5 + 0.2 * rng.standard_normal(grammars)[grammar]  # grammars differ
    values = height[None, :, None] + 0.05 * rng.standard_normal((2, items, trajectories))
    return xr.DataArray(values, dims=("noise", "item", "trajectory"), coords={"noise": [0.1, 0.2], "grammar": ("item", grammar)})


def test_bootstrap_is_unbiased_and_sees_the_grammars():
    values = data()
    draws = resampled_curves(values, num=2000)
    assert draws.shape == (2000, 2)
    assert np.allclose(draws.mean(0), values.mean(("item", "trajectory")), atol=0.02)
    between = grammar_means(values).isel(noise=0).std("grammar").item() / np.sqrt(4)
    assert draws[:, 0].std() == pytest.approx(between, rel=0.2)
    blind = resampled_curves(values.drop_vars("grammar"), num=2000)  # negative control: items alone are overconfident
    assert blind[:, 0].std() < 0.6 * between


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 200 data sets of 30 independent items: coverage of a nominal 95 % interval; three standard errors below is .90.
    hits = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        values = xr.DataArray(rng.standard_normal((1, 30)), dims=("noise", "item"))
        found = estimate(values, lambda c: float(c[0]), num=200)
        hits += found.low <= 0 <= found.high
    assert 0.87 < hits / 200 < 0.99


def test_no_interval_where_the_statistic_often_does_not_exist():
    values = data()
    found = estimate(values, lambda c: float(c[0]) if c[0] > values[0].mean() else float("nan"), num=100)
    assert np.isnan(found.low)
    assert np.isnan(found.high)


def test_estimates_keep_level_dims_last():
    values = data().expand_dims(tree_level=2)  # a dim in front
    found = estimate(values, lambda curve: float(curve.shape == (2, 2)), num=5)
    assert found.value == 1
