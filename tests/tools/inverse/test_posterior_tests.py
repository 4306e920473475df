"""Tests of posterior samplers: the null, each wrong sampler, what each test cannot see, and
readings of one datum in stores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from uturn.core.protocols import UTurns
from uturn.core.random import Streams
from uturn.measures.statistics import proportion, with_interval
from uturn.sources.images import FashionMNISTSource, Images
from uturn.tools.inverse.at_level import levels_of
from uturn.tools.inverse.figure import draw_posterior_tests
from uturn.tools.inverse.measurement import Measurement
from uturn.tools.inverse.operators import Operator
from uturn.tools.inverse.probe import Posterior

LEVEL, CLONES, ITEMS = 1e-3, 4, 250
SPEC = {
    "items": ITEMS,
    "clones": CLONES,
    "source": {"type": "gaussian_mixture", "dimension": 16, "num_modes": 3, "separation": 1.5},
    "corruption": {"type": "operator", "operator": "boxes", "sigma": 0.3, "noise": [0.75]},
    "backward": {"type": "exact"},
    "probes": [{"type": "posterior"}],
}
RANKED = ("log_likelihood", "log_prior", "reference_distance", "mean_value")


def experiment(**changes):
    return ut.Experiment.from_dict({**SPEC, **changes})


@pytest.fixture(scope="module")
def u_turn():
    """The U-turns of exact draws, and the source."""
    source, corruption, backward, _ = experiment().parts
    originals = next(source.blocks(np.arange(ITEMS), 0, ITEMS))
    streams = Streams(0, np.arange(ITEMS), 0.75)
    return ut.u_turn(originals, corruption, backward, 0.75, streams, clones=CLONES), source


def read(turned, source, draws):
    """The run of other reconstructions (items, draws, dimension) of the same measurements."""
    turned = UTurns(turned.originals, turned.noisy, draws.astype(np.float32), CLONES)
    readings = Posterior().read(turned, source)
    shaped = {
        name: values.reshape(1, ITEMS, *[1] * (values.ndim - 1), *[CLONES] * (values.size > ITEMS))
        for name, values in readings.items()
    }
    return ut.readings(shaped, [0.75])


def sampled(name, turned):
    """Reconstructions of a wrong sampler."""
    noisy, exact, rng = (
        turned.noisy,
        np.asarray(turned.reconstructions, float),
        np.random.default_rng(1),
    )
    posterior, observed = noisy.posterior(0), noisy.operators[0].vectors(noisy.values)
    mean, sd = posterior.mean(observed)[:, None], np.sqrt(posterior.variance(observed))[:, None]

    if name == "likeliest mode alone":
        modes = posterior.weights(observed).argmax(1)
        root = np.linalg.cholesky(posterior.covariances[0] + 1e-9 * np.eye(16))
        return (
            posterior.means(observed)[np.arange(ITEMS), modes][:, None]
            + rng.standard_normal(exact.shape) @ root.T
        )
    return {
        "exact": exact,
        "narrow": mean + 0.75 * (exact - mean),
        "wide": mean + 1.3 * (exact - mean),
        "shifted": exact + 0.5 * sd,
        "ignores y": noisy.law.sample(ITEMS * CLONES, 9).values.reshape(exact.shape),
        "deterministic": np.repeat(mean, CLONES, axis=1),
    }[name]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("exact", "none seen"),
        ("narrow", "too sure"),
        ("wide", "not sure enough"),
        ("shifted", "shifted"),
        ("ignores y", "deaf to the data"),
        ("likeliest mode alone", "wrong modes"),
        ("deterministic", "too sure"),
    ],
)
def test_each_wrong_sampler_is_caught_and_named(u_turn, name, kind):
    """The false-alarm rate of the exact sampler is 2 * .001, and a single seed is looked at."""
    tests = ut.posterior_tests(read(*u_turn, sampled(name, u_turn[0])), LEVEL)
    assert tests.attrs["passed"] == (name == "exact")
    assert tests.kind.item() == kind


def identity(strength, shape):
    return Operator(lambda x: x, noise=strength)


def test_readings_of_images_have_the_scale_of_samplers():
    """Black originals, and clones of grey .3 and .5 in [0, 1], which are -.4 and 0 in the data."""
    originals = Images(np.arange(2), np.full((2, 3, 5, 4), -1, np.float32), np.full(2, -1))
    noisy = Measurement(operator=f"{__name__}:identity").observe(
        originals, 0.1, Streams(0, np.arange(2), 0.1)
    )
    draws = np.broadcast_to(np.array([-0.4, 0.0], np.float32)[:, None, None, None], (2, 2, 3, 5, 4))
    readings = Posterior().read(UTurns(originals, noisy, draws, 2), FashionMNISTSource())
    for name, expected in {
        "distance": [0.3, 0.5],
        "clone_distance": [0.2, 0.2],
        "mean_value": [0.3, 0.5],
    }.items():
        assert readings[name] == pytest.approx(np.array([expected] * 2), abs=1e-6)
    assert readings["original_mean_value"] == pytest.approx(0, abs=1e-6)
    references = [
        operator.back_projection(y[None], (3, 5, 4))[0]
        for operator, y in zip(noisy.operators, noisy.values, strict=True)
    ]
    assert readings["original_reference_distance"].ravel() == pytest.approx(
        [np.sqrt((r**2).mean()) for r in references], abs=1e-6
    )
    units = {
        name: variable.unit
        for name, variable in Posterior().variables(FashionMNISTSource()).items()
    }
    assert (
        units["distance"]
        == units["mean_value"]
        == units["reference_distance"]
        == "of the range [0, 1]"
    )


def test_a_sampler_that_ignores_y_is_seen_by_its_likelihood_alone(u_turn):
    run = read(*u_turn, sampled("ignores y", u_turn[0]))
    tests = ut.posterior_tests(run, LEVEL)
    p = tests.p.isel(noise=0).to_series()
    assert p["log_likelihood"] < LEVEL / 10
    # As in the study of the run, with its rounding.
    np.testing.assert_array_equal(tests.coverage, proportion(run.coverage))
    assert ("coverage", f"{with_interval(tests.coverage[0])}, expected 0.6") in [
        row[:2] for row in levels_of(tests)[0].table().rows
    ]
    assert (p[["distance", "same_component", "log_prior"]] > 0.01).all()
    assert abs(tests.coverage[0, 0] - 0.6) < 0.03
    assert abs(tests.z_squared[0, 0] - 1) < 0.08


def test_values_drawn_one_by_one_are_seen_by_the_prior_alone():
    """Two values with correlation .95: the distance keeps its mean under sampling of each from
    its own marginal.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 1 + CLONES, 1)) + 0.2 * rng.standard_normal((400, 1 + CLONES, 2))
    x[:, 1:, 1] = rng.permuted(x[:, 1:, 1], axis=0)
    inverse = np.linalg.inv(np.array([[1.04, 1.0], [1.0, 1.04]]))
    log_prior = -0.5 * np.einsum("nki,ij,nkj->nk", x, inverse, x)
    run = ut.readings(
        {
            **ut.readings_of(
                x[:, 0],
                x[None, :, None, 1:],
                lambda a, b: np.sqrt(((a - b) ** 2).mean(-1)),
                "distance",
            ),
            "log_prior": log_prior[None, :, None, 1:],
            "original_log_prior": log_prior[None, :, None, 0],
        },
        [1.0],
        start={"distance": 0},
    )
    tests = ut.posterior_tests(run, LEVEL)
    assert tests.kind.item() == "unlike the data"
    assert tests.p.sel(reading="log_prior") < LEVEL / 10 < LEVEL < tests.p.sel(reading="distance")
    assert "no test sees a sampler that ignores the measurement" in tests.attrs["remark"]


