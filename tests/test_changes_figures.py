"""Figures chi and correlations on forged runs: verdicts pass on what theory expects, and fail on
deliberate errors.
"""

import numpy as np
import pytest
import xarray as xr

from uturn.core.random import keys, uniforms
from uturn.exact.theory import MeanField
from uturn.measures.covariances import Grid, Tree
from uturn.measures.scaling import collapse as fitted
from uturn.measures.scaling import correlation_length
from uturn.paper import chi, collapse, correlated_runs, correlations

ITEMS = 24


def forged(noise, correlation, distance, name="", seed=0, spread=0.02):
    """A run with these correlations (noise, distance): the covariances of every item differ by a
    few per cent.
    """
    correlation = np.asarray(correlation, float)
    covariance = np.repeat(correlation[:, None], ITEMS, axis=1)
    away = covariance[..., 1:]
    away *= 1 + spread * (
        2 * uniforms(keys(seed, range(len(noise) * ITEMS)), away.shape[2]).reshape(away.shape) - 1
    )
    prefix = f"{name}_" if name else ""
    total = (covariance * distance.pairs).sum(-1) / distance.num_sites
    return xr.Dataset(
        {
            f"{prefix}change_covariance": (("noise", "item", f"{prefix}distance"), covariance),
            f"{prefix}change_covariance_sum": (("noise", "item"), total),
        },
        coords={"noise": noise, "item": np.arange(ITEMS), f"{prefix}distance": distance.values},
    )


def of_theory(parameters, depth, noise, shift=0.0, seed=0):
    """The ε-process as the mean field has it, moved along ε."""
    theory = MeanField(*parameters)
    c = theory.pair_correlations(np.asarray(noise) - shift, depth)
    return forged(
        np.asarray(noise, float),
        c / c[:, :1],
        Tree(parameters[2] ** depth, parameters[2]),
        seed=depth + seed,
    )


def with_chi(noise, curve, distance, name="", seed=0):
    """A run with this curve of chi: all pairs of different sites are equally correlated."""
    level = (np.asarray(curve, float)[:, None] - 1) / (distance.num_sites - 1)
    return forged(
        np.asarray(noise, float),
        np.c_[np.ones(len(noise)), np.repeat(level, len(distance.values) - 1, 1)],
        distance,
        name,
        seed,
    )


def decaying(noise, heights, length, distance, name=""):
    """A run with C(r)/C(0) = height exp(-(r - 1)/length) at each noise level."""
    r = distance.values
    curve = np.multiply.outer(np.asarray(heights, float), np.exp(-(r - 1) / length))
    curve[:, 0] = 1
    return forged(np.asarray(noise, float), curve, distance, name)


def times(run, factors):
    """A run whose chi is multiplied at every noise level."""
    return run.assign(
        change_covariance_sum=run.change_covariance_sum
        * xr.DataArray(np.broadcast_to(factors, run.sizes["noise"]), dims="noise")
    )


def longer(run, factors):
    """A run whose correlation lengths, about 2 to 60, are longer by exp(factor) at every noise
    level.
    """
    theory, r = MeanField(*correlated_runs.PAPER), run.distance.values
    c = xr.DataArray(
        theory.pair_correlations(run.noise.values, 8)[:, None], dims=("noise", "item", "distance")
    )
    c = c.assign_coords(noise=run.noise, distance=r)
    length = correlation_length(c, theory.decay_exponent).length.values
    rate = (1 - np.exp(-factors)) / length
    curve = (c / c.isel(distance=0)).values[:, 0] * np.exp(np.multiply.outer(rate, r))
    return forged(run.noise.values, curve, Tree(256, 2))


def bump(noise, at, height):
    return 1 + (height - 1) * np.exp(-(((np.asarray(noise) / at - 1) / 0.3) ** 2))


TIMES = np.array(correlated_runs.TIMES)
IMAGE_NOISE = np.array([0.2, 0.4, 0.6, 0.8, 1.0])


def shared_runs():
    rising = np.linspace(0.01, 0.5, len(TIMES))
    pixels = decaying(IMAGE_NOISE, [0.1, 0.3, 0.5, 0.5, 0.5], 2.0, Grid((7, 7)))
    features = decaying(IMAGE_NOISE, [0.2, 0.4, 0.7, 0.7, 0.7], 4.0, Grid((14, 14)), "feature")
    one_level = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0])
    controls = {
        "field": decaying(TIMES, rising, 1.5, Grid((16, 16), periodic=True)),
        "mixture": with_chi(TIMES, 1 + 20 * rising / 0.5, Grid((128,))),
    }
    return {
        **controls,
        **{f"exact-{label}": run.isel(noise=[-1]) for label, run in controls.items()},
        "one-level": with_chi(one_level, [1.02, 2.1, 2.6, 2.0, 1.5, 1.3, 1.1, 1.02], Tree(8, 8)),
        "images": xr.merge([pixels, features]),
    }


