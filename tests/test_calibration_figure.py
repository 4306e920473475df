"""Verdicts of the figure `calibration` on made-up data: they pass where the claim holds, and
each fails where it does not.
"""

import numpy as np
import xarray as xr

from forging import outcomes
from uturn.paper import calibration as figure
from uturn.paper import calibration_runs

READINGS = [f"parsed, tree_level = {k}" for k in range(3)]
KINDS = {
    "right": "exact",
    "also right": "exact",
    "wrong": "wrong",
    "leaves": "sites",
    "ignores": "blind",
}


def tried(p, gap=0.1):
    """A calibration with these p-values (noise, reading)."""
    p = np.broadcast_to(np.asarray(p, float), (2, 3))
    dims, smallest = ("noise", "reading"), np.minimum(6 * p, 1)
    values = {"gap": gap, "low": gap - 0.05, "high": gap + 0.05, "visible": 0.02}
    fields = {name: (dims, np.full((2, 3), value)) for name, value in values.items()}
    return xr.Dataset(
        {**fields, "p": (dims, p), "p_holm": (dims, smallest)},
        {"noise": [0.1, 0.2], "reading": READINGS},
    )


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
        return figure._rates(
            xr.Dataset({"share": (("test", "a"), (p[:, :, None] <= a).mean(0))}, {"a": a})
        ).passed

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


def test_scaled_evidence_is_the_posterior_to_a_power():
    import uturn as ut

    rhm = ut.RandomHierarchyModel(4, 2, 2, 2, seed=0)
    every = np.indices((4,) * 4).reshape(4, -1).T
    every = every[np.isfinite(rhm.log_likelihood(every))]
    noisy = ut.Gaussian().corrupt(rhm.sample(3, seed=1).leaves, 0.3, vocab_size=4, seed=2)

    def posterior(corruption):
        log_p = corruption.log_evidence(noisy, np.float64)[:, np.arange(4), every].sum(-1)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        return p / p.sum(axis=1, keepdims=True)

    exact, sharp = posterior(ut.Gaussian()), posterior(calibration_runs.ScaledEvidence(1.5))
    power = exact**1.5
    np.testing.assert_allclose(sharp, power / power.sum(axis=1, keepdims=True), atol=1e-12)
    # All strings are equally probable.
    assert len(set(np.round(rhm.log_likelihood(every), 12))) == 1
