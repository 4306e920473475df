"""Calibration: the exact test keeps its false-alarm rate, sees wrong posteriors, and reads the
runs of experiments.
"""

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy import stats

import uturn as ut
from uturn.core.experiment import Experiment
from uturn.engine.run import run
from uturn.measures import calibration
from uturn.measures.calibration import calibrate, exchanged_gaps, holm, paired
from uturn.measures.relabelling import combined, log_bound, p_values


def experiment(kind, noise, items=200, depth=7, clones=8, **changes):
    """Strings of the paper's grammar, of depth 7 unless said otherwise."""
    return Experiment.from_dict(
        {
            "items": items,
            "clones": clones,
            "chunk": 500,
            "source": {
                "type": "rhm",
                "vocab_size": 32,
                "multiplicity": 8,
                "branching": 2,
                "depth": depth,
                "grammars": 8,
            },
            "corruption": {"type": kind, "noise": noise},
            "backward": {"type": "exact"},
            "probes": [{"type": "parsed_levels"}],
            **changes,
        }
    )


def judged(one, variable="parsed", level=0.01, **options):
    return ut.calibration(run(one), variable, level=level, **options)


# -- the statistics --------------------------------------------------------------------------------


def test_gaps_are_means_over_pairs_written_out():
    rng = np.random.default_rng(0)
    f = rng.random((5, 4, 4, 2))
    f = f + f.swapaxes(1, 2)
    others = [[k for k in range(1, 4) if k != j] for j in range(1, 4)]
    with_clones = np.stack([f[:, j + 1, others[j]].mean(1) for j in range(3)], axis=1)
    found = exchanged_gaps(f[:, 0, 1:], with_clones)
    for j in range(4):
        rest = [k for k in range(4) if k != j]
        among = np.mean([f[:, a, b] for a, b in itertools.combinations(rest, 2)], axis=0)
        assert np.allclose(found[:, j], f[:, j, rest].mean(1) - among)
    assert np.allclose(found.sum(1), 0)
    data = rng.random((5, 4, 3))
    f = np.stack(
        [[np.abs(data[:, j] - data[:, k]).sum(1) for k in range(4)] for j in range(4)]
    ).transpose(2, 0, 1)
    first, rows = paired(data, lambda a, b: np.abs(a - b).sum(1))
    assert np.allclose(first, f[:, 0, 1:])
    assert np.allclose(rows, f[:, 1:, 1:].sum(2) / 2)


def test_the_test_is_the_enumeration_of_all_relabellings():
    rng = np.random.default_rng(1)
    first, rows = paired(rng.random((5, 3, 1)), lambda a, b: -np.abs(a - b)[:, 0])
    gaps = exchanged_gaps(first, rows)
    every = [
        abs(np.mean([gaps[i, j] for i, j in enumerate(labels)]))
        for labels in itertools.product(range(3), repeat=5)
    ]
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    found = calibrate(first, rows, relabellings=200_000)
    # P is clear after 10,000 of them.
    assert abs(found.p_value - exact) < 4 * np.sqrt(exact * (1 - exact) / 10_000)
    # A function of the seed.
    assert calibrate(first, rows, relabellings=200_000).p_value == found.p_value
    assert calibrate(first, rows, relabellings=200_000, seed=1).p_value != found.p_value


def test_holm():
    assert np.allclose(holm([[0.01, 0.04], [0.03, 0.005]]), [[0.03, 0.06], [0.06, 0.02]])
    assert np.allclose(holm([0.5, 0.9]), [1, 1])


def test_the_unit_of_a_reading_does_not_matter():
    """p-values of readings of any size; gaps that are equal up to rounding are ties in every
    unit.
    """
    rng = np.random.default_rng(3)
    first, rows = paired(rng.integers(0, 9, (40, 4)) / 8 + 1, lambda a, b: a * b)
    known = calibration.calibrate(first, rows, 0.01)
    assert 0.01 < known.p_value < 0.99
    for unit in (1e-12, 1e-6, 1e9, 1e60):
        assert calibration.calibrate(first * unit, rows * unit, 0.01).p_value == known.p_value
    away = calibration.calibrate((first + 1) * 1e-9, rows * 1e-9, 0.01)
    assert away.p_value < 1e-3


