"""The verdicts of the figure on texts pass on a model whose conditionals are exact, and fail on wrong data."""

import json

import numpy as np
import pytest
import xarray as xr

from forging import instructed
from uturn.paper import text

ITEMS = 40
NOISE = np.array([0.0, 0.05, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0])
SHIFT = {"random": 0.0, "entropy": 0.0, "confidence": 0.04, "temperature .5": 0.03}
ALIKE = {"random": 0.0, "entropy": 0.0, "confidence": -0.15, "temperature .5": -0.05}  # gaps


def forged_curves(chi=lambda x: 1 + 3 * x * (1 - x), identity=1.0, reach=2.0, seed=0):
    """Curves of a run with a peak of the susceptibility at .5."""
    rng = np.random.default_rng(seed)
    share = 1 - 0.9 * NOISE**1.5
    share[0] = identity
    scatter = 0.03 * rng.standard_normal((ITEMS, 6)) * (NOISE * (1 - NOISE))[:, None, None]
    kept = np.stack([share[:, None, None] + scatter, share[:, None, None] ** 4 + scatter], axis=-1)
    r = np.arange(32.0)
    covariance = np.tile(np.where(r == 0, 1, 0.3 * np.exp(-(r - 1) / reach)), (len(NOISE), ITEMS, 1))
    covariance = covariance + 0.02 * rng.standard_normal(covariance.shape) * (r > 0)
    total = np.array([chi(x) for x in NOISE])[:, None] + 0.2 * rng.standard_normal((len(NOISE), ITEMS))
    dims = ("noise", "item", "trajectory")
    run = xr.Dataset(
        {
            "kept": ((*dims, "span"), kept),
            "change_covariance": (("noise", "item", "distance"), covariance),
            "change_covariance_sum": (("noise", "item"), total),
        },
        coords={"noise": NOISE, "span": [1, text.SPAN], "distance": r, "length": ("item", np.full(ITEMS, 32))},
        attrs={"spec": json.dumps({"probes": [{"type": "kept_tokens"}, {"type": "changes"}]})},
    )
    return instructed(run)


def forged_decoder(shift, gap, seed=1):
    """A run with clones whose share kept is shifted, and whose clones resemble each other more by minus the gap."""
    rng = np.random.default_rng(seed)  # the same masked texts for all
    size = (len(text.COMPARED), ITEMS, 2, 1, 2)
    texts = 0.05 * rng.standard_normal(size)
    base = np.array([0.85, 0.55])[:, None, None, None, None] + texts
    kept = np.broadcast_to(base, (*size[:3], 2, 2)) + 0.02 * np.random.default_rng().standard_normal((*size[:3], 2, 2)) + shift
    dims = ("noise", "item", "trajectory", "clone", "span")
    twins = np.broadcast_to(kept.mean(3, keepdims=True) - gap, kept.shape)
    return xr.Dataset(
        {"kept": (dims, kept), "clone_kept": (dims, twins)}, coords={"noise": list(text.COMPARED), "span": [1, text.SPAN]}
    )


def analysed(curves=None, shifts=SHIFT, gaps=ALIKE, **options):
    runs = {text.CURVES: forged_curves(**options)}
    runs |= {label: forged_decoder(shifts[label], gaps[label]) for label in text.DECODERS}
    return text.analyse(runs)


def test_every_verdict_passes_on_what_is_expected():
    data, verdicts = analysed()
    failed = [verdict for verdict in verdicts if verdict.passed is False]
    assert not failed
    shown = [verdict.quantity for verdict in verdicts if verdict.passed is None]
    assert len(shown) == 1
    assert "order entropy minus order random" in shown[0]
    assert len(verdicts) == 7
    assert data["kept"].sizes == {"decoder": 4, "span": 2, "compared": 2, "estimate": 3}


@pytest.mark.parametrize(
    ("place", "options"),
    [
        (0, {"identity": 0.99}),
        (1, {"identity": 0.2}),
        (3, {"shifts": {**SHIFT, "temperature .5": -0.02}}),
        (3, {"shifts": {**SHIFT, "temperature .5": 0.01}, "gaps": {**ALIKE, "temperature .5": 0.05}}),
        (4, {"chi": lambda x: 1 + x}),
        (4, {"chi": lambda x: 1.5}),
        (4, {"chi": lambda x: 1 + 3 * (0.25 if x == 1 else x * (1 - x))}),  # as high at the largest noise
        (5, {"reach": 40.0}),
        (6, {"gaps": {**ALIKE, "random": -0.08}}),
        (6, {"gaps": {**ALIKE, "confidence": 0.0}}),
    ],
)
def test_every_verdict_can_fail(place, options):
    _, verdicts = analysed(**options)
    assert verdicts[place].passed is False, verdicts[place]


def test_experiments_are_of_the_same_masked_texts():
    made = text.experiments("smoke") if text_model() else {}
    specs = [made[label].to_dict() for label in text.DECODERS if made]
    for spec in specs[1:]:
        assert {**spec, "backward": None} == {**specs[0], "backward": None}
    if made:
        assert len({made[label].hash for label in text.DECODERS}) == 4


def text_model():
    from uturn.sources.embedded_text import model_file

    return model_file().exists()
