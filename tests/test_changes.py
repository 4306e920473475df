"""Correlated changes: accumulators against the direct double sum, susceptibility and
correlations against known answers.
"""

import numpy as np
import pytest
import xarray as xr
from scipy.optimize import brentq
from scipy.special import stdtrit

import uturn as ut
from small import one_line_error
from uturn.core.random import keys, uniforms
from uturn.exact.laws import GaussianMixture, power_law
from uturn.exact.theory import MeanField
from uturn.measures import changes
from uturn.measures.covariances import Covariances, Grid, Matrix, Tree
from uturn.measures.peaks import peak_of
from uturn.measures.scaling import correlation_length
from uturn.measures.statistics import replicates


def draws(items, trajectories, sites, seed=0):
    """Independent uniform numbers (items, trajectories, sites)."""
    return uniforms(keys(seed, range(items)), trajectories * sites).reshape(
        items, trajectories, sites
    )


def tree_matrix(sites, branching):
    """s**k for the lowest common ancestor at level k, leaf by leaf."""
    matrix = np.zeros((sites, sites))
    for i in range(sites):
        for j in range(sites):
            a, b, level = i, j, 0
            while a != b:
                a, b, level = a // branching, b // branching, level + 1
            matrix[i, j] = branching**level if level else 0
    return matrix


def grid_matrix(shape, periodic=False):
    """Rounded Euclidean distance of two cells."""
    cells = np.array(list(np.ndindex(*shape)))
    apart = np.abs(cells[:, None] - cells[None])
    if periodic:
        apart = np.minimum(apart, np.array(shape) - apart)
    return np.rint(np.sqrt((apart**2).sum(-1)))


DISTANCES = [
    (Tree(27, 3), tree_matrix(27, 3)),
    (Tree(16, 2), tree_matrix(16, 2)),
    (Tree(1, 2), np.zeros((1, 1))),
    (Grid((13,)), grid_matrix((13,))),
    (Grid((4, 6)), grid_matrix((4, 6))),
    (Grid((4, 5), periodic=True), grid_matrix((4, 5), True)),
    (Matrix(tree_matrix(9, 3) * 0.7), tree_matrix(9, 3) * 0.7),
]


def double_sum(changed, matrix):
    """Mean covariance of the pairs at every distance, and chi, written out: pair by pair,
    original by original.
    """
    values = np.unique(matrix)
    table = np.zeros((len(changed), len(values)))
    over_pairs = over_sites = 0.0
    for a, of_item in enumerate(np.asarray(changed, float)):
        T, N = of_item.shape
        mean = [sum(of_item[:, i]) / T for i in range(N)]
        pairs = [[] for _ in values]
        for i in range(N):
            for j in range(N):
                c = sum((of_item[:, i] - mean[i]) * (of_item[:, j] - mean[j])) / (T - 1)
                pairs[int(np.flatnonzero(values == matrix[i, j])[0])].append(c)
                over_pairs += c
                over_sites += c if i == j else 0
        table[a] = [np.mean(c) for c in pairs]
    return table, over_pairs / over_sites


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize(("distance", "matrix"), DISTANCES)
def test_accumulators_equal_the_direct_double_sum(distance, matrix, real):
    x = draws(3, 6, distance.num_sites)
    changed = 1e3 + x if real else x < 0.4  # a large mean would lose digits in sums of squares
    table, chi = double_sum(changed, matrix)
    whole = Covariances(distance).add(changed)
    parts = (
        Covariances(distance)
        .add(changed[:, :1])
        .add(changed[:, 1:3])
        .merge(Covariances(distance).add(changed[:, 3:]))
    )
    for found in (
        whole,
        parts,
        Covariances(distance).merge(whole),
        Covariances(distance).add(changed).merge(Covariances(distance)),
    ):
        np.testing.assert_allclose(found.covariance, table, atol=1e-10)
        np.testing.assert_allclose(found.mean, np.mean(changed, axis=1), rtol=1e-12)
        assert found.count == 6
    np.testing.assert_allclose(distance.values, np.unique(matrix))
    assert distance.pairs.tolist() == [int((matrix == r).sum()) for r in np.unique(matrix)]
    assert ut.susceptibility(changed).value == pytest.approx(chi, abs=1e-9)
    curve = ut.correlations(changed, distance)
    np.testing.assert_allclose(curve.covariance, table.mean(0), atol=1e-10)
    np.testing.assert_allclose(curve.correlation, table.mean(0) / table.mean(0)[0], atol=1e-9)
    assert float((curve.pairs * curve.correlation).sum()) / distance.num_sites == pytest.approx(
        chi, abs=1e-9
    )
    assert changes.susceptibility(whole).value == pytest.approx(chi, abs=1e-9)
    np.testing.assert_allclose(
        changes.correlations(whole).correlation, curve.correlation, atol=1e-12
    )