def of_densities(name, original, clones):
    """A run with one ranked reading, of originals (items,) and clones (items, clones)."""
    return ut.readings(
        {name: clones[None, :, None], f"original_{name}": original[None, :, None]}, [1.0]
    )


def test_heavy_tails_of_the_right_mean_are_seen_by_ranks_and_do_not_pass():
    """Clones have the mean and the variance of the original, and the tails of Student's t with
    three degrees of freedom.
    """
    rng = np.random.default_rng(4)
    run = of_densities(
        "log_prior", rng.standard_normal(900), rng.standard_t(3, (900, 9)) / np.sqrt(3)
    )
    tests = ut.posterior_tests(run, LEVEL)
    assert tests.p.item() > 0.01
    assert tests.rank_p_holm.item() < LEVEL
    assert not tests.attrs["passed"]
    assert tests.decided.item() == "ranks of log_prior"
    assert "decided by ranks of log_prior, p = " in levels_of(tests)[0].words
    exact = ut.posterior_tests(
        of_densities("log_prior", rng.standard_normal(900), rng.standard_normal((900, 9)))
    )
    assert exact.attrs["passed"]
    assert exact.decided.item() == ""


def test_the_family_holds_means_and_ranks():
    """p-values by Holm in a loop, over means and ranks of the family at both noise levels, and
    over those beside it.
    """
    h = np.random.default_rng(5).standard_normal((2, 80, 1, 1 + CLONES, 3))
    names = ("log_likelihood", "log_prior", "mean_value")
    arrays = {name: h[..., 1:, k] for k, name in enumerate(names)} | {
        f"original_{name}": h[..., 0, k] for k, name in enumerate(names)
    }
    tests = ut.posterior_tests(ut.readings(arrays, [1.0, 2.0]))
    for some in (names[:2], names[2:]):
        of = tests.sel(reading=list(some))
        p, adjusted = (
            np.concatenate([of[key].values.ravel(), of[f"rank_{key}"].values.ravel()])
            for key in ("p", "p_holm")
        )
        expected, largest = np.empty_like(p), 0.0
        for rank, k in enumerate(np.argsort(p)):
            largest = max(largest, min(1.0, p[k] * (len(p) - rank)))
            expected[k] = largest
        np.testing.assert_allclose(adjusted, expected)


