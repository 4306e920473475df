"""Verdicts of the figure `calibration` on made-up data: they pass where the claim holds, and each fails where it does not."""

import numpy as np
import pytest
import xarray as xr

from forging import outcomes
from uturn.measures.cloning import mixture_cloning_probability
from uturn.paper import calibration as figure
from uturn.paper import calibration_runs, decision_times
from uturn.paper.calibration_runs import MIXTURE, SEPARATIONS

READINGS = [f"parsed, tree_level = {k}" for k in range(3)]
KINDS = {"right": "exact", "also right": "exact", "wrong": "wrong", "leaves": "sites", "ignores": "blind"}


def tried(p, gap=0.1):
    """A calibration with these p-values (noise, reading)."""
    p = np.broadcast_to(np.asarray(p, float), (2, 3))
    dims, smallest = ("noise", "reading"), np.minimum(6 * p, 1)
    values = {"gap": gap, "low": gap - 0.05, "high": gap + 0.05, "visible": 0.02}
    fields = {name: (dims, np.full((2, 3), value)) for name, value in values.items()}
    return xr.Dataset({**fields, "p": (dims, p), "p_holm": (dims, smallest)}, {"noise": [0.1, 0.2], "reading": READINGS})


def of_samplers(right=0.3, wrong=1e-6, leaves=0.4, joint=1e-6, ignores=0.5):
    found = {
        "right": tried(0.5),
        "also right": tried(right),
        "wrong": tried(wrong),
        "leaves": tried([leaves, joint, joint]),
        "ignores": tried(ignores, gap=0.0),
    }
    return figure._samplers(found, KINDS)


def test_samplers():
    assert outcomes(of_samplers()) == [True] * 4
    assert outcomes(of_samplers(right=1e-6)) == [False, True, True, True]
    assert outcomes(of_samplers(wrong=1e-3)) == [True, False, True, True]
    assert outcomes(of_samplers(leaves=1e-5)) == [True, True, False, True]
    assert outcomes(of_samplers(joint=0.2)) == [True, True, False, True]
    assert outcomes(of_samplers(ignores=1e-6)) == [True, True, True, False]


def test_false_alarms():
    rng = np.random.default_rng(0)

    def judged(p):
        a = np.r_[figure.LEVELS, np.linspace(0.01, 1, 100)]
        return figure._rates(xr.Dataset({"share": (("test", "a"), (p[:, :, None] <= a).mean(0))}, {"a": a})).passed

    p = rng.random((figure.GROUPS, 18))
    assert judged(p)
    assert judged(np.sqrt(p))  # conservative
    assert not judged(p**2)
    one_wrong = p.copy()
    one_wrong[:, 3] /= 3
    assert not judged(one_wrong)


def test_false_alarms_are_counted_experiment_by_experiment():
    ds = xr.Dataset(coords={"grammar": ("item", np.repeat(np.arange(figure.GROUPS), 5))})
    rng = np.random.default_rng(0)
    dims, shape = ("noise", "item", "trajectory", "clone", "tree_level"), (1, 1000, 1, 2, 2)
    twin = np.repeat(rng.random((1, 1000, 1, 1, 2)), 2, axis=3)  # of two clones both are the same
    exact = ds.assign(parsed=(dims, rng.random(shape)), clone_parsed=(dims, twin))
    always = ds.assign(parsed=(dims, 1 + 0 * twin), clone_parsed=(dims, 0 * twin))
    found = figure.false_alarms([exact, always]).share
    assert found.sizes == {"test": 4, "a": 103}
    assert (found[2:].sel(a=0.2) == 1).all()
    assert found[:2, 2].max() < 0.35


def image_calibrations(ddim=1e-6, few=-0.2, many=-0.05, ode=-0.5):
    names = ["same_class", "similarity, network_layer = block1", "similarity, network_layer = logits"]

    def one(gap, p):
        shape = (2, 3)
        fields = {"gap": gap, "low": gap - 0.02, "high": gap + 0.02, "p_holm": p}
        values = {name: (("noise", "reading"), np.full(shape, x)) for name, x in fields.items()}
        return xr.Dataset(values, {"noise": [0.2, 0.6], "reading": names})

    gaps = {"ddpm-10": (few, 1e-6), "ddpm-40": (many, 0.5), "ddim-10": (ode, 1e-6), "ddim-40": (ode, ddim)}
    return {f"images-{label}": one(*values) for label, values in gaps.items()}


