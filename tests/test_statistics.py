"""Estimators on curves whose answers are known, and intervals that hold the truth as often as
they say.
"""

import runpy
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from uturn.core.experiment import Experiment
from uturn.measures.statistics import (
    crossing,
    estimate,
    grammar_means,
    inversion,
    levels_around,
    located,
    mean_bounds,
    proportion,
    replicates,
    rests_on_few,
    shift,
    transition,
)
from uturn.paper import FIGURES, load_figure

EXAMPLES = Path(__file__).parents[1] / "examples"
SIMULATED = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "intervals.py"))

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
        assert shift(X, logistic(0.5 + d, 0.04), X, logistic(0.5, 0.04)) == pytest.approx(
            d, abs=1e-4
        )


def data(items=40, trajectories=3, grammars=4, seed=0):
    rng = np.random.default_rng(seed)
    grammar = np.arange(items) * grammars // items
    height = 0.5 + 0.2 * rng.standard_normal(grammars)[grammar]  # grammars differ
    values = height[None, :, None] + 0.05 * rng.standard_normal((2, items, trajectories))
    return xr.DataArray(
        values,
        dims=("noise", "item", "trajectory"),
        coords={"noise": [0.1, 0.2], "grammar": ("item", grammar)},
    )


def plain(curve):
    return float(curve[0])


@pytest.mark.parametrize("grammars", [2, 5, 8, 40])
def test_interval_of_a_mean_is_that_of_student_over_grammars(grammars):
    values = data(grammars=grammars)
    means = grammar_means(values).isel(noise=0)
    expected = stats.t.interval(0.9, grammars - 1, means.mean(), stats.sem(means))
    found = estimate(values, plain, confidence=0.9)
    assert found.value == pytest.approx(float(values[0].mean()))
    np.testing.assert_allclose(found[1:], expected)
    # Negative control: items alone are overconfident where grammars differ.
    blind = estimate(values.drop_vars("grammar"), plain, confidence=0.9)
    assert grammars == 40 or blind.high - blind.low < 0.8 * (found.high - found.low)


def test_trajectories_are_not_counted_as_a_level_of_their_own():
    values = data(trajectories=16).drop_vars("grammar")
    of_items = stats.t.interval(0.95, 39, values[0].mean(), stats.sem(values[0].mean("trajectory")))
    np.testing.assert_allclose(estimate(values, plain)[1:], of_items)
    np.testing.assert_allclose(estimate(values.mean("trajectory"), plain)[1:], of_items)


def test_groups_of_unequal_size():
    values = data(items=30).assign_coords(grammar=("item", np.repeat([7, 1, 3, 4], [3, 5, 12, 10])))
    without = np.array([values[0].where(values.grammar != g).mean() for g in (1, 3, 4, 7)])
    jackknife = np.sqrt(3 / 4 * ((without - float(values[0].mean())) ** 2).sum())
    assert replicates(values).error(plain) == pytest.approx(jackknife)
    shuffled = values.isel(item=np.random.default_rng(0).permutation(30))
    np.testing.assert_allclose(estimate(shuffled, plain), estimate(values, plain))


def test_many_items_make_64_groups():
    values = data(items=6400, trajectories=1, grammars=1)
    found = replicates(values)
    assert found.groups == 64
    assert found.deviations.shape == (64, 2)
    # 64 numbers: 9 %, 1 s.d.
    assert found.error(plain) == pytest.approx(stats.sem(values[0].squeeze().values), rel=0.25)
    assert replicates(data(items=130, grammars=130)).groups == 64


RUNS = 200
# Of intervals that hold the truth: one false alarm in 5,000 designs.
FEWEST = stats.binom.ppf(2e-4, RUNS, 0.92)


def covered(design, runs=RUNS, grammars=True):
    """How many intervals hold the known place where a curve of coin tosses falls."""
    hits = 0
    for seed in range(runs):
        readings, statistic, truth = SIMULATED["curve_readings"](design, 10_000 + seed)
        found = estimate(readings if grammars else readings.drop_vars("grammar"), statistic)
        hits += found.low <= truth <= found.high
    return hits


