"""Channels and exact posterior draws: the noise has its law, draws are calibrated, and keep a
symbol with its marginal.

Calibration detects a wrong posterior and needs no reference. It does not detect a channel that
draws the wrong noise while its evidence is right for what it drew; the law of the noise does. Draws
that pass both are compared with the marginals.
"""

import math

import numpy as np
import pytest
import xarray as xr
from scipy.stats import ttest_1samp

from uturn.core.experiment import Experiment
from uturn.core.random import Streams
from uturn.corruption import Gaussian, Masking
from uturn.engine.run import run
from uturn.measures.calibration import calibrate, holm
from uturn.paper.sampler_laws import gaussian_law, law_p_values
from uturn.sources import Vectors

LEVEL = 1e-3  # of the false alarms of a test
SMALL = {
    "type": "rhm",
    "vocab_size": 6,
    "multiplicity": 2,
    "branching": 2,
    "depth": 3,
    "grammars": 8,
}
MIXTURE = {"type": "gaussian_mixture", "dimension": 64, "num_modes": 2, "separation": 0.5}
STRINGS = {
    "type": "rhm",
    "vocab_size": 4,
    "multiplicity": 2,
    "branching": 2,
    "depth": 3,
    "grammars": 2,
}
VECTORS = {"type": "gaussian_mixture", "dimension": 16, "num_modes": 2}
KINDS = {  # source, channel, noise levels
    "masking": (SMALL, "masking", [0.5]),
    "gaussian": (SMALL, "gaussian", [0.07, 0.14, 0.3]),
    "uniform": ({**SMALL, "vocab_size": 4}, "uniform", [0.2, 0.6]),
    "vectors": (MIXTURE, "gaussian", [0.5, 1.5]),
}
CASES = [
    (STRINGS, "masking", [0.2, 0.5]),
    (STRINGS, "uniform", [0.2, 0.5]),
    (STRINGS, "gaussian", [0.1, 1]),
    (VECTORS, "gaussian", [0.1, 1]),
]


def described(source, channel, noise, seed=0, items=1000):
    probes = ("tree_levels", "parsed_levels") if source["type"] == "rhm" else ("scales",)
    corruption, backward = {"type": channel, "noise": noise}, {"type": "exact"}
    sizes = {"seed": seed, "items": items, "clones": 8, "chunk": 250}
    parts = {
        "source": source,
        "corruption": corruption,
        "backward": backward,
        "probes": [{"type": probe} for probe in probes],
    }
    return Experiment.from_dict({**sizes, **parts})


def drawn_noise(experiment):
    """Numbers of mean 0 and variance 1 of the noise drawn for each original, (noise, item,
    quantity), and their excess kurtosis.

    Masking and replacement: changed leaves, whose number is binomial. Gaussian: see `gaussian_law`.
    """
    source, corruption, _, _ = experiment.parts
    items, found = np.arange(experiment.items), []
    for level in experiment.noise:
        pieces = []
        for originals in source.blocks(items, experiment.seed, experiment.items):
            observed = corruption.observe(
                originals, level, Streams(experiment.seed, originals.items, level)
            )
            if isinstance(corruption, Gaussian):
                strings = not isinstance(originals, Vectors)
                x0 = (
                    np.eye(originals.rhm.vocab_size)[originals.data]
                    if strings
                    else originals.values
                )
                rows, _, _, excess = gaussian_law(
                    x0, observed.values, float(corruption.abar(level))
                )
            else:
                d, v = originals.data.shape[1], originals.rhm.vocab_size
                p = level if isinstance(corruption, Masking) else level * (v - 1) / v
                changed = (observed.values != originals.data).sum(axis=1, keepdims=True)
                rows, excess = (
                    (changed - d * p) / np.sqrt(d * p * (1 - p)),
                    [(1 - 6 * p * (1 - p)) / (d * p * (1 - p))],
                )
            pieces.append(rows)
        found.append((np.concatenate(pieces), excess))
    standardised, excess = (np.array(values) for values in zip(*found, strict=True))
    return xr.Dataset(
        {
            "standardised": (("noise", "item", "quantity"), standardised),
            "excess": (("noise", "quantity"), excess),
        }
    )


def p_of_calibration(experiment):
    """P-values of the gaps between originals and clones, (noise, reading), adjusted by Holm."""
    ds = run(experiment).isel(trajectory=0)
    if "parsed" in ds:
        levels = sorted({0, 1, 2, int(ds.tree_level.max())})
        pairs = [[ds[name].sel(tree_level=levels)] for name in ("parsed", "clone_parsed")]
    else:
        pairs = [
            [ds[f"{kind}{name}"] for name in ("same_label", "scale_similarity")]
            for kind in ("", "clone_")
        ]
        pairs = [
            [values if "scale" in values.dims else values.expand_dims("scale") for values in pair]
            for pair in pairs
        ]
    joined = [
        np.concatenate(
            [x.astype(float).transpose("item", "clone", "noise", ...).values for x in pair], axis=-1
        )
        for pair in pairs
    ]
    return holm(calibrate(*joined, LEVEL, math.ceil(20 * joined[0][0, 0].size / LEVEL)).p_value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_noise_has_its_law(kind):
    assert holm(law_p_values(drawn_noise(described(*KINDS[kind]))).ravel()).min() > LEVEL


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_calibrated(kind):
    assert p_of_calibration(described(*KINDS[kind])).min() > LEVEL


def test_the_negative_control_is_not_calibrated():
    """The beliefs of the ε-process are pinned on the originals."""
    assert p_of_calibration(described(SMALL, "epsilon", [0.3, 0.5])).min() <= LEVEL


@pytest.mark.parametrize("kind", ["masking", "gaussian", "uniform"])
def test_draws_keep_a_symbol_with_its_marginal_probability(kind):
    ds = run(described(*KINDS[kind])).isel(trajectory=0)
    # Originals are independent, so the sum over noise levels has a t distribution.
    gap = (
        (ds.unchanged.mean("clone", dtype=float) - ds.belief)
        .sum("noise")
        .transpose("item", "tree_level")
    )
    assert holm(ttest_1samp(gap.values, 0).pvalue).min() > LEVEL


@pytest.mark.parametrize(("source", "kind", "noise"), CASES)
def test_right_channels_fail_as_often_as_they_should(source, kind, noise):
    """300 experiments of 60 strings of 8 leaves, whose binomial numbers are far from normal; 3.3
    standard errors (1e-3).
    """
    p = np.array(
        [
            law_p_values(drawn_noise(described(source, kind, noise, seed, 60))).ravel()
            for seed in range(300)
        ]
    )
    assert p.shape[1] == (5 if kind != "gaussian" else 10)
    for level in (0.05, 0.01):
        assert np.abs((p <= level).mean(0) - level).max() < 3.3 * np.sqrt(level * (1 - level) / 300)


@pytest.mark.parametrize(("source", "kind", "noise"), CASES)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda z: z + 0.4, "mean"),
        (lambda z: 1.5 * z, "spread between originals"),
        (lambda z: z.isel(noise=[0, 0]), "the same noise at both levels"),
        (lambda z: z.isel(item=[0] * z.sizes["item"]), "the same noise on all originals"),
    ],
)
def test_wrong_laws_are_seen(source, kind, noise, wrong, words):
    data = drawn_noise(described(source, kind, noise, items=200))
    assert holm(law_p_values(data).ravel()).min() > LEVEL
    assert (
        holm(law_p_values(data.assign(standardised=wrong(data.standardised))).ravel()).min()
        <= LEVEL
    ), words