@pytest.fixture(scope="module")
def chi_runs():
    runs = {
        f"epsilon-depth{L}": of_theory(correlated_runs.STEEP, L, chi.epsilons(L, "smoke"))
        for L in chi.DEPTHS
    }
    for channel in chi.CHANNELS:
        noise = np.linspace(*chi.REACH[channel], 9)
        for depth, height in ((5, 3.0), (9, 5.0)):
            curve, label = bump(noise, chi.THRESHOLD[channel], height), f"{channel}-depth{depth}"
            runs[label] = with_chi(noise, curve, Tree(2**depth, 2))
            runs[f"exact-{label}"] = with_chi(noise, curve, Tree(2**depth, 2), seed=100)
    for L in chi.DEPTHS:
        runs[f"exact-epsilon-depth{L}"] = of_theory(
            correlated_runs.STEEP, L, chi.epsilons(L, "smoke"), seed=100
        )
    return {**runs, **shared_runs()}


@pytest.fixture(autouse=True, scope="module")
def collapses():
    """The collapse of equal trees is fitted once: most of the errors are in other runs."""
    known = {}

    def collapsed(runs):
        trees = tuple(
            (label, id(run.change_covariance.values))
            for label, run in runs.items()
            if label.startswith("depth")
        )
        if trees not in known:
            # With the runs, so that no other array gets the place of theirs.
            known[trees] = runs, right(runs)
        return known[trees][1]

    right = collapse.collapsed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collapse, "collapsed", collapsed)
        yield


def failed(module, runs):
    data, verdicts = module.analyse(runs)
    return [verdict.quantity for verdict in verdicts if verdict.passed is False], data


@pytest.mark.parametrize(
    ("label", "change", "quantity"),
    [
        (
            "epsilon-depth7",
            lambda run: of_theory((16, 4, 2), 7, run.noise.values, shift=0.012),
            "ε at which chi peaks",
        ),
        (
            "epsilon-depth5",
            lambda run: times(run, 1.04),
            "chi against the exact chi of the same strings, ε",
        ),
        (
            "gaussian-depth9",
            lambda run: times(run, 1.05),
            "chi against the exact chi of the same strings, Gaussian",
        ),
        (
            "masking-depth5",
            lambda run: times(run, 0.95),
            "chi against the exact chi of the same strings, masking",
        ),
        (
            "gaussian-depth9",
            lambda run: with_chi(run.noise, bump(run.noise, 0.0699, 3.0), Tree(512, 2)),
            "peak of chi, Gaussian",
        ),
        (
            "masking-depth9",
            lambda run: with_chi(run.noise, bump(run.noise, 0.2823, 5.0), Tree(512, 2)),
            "peak of chi, mask",
        ),
        (
            "uniform-depth9",
            lambda run: with_chi(run.noise, bump(run.noise, 0.156, 5.0), Tree(512, 2)),
            "peak of chi, rep",
        ),
        (
            "field",
            lambda run: decaying(TIMES, np.r_[0.1:0.6:10j, 0.1], 1.5, Grid((16, 16), True)),
            "chi against time, Gaussian",
        ),
        (
            "mixture",
            lambda run: with_chi(TIMES, bump(np.arange(11), 5, 30), Grid((128,))),
            "chi against time, mixture",
        ),
        (
            "one-level",
            lambda run: with_chi(run.noise, bump(run.noise, 0.1, 7), Tree(8, 8)),
            "largest chi of a grammar",
        ),
        (
            "images",
            lambda run: run.assign(change_covariance_sum=run.change_covariance_sum * 0 + 2),
            "chi of Fashion-MNIST",
        ),
    ],
)
def test_chi_fails_on_deliberate_errors(chi_runs, label, change, quantity):
    quantities, _ = failed(chi, {**chi_runs, label: change(chi_runs[label])})
    assert any(one.startswith(quantity) for one in quantities), quantities


@pytest.fixture(scope="module")
def correlations_runs():
    noise = collapse.epsilons("smoke")
    gaussian = of_theory(correlated_runs.PAPER, 9, [0.6, 0.65, 0.7, 0.73, 0.8])
    trees = {
        f"depth{L}": of_theory(correlated_runs.PAPER, L, noise) for L in collapse.depths("smoke")
    }
    exact = of_theory(correlated_runs.PAPER, 8, noise, seed=100)
    return {**trees, "exact-epsilon": exact, correlations.GAUSSIAN: gaussian, **shared_runs()}


@pytest.mark.parametrize("module", [chi, correlations])
def test_figures_pass_on_what_theory_expects(module, chi_runs, correlations_runs):
    quantities, data = failed(module, chi_runs if module is chi else correlations_runs)
    assert quantities == []
    assert module.draw(data).axes


