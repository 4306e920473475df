"""The figure "learning": what it measures, and that each of its verdicts can fail."""

import json

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from uturn.networks.strings import denoisers
from uturn.paper import Workshop, learning, trained_denoisers

V, M, L = 8, 3, 4
CHANCE = M / V
SIZES, SEEDS = (18, 54, 162, 486, 1458, 4374, 13122), (0, 1, 2)
ITEMS, STRINGS = 200, 400


def rng(*key):
    return np.random.default_rng(key)


def share(level, size, scale=1.0, order=1, luck=()):
    """Weights of a network that learns level l at scale * v m**(l+1) strings; order -1: the highest first, 0: all at once."""
    at = scale * V * float(M) ** ({1: level, -1: L + 1 - level, 0: 2}[order] + 1)
    return 1 / (1 + (at * np.exp(0.1 * rng(level, *luck).standard_normal()) / size) ** 2)


def network(channel, size, seed, *, excess=None, gap=0.0, copies=None, luck=0, **curve):
    noise = np.linspace(0.1, 1, 5)
    random = rng(size, len(channel), seed)
    excess = 20 / size if excess is None else excess
    losses = ("state", "noise", "item")
    spread = 0.2 * random.standard_normal((2, len(noise), ITEMS))
    known = np.array([share(level, size, luck=(luck, seed), **curve) for level in range(1, L + 1)])
    found = xr.Dataset(
        {
            "excess": (losses, excess + spread),
            "divergence": (losses, np.full(spread.shape, abs(excess))),
            "local": (losses, np.full(spread.shape, 0.3)),
            "squared_error": (losses, 0.3 + excess + spread),
            "exact_squared_error": (losses, np.full(spread.shape, 0.3)),
            "score_error": (losses, np.full(spread.shape, 0.1)),
            "score_square": (losses, np.full(spread.shape, 1.0)),
            "weight": (("state", "learned_level"), np.stack([known, known])),
        },
        {"noise": noise, "state": ["best", "last"], "learned_level": range(1, L + 1)},
        {"settings": json.dumps({"grammar": {"vocab_size": V, "multiplicity": M, "branching": 2, "depth": L, "seed": seed}})},
    )
    if seed:
        return found
    nodes = np.array([2 ** (L - level) for level in range(L + 1)])
    chances = np.r_[1.0, CHANCE + (1 - CHANCE) * known]
    copies = (0.9 if size < 100 else 0.0) if copies is None else copies
    return found.assign(
        tried=(("state", "string", "tree_level"), np.broadcast_to(nodes, (2, STRINGS, L + 1)).astype(float)),
        obeyed=(("state", "string", "tree_level"), random.binomial(nodes, chances, (2, STRINGS, L + 1)).astype(float)),
        copied=(("state", "string"), (random.random((2, STRINGS)) < np.array([[0], [copies]])).astype(float)),
        unchanged=(("noise", "item", "tree_level"), 0.5 + gap + 0.02 * random.standard_normal((5, ITEMS, L + 1))),
    ).assign_coords(tree_level=range(L + 1))


def exact(channel):
    dims, shape = ("noise", "item", "tree_level"), (5, ITEMS, L + 1)
    data = {"belief": (dims, np.full(shape, 0.5)), "unchanged": (dims, np.full(shape, 0.51))}
    return xr.Dataset(data, {"noise": np.linspace(0.1, 1, 5), "tree_level": range(L + 1)})


def forged(change=None, **everywhere):
    """Runs of networks that learn as theory has it; `change` {(channel, size, seed): options}."""
    change = change or {}
    names = [("gaussian", size, seed) for size in SIZES for seed in SEEDS] + [("masking", 4374, 0), ("uniform", 4374, 0)]
    runs = {f"{channel}-exact": exact(channel) for channel in ("gaussian", "masking", "uniform")}
    return runs | {"-".join(map(str, name)): network(*name, **{**everywhere, **change.get(name, {})}) for name in names}


def failed(runs):
    return [k for k, verdict in enumerate(learning.analyse(runs)[1]) if verdict.passed is False]


BOUND, ORDER, SCALES, FALLS, MISSES, U_TURNS, COPIES = range(7)