@pytest.mark.parametrize(
    "name", ["1 grammar, 1 trajectory", "2 grammars", "4 grammars", "16 trajectories"]
)
def test_intervals_hold_the_truth(name):
    assert covered(SIMULATED["DESIGNS"][name]) >= FEWEST


def test_intervals_that_ignore_grammars_do_not():
    assert covered(SIMULATED["DESIGNS"]["6 grammars that differ much"], grammars=False) < FEWEST


def readings(values, noise=None, grammar=None):
    """Readings (noise, item, ..) as a DataArray."""
    values = np.asarray(values, float)
    coords = {"noise": np.arange(1, len(values) + 1) / 10 if noise is None else noise}
    coords |= {} if grammar is None else {"grammar": ("item", grammar)}
    return xr.DataArray(values, dims=("noise", "item", "trajectory")[: values.ndim], coords=coords)


@pytest.mark.parametrize(("kept", "items"), [(0, 40), (1, 40), (60, 60), (117, 200), (3, 10)])
def test_shares_of_independent_readings_have_the_exact_interval(kept, items):
    exact = stats.binomtest(kept, items).proportion_ci(0.95, "exact")
    found = proportion(readings([np.arange(items) < kept]))
    np.testing.assert_allclose(found[0], [kept / items, *exact], atol=1e-9)


def test_trajectories_count_as_far_as_they_differ():
    rng = np.random.default_rng(0)
    kept = rng.random((1, 40)) < 0.3
    copies = readings(np.repeat(kept[..., None], 5, axis=2))
    # Copies say nothing new.
    np.testing.assert_allclose(proportion(copies), proportion(readings(kept)))
    exact = stats.binomtest(60, 200).proportion_ci(0.95, "exact")
    spread = readings(rng.permuted(np.arange(200) < 60).reshape(1, 40, 5))
    low, high = proportion(spread).values[0, 1:]
    assert high - low < 1.25 * (exact.high - exact.low)
    all_kept = proportion(readings(np.ones((1, 40, 5))))[0]
    np.testing.assert_allclose(all_kept, [1, 0.025 ** (1 / 40), 1])  # 40 originals, not 200 U-turns


def test_shares_have_the_effective_number_that_t_and_z_leave():
    """n_eff = p (1 - p) / s² (z/t)² in plain numpy, for few items of unequal shares."""
    for n in (4, 6, 11):
        means = 0.6 + 0.1 * np.cos(np.arange(n))
        p = means.mean()
        number = (
            p
            * (1 - p)
            / (means.var(ddof=1) / n)
            * (stats.norm.ppf(0.975) / stats.t.ppf(0.975, n - 1)) ** 2
        )
        ends = stats.beta.ppf(
            [0.025, 0.975], [p * number, p * number + 1], [(1 - p) * number + 1, (1 - p) * number]
        )
        np.testing.assert_allclose(proportion(readings(means[None]))[0], [p, *ends])


def test_a_spread_that_rests_on_two_originals_is_seen():
    """5 % of the originals lose half of their 25 sites; in the negative control, all lose sites
    alike.
    """
    rng = np.random.default_rng(3)
    found = {}
    for name, bad in (("rare", rng.random((300, 16)) < 0.05), ("alike", np.zeros((300, 16), bool))):
        shares = rng.binomial(25, np.where(bad, 0.5, 0.95)[..., None], (300, 16, 6)) / 25
        found[name] = rests_on_few(readings(shares, noise=np.arange(1, 301)))
        one_or_two = np.isin(bad.sum(1), (1, 2))
        if name == "rare":
            assert found[name][one_or_two].mean() > 0.9
            assert found[name][~one_or_two].mean() < 0.1
    assert found["alike"].mean() < 0.01
    # No spread; readings 0 and 1; few originals.
    for quiet in (np.ones((1, 16)), np.eye(16)[:1], rng.random((1, 4))):
        assert not rests_on_few(readings(quiet)).any()
    some = readings(np.where(np.arange(16) == 3, np.nan, shares[:1, :, 0]))
    assert rests_on_few(some) == rests_on_few(some[:, np.arange(16) != 3])


