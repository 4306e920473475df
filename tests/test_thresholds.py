"""Verdicts of the figures on thresholds: they pass on data made after the theory, and fail on
forged data.
"""

from functools import lru_cache

import numpy as np
import pytest
import xarray as xr

from forging import outcomes
from uturn.core.registry import part_class
from uturn.exact.theory import MeanField
from uturn.measures.statistics import crossing
from uturn.paper import fig15, thresholds

THRESHOLDS = {"epsilon": 0.7331, "gaussian": 0.068, "masking": 0.272, "uniform": 0.165}
DEPTHS = (4, 10)
THEORY = MeanField(32, 8, 2)
MIDDLE = crossing(
    np.linspace(0, 1, 2001),
    THEORY.curves(np.linspace(0, 1, 2001), 10).marginals[:, 10],
    (1 + 1 / 32) / 2,
)


def fall(noise, center, depth):
    """A class curve that sharpens with depth, and comes to its place from below."""
    center = center * (1 - 0.5 * 1.44**-depth)
    return 1 / 32 + (31 / 32) / (1 + np.exp((noise - center) / (0.4 * center * 1.3**-depth)))


def threshold_runs(scale=None, shift=0.0, fresh_shift=0.0, exact=1.0, shallow=None, grammars=6):
    """Data of the figure "thresholds": `scale` multiplies true thresholds, `exact` those of
    belief propagation alone.
    """
    rng = np.random.default_rng(1)
    scale, points = scale or {}, 13
    names = list(thresholds.CHANNELS)
    true = np.array([THRESHOLDS[name] * scale.get(name, 1.0) for name in names])
    noise = np.array([thresholds._noise(name, points) for name in names])
    values = np.stack(
        [true * (1 + 0.0026 * rng.standard_normal(len(names))) for _ in range(grammars)], axis=-1
    )
    values[0] += shift
    fresh = np.stack(
        [true * (1 + 0.0005 * rng.standard_normal(len(names))) for _ in range(grammars)], axis=-1
    )
    fresh[0] = THEORY.critical_noise + fresh_shift + 0.0005 * rng.standard_normal(grammars)
    beliefs = np.array(
        [
            [[fall(x, c, level) for level in range(11)] for c in row]
            for x, row in zip(noise, values, strict=True)
        ]
    )
    runs = {
        "population": (
            xr.Dataset(
                {
                    "threshold": (
                        ("channel", "ensemble", "replicate"),
                        np.stack([values, fresh], axis=1),
                    ),
                    "belief": (("channel", "grammar", "tree_level", "point"), beliefs),
                    "noise": (("channel", "point"), noise),
                },
                coords={"channel": names, "ensemble": ["one grammar", "fresh rules"]},
            ).transpose("channel", "ensemble", "replicate", "grammar", "point", "tree_level")
        )
    }
    for name, x, row in zip(names, noise, values, strict=True):
        for depth in DEPTHS:
            place = depth if shallow is None else shallow
            items = np.array(
                [
                    fall(x, c * exact, place) + 0.01 * rng.standard_normal(points)
                    for c in np.repeat(row, 2)
                ]
            )
            runs[f"{name}-depth{depth}"] = xr.Dataset(
                {"upward_belief": (("noise", "item", "tree_level"), items.T[..., None])},
                coords={
                    "noise": x,
                    "grammar": ("item", np.repeat(np.arange(grammars), 2)),
                    "item": np.arange(2 * grammars),
                },
            )
    return runs


def test_thresholds_pass_on_theory():
    data, verdicts = thresholds.analyse(threshold_runs())
    assert all(outcomes(verdicts)), verdicts
    assert (len(verdicts), data.belief.dims) == (8, ("channel", "depth", "grammar", "point"))
    figure = thresholds.draw(data)
    assert len(figure.axes) >= 7


