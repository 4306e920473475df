"""Verdicts on the channels of figures: right laws pass as often as they should; every figure with a Bayesian channel has them."""

from dataclasses import asdict

import numpy as np
import pytest
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.pages.figures import tally
from uturn.paper import FIGURES, Workshop, channel_verdicts, channels, load_figure
from uturn.paper.channels import channel_spec, drawn_noise, law_p_values, law_verdict

STRINGS = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3, "grammars": 2}
VECTORS = {"type": "gaussian_mixture", "dimension": 16, "num_modes": 2}
CASES = [
    (STRINGS, "masking", [0.2, 0.5]),
    (STRINGS, "uniform", [0.2, 0.5]),
    (STRINGS, "gaussian", [0.1, 1]),
    (VECTORS, "gaussian", [0.1, 1]),
]


def spec(source, kind, noise, seed=0, items=60):
    return Experiment.from_dict(
        {
            "seed": seed,
            "items": items,
            "source": source,
            "corruption": {"type": kind, "noise": noise},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels" if source is STRINGS else "scales"}],
        }
    )


@pytest.mark.parametrize(("source", "kind", "noise"), CASES)
def test_right_channels_fail_as_often_as_they_should(source, kind, noise):
    """300 experiments of 60 strings of 8 leaves, whose binomial numbers are far from normal; 3.3 standard errors (1e-3)."""
    p = np.array([law_p_values(drawn_noise(spec(source, kind, noise, seed))).ravel() for seed in range(300)])
    assert p.shape[1] == (5 if kind != "gaussian" else 10)
    for level in (0.05, 0.01):
        assert np.abs((p <= level).mean(0) - level).max() < 3.3 * np.sqrt(level * (1 - level) / 300)


@pytest.mark.parametrize(("source", "kind", "noise"), CASES)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda z: z + 0.4, "mean"),
        (lambda z: 1.5 * z, "spread between originals"),
        (lambda z: z.isel(noise=[0, 0]).assign_coords(noise=z.noise), "the same noise at both levels"),
        (lambda z: z.isel(item=[0] * z.sizes["item"]).assign_coords(item=z["item"]), "the same noise on all originals"),
    ],
)
def test_wrong_laws_are_seen(source, kind, noise, wrong, words):
    one = channels.ChannelSpec(kind, spec(source, kind, noise, items=200))
    data = drawn_noise(one.experiment)
    assert law_verdict([one], [data]).passed
    assert not law_verdict([one], [data.assign(standardised=wrong(data.standardised))]).passed, words


def test_figures_with_a_bayesian_channel_name_it():
    named = {}
    for figure in FIGURES:
        module = load_figure(figure)
        for scale in ("smoke", "paper"):
            named[figure] = module.channels(scale)
        if not hasattr(module, "experiments"):
            continue
        used = [one.parts.corruption for one in module.experiments("smoke").values() if one.backward["type"] == "exact"]
        kinds = {type(corruption) for corruption in used if corruption.is_bayesian}
        assert kinds <= {type(one.experiment.parts.corruption) for one in named[figure]}, figure
    bayesian = {figure for figure, found in named.items() if any(one.is_bayesian for one in found)}
    beyond = {"controls", "learning", "schedulers", "exam", "thresholds", "chi", "correlations", "calibration"}
    assert bayesian == {"fig3", "fig4", "fig5", "fig9", "fig15", "s9"} | beyond
    # Figures 5 and 15 and the thresholds look at the same channels.
    assert {one.experiment.hash for one in named["fig5"]} < {one.experiment.hash for one in named["fig15"]}
    assert {one.experiment.hash for one in named["thresholds"]} == {one.experiment.hash for one in named["fig15"]}


def test_shared_channels_are_measured_once(tmp_path, monkeypatch):
    calls = []
    measure = channels.measure
    monkeypatch.setattr(channels, "measure", lambda one: calls.append(one.label) or measure(one))
    workshop, counted = Workshop("smoke", tmp_path), []
    for figure in ("fig4", "fig9"):
        found = channel_verdicts(load_figure(figure), workshop)
        assert [verdict.passed for verdict in found] == [True, True, True]
        counted += [asdict(verdict) for verdict in found]
    assert calls == ["Gaussian"]
    assert tally(counted) == (6, 0, 3, 0)
    assert channel_verdicts(load_figure("fig6"), workshop) == []


def test_the_negative_control_must_not_be_calibrated(tmp_path):
    one = channel_spec("ε", {**STRINGS, "vocab_size": 8}, "epsilon", "smoke")
    assert [verdict.passed for verdict in channels.verdicts([one], Workshop("smoke", tmp_path))] == [True]
    exact = xr.zeros_like(channels.measure(one))
    assert not channels.calibration_verdict([one], [exact]).passed