def test_shares_count_grammars_where_there_are_several():
    grammar = np.repeat(np.arange(6), 20)
    whole = np.repeat([1, 1, 1, 0, 1, 1], 20)[None]  # all items of a grammar agree
    exact = stats.binomtest(5, 6).proportion_ci(0.95, "exact")
    np.testing.assert_allclose(proportion(readings(whole, grammar=grammar))[0, 1:], exact)
    assert proportion(readings(whole))[0, 1] > exact.low + 0.3  # negative control: items alone
    # One grammar with nearly all items is about one group, not six.
    uneven = np.repeat(np.arange(6), [115, 1, 1, 1, 1, 1])
    assert proportion(readings(np.ones((1, 120)), grammar=uneven))[0, 1] < 0.05


def test_shares_stay_in_their_range_and_are_exact_at_noise_0():
    values = readings(np.ones((3, 12)), noise=[0.0, 0.1, 0.2])
    values[2, 0] = 0.0
    value, low, high = proportion(values).values.T
    assert (value[0], low[0], high[0]) == (1, 1, 1)  # nothing is changed there
    assert [low[1], high[1]] == pytest.approx([0.025 ** (1 / 12), 1])
    assert 0 < low[2] < value[2] < high[2] < 1
    values[0, 0] = 0.0  # a corruption that is not the identity at noise 0
    np.testing.assert_allclose(proportion(values)[0], proportion(values)[2])
    nothing = proportion(readings(np.ones((2, 1, 8))))  # one group
    np.testing.assert_array_equal(nothing, np.array([[1, np.nan, np.nan]] * 2))
    assert (
        proportion(readings(np.full((1, 9), 1 / 3)))
        == proportion(readings(np.full((1, 9, 2), 1 / 3)))
    ).all()


def test_shares_of_levels_with_missing_readings():
    rng = np.random.default_rng(1)
    values = readings(rng.random((2, 30, 3)) < 0.9).expand_dims(tree_level=2).copy()
    values[1, :, 4:] = np.nan
    found = proportion(values)
    assert dict(found.sizes) == {"noise": 2, "tree_level": 2, "estimate": 3}
    np.testing.assert_allclose(found[:, 1], proportion(values[1, :, :4]))
    for bad in (readings([[0.2, 1.2]]), readings([[-1.0, 0.3]])):
        with pytest.raises(ValueError, match=r"readings in \[0, 1\]"):
            proportion(bad)
    with pytest.raises(ValueError, match="confidence"):
        proportion(values, 95)


@pytest.mark.parametrize(("kept", "items"), [(0, 25), (1, 25), (59, 59), (141, 150)])
def test_bounds_of_shares_are_those_of_clopper_and_pearson(kept, items):
    values = readings([np.arange(items) < kept])
    low, high = mean_bounds(values, 0, 1, 0.9)[:, 0]
    for end, alternative in ((low, "greater"), (high, "less")):
        exact = stats.binomtest(kept, items, alternative=alternative).proportion_ci(0.9, "exact")
        assert end == pytest.approx(exact.low if alternative == "greater" else exact.high, abs=1e-9)
    np.testing.assert_allclose(
        mean_bounds(7 * values - 3, -3, 4, 0.9)[:, 0], [7 * low - 3, 7 * high - 3]
    )
    np.testing.assert_allclose(mean_bounds(0.3 * values, 0, np.inf, 0.9)[:, 0], [0.3 * low, np.inf])


def test_bounds_are_quantiles_of_random_weights():
    """The definition, by simulation, with missing originals and groups of unequal size."""
    rng = np.random.default_rng(2)
    values = readings(rng.beta(3, 0.4, (3, 12, 2)))
    values[1, :5] = values[2] = np.nan
    for label in (np.arange(12), np.repeat([0, 1, 2, 3], [6, 3, 2, 1])):
        found = mean_bounds(values.assign_coords(grammar=("item", label)), 0, 1)
        assert np.isnan(found[:, 2]).all()
        for k in (0, 1):
            means = values[k].mean("trajectory").values
            label_of, means = label[np.isfinite(means)], means[np.isfinite(means)]
            groups, counts = np.unique(label_of, return_counts=True)
            x, shape = (
                [means[label_of == g].mean() for g in groups],
                counts * counts.sum() / (counts**2).sum(),
            )
            weights = rng.standard_gamma([1, *shape], (200_000, 1 + len(x)))
            weights /= weights.sum(1, keepdims=True)
            expected = np.quantile(weights @ [0, *x], 0.05), np.quantile(weights @ [1, *x], 0.95)
            np.testing.assert_allclose(found[:, k], expected, atol=0.004)