def test_batches_with_other_means_are_joined():
    """The changes of the second batch are more likely: the difference of the means belongs to
    the covariance.
    """
    x = draws(3, 20, 8)
    changed = x < np.where(np.arange(20) < 10, 0.2, 0.8)[:, None]
    joined = (
        Covariances(Tree(8, 2))
        .add(changed[:, :10])
        .merge(Covariances(Tree(8, 2)).add(changed[:, 10:]))
    )
    np.testing.assert_allclose(
        joined.covariance, Covariances(Tree(8, 2)).add(changed).covariance, atol=1e-12
    )


def test_independent_changes_have_chi_one():
    """Two-sided level .001: a fixed seed, 400 items."""
    chi = ut.susceptibility(draws(400, 8, 16) < 0.3, confidence=0.999)
    assert chi.low < 1 < chi.high
    assert chi.high - chi.low < 0.3
    curve = ut.correlations(draws(400, 8, 16) < 0.3, "tree", branching=2, confidence=0.9995)
    assert ((curve.low < 0) & (0 < curve.high)).values[1:].all()


def test_common_changes_have_chi_of_the_number_of_sites():
    common = (draws(20, 5, 1) < 0.3).repeat(12, axis=2)
    assert ut.susceptibility(common).value == pytest.approx(12)
    np.testing.assert_allclose(ut.correlations(common).correlation, 1)


def test_blocks_of_sites_that_change_together():
    blocks = (draws(300, 10, 4) < 0.5).repeat(3, axis=2)
    chi = ut.susceptibility(blocks, confidence=0.999)
    assert chi.low < 3 < chi.high
    curve = ut.correlations(blocks, "tree", branching=12)
    assert curve.correlation.values[1] == pytest.approx(2 / 11, abs=0.03)


def test_a_scale_and_a_shift_of_the_changes_drop_out():
    x = draws(10, 6, 8) < 0.4
    assert ut.susceptibility(2.0 * x - 1).value == pytest.approx(
        ut.susceptibility(x).value, rel=1e-12
    )
    signs, bits = (ut.correlations(values, "tree", branching=2) for values in (2.0 * x - 1, x))
    np.testing.assert_allclose(signs.correlation, bits.correlation, atol=1e-12)
    np.testing.assert_allclose(signs.covariance, 4 * bits.covariance, atol=1e-12)


def test_pooling_over_originals_would_give_another_answer():
    """Originals of different rates, independent sites: chi = 1 within each; pooled, the rates
    look like correlation.
    """
    rates = np.linspace(0.05, 0.95, 40)[:, None, None]
    changed = draws(40, 50, 16) < rates
    chi = ut.susceptibility(changed, confidence=0.999)
    assert chi.low < 1 < chi.high < 1.3
    pooled = ut.susceptibility(changed.reshape(1, -1, 16))
    assert pooled.value > 3


def test_nothing_changed_is_nan_and_constant_sites_do_not_matter():
    found = ut.susceptibility(np.zeros((3, 4, 5), bool))
    assert np.isnan(found).all()
    assert np.isnan(ut.correlations(np.ones((3, 4, 5))).correlation).all()
    x = draws(5, 4, 6) < 0.5
    padded = np.concatenate([x, np.ones((5, 4, 3), bool)], axis=2)
    assert ut.susceptibility(padded).value == pytest.approx(ut.susceptibility(x).value)
    one = ut.susceptibility(x[:1])
    assert np.isfinite(one.value)
    assert np.isnan(one.low)