def test_what_is_visible_is_what_the_strictest_of_means_and_ranks_sees():
    """The family of one ranked reading has two tests, with another reading of two data three."""
    rng = np.random.default_rng(6)
    ranked = of_densities("log_prior", rng.standard_normal(80), rng.standard_normal((80, CLONES)))
    alone = ut.posterior_tests(ranked, LEVEL).visible.values.ravel()
    np.testing.assert_allclose(alone, ut.calibration(ranked, "log_prior", level=LEVEL / 2).visible)
    likeness = rng.standard_normal((2, 1, 80, 1, CLONES)) + 3
    both = ranked.merge(
        ut.readings({"distance": likeness[0], "clone_distance": likeness[1]}, [1.0])
    )
    tests = ut.posterior_tests(both, LEVEL).visible.sel(reading="log_prior")
    np.testing.assert_allclose(tests, ut.calibration(ranked, "log_prior", level=LEVEL / 3).visible)


@pytest.mark.parametrize("times", [1.7, 5.0])
def test_clones_that_are_deaf_are_said_to_be_so_many_noises_away(times):
    """Ten measured values with Gaussian noise; residuals of the clones are `times` as large as
    those of the original.
    """
    squares = np.random.default_rng(6).chisquare(10, (700, 5))
    tests = ut.posterior_tests(
        of_densities("log_likelihood", -squares[:, 0] / 2, -(times**2) * squares[:, 1:] / 2)
    )
    assert tests.kind.item() == "deaf to the data"
    assert tests.residual.item() == pytest.approx(times, rel=0.1)
    words = (
        f"residuals about {tests.residual.item():.2g} times as large); decided by log_likelihood,"
        " p = "
    )
    assert words in levels_of(tests)[0].words


def test_originals_of_one_likelihood_name_a_kind():
    of_clones = -np.random.default_rng(0).random((1, 40, 1, 4))
    run = ut.readings(
        {"log_likelihood": of_clones, "original_log_likelihood": np.ones((1, 40, 1))}, [0.5]
    )
    assert ut.posterior_tests(run).kind.item() == "deaf to the data"


def test_tarp_needs_references_that_depend_on_the_measurement(u_turn):
    """The prior is seen by the rank of the distance to a reference of y, not by that to an
    independent one.
    """
    turned, _ = u_turn
    data = np.concatenate([turned.originals.data[:, None], sampled("ignores y", turned)], axis=1)
    references = np.array([turned.noisy.reference(row) for row in range(ITEMS)])
    p = {}
    for name, of in (
        ("of y", references),
        ("independent", turned.noisy.law.sample(ITEMS, 77).values),
    ):
        h = np.sqrt(((data - of[:, None]) ** 2).mean(-1))[None, :, None]
        p[name] = float(
            ut.ranks(ut.readings({"h": h[..., 1:], "original_h": h[..., 0]}, [0.75]), "h").p.item()
        )
    assert p["of y"] < 1e-3
    assert p["independent"] > 0.01