def test_no_gap_is_visible_where_no_p_value_is_small_enough():
    """Six items with two clones: no p-value below 3**-6, and an original that differs as much as
    it can is not detected.
    """
    first, rows = paired(
        np.arange(6)[:, None] + np.array([0, 10, 10.1]), lambda a, b: -np.abs(a - b)
    )
    found = calibrate(first, rows, relabellings=100_000)
    assert found.p_value == pytest.approx(3.0**-6, rel=0.4)  # from 100 hits or more
    assert found.passed
    assert np.isinf(found.visible)
    few = calibrate(first, rows, level=2 * 3.0**-6, relabellings=100_000)
    assert not few.passed
    assert np.isfinite(few.visible)
    # Where nothing differs, nothing is tested.
    padded = [np.concatenate([x, np.ones((500, 2))]) for x in (first, rows)]
    assert np.isinf(calibrate(*padded).visible)


@pytest.mark.slow
def test_most_relabellings_are_spared_without_a_change_of_the_result():
    """Of 60 tests with p from 1e-6 to 1, all relabellings are counted in a plain loop; 1.2
    million, drawn otherwise. Estimates of one p differ by less than 5 standard errors of the one
    with fewer hits, at least 100 (false alarm 4e-5).
    """
    rng = np.random.default_rng(3)
    first, rows = rng.random((2, 50, 3, 60))
    first += np.linspace(0, 0.3, 60)  # gaps of all sizes
    gaps = exchanged_gaps(first, rows)
    hits, least = np.zeros(60), np.abs(gaps[:, 0].sum(0)) - 1e-6
    for _ in range(300):
        labels = rng.integers(0, 4, (4000, 50))
        sums = np.zeros((4000, 60))
        for i in range(50):
            sums += gaps[i, labels[:, i]]
        hits += (np.abs(sums) >= least).sum(0)
    found = calibrate(first, rows, relabellings=1_200_000)
    p = (1 + hits) / 1_200_001
    sure = np.minimum(hits, found.p_value * 1_200_001) >= 100
    assert sure.sum() > 30
    assert np.all(np.abs(np.log(found.p_value / p))[sure] < 5 * np.sqrt(1 / 100 + 1 / hits[sure]))
    assert found.p_value.min() == 1 / 1_200_001
    assert hits[found.p_value == 1 / 1_200_001].max() <= 5
    assert np.all(np.log(p) - 0.5 <= log_bound(gaps, least), where=hits >= 100)


def test_hits_too_rare_for_the_first_look_are_counted():
    """Ten items with gaps of .75, -.75 and 0: two relabellings in 3^10 reach the mean, about 34
    of a million (within 5 standard errors, false alarm 2e-6).
    """
    first, rows = np.ones((10, 2, 1)), np.tile([[0.0], [0.5]], (10, 1, 1))
    gaps = exchanged_gaps(first, rows)
    assert gaps[0, :, 0].tolist() == [0.75, -0.75, 0]
    for key in range(3):
        hits = p_values(gaps, 1_000_000, key)[0] * 1_000_001 - 1
        assert abs(hits - 2e6 / 3**10) < 5 * np.sqrt(2e6 / 3**10)


def test_wrong_evidence_has_the_smallest_p_value():
    """Originals far from their clones: no relabelling reaches the gap, neither among few nor
    among all.
    """
    first, rows = np.zeros((60, 3)), np.ones((60, 3))
    for relabellings in (500, 10_000, 400_000):
        assert calibrate(first, rows, relabellings=relabellings).p_value == 1 / (relabellings + 1)