def test_where_one_original_decides_there_is_no_interval():
    """A single original of 24 changes: n_eff = 1, and chi would have the width 0."""
    x = np.zeros((24, 6, 8), bool)
    x[5] = draws(1, 6, 8)[0] < 0.5
    alone, both = (
        changes.Covariances(Grid((8,))).add(x),
        np.stack([x, draws(24, 6, 8, seed=1) < 0.5]),
    )
    found = [ut.susceptibility(x), *zip(*correlations_at(alone), strict=True)]
    # Nothing shows that its sites are correlated in others, too.
    assert np.isnan(length_of(alone)).all()
    assert all(
        np.isfinite(value) and np.isnan(low) and np.isnan(high) for value, low, high in found
    )
    assert float(ut.correlations(x).n_eff) == 1
    rest = ut.susceptibility(both[1])
    assert rest.low < rest.value < rest.high


def test_where_one_event_an_original_gives_one_ratio_there_is_no_interval():
    """Each U-turn changes at most one half of 20 sites: with one event of 3 U-turns an original
    has the ratio 10 exactly.
    """
    events = np.zeros((40, 3), bool)
    events[:30, 0] = True
    half = np.arange(40)[:, None] % 2 == np.arange(20) // 10
    x = events[..., None] & half[:, None]
    assert ut.susceptibility(x).value == pytest.approx(10)
    assert np.isnan(ut.susceptibility(x).low)
    x[39, :2] = half[39], ~half[39]  # a single original with another ratio
    assert np.isnan(ut.susceptibility(x).low)
    x[30:39, 0] = half[30:39]
    x[30:39, 1] = ~half[30:39]
    value, low, high = ut.susceptibility(x)
    assert low < value < high  # ten originals make the spread


def test_independent_sites_have_no_correlation_length():
    """At most .05 of runs name a length at any of 4 noise levels: 4 or more of 12 with
    probability .002; once nearly all.
    """
    named = 0
    for seed in range(12):
        coins = np.random.default_rng(seed).random((4, 40, 4, 12)) < 0.3
        changed = xr.DataArray(
            coins,
            dims=("noise", "item", "trajectory", "site"),
            coords={"noise": [0.2, 0.4, 0.6, 0.8]},
        )
        found = correlation_length(changed.astype(float))
        named += bool(np.isfinite(found.low).any())
    assert named < 4
    run = ut.readings(
        {"d": coins.mean(-1)}, [0.2, 0.4, 0.6, 0.8], start=0, changes={"site": coins.astype(float)}
    )
    found = ut.study(run)
    assert np.isnan(found.xi).all()
    assert (
        "no distance are changes of two sites seen to be correlated at 4 levels"
        in found.changes_remark.item()
    )


def test_the_effective_number_is_that_of_equal_originals():
    variance = xr.DataArray(
        [[1.0, 1, 1, 1], [4, 2, 1, 1], [0, 0, 3, 0], [0, 0, 0, 0]], dims=("noise", "item")
    )
    np.testing.assert_allclose(changes.effective_number(variance), [4, 64 / 22, 1, 0])
    grouped = variance.assign_coords(grammar=("item", [7, 7, 9, 9]))
    np.testing.assert_allclose(changes.effective_number(grouped), [2, 64 / 40, 1, 0])


def test_intervals_have_the_degrees_of_freedom_of_the_originals_that_decide():
    """Six originals change, of 40: the interval is wider than that of the six alone by no more
    than their number explains.
    """
    x = np.zeros((40, 6, 8), bool)
    x[:6] = draws(6, 6, 8) < 0.5
    all_items, six = ut.susceptibility(x), ut.susceptibility(x[:6])
    assert all_items.value == pytest.approx(six.value)
    assert np.log(all_items.high / all_items.low) == pytest.approx(
        np.log(six.high / six.low), rel=0.15
    )
    of = replicates(
        xr.DataArray(
            np.random.default_rng(0).random((1, 40)),
            dims=("noise", "item"),
            coords={"noise": [0.5]},
        )
    )
    wanted = stdtrit(5, 0.975) * of.error(lambda mean: mean)
    np.testing.assert_allclose(of.half_width(lambda mean: mean, number=6), wanted)
    ends = np.log([all_items.value / all_items.low, all_items.high / all_items.value])
    assert ends[0] == pytest.approx(ends[1])  # symmetric in log chi
    curve = ut.correlations(x, confidence=0.9)
    assert 2 < float(curve.n_eff) <= 6
    np.testing.assert_allclose(curve.high - curve.correlation, curve.correlation - curve.low)