def test_the_readings_of_the_probe_are_their_definition(u_turn):
    turned, source = u_turn
    readings, item, K = Posterior().read(turned, source), 3, CLONES
    hidden = turned.noisy.hidden(item)
    x, draws = turned.originals.data[item].astype(float), turned.reconstructions[item].astype(float)
    assert hidden.sum() == 12
    for k in range(K):
        others = [np.sqrt(((draws[k] - draws[j])[hidden] ** 2).mean()) for j in range(K) if j != k]
        assert readings["distance"][item, k] == pytest.approx(
            np.sqrt(((x - draws[k])[hidden] ** 2).mean())
        )
        assert readings["clone_distance"][item, k] == pytest.approx(np.mean(others))
        assert readings["mean_value"][item, k] == pytest.approx(draws[k][hidden].mean())
        seen = (
            turned.noisy.values[item].ravel()[~hidden]
            if turned.noisy.values[item].size == 16
            else turned.noisy.values[item]
        )
        residual = draws[k][~hidden] - seen.ravel()
        expected = -0.5 * (residual**2).sum() / 0.09 - 4 * np.log(0.3 * np.sqrt(2 * np.pi))
        assert readings["log_likelihood"][item, k] == pytest.approx(expected, rel=1e-4)
    everything = np.concatenate([x[None], draws])[:, hidden]
    inside = [
        draws[:, hidden][:, i].min() < everything[0, i] < draws[:, hidden][:, i].max()
        for i in range(12)
    ]
    assert readings["coverage"][item] == pytest.approx(np.mean(inside))
    squares = [(column[0] - column.mean()) ** 2 / column.var() for column in everything.T]
    assert readings["z_squared"][item] == pytest.approx(np.mean(squares))
    assert readings["original_log_prior"].shape == (ITEMS, 1)


def test_coverage_counts_ties_as_broken_at_random(u_turn):
    """Values rounded to a few levels, as those of images are: the mean stays (K - 1) / (K + 1) =
    .6, and is .36 without ties.
    """
    turned, source = u_turn
    rounded = turned.originals.data.round(0)
    originals = replace(turned.originals, values=rounded)
    draws = np.asarray(turned.reconstructions).round(0)
    coverage = Posterior().read(UTurns(originals, turned.noisy, draws, CLONES), source)["coverage"]
    assert abs(coverage.mean() - 0.6) < 4 * coverage.std() / np.sqrt(ITEMS)
    hidden = turned.noisy.hidden(0)
    assert ((rounded > draws.min(1)) & (rounded < draws.max(1)))[:, hidden].mean() == pytest.approx(
        0.36, abs=0.01
    )
    equal = np.repeat(turned.originals.data[:, None], CLONES, axis=1)
    assert Posterior().read(UTurns(turned.originals, turned.noisy, equal, CLONES), source)[
        "coverage"
    ] == pytest.approx(0.6)


def test_readings_of_originals_are_kept_when_a_run_is_resumed_and_extended(tmp_path):
    small = {"items": 6, "chunk": 3, "clones": 2}
    larger = {"items": 9, "chunk": 3, "clones": 2, "trajectories": 2}
    ut.run(experiment(**small), store=tmp_path / "run")
    before = xr.open_dataset(tmp_path / "run", engine="uturn").original_log_likelihood.load()
    extended = ut.run(experiment(**larger), store=tmp_path / "run")
    whole = ut.run(experiment(**larger))
    for name in RANKED:
        assert extended[f"original_{name}"].dims == ("noise", "item", "trajectory")
        np.testing.assert_array_equal(extended[f"original_{name}"], whole[f"original_{name}"])
        np.testing.assert_array_equal(extended[name], whole[name])
    np.testing.assert_array_equal(before, extended.original_log_likelihood[:, :6, :1])
    alone = ut.run(experiment(**{**small, "clones": 1}))
    np.testing.assert_array_equal(
        alone.original_log_prior, before.copy(data=whole.original_log_prior[:, :6, :1])
    )


def test_a_study_has_gaps_of_ranked_readings():
    run = ut.run(experiment(items=60))
    study = ut.study(run)
    assert set(study.reading.values[study.gap_p.notnull().any("noise")]) == {
        "distance",
        "same_component",
        *RANKED,
    }
    gap = float((run.original_log_prior.mean() - run.log_prior.mean()).item())
    assert study.gap.sel(reading="log_prior", estimate="value")[-1] == pytest.approx(gap, rel=1e-4)
    assert {"gap", "gap_p"} <= set(ut.studies.tidy(study).curves)


def test_the_picture_and_the_table_name_the_kind(u_turn):
    import matplotlib.pyplot as plt

    tests = ut.posterior_tests(read(*u_turn, sampled("narrow", u_turn[0])), LEVEL)
    figure = draw_posterior_tests(tests)
    assert "too sure" in figure.get_suptitle()
    plt.close(figure)
    assert "too sure" in repr(tests)
    assert "TARP" not in tests.blind.values