def test_sums_of_groups_of_items_are_all_sums():
    gaps = np.random.default_rng(0).random((5, 3, 2))
    assert np.allclose(combined(gaps).shape, (1, 243, 2))
    every = [
        sum(gaps[i, j] for i, j in enumerate(labels))
        for labels in itertools.product(range(3), repeat=5)
    ]
    assert np.allclose(combined(gaps)[0], every)
    assert combined(np.ones((7, 9, 1)))[:, 0, 0].tolist() == [2, 2, 2, 1]


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_is_read_as_it_is_defined():
    one = experiment("masking", [0.3, 0.6], items=20, depth=3, clones=3, trajectories=4)
    ds = run(one)
    found = ut.calibration(ds, "parsed", level=0.05, seed=3)
    assert found.gap.dims == ("noise", "tree_level")
    assert (found.attrs["clones"], found.attrs["trajectories"]) == (3, 4)
    direct = (ds.parsed - ds.clone_parsed).mean(("item", "trajectory", "clone"))
    assert np.allclose(found.gap, direct, atol=1e-6)
    first = ds.isel(trajectory=0).transpose("item", "clone", "noise", "tree_level")
    chosen = first.parsed, first.clone_parsed
    arrays = calibrate(*chosen, 0.05, seed=3)
    assert np.allclose(
        arrays.gap, (first.parsed - first.clone_parsed).mean(("item", "clone")), atol=1e-6
    )
    assert np.array_equal(found.p, arrays.p_value)
    assert np.array_equal(found.p_holm, arrays.adjusted)
    assert np.array_equal(found.visible, arrays.visible)
    assert ((found.low < found.gap) & (found.gap < found.high)).all()
    # Other trajectories change the gap alone.
    fewer = ut.calibration(ds.isel(trajectory=[0]), "parsed", level=0.05, seed=3)
    assert np.array_equal(fewer.p, found.p)
    assert not np.allclose(fewer.gap, found.gap)


def test_gaps_that_are_equal_in_all_originals_have_no_interval():
    """They say nothing about their spread: an interval of width 0 would be wrong."""
    likeness = np.ones((1, 6, 1, 3, 2))
    likeness[..., 1] += 0.1 * np.arange(6)[:, None, None]
    dims = ("noise", "item", "trajectory", "clone", "part")
    data = {
        "like": xr.DataArray(likeness, dims=dims),
        "clone_like": xr.DataArray(0 * likeness + 0.7, dims=dims),
    }
    found = ut.calibration(ut.readings(data, [0.5]), "like").isel(noise=0)
    assert np.allclose(found.gap, [0.3, 0.55])
    assert (
        np.isnan(found.low).values.tolist() == np.isnan(found.high).values.tolist() == [True, False]
    )
    assert found.low[1] < found.gap[1] < found.high[1]


def test_several_variables_are_one_family():
    both = [{"type": "tree_levels"}, {"type": "parsed_levels"}]
    ds = run(experiment("masking", [0.3, 0.6], items=60, depth=2, clones=2, probes=both))
    ds["at_root"], ds["clone_at_root"] = (
        ds.parsed.isel(tree_level=2),
        ds.clone_parsed.isel(tree_level=2),
    )
    found = ut.calibration(ds, ["at_root", "unchanged"])
    assert found.gap.dims == ("noise", "reading")
    assert found.reading.values.tolist() == [
        "at_root",
        *(f"unchanged, tree_level = {k}" for k in range(3)),
    ]
    assert found.attrs["relabellings"] == 800_000
    one_by_one = ut.calibration(ds, "unchanged")
    assert np.allclose(found.gap[:, 1:], one_by_one.gap)
    assert np.allclose(found.p_holm, holm(found.p))
    # The trees of exact draws are those of their leaves.
    assert np.array_equal(ds.unchanged, ds.parsed)


# -- exact draws -----------------------------------------------------------------------------------


def test_false_alarm_rate_on_exact_draws_of_a_small_grammar():
    """400 groups of 40 strings: p-values of exact inference are uniform or larger, also where
    nearly nothing changes (noise .05). Every comparison fails by chance in 1e-3.
    """
    data = run(experiment("masking", [0.05, 0.5], items=16_000, clones=2, source=SMALL)).isel(
        trajectory=0
    )
    first, rows = (
        data[k].transpose("item", "clone", "noise", "tree_level").values
        for k in ("parsed", "clone_parsed")
    )
    p = []
    for group in range(400):
        items = slice(group, None, 400)  # of all grammars
        p.append(calibrate(first[items], rows[items], relabellings=500, seed=group).p_value)
    p = np.array(p).reshape(400, -1)
    assert all(
        stats.kstest(column, "uniform", alternative="greater").pvalue > 1e-3 for column in p.T
    )
    assert (p <= 0.05).mean(0).max() <= 0.05 + 3.1 * np.sqrt(0.05 * 0.95 / 400)