def rare_originals(seed, items=60, trajectories=4):
    """One original in 12 changes much, in blocks of 8 sites; the others change rarely, site by
    site.
    """
    rng = np.random.default_rng(seed)
    active = rng.random(items) < 1 / 12
    blocks = (rng.random((items, trajectories, 3)) < 0.5).repeat(8, axis=2)
    alone = rng.random((items, trajectories, 24)) < 0.004
    return np.where(active[:, None, None], blocks, alone)


def test_intervals_contain_the_truth_where_rare_originals_decide():
    """Five active originals are expected. Of 200 intervals with coverage .9, 166 or fewer hold
    it with probability .001.
    """
    variances = np.array([0.25, 11 * 0.004 * 0.996])
    truth = (8 * variances[0] + variances[1]) / variances.sum()
    found = np.array([ut.susceptibility(rare_originals(seed)) for seed in range(200)])
    given = np.isfinite(found[:, 1])
    held = (found[:, 1] <= truth) & (truth <= found[:, 2])
    assert given.sum() > 120  # with fewer than five deciding originals there is no interval
    assert held[given].sum() >= 0.835 * given.sum()


def labelled_changes(x):
    return xr.DataArray(
        x,
        dims=("noise", "item", "trajectory", "site"),
        coords={"noise": np.arange(len(x)) / len(x)},
    )


def test_correlations_that_rest_on_few_common_changes_have_no_interval():
    """24 sites change alone with probability .01, and all of them in a share of the U-turns; 200
    samples, 30 originals x 4.

    With common changes in .4 % of the U-turns, half of the samples hold none, and C(r)/C(0), .28 in
    truth, was found as 0 with an interval of no width. Of 30 intervals with coverage .95, 24 or
    fewer hold it with probability .001.
    """
    rng = np.random.default_rng(5)
    for common, often in ((0.004, False), (0.06, True), (0.3, True)):
        alone = rng.random((200, 30, 4, 24)) < 0.01
        together = rng.random((200, 30, 4, 1)) < common
        rate = 1 - (1 - common) * 0.99
        truth = (common + (1 - common) * 1e-4 - rate**2) / (rate * (1 - rate))
        found = ut.correlations(labelled_changes(alone | together)).sel(distance=[3, 20])
        given = np.isfinite(found.low.values)
        assert (given == (found.n_contributing.values >= 5)).all()
        assert (given.mean() > 0.6) == often
        held = ((found.low <= truth) & (truth <= found.high)).values[given]
        assert held.mean() > 0.85 or held.size < 30


def test_sites_that_exclude_each_other_have_intervals_below_zero():
    """One of six sites changes in each U-turn: C(r)/C(0) = -1/5, and no pair ever changes
    together.
    """
    chosen = np.random.default_rng(6).integers(0, 6, (100, 60, 8, 1))
    found = ut.correlations(labelled_changes(chosen == np.arange(6))).isel(distance=slice(1, 5))
    held = (found.low <= -0.2) & (found.high >= -0.2)
    assert np.isfinite(found.low).mean() > 0.95
    assert held.mean() > 0.9


# -- the peak of chi -------------------------------------------------------------------------------


def parts_of(chi, items=40, scatter=0.1, seed=0, noise=None):
    """Readings whose ratio is chi at each level, with independent relative scatter."""
    chi = np.asarray(chi, float)
    total = chi[:, None] * (
        1 + scatter * np.random.default_rng(seed).standard_normal((len(chi), items))
    )
    noise = np.linspace(0.1, 0.1 * len(chi), len(chi)) if noise is None else noise
    return xr.DataArray(
        np.stack([total, np.ones_like(total)]),
        dims=("part", "noise", "item"),
        coords={"noise": noise},
    )


