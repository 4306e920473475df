"""The figure "learning": what it measures, and that each of its verdicts can fail."""

import json

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from uturn.paper import Work, learning

V, M, L = 8, 3, 4
CHANCE = M / V
SIZES = (18, 54, 162, 486, 1458, 4374, 13122)
ITEMS, STRINGS = 200, 400


def rng(*key):
    return np.random.default_rng(key)


def share(level, size, scale=1.0, order=1):
    """Rules obeyed by a network that learns level l at scale * v m**(l+1) strings."""
    if level == 0:
        return 1.0
    at = scale * V * float(M) ** ((level if order > 0 else L + 1 - level) + 1)
    return CHANCE + (1 - CHANCE) / (1 + (at / size) ** 2)


def network(channel, size, *, excess=None, gap=0.0, copies=None, **curve):
    noise = np.linspace(0.1, 1, 5)
    random = rng(size, len(channel))
    excess = 20 / size if excess is None else excess
    nodes = np.array([2 ** (L - level) for level in range(L + 1)])
    tried = np.broadcast_to(nodes, (2, STRINGS, L + 1)).astype(float)
    obeyed = np.stack([random.binomial(nodes[level], share(level, size, **curve), (2, STRINGS)) for level in range(L + 1)], -1)
    copies = (0.9 if size < 100 else 0.0) if copies is None else copies
    losses = ("state", "noise", "item")
    shape = (2, len(noise), ITEMS)
    # Independent evidence of the levels, and noise of unit size on what the network makes of it.
    weights = np.array([(share(level, size, **curve) - CHANCE) / (1 - CHANCE) for level in range(1, L + 1)])
    evidence = random.standard_normal((2, ITEMS, 50, L))
    own = evidence @ weights + random.standard_normal((2, ITEMS, 50)) / 3
    spread = 0.2 * random.standard_normal(shape)
    exact_square = np.full(shape, 0.3)
    return xr.Dataset(
        {
            "excess": (losses, excess + spread),
            "divergence": (losses, np.abs(excess) * (1 + 0.1 * random.standard_normal(shape))),
            "local": (losses, np.full(shape, 0.3)),
            "squared_error": (losses, exact_square + excess + spread),
            "exact_squared_error": (losses, exact_square),
            "mean_error": (losses, np.full(shape, abs(excess))),
            "score_error": (losses, np.full(shape, 0.1)),
            "score_square": (losses, np.full(shape, 1.0)),
            "gram": (("state", "item", "learned_level", "other_level"), np.einsum("snik,snil->snkl", evidence, evidence)),
            "projection": (("state", "item", "learned_level"), np.einsum("snik,sni->snk", evidence, own)),
            "power": (("state", "item"), (own**2).sum(-1)),
            "tried": (("state", "string", "tree_level"), tried),
            "obeyed": (("state", "string", "tree_level"), obeyed.astype(float)),
            "valid": (("state", "string", "tree_level"), obeyed / nodes),
            "copied": (("state", "string"), (random.random((2, STRINGS)) < np.array([[0], [copies]])).astype(float)),
            "unchanged": (("noise", "item", "tree_level"), 0.5 + gap + 0.02 * random.standard_normal((5, ITEMS, L + 1))),
        },
        {"noise": noise, "state": ["best", "last"], "tree_level": range(L + 1)},
        {"settings": json.dumps({"grammar": {"vocab_size": V, "multiplicity": M, "branching": 2, "depth": L, "seed": 0}})},
    )


def exact(channel):
    dims, shape = ("noise", "item", "tree_level"), (5, ITEMS, L + 1)
    data = {"belief": (dims, np.full(shape, 0.5)), "unchanged": (dims, np.full(shape, 0.51))}
    return xr.Dataset(data, {"noise": np.linspace(0.1, 1, 5), "tree_level": range(L + 1)})


def forged(change=None, **everywhere):
    """Runs of networks that learn as theory has it; `change` {(channel, size): options}."""
    change = change or {}
    pairs = [("gaussian", size) for size in SIZES] + [("masking", 4374), ("uniform", 4374)]
    runs = {f"{channel}-exact": exact(channel) for channel in ("gaussian", "masking", "uniform")}
    return runs | {f"{c}-{p}": network(c, p, **{**everywhere, **change.get((c, p), {})}) for c, p in pairs}


def verdicts(runs):
    return learning.analyse(runs)[1]


def failed(runs):
    return [k for k, verdict in enumerate(verdicts(runs)) if not verdict.passed]


BOUND, ORDER, GROWTH, FALLS, MISSES, U_TURNS, COPIES = range(7)


def test_theory_passes_and_is_drawn():
    data, found = learning.analyse(forged())
    assert [verdict.passed for verdict in found] == [True] * 7, [verdict for verdict in found if not verdict.passed]
    assert np.allclose(data.predicted_at, V * 3.0 ** np.arange(2, 6))
    assert np.allclose(np.log(data.learned_at.sel(bound="value") / data.predicted_at), -0.57, atol=0.25)  # r = 1/2 at w = .19
    assert (data.learned_at.sel(bound="low") <= data.learned_at.sel(bound="high")).all()
    import matplotlib.pyplot as plt

    figure = learning.draw(data)
    assert len(figure.axes) == 9
    plt.close(figure)