SMALL = {
    "type": "rhm",
    "vocab_size": 4,
    "multiplicity": 2,
    "branching": 2,
    "depth": 2,
    "grammars": 4,
}


def test_twins_are_their_definition():
    """Clone k against the other clones, pair by pair, from the strings themselves."""
    one = experiment(
        "masking", [0.4], items=6, clones=4, trajectories=2, source={**SMALL, "grammars": 1}
    )
    source, corruption, backward, _ = one.parts
    originals = next(source.blocks(np.arange(6), 0, 6))
    streams = ut.random.Streams(0, np.arange(6), 0.4, range(2))
    leaves = (
        ut.u_turn(originals, corruption, backward, 0.4, streams, clones=4)
        .reconstructions[0]
        .reshape(6, 2, 4, -1)
    )
    ds = run(one)
    for item, trajectory, k in np.ndindex(6, 2, 4):
        for level in range(3):
            trees = [
                originals.rhm.parse(leaves[item, trajectory, j][None]).latents[level][0]
                for j in range(4)
            ]
            equal = [np.mean((trees[k] == trees[j]) & (trees[k] >= 0)) for j in range(4) if j != k]
            at = {
                "noise": 0,
                "item": item,
                "trajectory": trajectory,
                "clone": k,
                "tree_level": level,
            }
            assert ds.clone_parsed[at] == pytest.approx(np.mean(equal), abs=1e-6)
            assert ds.parsed[at] == pytest.approx(
                np.mean(trees[k] == originals.draw.latents[level][item]), abs=1e-6
            )


def test_vectors_are_calibrated_and_a_wrong_posterior_is_not(monkeypatch):
    law = {"type": "gaussian_mixture", "dimension": 64, "num_modes": 3, "separation": 0.5}
    one = experiment("gaussian", [0.5, 1.5], source=law, probes=[{"type": "scales"}])
    readings = ["same_label", "scale_similarity"]
    assert judged(one, readings).attrs["passed"]
    right = ut.laws.GaussianMixture.sample_posterior
    monkeypatch.setattr(
        ut.laws.GaussianMixture,
        "sample_posterior",
        lambda self, x, t, seed=0: right(self, x, 0.9 * t, seed),
    )
    assert not judged(one, readings).attrs["passed"]


# -- negative controls -----------------------------------------------------------------------------


class TooSure(ut.Gaussian):
    """Evidence times 1.1."""

    def log_evidence(self, noisy, dtype=None):
        return super().log_evidence(noisy, dtype) * np.float32(1.1)


class WithoutSignal(ut.Gaussian):
    """Evidence without sqrt(abar)."""

    def log_evidence(self, noisy, dtype=None):
        return super().log_evidence(noisy, dtype) * np.float32(np.exp(noisy.noise[0]))


@pytest.mark.parametrize("channel", [TooSure, WithoutSignal])
def test_wrong_evidence_is_seen(channel):
    """200 strings and two clones at t = .15; eight clones at t = .07 too."""
    kind = f"{__name__}:{channel.__name__}"
    found = judged(experiment(kind, [0.15], clones=2))
    assert found.p_holm.min() < 1e-3
    assert not judged(experiment(kind, [0.07, 0.15])).attrs["passed"]


def test_a_sampler_of_marginals_is_seen_by_parsed_levels_and_not_by_sites(monkeypatch):
    from mutations import of_marginals
    from uturn.core.random import streams

    def marginals(rhm, log_evidence, seed=0, num_draws=None):
        return of_marginals(
            rhm, log_evidence, streams(seed, len(log_evidence)), np.asarray(num_draws)
        )

    monkeypatch.setattr(ut.inference, "sample_posterior", marginals)
    both = [{"type": "tree_levels"}, {"type": "parsed_levels"}]
    ds = run(experiment("masking", [0.2, 0.3], probes=both))
    sites, joint = (ut.calibration(ds, name, level=0.01) for name in ("unchanged", "parsed"))
    assert sites.attrs["passed"]  # nodes, one by one
    assert joint.p[:, 0].min() > 0.01  # leaves, one by one
    assert (joint.p_holm[:, 1:3] <= 0.01).all()