def test_the_place_of_the_peak_is_the_vertex_of_a_parabola():
    x = np.array([0.1, 0.2, 0.5, 0.6, 1.0])
    # 2 - 25 (x - .2) (x - .5).
    for curve, place in ((3 - (x - 0.43) ** 2, 0.43), ([1, 2, 2, 1, 0.5], 0.35)):
        assert peak_of(parts_of(curve, scatter=0, noise=x)).place.value == pytest.approx(place)
    for curve, place in (([5, 4, 3, 2, 1], 0.1), ([1, 2, 3, 4, 5], 1.0)):
        found = peak_of(parts_of(curve, scatter=0, noise=x))
        assert found.place.value == place
        assert not found.inside


def test_the_interval_of_the_peak_is_half_a_step_wider_than_its_levels():
    sharp = peak_of(parts_of([1, 2, 4, 2, 1], scatter=0.05))
    assert sharp.levels.tolist() == [False, False, True, False, False]
    np.testing.assert_allclose(sharp.place[1:], (0.25, 0.35))
    assert (sharp.inside, sharp.plateau, sharp.reaches) == (True, False, (False, False))
    parts = parts_of([1, 4, 4, 4, 1], scatter=0)
    parts[0] *= 1 + 0.1 * np.resize([-1, 1], 40)  # the same at all levels
    flat = peak_of(parts)
    assert flat.levels.tolist() == [False, True, True, True, False]
    np.testing.assert_allclose(flat.place[1:], (0.15, 0.45))
    assert flat.plateau
    assert flat.height.value == pytest.approx(4, rel=0.01) == flat.cross_fitted
    end = peak_of(parts_of([3.99, 1, 4, 1, 1], seed=1))
    assert end.reaches == (True, False)
    assert end.place.low == 0.1


@pytest.mark.parametrize(("few", "is_level"), [(0, False), (6, True)])
def test_levels_of_the_peak_pass_one_sided_tests(few, is_level):
    """log chi of the second level lies 1.83 standard errors (jackknife) below the largest.

    One-sided 95 % quantiles of Student's t: 1.68 with 39 degrees of freedom, 1.95 with 5.7;
    two-sided 2.02 with 39.
    """
    parts = parts_of([1, 3, 4, 1], scatter=0.3, seed=2)
    if few:  # originals that decide the second level
        parts[:, 1, few:] *= 0.01

    def errors_behind(chi):
        total, variance = parts.values[0, 1:3] * np.array([[chi / 3], [1]]), parts.values[1, 1:3]
        logs = [
            np.log(np.delete(total, g, 1).sum(1) / np.delete(variance, g, 1).sum(1))
            for g in range(40)
        ]
        behind = np.log(total.sum(1) / variance.sum(1))
        return (behind[1] - behind[0]) / np.sqrt(39 * np.var(np.subtract(*np.transpose(logs))))

    parts[0, 1] *= brentq(lambda chi: errors_behind(chi) - 1.83, 1, 3.9) / 3
    assert peak_of(parts).levels.tolist() == [False, is_level, True, False]


def test_levels_that_one_original_decides_take_no_part_in_the_peak():
    parts = parts_of([1, 2, 4, 2, 1])
    parts[:, 4, 1:] = 0
    parts[0, 4, 0] = 9.0  # chi = 9, of one original
    found = peak_of(parts)
    assert found.used.tolist() == [True, True, True, True, False]
    assert found.largest == 2
    assert peak_of(parts[..., :1]).used.all()  # of a single original none has an interval
    assert np.isnan(peak_of(parts[..., :1]).place[1:]).all()
    assert peak_of(0 * parts).largest == -1


def test_the_height_as_found_is_too_high_on_a_plateau_and_the_cross_fitted_one_is_not():
    """Ten equal levels, chi = 4, 200 repetitions: the mean of the cross-fitted height is within
    4 standard errors of 4.
    """
    found = [peak_of(parts_of([4] * 10, items=20, scatter=0.5, seed=seed)) for seed in range(200)]
    largest, fitted = (
        np.array([getattr(one, name) for one in found]) for name in ("height", "cross_fitted")
    )
    assert largest[:, 0].mean() > 4.4
    assert abs(fitted.mean() - 4) < 4 * fitted.std() / np.sqrt(200)