@pytest.mark.parametrize(
    ("label", "change", "quantity"),
    [
        (
            "depth8",
            lambda run: of_theory((32, 8, 2), 8, run.noise.values, shift=0.004),
            "C(r)/C(0) against the exact",
        ),
        ("depth8", lambda run: longer(run, np.full(17, 0.06)), "ξ against"),
        (
            "mixture",
            lambda run: decaying(TIMES, np.full(11, 0.5), 20.0, Grid((128,))),
            "C(r) at large over small",
        ),
        (
            correlations.GAUSSIAN,
            lambda run: with_chi(run.noise, bump(run.noise, 0.7, 50), Tree(512, 2)),
            "C(r) at large over",
        ),
        (
            "field",
            lambda run: decaying(TIMES, np.full(11, 0.5), 30.0, Grid((16, 16), True)),
            "C(r) at 4 to 7 sites",
        ),
        (
            "images",
            lambda run: run.assign(change_covariance=0 * run.change_covariance + 0.5),
            "C(r)/C(0) of Fashion-MNIST",
        ),
    ],
)
def test_correlations_fail_on_deliberate_errors(correlations_runs, label, change, quantity):
    quantities, _ = failed(
        correlations, {**correlations_runs, label: change(correlations_runs[label])}
    )
    assert any(one.startswith(quantity) for one in quantities), quantities


def test_collapse_passes_on_the_mean_field_and_fails_on_another():
    def not_passed(runs):
        return [verdict.quantity for verdict in collapse.collapsed(runs)[1] if not verdict.passed]

    noise = collapse.epsilons("smoke")
    runs = {
        f"depth{L}": of_theory(correlated_runs.PAPER, L, noise) for L in collapse.depths("smoke")
    }
    assert not_passed(runs) == []
    shifted = {
        label: of_theory(correlated_runs.PAPER, int(label[5:]), noise, shift=0.03) for label in runs
    }
    assert any(one.startswith("critical ε") for one in not_passed(shifted))
    # The wrong order of depths: curves of larger trees are wider.
    swapped = dict(zip(runs, list(runs.values())[::-1], strict=True))
    assert not_passed(swapped)
    # Every depth with the curve of the same tree: nothing to collapse.
    same = {label: runs["depth6"] for label in runs}
    assert any(one.startswith("ν by collapse of C(N)") for one in not_passed(same))


# -- the fits themselves ---------------------------------------------------------------------------


def test_the_length_of_a_known_law_is_found():
    distance = Tree(512, 2)
    r = distance.values[1:]
    for exponent, length in ((0.9, 12.0), (0.9, 60.0), (0.0, 7.0)):
        curve = np.c_[np.ones(1), [0.7 * (r / 2) ** -exponent * np.exp(-r / length)]]
        values = forged(np.array([0.5]), curve, distance, spread=0.002).change_covariance
        given, free = (
            correlation_length(values, exponent, confidence=0.999),
            correlation_length(values),
        )
        assert given.length.item() == pytest.approx(length, rel=0.02)
        assert given.low.item() < length < given.high.item()
        assert free.length.item() == pytest.approx(length, rel=0.15)
    flat = forged(np.array([0.5]), np.c_[np.ones(1), [r**-0.9]], distance)
    assert correlation_length(flat.change_covariance, 0.9).length.item() > 10 * r[-1]
    nothing = flat.change_covariance * 0
    assert np.isnan(correlation_length(nothing, 0.9).length.item())
    with pytest.raises(ValueError, match="at least 3"):
        correlation_length(flat.change_covariance.isel(distance=slice(0, 3)))


def test_the_collapse_of_a_known_law_is_found():
    nu, critical, noise = 1.5, 0.6, np.linspace(0.4, 0.8, 41)
    sizes = [16.0, 64.0, 256.0]
    curves = [
        N ** (2 / nu - 2) * np.exp(-(((noise - critical) * N ** (1 / nu) / 3) ** 2)) for N in sizes
    ]
    values = np.stack([np.stack([c, np.ones_like(c)], axis=-1) for c in curves], axis=1)[
        :, None
    ].repeat(3, axis=1)
    data = xr.DataArray(values, dims=("noise", "item", "size", "part"), coords={"noise": noise})
    found = fitted(data, sizes, (1.8, 0.62))
    assert found.exponent.value == pytest.approx(nu, abs=0.03)
    assert found.critical_noise.value == pytest.approx(critical, abs=2e-3)
    assert found.spread < 0.01
    for bad, of, start, message in (
        (data, [-N for N in sizes], (1.8, 0.62), "sizes = .*positive"),
        (data, sizes, (0.1, 0.62), "start = .*between 0.5 and 20"),
        (data.where(data.noise > noise[0]), sizes, (1.8, 0.62), "missing"),
        (data.isel(noise=[1, 0]), sizes, (1.8, 0.62), "noise = .*increasing"),
    ):
        with pytest.raises(ValueError, match=message):
            fitted(bad, of, start)


def test_a_collapse_that_cannot_be_fitted_is_nan():
    """Nothing changes; and curves that do not overlap where the search begins. Never the start
    with an interval of width 0.
    """
    noise, sizes = np.linspace(0.5, 0.7, 9), [8.0, 32.0]
    curve = (
        np.stack([np.exp(-noise), np.ones(9)], axis=-1)[:, None, None]
        .repeat(4, axis=1)
        .repeat(2, axis=2)
    )
    data = xr.DataArray(curve, dims=("noise", "item", "size", "part"), coords={"noise": noise})
    for bad, start in ((data * 0, (1.8, 0.6)), (data, (1.8, 9.0))):
        found = fitted(bad, sizes, start)
        assert np.isnan([*found.exponent, *found.critical_noise, found.spread]).all()
