"""Calibration: the exact test keeps its false-alarm rate, sees wrong posteriors, and reads the U-turns of an experiment."""

import itertools

import numpy as np
import pytest
from scipy import stats

import uturn as ut
from uturn.experiment import Experiment, run
from uturn.measures.calibration import calibrate, clone_agreement, exchanged_gaps, holm, paired


def experiment(kind, noise, items=200, depth=7, **changes):
    """Strings of the paper's grammar, of depth 7 unless said otherwise."""
    return Experiment.from_dict(
        {
            "items": items,
            "source": {"type": "rhm", "vocab_size": 32, "multiplicity": 8, "branching": 2, "depth": depth, "grammars": 8},
            "corruption": {"type": kind, "noise": noise},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}],
            **changes,
        }
    )


def judged(one, clones=8, level=0.01, readings=slice(None), **options):
    data = clone_agreement(one, clones).isel(reading=readings).transpose("item", "clone", "noise", "reading")
    return calibrate(data.with_original.values, data.with_clones.values, level, **options)


# -- the statistics ------------------------------------------------------------------------------------------------------------


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
    f = np.stack([[np.abs(data[:, j] - data[:, k]).sum(1) for k in range(4)] for j in range(4)]).transpose(2, 0, 1)
    first, rows = paired(data, lambda a, b: np.abs(a - b).sum(1))
    assert np.allclose(first, f[:, 0, 1:])
    assert np.allclose(rows, f[:, 1:, 1:].sum(2) / 2)


def test_the_test_is_the_enumeration_of_all_relabellings():
    rng = np.random.default_rng(1)
    first, rows = paired(rng.random((5, 3, 1)), lambda a, b: -np.abs(a - b)[:, 0])
    gaps = exchanged_gaps(first, rows)
    every = [abs(np.mean([gaps[i, j] for i, j in enumerate(labels)])) for labels in itertools.product(range(3), repeat=5)]
    exact = np.mean(np.array(every) >= every[0] - 1e-9)
    found = calibrate(first, rows, relabellings=200_000)
    assert abs(found.p_value - exact) < 4 * np.sqrt(exact * (1 - exact) / 200_000)
    assert calibrate(first, rows, relabellings=200_000).p_value == found.p_value  # a function of the seed
    assert calibrate(first, rows, relabellings=200_000, seed=1).p_value != found.p_value


def test_holm():
    assert np.allclose(holm([[0.01, 0.04], [0.03, 0.005]]), [[0.03, 0.06], [0.06, 0.02]])
    assert np.allclose(holm([0.5, 0.9]), [1, 1])