def test_the_height_is_cross_fitted_where_nothing_changes_in_half_of_the_originals_at_a_level():
    parts = parts_of([1, 2, 4, 2, 1])
    parts[:, 0, ::2] = 0
    found = peak_of(parts)
    assert found.used.all()
    assert found.cross_fitted == pytest.approx(4, abs=0.1)


def test_the_interval_of_the_peak_contains_it_on_peaks_and_plateaus():
    """120 repetitions each. Of intervals with coverage .93, fewer than 101 hold the truth with
    probability .001. The vertex moves over the plateau, so that an interval of its own errors
    holds a given level less often.
    """
    x = np.linspace(0.1, 1, 10)
    for curve, place in (
        (1 + 3 * np.exp(-(((x - 0.5) / 0.15) ** 2) / 2), 0.5),
        (np.where(np.abs(x - 0.5) < 0.25, 4.0, 1.0), 0.4),
    ):
        found = [
            peak_of(parts_of(curve, items=20, scatter=0.6, seed=seed, noise=x)).place
            for seed in range(120)
        ]
        assert sum(one.low <= place <= one.high for one in found) >= 101
        assert np.mean([one.high - one.low for one in found]) < 0.6


def correlations_at(covariances):
    found = ut.correlations(covariances)
    return found.correlation.values, found.low.values, found.high.values


def length_of(covariances):
    found = correlation_length(covariances)
    return 1 / float(found.length[0]), float(found.low[0]), float(found.high[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 1, 4)),), "trajectories = 1"),
        ((np.full((3, 4, 4), np.nan),), "NaN"),
        ((np.zeros((3, 4, 4)), np.zeros((3, 3))), "positive"),
        ((np.zeros((3, 4, 4)), grid_matrix((3,))), "sites of the distance = 3: expected 4"),
        ((np.zeros((3, 4, 4)), [[0, 1], [2, 0]]), "symmetric"),
        ((np.ma.masked_equal(np.arange(24).reshape(2, 3, 4), 5),), "masked"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with one_line_error(message):
        ut.correlations(*arguments)


def test_a_gaussian_field_has_the_chi_of_its_spectrum():
    """Given x0, a posterior draw has the spectrum P (1 - w**2), w = P abar/(P abar + 1 - abar):
    chi is its value at k = 0 over its mean. Signed changes, level .001 for all three noise
    levels together.
    """
    shape, items, trajectories = (8, 8), 400, 8
    power = power_law(shape, 2.0)
    law = GaussianMixture(np.zeros((1, 64)), variance=power, grid=shape)
    originals = law.sample(items, keys(0, 1, range(items))).values.repeat(trajectories, axis=0)
    for noise in (0.1, 0.5, 2.0):
        noisy = law.diffuse(originals, noise, keys(0, 2, range(len(originals))))
        rebuilt = law.sample_posterior(noisy, noise, keys(0, 3, range(len(originals)))).values
        changed = (rebuilt - originals).reshape(items, trajectories, 64)
        abar = np.exp(-2 * noise)
        w = power * abar / (power * abar + 1 - abar)
        spectrum = power * (1 - w**2)
        chi = ut.susceptibility(changed, confidence=1 - 0.001 / 3)
        assert chi.low < spectrum[0] / spectrum.mean() < chi.high
        assert chi.high - chi.low < 0.4 * chi.value


def test_intervals_contain_the_truth():
    """Blocks of 4 sites with chi = 4: 95 % intervals from 30 items. Of 300 repetitions 285 +-
    3.8 should hold it.
    """
    held = 0
    for seed in range(300):
        chi = ut.susceptibility((draws(30, 6, 3, seed) < 0.3).repeat(4, axis=2))
        held += chi.low < 4 < chi.high
    assert 270 <= held <= 297


# -- theory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [(32, 8, 2), (16, 4, 2), (16, 8, 3)])
def test_mean_field_correlations_decay_with_the_exponent_of_nu(parameters):
    mf = MeanField(*parameters)
    c = mf.pair_correlations(mf.critical_noise, 60)
    measured = -np.log(c[21] / c[20]) / np.log(mf.branching)
    assert measured == pytest.approx(mf.decay_exponent, abs=1e-4)
    assert mf.decay_exponent == pytest.approx(2 - 2 / mf.correlation_exponent)
    assert MeanField(8, 8, 2).decay_exponent is None