@pytest.mark.parametrize(
    ("forged", "failing"),
    [
        ({"shift": 0.02}, 0),
        ({"fresh_shift": 0.004}, 1),
        ({"scale": {"gaussian": 1.2}}, 2),
        ({"scale": {"masking": 1.2}}, 3),
        ({"scale": {"uniform": 0.8}}, 4),
        ({"scale": {"gaussian": 4}}, 5),
        ({"exact": 1.05}, 6),
        ({"shallow": 2}, 7),
    ],
)
def test_thresholds_verdicts_can_fail(forged, failing):
    assert not outcomes(thresholds.analyse(threshold_runs(**forged))[1])[failing]


def test_a_wide_interval_is_no_agreement():
    runs = threshold_runs()
    name = list(thresholds.CHANNELS).index("masking")
    runs["population"].threshold.values[name, 0] = np.linspace(0.17, 0.37, 6)
    verdicts = thresholds.analyse(runs)[1]
    assert not outcomes(verdicts)[3]
    assert [v.passed for v in verdicts[2:5]].count(False) == 1


def test_an_infinite_threshold_is_not_left_out():
    runs = threshold_runs()
    runs["population"].threshold.values[1, 0, 0] = np.inf
    assert not outcomes(thresholds.analyse(runs)[1])[2]


@lru_cache
def axis(name):
    noise = (
        np.r_[np.geomspace(0.02, 0.3, 40), 0.4, 0.7, 1.5]
        if name == "gaussian"
        else np.linspace(0.01, 0.99, 60)
    )
    return noise, part_class("corruption", name)().effective_epsilon(noise, 32)


def fig15_runs(smooth=False, class_at=None, leaves=0.0):
    """Runs whose class curves are displaced mean-field curves, and whose leaves have a little
    more than their own belief.
    """
    rng = np.random.default_rng(2)
    at = {"gaussian": 0.43, "masking": 0.28, "uniform": 0.3} | (class_at or {})
    runs = {}
    for name in ("epsilon", *at):
        noise, x = axis(name)
        if name == "epsilon":
            curves = THEORY.curves(x, 10).marginals
        else:
            place = np.clip(MIDDLE + x - at[name], 0, 1)
            curves = THEORY.curves(place, 10).marginals.copy()
            own = 1 - x * 31 / 32
            if smooth:
                curves[:, 10] = own
            curves[:, 0] = own + 0.3 * own * (1 - own) + leaves
        belief = curves[:, None] + 0.004 * rng.standard_normal((len(x), 12, 11))
        runs[name] = xr.Dataset(
            {"belief": (("noise", "item", "tree_level"), belief)},
            coords={
                "noise": noise,
                "effective_epsilon": ("noise", x),
                "item": np.arange(12),
                "grammar": ("item", np.repeat(np.arange(3), 4)),
            },
        )
    return runs


def test_fig15_passes_on_theory():
    data, verdicts = fig15.analyse(fig15_runs())
    assert all(outcomes(verdicts)), verdicts
    assert float(
        data["shift"].sel(channel="gaussian", tree_level=10, estimate="value")
    ) == pytest.approx(0.43 - MIDDLE, abs=0.01)
    assert len(fig15.draw(data).axes) >= 4


@pytest.mark.parametrize(
    ("forged", "failing"),
    [
        ({"class_at": {"gaussian": 0.85, "masking": 0.85, "uniform": 0.85}}, [0, 1, 2, 3, 6]),
        ({"smooth": True, "leaves": -0.05}, [4, 5]),
    ],
)
def test_fig15_verdicts_can_fail(forged, failing):
    found = outcomes(fig15.analyse(fig15_runs(**forged))[1])
    assert not any(found[k] for k in failing)


def test_fig15_fails_where_grammars_lie_far_apart(monkeypatch):
    monkeypatch.setattr(fig15, "shift", lambda *_: -0.1)  # slow, and not what is tested
    runs = fig15_runs()
    apart = [
        fig15_runs(class_at={"masking": place})["masking"].belief.values
        for place in (0.15, 0.28, 0.41)
    ]
    runs["masking"]["belief"] = runs["masking"].belief.copy(
        data=np.concatenate([b[:, :4] for b in apart], axis=1)
    )
    assert outcomes(fig15.analyse(runs)[1])[:3] == [True, False, True]