def test_bad_readings_are_named():
    good = np.zeros((4, 3))
    for arguments, message in [
        ((good, good[:, :2]), "shape"),
        ((good[:, :1], good[:, :1]), "at least two"),
        ((good, np.where(good == 0, np.nan, 0)), "not finite"),
        ((good, good, 1.5), "level = 1.5"),
        ((good, good, 0.01, 0), "relabellings = 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            calibrate(*arguments)


# -- experiments -----------------------------------------------------------------------------------------------------------------


def test_false_alarm_rate_on_exact_draws_of_a_small_grammar():
    """400 groups of 40 strings: p-values of exact inference are uniform or larger, also where nearly nothing changes (noise .05).
    Every comparison fails by chance in 1e-3."""
    data = clone_agreement(experiment("masking", [0.05, 0.5], items=16_000, source=SMALL), 2).sel(reading=["0", "1", "2"])
    first, rows = (data[k].transpose("item", "clone", "noise", "reading").values for k in ("with_original", "with_clones"))
    p = []
    for group in range(400):
        items = slice(group, None, 400)  # of all grammars
        p.append(calibrate(first[items], rows[items], relabellings=500, seed=group).p_value)
    p = np.array(p).reshape(400, -1)
    assert all(stats.kstest(column, "uniform", alternative="greater").pvalue > 1e-3 for column in p.T)
    assert (p <= 0.05).mean(0).max() <= 0.05 + 3.1 * np.sqrt(0.05 * 0.95 / 400)


SMALL = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2, "grammars": 4}


@pytest.mark.parametrize(
    ("kind", "noise"), [("gaussian", [0.04, 0.07, 0.15]), ("masking", [0.05, 0.2, 0.3]), ("uniform", [0.05, 0.15, 0.2])]
)
def test_exact_inference_is_calibrated(kind, noise):
    assert judged(experiment(kind, noise)).passed


def test_clones_start_from_the_observation_of_the_run():
    for source, kind, noise, reading in [(None, "gaussian", [0.1, 0.3], None), (SMALL, "masking", [0.4], None)]:
        one = experiment(kind, noise, items=12, depth=3, trajectories=2, **({"source": source} if source else {}))
        found, stored = clone_agreement(one, 3), run(one)
        assert np.array_equal(found.with_original.isel(clone=0).values, stored.unchanged.isel(trajectory=0).values)
        assert not np.array_equal(found.with_original[:, :, 0], found.with_original[:, :, 1]), reading
    law = {"type": "gaussian_mixture", "dimension": 16, "num_modes": 2}
    one = experiment("gaussian", [0.5, 1.5], items=12, source=law, probes=[{"type": "scales"}])
    found, stored = clone_agreement(one, 3), run(one)
    assert found.reading.values.tolist() == ["cosine", "class"]
    first = found.isel(clone=0, reading=0)
    assert np.allclose(first.with_original, stored.scale_similarity.isel(trajectory=0, scale=0), atol=1e-5)
    assert np.array_equal(found.with_original[..., 0, 1], stored.same_label.isel(trajectory=0))


def test_vectors_are_calibrated_and_a_wrong_posterior_is_not(monkeypatch):
    law = {"type": "gaussian_mixture", "dimension": 64, "num_modes": 3, "separation": 0.5}
    one = experiment("gaussian", [0.5, 1.5], source=law, probes=[{"type": "scales"}])
    assert judged(one).passed
    right = ut.laws.GaussianMixture.sample_posterior
    monkeypatch.setattr(ut.laws.GaussianMixture, "sample_posterior", lambda self, x, t, seed=0: right(self, x, 0.9 * t, seed))
    assert not judged(one).passed


def test_calibration_needs_the_exact_backward():
    one = experiment("masking", [0.5], items=4, source={**SMALL, "grammars": 1}, backward={"type": "denoiser"})
    with pytest.raises(ValueError, match="'exact'"):
        clone_agreement(one)
    with pytest.raises(ValueError, match="clones = 1"):
        clone_agreement(experiment("masking", [0.5]), 1)


# -- negative controls -----------------------------------------------------------------------------------------------------------


def test_the_epsilon_process_is_not_calibrated():
    found = judged(experiment("epsilon", [0.5, 0.7]))
    assert not found.passed
    assert found.gap.min() > 0  # the ε-process depends on the original


@pytest.mark.parametrize("factor", [1.1, None])
def test_wrong_evidence_is_seen(monkeypatch, factor):
    """Evidence times 1.1, or without sqrt(abar), 200 strings and two clones at t = .15: the smallest p that 4,000 relabellings
    can give."""
    right = ut.Gaussian.log_evidence

    def wrong(self, noisy, dtype=None):
        return right(self, noisy, dtype) * np.float32(factor or np.exp(noisy.noise[0]))

    monkeypatch.setattr(ut.Gaussian, "log_evidence", wrong)
    found = judged(experiment("gaussian", [0.15]), clones=2, readings=slice(0, 3), relabellings=4000)
    assert found.p_value.min() == 1 / 4001
    assert not judged(experiment("gaussian", [0.07, 0.15])).passed


def test_a_sampler_of_marginals_is_seen_by_parsed_levels_and_not_by_sites(monkeypatch):
    from uturn.inference import infer

    right = ut.inference.sample_posterior

    def marginals(rhm, log_evidence, seed=0, num_draws=None):
        trees = right(rhm, log_evidence, seed, num_draws)
        below = infer(rhm, log_evidence).marginals[0].cumsum(-1, dtype=float)
        heights = np.random.default_rng(0).random((len(num_draws), *below.shape[:2], 1)) * below[..., -1:]
        return {**trees, 0: (below <= heights).sum(-1).clip(max=rhm.vocab_size - 1)}

    monkeypatch.setattr(ut.inference, "sample_posterior", marginals)
    found = judged(experiment("masking", [0.2, 0.3]))
    assert found.p_value[:, 0].min() > 0.01  # the leaves, one by one
    assert (found.adjusted[:, 1:3] <= 0.01).all()
    assert not found.passed
