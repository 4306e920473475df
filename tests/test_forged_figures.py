"""Verdicts of fig2 and fig5 on made-up data: they pass where the claim holds, and each fails
where it does not.
"""

import json

import numpy as np
import pytest
import xarray as xr

from forging import outcomes
from uturn.core.random import keys, uniforms
from uturn.corruption import Gaussian
from uturn.paper import fig2, fig5
from uturn.sources import FashionMNISTSource
from uturn.sources.fashion_mnist import COARSE_CLASS


def falling(x, location, width, bottom):
    """A curve from 1 to `bottom` that has done half of its fall at `location`."""
    return bottom + (1 - bottom) / (1 + (x / location) ** (location / width))


def dropping(x, location, width, bottom):
    """A curve with its half-fall at `location` that ends its fall soon after."""
    return bottom + (1 - bottom) / (1 + np.exp(4 * (x - location) / width))


def fig5_runs(location=0.0695, sharper=(1.0, 2.0, 3.0), leaves=0.1):
    time = next(iter(fig5.experiments("smoke").values())).noise
    time = np.array(time)
    runs = {}
    for depth, sharpness in zip((4, 7, 10), sharper, strict=True):
        items = 24
        spread = 1 + 0.02 * (uniforms(keys(0, depth, np.arange(items)), 1)[:, 0] - 0.5)
        levels = np.linspace(0, 1, depth + 1)
        places = leaves ** (1 - levels) * location**levels
        belief = np.stack(
            [
                [
                    falling(time, s * place, s * place / (1 + 6 * sharpness * level), 1 / 32)
                    for level, place in zip(levels, places, strict=True)
                ]
                for s in spread
            ]
        )  # items, levels, noise
        runs[f"depth{depth}"] = xr.Dataset(
            {"belief": (("noise", "item", "tree_level"), belief.transpose(2, 0, 1))},
            coords={
                "noise": time,
                "grammar": ("item", np.arange(items) // 4),
                "effective_epsilon": ("noise", Gaussian().effective_epsilon(time, 32)),
                "tree_level": np.arange(depth + 1),
            },
        )
    return runs


def test_fig5():
    assert outcomes(fig5.analyse(fig5_runs())[1]) == [True] * 4
    assert outcomes(fig5.analyse(fig5_runs(location=0.09, leaves=0.13))[1])[:2] == [False, False]
    assert not outcomes(fig5.analyse(fig5_runs(sharper=(3.0, 2.0, 1.0)))[1])[2]
    runs = fig5_runs()
    runs["depth10"]["belief"] = runs["depth10"].belief.where(runs["depth10"].tree_level > 0, 0.0)
    assert not outcomes(fig5.analyse(runs)[1])[3]  # leaves never above the class: no inversion


@pytest.fixture(scope="module")
def garments():
    """Layers of a classifier that knows all labels, and the images."""
    images, labels = FashionMNISTSource().all_images()
    return [f"block{k}" for k in range(1, 5)] + ["logits"], labels, images


def fig2_runs(
    garments,
    kind=0.57,
    fine=0.4,
    logits=(0.57, 0.12),
    block=(0.5, 0.5),
    block_floor=0.2,
    end=None,
    steps=50,
):
    """U-turns that keep class and kind until random times, and similarities that fall as the
    options say.
    """
    layers, predicted, images = garments
    noise, items = np.arange(1, 11) / 10, 60
    predicted = predicted[:items]
    u = uniforms(keys(7, np.arange(items)), 3)
    rows = []
    for t in noise:
        kept_fine = u[:, 0] < dropping(t, fine, 0.2, 0.0)
        kept_kind = u[:, 1] < dropping(t, kind, 0.1, 0.0)
        anything = (u[:, 2] * 10).astype(int)
        same_kind = np.array(
            [
                next((c for c in range(10) if c != p and COARSE_CLASS[c] == COARSE_CLASS[p]), p)
                for p in predicted
            ]
        )
        now = np.where(kept_kind, np.where(kept_fine, predicted, same_kind), anything)
        rows.append(predicted if end == "kept" and t == 1 else now)
    after = np.stack(rows)[..., None]
    share = np.linspace(0, 1, len(layers))
    place, width = (block[k] + (logits[k] - block[k]) * share for k in (0, 1))
    curves = np.stack(
        [
            dropping(noise, p, w, f)
            for p, w, f in zip(place, width, block_floor * (1 - share), strict=True)
        ],
        -1,
    )
    wobble = 0.02 * (uniforms(keys(8, np.arange(items)), 1) - 0.5)
    similarity = (curves[:, None, None, :] + wobble[None, :, :, None]).clip(-1, 1)
    picture = np.broadcast_to(
        images[:items][None, :, None], (len(noise), items, 1, *images.shape[1:])
    )
    return xr.Dataset(
        {
            "similarity": (("noise", "item", "trajectory", "network_layer"), similarity),
            "same_class": (("noise", "item", "trajectory"), after == predicted[None, :, None]),
            "predicted_class": (("noise", "item", "trajectory"), after),
            "image": (("noise", "item", "trajectory", "channel", "row", "column"), picture),
        },
        coords={
            "noise": noise,
            "network_layer": layers,
            "step": ("noise", (steps * noise).round().astype(int)),
        },
        attrs={"spec": json.dumps(fig2.experiments("smoke")["stochastic"].to_dict())},
    )


def fig2_verdicts(garments, **options):
    layers, labels, _ = garments
    share = np.linspace(0, 1, len(layers))
    pairs = np.stack([0.3 + 0.5 * share, 0.2 * (1 - share)])  # as the curves of `fig2_runs` end
    classifier = xr.Dataset(
        {
            "predicted": ("number", labels),
            "label": ("number", labels),
            "random_pairs": (("pair", "network_layer"), pairs),
        },
        coords={"pair": ["same class", "different class"], "network_layer": layers},
    )
    runs = {
        "stochastic": fig2_runs(garments, **options),
        "deterministic": fig2_runs(garments, steps=20),
    }
    return outcomes(fig2.analyse({**runs, "classifier": classifier})[1])


def test_fig2(garments):
    everything = fig2_verdicts(garments)
    assert everything == [True] * 5
    for wrong, options in [
        (0, {"kind": 0.9}),  # lost at the end of the chain only
        (1, {"block": (0.5, 0.05)}),  # the first block falls as abruptly as the logits
        (2, {"logits": (0.9, 0.1)}),  # the logits stay above the first block
        (3, {"fine": 0.9}),  # class and kind are lost together
        (4, {"end": "kept"}),  # a full chain that remembers
    ]:
        assert not fig2_verdicts(garments, **options)[wrong], (wrong, options)
