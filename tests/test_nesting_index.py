"""The nesting index: its definition in plain loops, closed formulas, mean field, data without a
hierarchy, bad input.
"""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from flat_data import SHARES, changes, grammar_changes, grammar_experiment, nested_order
from small import strings
from uturn.core.random import Purpose, Streams, keys, uniforms
from uturn.exact.theory import MeanField
from uturn.measures import hierarchy
from uturn.measures.hierarchy import nested_correlations, nesting, nesting_index, site_changes


def labelled(x, noise=None) -> xr.DataArray:
    x = np.asarray(x, float)
    return xr.DataArray(
        x,
        dims=("noise", "item", "trajectory", "site"),
        coords={"noise": np.arange(len(x), dtype=float) if noise is None else noise},
    )


def coins(*shape, seed=0) -> np.ndarray:
    return uniforms(keys(seed, np.arange(np.prod(shape[:-1]))), shape[-1]).reshape(shape)


def by_definition(x, s):
    """The nested correlations of every site and the index, by sums over pairs of sites."""
    N, items, S = len(x), x.shape[1], x.shape[3]
    K = round(np.log(S) / np.log(s))
    mean = x.mean(axis=(1, 2, 3))
    lost = mean / mean[-1]
    assert (np.diff(lost) >= 0).all(), "increasing, so that the isotonic fit changes nothing"
    C = np.zeros((N, S, K + 1))
    for n in range(N):
        covariance = sum(np.cov(x[n, i], rowvar=False) for i in range(items)) / items
        for i in range(S):
            for k in range(K + 1):
                level = [next(q for q in range(K + 1) if i // s**q == j // s**q) for j in range(S)]
                C[n, i, k] = np.mean([covariance[i, j] for j in range(S) if level[j] == k])
    edges = np.r_[0, lost, 1]

    def integral(f):  # zero noise changes nothing
        f = np.concatenate([[np.zeros_like(f[0])], f, [f[-1]]])
        return sum((b - a) * (f[q] + f[q + 1]) / 2 for q, (a, b) in enumerate(pairwise(edges)))

    X = np.stack(
        [integral(C[..., k] - lost[:, None] ** 2 * C[-1, :, k]) for k in range(1, K + 1)]
        + [np.zeros(S)],
        axis=-1,
    )
    total = np.array([integral(C[..., k].mean(axis=1)) for k in range(K + 1)])
    D = np.zeros((S, K))
    for k in range(1, K + 1):
        B = total[0] + sum((s**j - s ** (j - 1)) * total[j] for j in range(1, k))
        D[:, k - 1] = s ** (k - 1) * (X[:, k - 1] - X[:, k]) / B
    return D, (D.sum(axis=1) - D.max(axis=1)).mean()


@pytest.mark.parametrize(("s", "sites"), [(2, 8), (3, 9), (4, 4)])
def test_equals_its_definition(s, sites):
    # Blocks share a threshold, so that sites of a block change together; noise raises the share of
    # changes.
    shared = coins(4, 5, 6, sites // s).repeat(s, axis=-1)
    share = np.array([0.15, 0.4, 0.7, 0.95])[:, None, None, None]
    x = (0.5 * coins(4, 5, 6, sites, seed=1) + 0.5 * shared < share).astype(float)
    D, index = by_definition(x, s)
    changed = labelled(x)
    found = nested_correlations(changed, s)
    np.testing.assert_allclose(found.nested[:, 0], D.mean(axis=0), rtol=1e-10, atol=1e-14)
    assert found.distance.values.tolist() == [s**k for k in range(1, D.shape[1] + 1)]
    assert nesting_index(changed, s).value == pytest.approx(max(index, 0), rel=1e-10)
    assert s > 2 or index > 0, "the value of the index is compared, not only that it is clipped"


HALFWAY = np.array([0, 0.5, 1])


def halfway(*covariance):
    """Covariances (noise, site, K + 1) of data with C_0 .. C_K halfway, and no variance at the
    ends.
    """
    return np.array([[0.0 * np.array(covariance)], [covariance], [0.0 * np.array(covariance)]])


def test_closed_values():
    # A flat code: one step of C_k. Then two equal steps of the correlation of sibling blocks: C =
    # 1, 1/2, 1/8 with D_1 = 1/2 - 1/8 = 3/8, B_1 = 3/2, D_2 = 2 (1/8) / (3/2) = 1/6.
    assert nesting(HALFWAY, halfway(1, 0.4, 0.4, 0.4), 2).value == pytest.approx(0, abs=1e-15)
    assert nesting(HALFWAY, halfway(1, 1, 1, 1), 2).value == pytest.approx(0, abs=1e-15)
    found = nesting(HALFWAY, halfway(1, 0.5, 0.125), 2)
    assert found.value == pytest.approx(1 / 6)
    np.testing.assert_allclose(found.nested, [[3 / 8, 1 / 6]])
    np.testing.assert_allclose(found.correlation, [[1 / 2, 1 / 8]])


def test_each_site_counts_its_own_levels():
    """Unrelated codes of different sizes side by side: every site changes with one block only."""
    small, large = halfway(1, 0.5, 0, 0), halfway(1, 0.5, 0.5, 0)
    together = np.concatenate([small] * 4 + [large] * 4, axis=1)
    assert nesting(HALFWAY, together, 2).value == pytest.approx(0, abs=1e-15)
    pooled = together.mean(axis=1, keepdims=True)
    assert nesting(HALFWAY, pooled, 2).value > 0.1, (
        "the control: averaged over sites first, they would count as two levels"
    )


def test_sites_that_follow_one_class_with_a_strength_that_rises_count_as_several_levels():
    """A limit that docs/structure.md states: with sites that are alike, or scattered, one class
    is one level.
    """
    levels = np.array([0.1, 0.3, 0.5, 0.7, 1.0])
    lost = coins(5, 100, 8, 1) < levels[:, None, None, None]
    ramp = np.linspace(0.2, 0.9, 16)
    found = {}
    for name, shares in (
        ("alike", np.full(16, 0.55)),
        ("scattered", np.random.default_rng(2).permutation(ramp)),
        ("rising", ramp),
    ):
        found[name] = nesting_index(
            labelled(lost & (coins(5, 100, 8, 16, seed=1) < shares), levels), 2
        )
    assert found["alike"].high < 0.03
    assert found["scattered"].high < 0.05
    assert found["rising"].low > 0.1


def test_what_is_lost_as_in_independent_data_does_not_count():
    """Sites lost independently of each other: C_k = a**2 C_k(last), however correlated the data
    are.
    """
    lost = np.linspace(0, 1, 11)
    last = np.array([1.0, 0.8, 0.6, 0.3])
    assert hierarchy.nesting(lost, lost[:, None, None] ** 2 * last, 2).value == pytest.approx(
        0, abs=1e-14
    )
    assert hierarchy.nesting(lost, (lost * (2 - lost))[:, None, None] ** 2 * last, 2).value > 0.01


def theory_index(mf, depth, epsilon):
    covariance = mf.pair_correlations(epsilon, depth)[:, None] / 4
    return nesting(1 - mf.curves(epsilon, depth).marginals[:, 0], covariance, mf.branching).value


def test_neither_the_unit_of_noise_nor_the_number_of_levels_matters():
    mf = MeanField(32, 8, 2)
    fine = theory_index(mf, 5, np.linspace(0, 1, 2001)[1:])
    for grid in (
        np.linspace(0, 1, 41)[1:],
        np.linspace(0, 1, 401)[1:] ** 0.5,
        np.r_[0.01, np.linspace(0.3, 1, 60)],
    ):
        assert theory_index(mf, 5, grid) == pytest.approx(fine, rel=0.02)
    x = (coins(6, 8, 4, 8) < np.linspace(0.1, 1, 6)[:, None, None, None]).astype(float)
    assert nesting_index(labelled(x), 2) == nesting_index(
        labelled(x, noise=[0.01, 0.1, 1, 2, 3, np.inf]), 2
    )


@pytest.mark.parametrize(("v", "m", "s", "L"), [(32, 8, 2, 4), (16, 4, 2, 4), (8, 8, 3, 3)])
def test_mean_field_of_the_epsilon_process(v, m, s, L):
    """Within 10 % of the annealed mean field, which is off by some 6 %: it keeps .78 of the
    leaves at small ε instead of .87.
    """
    epsilon = np.linspace(0, 1, 31)[1:]
    spec = strings(
        "epsilon",
        epsilon.tolist(),
        source={"vocab_size": v, "multiplicity": m, "branching": s, "depth": L, "grammars": 16},
        items=160,
        trajectories=8,
    )
    found = nesting_index(site_changes(ut.Experiment.from_dict(spec)), s)
    assert found.value == pytest.approx(theory_index(MeanField(v, m, s), L, epsilon), rel=0.1)
    assert found.value != pytest.approx(
        theory_index(MeanField(v, m, s), L - 1, epsilon), rel=0.1
    ), "one level less is seen"


def test_site_changes_are_those_of_the_run():
    spec = strings("masking", [0.2, 0.6, 1.0], source={"grammars": 3}, items=12, trajectories=3)
    experiment = ut.Experiment.from_dict(spec)
    changed = site_changes(experiment)
    np.testing.assert_allclose(
        1 - changed.mean("site"), ut.run(experiment).unchanged.sel(tree_level=0)
    )
    assert changed.grammar.values.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with pytest.raises(ValueError, match="one clone"):
        site_changes(ut.Experiment.from_dict({**spec, "clones": 2}))


def test_the_probe_gives_the_index_too():
    spec = strings(
        "masking",
        [0.2, 0.4, 0.6, 0.8, 1.0],
        ["changes"],
        source={"grammars": 4},
        items=40,
        trajectories=4,
    )
    experiment = ut.Experiment.from_dict(spec)
    changed, run = site_changes(experiment), ut.run(experiment)
    whole = nested_correlations(changed, 2).nested.values[:, 0]
    # Of the average site; float32.
    assert nesting_index(run).value == pytest.approx(whole.sum() - whole.max(), abs=1e-5)


@pytest.mark.slow
def test_the_index_falls_along_the_dial():
    source = {"vocab_size": 16, "multiplicity": 4, "branching": 2, "depth": 4, "grammars": 10}
    found = [
        nesting_index(
            grammar_changes({"type": "filtered_rhm", **source, "filtered_above": k}, 0, 200), 2
        )
        for k in range(5)
    ]
    assert found[0].value == 0
    assert found[1].high < 0.05
    assert all(a.high < b.low for a, b in pairwise(found[1:]))


@pytest.mark.slow
def test_grammars_and_controls():
    grammar = min(
        nesting_index(*changes("grammars", one, 0)).low
        for one in ((32, 8, 2, 3), (32, 8, 2, 5), (32, 12, 2, 3))
    )
    features = [("mixture", 16, 16.0, 16), ("mixture", 4, 10.0, 8), ("mixture", 8, 6.0, 8)]
    controls = {
        "one-level grammars": ((4, 512, 8), 1),
        "unrelated features": features,
        "random codes": (256, 9.0, 64),
        "flat mixtures": (32, 16.0, 64),
        "fields": (16, 2.0),
    }
    highest = max(nesting_index(*changes(kind, one, 0)).high for kind, one in controls.items())
    assert highest < 0.1 < grammar
    # Independent leaves, whose tree is any function of them.
    assert nesting_index(*changes("grammars", (16, 16, 2, 4), 0)).high < 0.02


def test_blocks_of_a_grid_are_neighbours():
    order = nested_order(8)
    assert sorted(order) == list(range(64))
    for k in range(7):
        for block in order.reshape(-1, 2**k):
            rows, columns = np.unique(block // 8), np.unique(block % 8)
            assert len(rows) * len(columns) == 2**k
            assert (np.ptp(rows), np.ptp(columns)) == (len(rows) - 1, len(columns) - 1)


def stored(changed, s, prefix="") -> xr.Dataset:
    """The readings of a run that keeps covariances by distance alone."""
    x = changed.values - changed.values.mean(axis=2, keepdims=True)
    sites = x.shape[3]
    sizes = [s**k for k in range(round(np.log(sites) / np.log(s)) + 1)]
    within = np.array(
        [
            np.square(x.reshape(*x.shape[:3], -1, n).sum(-1)).sum((2, 3)) / (x.shape[2] - 1)
            for n in sizes
        ]
    )
    covariance = (
        np.diff(within, axis=0, prepend=0) / (sites * np.diff(sizes, prepend=0))[:, None, None]
    )
    return xr.Dataset(
        {
            f"{prefix}change": (("noise", "item"), changed.values.mean(axis=(2, 3))),
            f"{prefix}change_covariance": ((f"{prefix}distance", "noise", "item"), covariance),
        },
        coords={"noise": changed.noise, f"{prefix}distance": [0.0, *sizes[1:]]},
    )


def test_of_stored_covariances():
    changed = changes("grammars", (8, 8, 3, 3), 0)[0]
    whole, pooled = nesting_index(changed, 3), nesting_index(stored(changed, 3))
    # All sites are alike, and each of them has its noise.
    assert pooled.value == pytest.approx(whole.value, abs=0.005)
    assert pooled == nesting_index(stored(changed, 3, "leaf_"), name="leaf")
    features = [
        ("mixture", 100, 14.0, 32),
        ("grammar", 5, 20, 8),
        ("grammar", 3, 10, 8),
        ("mixture", 6, 10.0, 16),
    ]
    side_by_side, _ = changes("unrelated features", features, 3)
    assert nesting_index(side_by_side, 2).high < nesting_index(stored(side_by_side, 2)).low


# -- the assumption: independent noise -------------------------------------------------------------


def nested_bursts(items=100, trajectories=8, levels=4, seed=0):
    """Independent bits in noise that hides whole blocks of 1, 2, 4, .. neighbours: hidden sites and
    changed sites.

    At noise x each block of each level is hidden with a probability such that a site is hidden with
    probability x. Hidden bits are redrawn, which is the exact posterior.
    """
    sites = 2**levels
    hidden = np.zeros((len(SHARES), items, trajectories, sites), bool)
    streams = keys(seed, Purpose.CORRUPTION, np.arange(hidden[..., 0].size))
    numbers = uniforms(streams, 2 * sites - 1).reshape(*hidden.shape[:3], -1)
    rate = 1 - (1 - SHARES) ** (1 / (levels + 1))
    first = 0
    for k in range(levels + 1):
        blocks = numbers[..., first : first + sites // 2**k] < rate[:, None, None, None]
        hidden |= blocks.repeat(2**k, axis=-1)
        first += sites // 2**k
    bits = (
        uniforms(keys(seed, Purpose.RECONSTRUCTION, np.arange(len(streams))), sites).reshape(
            hidden.shape
        )
        < 0.5
    )
    dims = ("noise", "item", "trajectory", "site")
    made = {"noise": hidden, "changes": hidden & bits}
    return {
        name: xr.DataArray(values.astype(float), dims=dims, coords={"noise": SHARES})
        for name, values in made.items()
    }


def test_noise_in_nested_bursts_is_seen_in_the_noisy_data():
    """Independent bits have a positive index if the noise is correlated at several levels, and
    the noise itself shows it.
    """
    bursts = nested_bursts()
    assert nesting_index(bursts["changes"], 2).low > 0.1, "the assumption matters"
    assert nesting_index(bursts["noise"], 2).low > 0.3
    nested = nested_correlations(bursts["noise"], 2)
    assert (nested.nested.sel(estimate="low") > 0.05).all()
    # Bursts of one size have the index 0; the nested correlations name their level.
    one_size = labelled(
        coins(5, 100, 8, 4).repeat(4, axis=-1) < np.linspace(0.2, 1, 5)[:, None, None, None]
    )
    assert nesting_index(one_size, 2).high < 0.05
    assert (nested_correlations(one_size, 2).nested.sel(estimate="low") > 0.1).values.tolist() == [
        False,
        True,
        False,
        False,
    ]


def noise_of(experiment) -> xr.DataArray:
    """Changes from originals to noisy data, (noise, item, trajectory, site); in Gaussian noise
    |x_t - sqrt(abar) x_0|**2.
    """
    source, corruption, *_ = experiment.parts
    (originals,) = source.blocks(np.arange(experiment.items), experiment.seed, experiment.items)
    levels = []
    for noise in experiment.noise:
        streams = Streams(experiment.seed, originals.items, noise, range(experiment.trajectories))
        values = originals.observed_by(corruption, noise, streams).values
        values, before = (
            values.reshape(len(originals.items), streams.count, *values.shape[1:]),
            originals.data[:, None],
        )
        if not hasattr(corruption, "abar"):
            levels.append(values != before)
            continue
        before = np.eye(values.shape[-1])[before] if originals.data.dtype.kind in "iu" else before
        squares = np.square(values - np.sqrt(float(corruption.abar(noise))) * before)
        levels.append(squares if squares.ndim == 3 else squares.sum(axis=-1))
    return labelled(np.array(levels, float), experiment.noise)


@pytest.mark.parametrize(
    ("source", "channel"),
    [("rhm", "gaussian"), ("rhm", "masking"), ("rhm", "uniform"), ("gaussian_field", "gaussian")],
)
def test_independent_noise_has_no_nested_correlations(source, channel):
    """All levels and channels: intervals at 1 - 1e-3/16."""
    if source == "rhm":
        made = {"vocab_size": 8, "multiplicity": 4, "branching": 2, "depth": 4}
        noise = noise_of(grammar_experiment(made, 3, channel=channel))
    else:
        spec = {
            "items": 100,
            "trajectories": 8,
            "source": {"type": source, "size": 4},
            "corruption": {"type": channel, "noise": [0.1, 0.5, 2.0, np.inf]},
            "backward": {"type": "exact"},
            "probes": [{"type": "scales"}],
        }
        noise = noise_of(ut.Experiment.from_dict(spec))
    assert noise.sizes["site"] == 16
    nested = nested_correlations(noise, 2, confidence=1 - 1e-3 / 16)
    assert (
        (nested.nested.sel(estimate="low") < 0) & (nested.nested.sel(estimate="high") > 0)
    ).all()
    assert nesting_index(noise, 2).high < 0.05