def test_images():
    assert outcomes(figure._images(image_calibrations())) == [True, True, None]
    assert outcomes(figure._images(image_calibrations(ddim=0.01))) == [False, True, None]
    assert outcomes(figure._images(image_calibrations(ode=-0.01))) == [False, False, None]
    assert outcomes(figure._images(image_calibrations(few=-0.01))) == [True, False, None]
    assert outcomes(figure._images(image_calibrations(many=-0.48))) == [True, False, None]


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
    assert decision_times.phi_verdict(mixture_runs()).passed
    assert not decision_times.phi_verdict(mixture_runs(shift=0.3)).passed
    found = decision_times.speciation(mixture_runs())
    assert decision_times.speciation_verdict(found).passed
    assert not decision_times.speciation_verdict(decision_times.speciation(mixture_runs(shift=0.3))).passed
    drifting = found.assign(speciation_time=found.speciation_time + np.arange(3))
    assert not decision_times.speciation_verdict(drifting).passed


def test_collapse():
    relative = np.linspace(0.4, 2, 17)

    def runs(places, widths):
        curves = [1 / (1 + np.exp((relative - place) / width)) for place, width in zip(places, widths, strict=True)]
        return xr.Dataset({"recalled": (("code", "noise", "item"), np.array(curves)[:, :, None])}, {"noise": relative})

    assert decision_times.collapse_verdict(runs([1.2, 1.1, 1.05], [0.5, 0.3, 0.2])).passed
    assert not decision_times.collapse_verdict(runs([1.2, 1.15, 1.12], [0.5, 0.3, 0.2])).passed
    assert not decision_times.collapse_verdict(runs([1.02, 1.04, 1.05], [0.5, 0.3, 0.2])).passed
    assert not decision_times.collapse_verdict(runs([1.2, 1.1, 1.05], [0.2, 0.2, 0.2])).passed


@pytest.mark.parametrize(("low", "speciation", "expected"), [(0.1, 0.7, True), (-0.1, 0.7, False), (0.1, 0.3, False)])
def test_fashion(low, speciation, expected):
    phi = np.array([[0.9, 0.8, 1.0], [0.5, 0.4, 0.6]])
    data = xr.Dataset(
        {
            "fashion_phi": (("image_noise", "estimate"), phi),
            **{f"fashion_{name}": ("estimate", [0.4, low, 0.5]) for name in ("fall", "kept", "cloned")},
        },
        {"image_noise": [0.2, 0.6], "estimate": ["value", "low", "high"]},
        {"fashion_eigenvalue": 80.0, "fashion_abar": 0.0125, "fashion_speciation": speciation, "fashion_collapse": 0.45},
    )
    assert decision_times.fashion_verdict(data).passed == expected


def test_scaled_evidence_is_the_posterior_to_a_power():
    import uturn as ut

    rhm = ut.RandomHierarchyModel(4, 2, 2, 2, seed=0)
    every = np.indices((4,) * 4).reshape(4, -1).T
    every = every[np.isfinite(rhm.log_likelihood(every))]
    noisy = ut.Gaussian().corrupt(rhm.sample(3, seed=1).leaves, 0.3, 4, seed=2)

    def posterior(corruption):
        log_p = corruption.log_evidence(noisy, np.float64)[:, np.arange(4), every].sum(-1)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    exact, sharp = posterior(ut.Gaussian()), posterior(calibration_runs.ScaledEvidence(1.5))
    power = exact**1.5
    np.testing.assert_allclose(sharp, power / power.sum(axis=1, keepdims=True), atol=1e-12)
    assert len(set(np.round(rhm.log_likelihood(every), 12))) == 1  # all strings are equally probable
