"""Verdicts of the figure `clones` on made-up data: they pass where the claim holds, and each
fails where it does not.
"""

import numpy as np
import pytest
import xarray as xr

from uturn.measures.cloning import mixture_cloning_probability
from uturn.paper import clones
from uturn.paper.clones import MIXTURE, SEPARATIONS


def mixture_runs(shift=0.0, items=500):
    rng, runs = np.random.default_rng(0), {}
    for separation in SEPARATIONS:
        D = separation**2 * MIXTURE["dimension"]
        t = 0.5 * np.log(1 + D / 4) + np.arange(-1.25, 1.76, 0.25)
        same = rng.random((len(t), items)) < mixture_cloning_probability(t + shift, D)[:, None]
        both = np.repeat(same[:, :, None, None].astype(float), 2, axis=3)
        runs[f"mixture-{separation:g}"] = xr.Dataset(
            {"clone_same_label": (("noise", "item", "trajectory", "clone"), both)}, {"noise": t}
        )
    return runs


def test_speciation():
    assert clones.phi_verdict(mixture_runs()).passed
    assert not clones.phi_verdict(mixture_runs(shift=0.3)).passed
    found = clones.speciation(mixture_runs())
    assert clones.speciation_verdict(found).passed
    assert not clones.speciation_verdict(clones.speciation(mixture_runs(shift=0.3))).passed
    drifting = found.assign(speciation_time=found.speciation_time + np.arange(3))
    assert not clones.speciation_verdict(drifting).passed


def test_collapse():
    relative = np.linspace(0.4, 2, 17)

    def runs(places, widths):
        curves = [
            1 / (1 + np.exp((relative - place) / width))
            for place, width in zip(places, widths, strict=True)
        ]
        return xr.Dataset(
            {"recalled": (("code", "noise", "item"), np.array(curves)[:, :, None])},
            {"noise": relative},
        )

    assert clones.collapse_verdict(runs([1.2, 1.1, 1.05], [0.5, 0.3, 0.2])).passed
    assert not clones.collapse_verdict(runs([1.2, 1.15, 1.12], [0.5, 0.3, 0.2])).passed
    assert not clones.collapse_verdict(runs([1.02, 1.04, 1.05], [0.5, 0.3, 0.2])).passed
    assert not clones.collapse_verdict(runs([1.2, 1.1, 1.05], [0.2, 0.2, 0.2])).passed


@pytest.mark.parametrize(
    ("low", "speciation", "expected"), [(0.1, 0.7, True), (-0.1, 0.7, False), (0.1, 0.3, False)]
)
def test_fashion(low, speciation, expected):
    phi = np.array([[0.9, 0.8, 1.0], [0.5, 0.4, 0.6]])
    data = xr.Dataset(
        {
            "fashion_phi": (("image_noise", "estimate"), phi),
            **{
                f"fashion_{name}": ("estimate", [0.4, low, 0.5])
                for name in ("fall", "kept", "cloned")
            },
        },
        {"image_noise": [0.2, 0.6], "estimate": ["value", "low", "high"]},
        {
            "fashion_eigenvalue": 80.0,
            "fashion_abar": 0.0125,
            "fashion_speciation": speciation,
            "fashion_collapse": 0.45,
        },
    )
    assert clones.fashion_verdict(data).passed == expected