@pytest.mark.parametrize(
    ("verdict", "runs"),
    [
        (BOUND, lambda: forged({("masking", 4374): {"excess": -0.06}})),
        (ORDER, lambda: forged(order=-1)),
        (ORDER, lambda: forged(scale=300.0)),
        (ORDER, lambda: forged(scale=0.002)),
        (GROWTH, lambda: forged(order=-1)),
        (FALLS, lambda: forged({("gaussian", 1458): {"excess": 0.1}})),
        (MISSES, lambda: forged({("gaussian", 13122): {"excess": 0.05}})),
        (U_TURNS, lambda: forged({("gaussian", 13122): {"gap": -0.08}})),
        (U_TURNS, lambda: forged({("uniform", 4374): {"gap": 0.08}})),
        (COPIES, lambda: forged({("gaussian", 18): {"copies": 0.0}})),
        (COPIES, lambda: forged({("gaussian", 13122): {"copies": 0.1}})),
    ],
)
def test_verdict_can_fail(verdict, runs):
    assert verdict in failed(runs())


def test_half_way_at_the_ends_of_the_sweep():
    sizes = np.array([10.0, 100.0, 1000.0])
    assert learning._reached(sizes, np.array([0.9, 0.9, 1.0]), 0.5) == 0
    assert learning._reached(sizes, np.array([0.1, 0.2, 0.3]), 0.5) == np.inf
    assert np.isclose(learning._reached(sizes, np.array([0.0, 0.25, 0.75]), 0.5), 100 * 10**0.5)
    # For good: an early accident does not count.
    assert learning._reached(sizes, np.array([0.6, 0.4, 0.6]), 0.5) > 100


def test_use_of_evidence_is_one_for_exact_inference_and_zero_for_ignorance():
    """A reader who knows the rules up to level l uses all evidence of these levels and none of the others'."""
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=3, seed=0)
    leaves = rhm.sample(300, seed=1).leaves

    class Reader:
        corruption = ut.Gaussian()

        def __init__(self, top):
            self.top = top

        def posterior(self, noisy):
            evidence = self.corruption.log_evidence(noisy, np.float64)
            known = ut.RandomHierarchyModel.from_rules({k: rhm.rules[k] for k in range(1, self.top + 1)}, 4)
            return ut.infer(known, evidence.reshape(-1, 2**self.top, 4)).marginals[0].reshape(evidence.shape)

    for top in range(1, 4):
        moments = learning.evidence_moments(Reader(top), rhm, leaves, np.array([0.1, 0.3, 1.0]), ut.random.keys(0, range(300)))
        use = learning.use_of_evidence(*(moments[name][1].sum(0) for name in ("gram", "projection", "power")))
        assert np.allclose(use, np.arange(1, 4) <= top, atol=1e-3), use


def test_noise_lowers_the_use_of_evidence():
    gram, weights = np.diag([4.0, 1.0]), np.array([1.0, 1.0])
    projection = gram @ weights
    quiet, noisy = (learning.use_of_evidence(gram, projection, weights @ projection + rest) for rest in (0.0, 3.0))
    assert np.allclose(quiet, 1)
    assert np.allclose(noisy, [(1 / (1 + 3 / 4)) ** 0.5, 0.5])


def test_rules_are_counted_where_children_are_grammatical():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    leaves = rhm.sample(1, seed=0).leaves
    pairs = {tuple(pair) for pair in rhm.rules[1].reshape(-1, 2).tolist()}
    wrong = next((a, b) for a in range(4) for b in range(4) if (a, b) not in pairs)
    broken = leaves.copy()
    broken[0, :2] = wrong
    found = xr.Dataset(learning.grammaticality(rhm, np.concatenate([leaves, broken])))
    assert found.tried.values.tolist() == [[4, 2, 1], [4, 2, 0]]
    assert found.obeyed.values.tolist() == [[4, 2, 1], [4, 1, 0]]
    assert found.valid.values.tolist() == [[1, 1, 1], [1, 0.5, 0]]


def test_measures_once_and_trains_anew_what_is_damaged(tmp_path, monkeypatch):
    tiny = {
        "grammar": {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2, "seed": 0},
        "sizes": [4, 64],
        "other_size": 16,
        "training": {"width": 8, "steps": [20, 20], "batch_size": 16, "learning_rate": 5e-3, "every": 10, "held_out": 32},
        "levels": 3,
        "items": 20,
        "generated": 40,
        "steps": 4,
    }
    monkeypatch.setitem(learning.SETTINGS, "smoke", tiny)
    work, trained = Work("smoke", tmp_path, workers=1), []
    real = learning._train
    monkeypatch.setattr(learning, "_train", lambda job, *rest: (trained.append((job["channel"], job["size"])), real(job, *rest)))
    runs = learning.measure(work)
    assert sorted(trained) == learning.networks("smoke") == [("gaussian", 4), ("gaussian", 64), ("masking", 16), ("uniform", 16)]
    data, found = learning.analyse(runs)
    assert len(found) == 7
    assert data.exact.dims == ("noise", "tree_level")
    again = learning.measure(work)
    assert len(trained) == 4
    for name in runs:
        xr.testing.assert_equal(runs[name], again[name])
    (tmp_path / "learning-masking-16-last.safetensors").write_bytes(b"{")
    learning.measure(work)
    assert trained[4:] == [("masking", 16)]
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_grammars_have_a_transition_and_sizes_span_the_scales(scale):
    plan = learning.SETTINGS[scale]
    v, m, s, depth = (plan["grammar"][key] for key in ("vocab_size", "multiplicity", "branching", "depth"))
    assert s * m / v ** (s - 1) <= 1
    assert ut.theory.MeanField(v, m, s).phase == "transition"
    assert min(plan["sizes"]) < v * m**2
    assert max(plan["sizes"]) > v * m ** (depth + 1)
    assert plan["other_size"] in plan["sizes"]