def test_theory_passes_and_is_drawn():
    data, found = learning.analyse(forged())
    assert [verdict.passed for verdict in found] == [True, True, None, *[True] * 4], found
    # v m^(l+1) to within 35 %, and a factor of m = 3 from level to level, are shown.
    *ratios, factor = (float(x) for x in found[SCALES].measured.replace(";", ",").split(","))
    assert np.allclose(np.log(ratios), 0, atol=0.35)
    assert 2.5 < factor < 3.6
    assert np.allclose(data.predicted_at, V * 3.0 ** np.arange(2, 6))
    assert np.allclose(np.log(data.learned_at / data.predicted_at), 0, atol=0.35)  # 3 standard deviations, and interpolation
    import matplotlib.pyplot as plt

    figure = learning.draw(data)
    assert len(figure.axes) == 7
    plt.close(figure)


@pytest.mark.parametrize(
    ("verdict", "runs"),
    [
        (BOUND, lambda: forged({("masking", 4374, 0): {"excess": -0.06}})),
        (ORDER, lambda: forged(order=-1)),
        (FALLS, lambda: forged({("gaussian", 13122, seed): {"excess": 2.0} for seed in SEEDS})),
        (MISSES, lambda: forged({("gaussian", 13122, 2): {"excess": 0.05}})),
        (U_TURNS, lambda: forged({("gaussian", 13122, 0): {"gap": -0.08}})),
        (COPIES, lambda: forged({("gaussian", 18, 0): {"copies": 0.0}})),
    ],
)
def test_verdict_can_fail(verdict, runs):
    assert verdict in failed(runs())


def test_all_levels_at_once_are_no_order():
    """Networks that learn all levels at the same size, but for their luck: 20 sets of three grammars."""

    def passed(order, luck):
        curves = [[[share(k, size, order=order, luck=(luck, seed)) for size in SIZES] for k in range(1, L + 1)] for seed in SEEDS]
        at = [[learning.reached(np.array(SIZES), np.array(curve)) for curve in grammar] for grammar in curves]
        data = {"learned_at": (("grammar", "learned_level"), at), "predicted_at": ("learned_level", np.ones(L))}
        return learning._order(xr.Dataset(data, {"learned_level": range(1, L + 1)}))[0].passed

    assert not any(passed(0, luck) for luck in range(20))
    assert all(passed(1, luck) for luck in range(20))


def test_rules_are_counted_where_children_are_grammatical():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    leaves = rhm.sample(1, seed=0).leaves
    pairs = {tuple(pair) for pair in rhm.rules[1].reshape(-1, 2).tolist()}
    wrong = next((a, b) for a in range(4) for b in range(4) if (a, b) not in pairs)
    broken = leaves.copy()
    broken[0, :2] = wrong
    found = xr.Dataset(trained_denoisers.grammaticality(rhm, np.concatenate([leaves, broken])))
    assert found.tried.values.tolist() == [[4, 2, 1], [4, 2, 0]]
    assert found.obeyed.values.tolist() == [[4, 2, 1], [4, 1, 0]]


TINY = {
    "grammar": {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3},
    "seeds": [0, 1],
    "sizes": [4, 16, 64],
    "other_size": 16,
    "training": {"width": 8, "steps": [20, 6, 20], "batch_size": 16, "learning_rate": 5e-3, "every": 10, "held_out": 32},
    "reading": {"levels": 2, "items": 10, "generated": 20, "steps": 2},
}


def test_measures_once_and_trains_anew_what_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setitem(trained_denoisers.SETTINGS, "smoke", TINY)
    workshop, trained = Workshop("smoke", tmp_path, workers=1), []
    real = denoisers.train_denoiser
    monkeypatch.setattr(
        denoisers, "train_denoiser", lambda *args, **options: (trained.append(args[1]), real(*args, **options))[1]
    )
    runs = learning.measure(workshop)
    names = [f"gaussian-{size}-{seed}" for size in (64, 16, 4) for seed in (0, 1)]
    assert list(trained_denoisers.networks("smoke")) == ["masking-16-0", "uniform-16-0", *names]
    assert trained == ["masking", "uniform", *["gaussian"] * 6]
    data, found = learning.analyse(runs)
    assert len(found) == 7
    assert data.exact.dims == ("noise", "tree_level")
    again = learning.measure(workshop)
    assert len(trained) == 8
    for name in runs:
        xr.testing.assert_equal(runs[name], again[name])
    (tmp_path / "learning-masking-16-0-last.safetensors").write_bytes(b"{")
    learning.measure(workshop)
    assert trained[8:] == ["masking"]
    assert not list(tmp_path.glob("*.checkpoint"))