def hits(run, runs=RUNS):
    """How many intervals of every statistic of a simulated run hold the truth."""
    found = [run(20_000)]
    found += [
        run(20_000 + seed) for seed in range(1, runs // np.size(next(iter(found[0].values()))[0]))
    ]
    counted = {}
    for name in found[0]:
        truth, _, low, high = np.concatenate(
            [np.reshape(one[name], (4, -1)) for one in found], axis=1
        )
        counted[name] = ((low <= truth) & (truth <= high)).sum()
    return counted


@pytest.mark.parametrize(
    "name",
    [
        "p = 0.02, 40 items, 5 copies",
        "p = 0.1, 10 items, 5 copies",
        "p = 0.5, 40 items, 5 independent",
    ],
)
def test_shares_hold_the_truth(name):
    counted = hits(SIMULATED["simulated"]("proportions")[name])
    assert counted["proportion"] >= FEWEST
    # Negative control: no interval where no item changed.
    assert counted["Student's t"] < FEWEST or "0.5" in name


def test_a_fall_between_two_levels_can_be_anywhere_between_them():
    x = [0.0, 0.9, 1.0]
    of = replicates(readings(np.array([1, 1, 0])[:, None].repeat(40, 1), noise=x))
    found = located(of, lambda c: crossing(x, c, 0.5), x)
    np.testing.assert_allclose(found, [0.95, 0.9, 1.0])
    assert np.isnan(located(of, lambda c: float("nan"), x)).all()
    assert [levels_around(x, place) for place in (0.9, 0.90001)] == [(0.0, 0.9), (0.9, 1.0)]
    alone = replicates(readings(np.ones((3, 1)), noise=x))
    assert np.isnan(located(alone, lambda c: 0.95, x)[1:]).all()  # one original


@pytest.mark.parametrize(
    "name",
    [
        "6 levels, 40 x 1, logistic .02",
        "11 levels, 40 x 4, step",
        "21 levels, 40 x 1, logistic .08",
    ],
)
def test_places_on_coarse_grids_hold_the_truth(name):
    counted = hits(SIMULATED["simulated"]("grids")[name])
    assert counted["located"] >= FEWEST
    assert counted["interpolated"] < FEWEST or "21" in name  # negative control


def test_places_on_fine_grids_stay_narrow():
    grid, runs = SIMULATED["GRIDS"]["51 levels, 40 x 1, logistic .08"], range(60)
    found = [SIMULATED["grid_run"](grid, seed) for seed in runs]
    width = {name: np.mean([one[name][3] - one[name][2] for one in found]) for name in found[0]}
    assert width["located"] < 1.05 * width["interpolated"]
    assert width["outwards"] > 1.1 * width["interpolated"]


def test_groups_of_unequal_size_have_fewer_degrees_of_freedom():
    assert replicates(data(grammars=8)).freedom == 7
    sizes = [1, 5, 10, 30]
    uneven = data(items=46).assign_coords(grammar=("item", np.repeat(np.arange(4), sizes)))
    assert replicates(uneven).freedom == pytest.approx(46**2 / (1 + 25 + 100 + 900) - 1)
    name = "8 grammars of 1 to 30 items, sd 10.0 between, 1 within"
    assert hits(SIMULATED["simulated"]("skewed")[name])["mean"] >= FEWEST


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_no_figure_has_fewer_than_six_independent_groups(scale):
    """A verdict may rest on the interval of any run, and few groups make intervals that are too
    wide to decide anything.
    """
    modules = [load_figure(figure) for figure in FIGURES]
    runs = [
        run
        for module in modules
        if hasattr(module, "experiments")
        for run in module.experiments(scale).values()
    ]
    specs = [run.to_dict() for run in runs] + [
        Experiment.from_file(EXAMPLES / "epsilon.toml").to_dict()
    ]
    for spec in specs:
        grammars = spec["source"].get("grammars", 1)
        assert (grammars if grammars > 1 else spec["items"]) >= 6
