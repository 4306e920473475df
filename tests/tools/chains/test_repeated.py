"""Chains of U-turns: their law by enumeration, the same numbers however they are measured, and
the command.
"""

import json
import pickle
import warnings
from itertools import product

import numpy as np
import pytest
import xarray as xr

import tiny_language
import tiny_pipelines
import uturn as ut
from command_line import uturn
from uturn.backward.diffusion import DiffusionModel
from uturn.core.protocols import Variable
from uturn.core.random import Purpose, keys, normals, uniforms
from uturn.core.u_turns import u_turns
from uturn.engine.cluster import _Tasks
from uturn.engine.trial import check
from uturn.exact.grammar import Draw
from uturn.pages.page import collect
from uturn.store.outputs import write_dataset
from uturn.tools.chains.energies import energy_of
from uturn.tools.chains.exam_runs import every_tree, transition
from uturn.tools.chains.figure import draw_chains
from uturn.tools.chains.measures import effective_draws
from uturn.tools.chains.results import _inversion, base_experiment, calls_of, measured_of, repeated

SOURCE = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2}
CHAIN = {
    "items": 60,
    "trajectories": 2,
    "chunk": 20,
    "source": SOURCE,
    "corruption": {"type": "repeated", "of": {"type": "masking"}, "noise": [1, 2, 5]},
    "backward": {"type": "repeated", "of": {"type": "exact"}, "noise": 0.4},
    "probes": [{"type": "chain"}],
}


def changed(**sections):
    """`CHAIN` with other entries in its tables."""
    spec = json.loads(json.dumps(CHAIN))
    for name, table in sections.items():
        spec[name] = spec[name] | table if isinstance(table, dict) else table
    return ut.Experiment.from_dict(spec)


@pytest.fixture(scope="module")
def whole():
    return ut.run(changed())


# --- the law of the chain -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    rhm = ut.RandomHierarchyModel(vocab_size=3, multiplicity=2, branching=2, depth=2, seed=3)
    strings = every_tree(rhm)
    return (
        rhm,
        strings,
        np.full(len(strings[0]), 1 / len(strings[0])),
        transition(strings[0], 0.4).toarray(),
    )


def test_overlaps_are_those_of_the_transition_matrix(world):
    rhm, strings, p, P = world
    assert np.allclose(p[:, None] * P, (p[:, None] * P).T), "reversible"
    n = 8000
    originals = ut.sources.Strings(np.arange(n), rhm, rhm.sample(n, seed=1))
    states = {
        s.step: s
        for s in ut.chain(originals, ut.Masking(), ut.backward.ExactPosterior(), 0.4, steps=16)
        if s.step in (1, 4, 16)
    }
    for k, state in states.items():
        joint = p[:, None] * np.linalg.matrix_power(P, k)
        for level in strings:
            same = (strings[level][:, None] == strings[level][None]).mean(axis=2)
            expected, found = (
                (joint * same).sum(),
                (state.originals.draw.latents[level] == originals.draw.latents[level]).mean(axis=1),
            )
            assert abs(found.mean() - expected) < 4.5 * found.std() / np.sqrt(n), (k, level)


@pytest.mark.parametrize("beta", [0.5, 1.5])
def test_an_energy_of_pairs_is_sampled(world, beta):
    rhm, strings, p, _ = world

    def energy(leaves):
        return (leaves[:, 1:] == leaves[:, :-1]).sum(axis=1) + 0.5 * (leaves == 0).sum(axis=1)

    weights = p * np.exp(-beta * energy(strings[0]))
    exact = (weights / weights.sum() * energy(strings[0])).sum()
    n = 6000
    originals = ut.sources.Strings(np.arange(n), rhm, rhm.sample(n, seed=2))
    parts = ut.Masking(), ut.backward.ExactPosterior(), 0.4
    *_, last = ut.chain(originals, *parts, steps=40, energy=energy, beta=beta)
    *_, free = ut.chain(originals, *parts, steps=40)
    error = energy(last.data).std() / np.sqrt(n)
    assert abs(energy(last.data).mean() - exact) < 4.5 * error
    assert np.array_equal(last.energy, energy(last.data))
    assert abs(energy(free.data).mean() - exact) > 5 * error, (
        "without the Metropolis step the mean is that of p"
    )


def test_one_leaf_a_u_turn(world):
    rhm, strings, *_ = world
    leaves = rhm.sample(500, seed=4).leaves
    noisy = ut.MaskedLeaves().corrupt(leaves, 1, vocab_size=rhm.vocab_size, seed=5)
    assert ((noisy.values < 0).sum(axis=1) == 1).all()
    counts = (noisy.values < 0).sum(axis=0)
    assert (abs(counts - 125) < 5 * np.sqrt(125 * 0.75)).all(), "each leaf with one probability"
    originals = ut.sources.Strings(np.arange(500), rhm, rhm.sample(500, seed=4))
    states = list(ut.chain(originals, ut.MaskedLeaves(), ut.backward.ExactPosterior(), 1, steps=30))
    of = {tuple(row): k for k, row in enumerate(strings[0].tolist())}
    apart = (strings[0][:, None] != strings[0][None]).sum(axis=2)
    alone = np.array([(apart[of[tuple(row)]] == 1).sum() == 0 for row in originals.data.tolist()])
    moved = np.any([(state.data != originals.data).any(axis=1) for state in states], axis=0)
    assert not moved[alone].any()
    assert moved[~alone].mean() > 0.9
    with pytest.raises(ValueError, match=r"noise = \[5.0, .*at most 4"):
        ut.MaskedLeaves().corrupt(leaves, 5, vocab_size=rhm.vocab_size)
    two = ut.MaskedLeaves().corrupt(leaves, 2, vocab_size=rhm.vocab_size, seed=5)
    assert np.allclose(ut.MaskedLeaves().log_observation_factor(two), -np.log(6)), (
        "6 pairs of leaves, equally probable"
    )


def test_an_exact_number_of_masked_leaves_without_a_chain():
    spec = {"corruption": {"type": "masked_leaves", "noise": [1, 2]}, "backward": {"type": "exact"}}
    run = ut.run(
        ut.Experiment.from_dict(changed().to_dict() | spec | {"probes": [{"type": "tree_levels"}]})
    )
    assert run.effective_epsilon.values.tolist() == [0.25, 0.5]
    assert (run.unchanged.sel(noise=1, tree_level=0) >= 0.75).all()


# --- the same numbers however they are measured ---------------------------------------------------


def same(a, b):
    assert a.drop_attrs().identical(b.drop_attrs())


def test_a_run_is_the_chain(whole):
    source = changed().parts.source
    originals = next(source.blocks(np.arange(60), 0, 60))
    states = list(ut.chain(originals, ut.Masking(), ut.backward.ExactPosterior(), 0.4, steps=5))
    for k in (1, 2, 5):
        leaves = (states[k - 1].data == originals.data).mean(axis=1)
        assert np.allclose(whole.overlap.sel(noise=k, trajectory=0, tree_level=0), leaves)
    longer = list(ut.chain(originals, ut.Masking(), ut.backward.ExactPosterior(), 0.4, steps=7))
    assert np.array_equal(longer[4].data, states[4].data)
    assert not np.array_equal(states[0].data, states[1].data), (
        "each U-turn has random numbers of its own"
    )


def test_levels_chunks_shards_workers_and_growth_change_no_number(whole, tmp_path):
    same(ut.run(changed(corruption={"noise": [5]})), whole.sel(noise=[5]))
    same(ut.run(changed(chunk=7)), whole)
    none = ut.run(changed(corruption={"noise": [0, 1]})).sel(noise=0)
    assert (none.overlap == 1).all()
    assert (none.before == none.after).all()
    assert (none.accepted == 0).all(), "of no U-turns"
    ut.run(changed(), tmp_path / "shards", shard=(2, 2))
    same(ut.run(changed(), tmp_path / "shards", shard=(1, 2)).load(), whole)
    same(ut.run(changed(), tmp_path / "workers", workers=2).load(), whole)
    ut.run(changed(corruption={"noise": [1, 2]}, trajectories=1), tmp_path / "grown")
    ut.run(changed(trajectories=1), tmp_path / "grown")
    same(ut.run(changed(), tmp_path / "grown").load(), whole)


def test_a_run_costs_the_u_turns_of_its_longest_chains(monkeypatch):
    made = []

    def counted(blocks, corruption, backward):
        for key, turned in u_turns(blocks, corruption, backward):
            made.append(len(turned.originals.items))
            yield key, turned

    monkeypatch.setattr("uturn.tools.chains.chain.u_turns", counted)
    ut.run(changed())
    assert sum(made) == 60 * 2 * 5


def test_relaxation_is_that_of_an_exponential():
    k = np.array([1.0, 2, 4, 8, 16, 32])
    rng = np.random.default_rng(0)
    curves = {"fast": 3.0, "slow": 20.0, "never": 1e4, "at once": 0.05}
    p = {name: 0.25 + 0.75 * np.exp2(-k / time) for name, time in curves.items()}
    arrays = {
        name: (rng.random((len(k), 400)) < of[:, None]).astype(float) for name, of in p.items()
    }
    ds = ut.readings(arrays, noise=k, start=1, chance=0.25, unit="U-turns")
    ds.noise.attrs["long_name"] = "U-turns"
    found = ut.relaxation(ds)
    for name in ("fast", "slow"):
        value, low, high = found.time.sel(reading=name).values
        assert low < curves[name] < high
        assert low < value < high < 2 * low
    assert found.remark.sel(reading="at once").item() == "less than 1"
    assert found.remark.sel(reading="never").item().startswith("longer than 32")
    assert found.time.sel(reading=["at once", "never"], estimate="value").isnull().all()
    assert found.time.sel(reading="at once", estimate="high") == 1
    assert found.time.sel(reading="never").values[1:].tolist() == [32, np.inf]
    unknown = ut.relaxation(
        ut.readings({"x": arrays["fast"]}, noise=k, start=1).assign_coords(noise=ds.noise)
    )
    assert "its chance is not known" in unknown.remark.item()


def test_relaxation_near_the_ends_of_a_chain_is_bounded_by_what_is_sure():
    rng, k = np.random.default_rng(0), np.array([1.0, 2, 4])
    shares = {"about the last": [0.9, 0.8, 0.52], "about the first": [0.48, 0.3, 0.1]}
    arrays = {
        name: rng.permuted(np.arange(200) < 200 * np.array(of)[:, None], axis=1)
        for name, of in shares.items()
    }
    ds = ut.readings(
        {name: of.astype(float) for name, of in arrays.items()},
        noise=k,
        start=1,
        chance=0,
        unit="U-turns",
    )
    ds.noise.attrs["long_name"] = "U-turns"
    found = ut.relaxation(ds)
    assert found.time.sel(estimate="value").isnull().all()
    assert found.remark.values[0].startswith("longer than 4, or about as long: not decided")
    assert found.remark.values[1] == "less than 1, or about as long"
    assert found.time.values[0, 1] < 4 < found.time.values[0, 2] == np.inf
    assert found.time.values[1, 1] < 1 < found.time.values[1, 2] < 2


@pytest.mark.parametrize(
    ("backward", "keeps"),
    [({"type": "exact"}, True), ({"type": "denoiser", "order": "confidence"}, False)],
)
def test_reversibility_tells_a_posterior_from_a_decoder(backward, keeps):
    source = SOURCE | {"vocab_size": 8, "depth": 3}
    with (
        pytest.warns(UserWarning, match="does not draw from the posterior")
        if not keeps
        else nothing()
    ):
        run = ut.run(
            changed(
                items=1500,
                trajectories=1,
                chunk=500,
                source=source,
                corruption={"noise": [1, 8]},
                backward={"of": backward, "noise": 0.6},
            )
        )
    found = ut.reversibility(run, repeats=1999)
    assert (found.p_holm > 0.001).all() if keeps else found.p_holm[-1] <= 0.001


def chains_by_hand(after, before=None, energy=None):
    """A run of chains: `after` (k, items, functions) of x_1, x_2, .., `before` (items,
    functions) of x_0, `energy` (k, items).
    """
    data = {"after": (("noise", "item", "trajectory", "observable"), after[:, :, None])}
    if before is not None:
        data["before"] = ("noise", "item", "observable"), np.tile(before, (len(after), 1, 1))
    if energy is not None:
        data["energy"] = ("noise", "item", "trajectory"), energy[..., None]
    return xr.Dataset(
        data, {"noise": ("noise", np.arange(1.0, len(after) + 1), {"long_name": "U-turns"})}
    )


def test_a_chain_that_keeps_the_law_and_runs_in_one_direction_is_not_reversible():
    """x_1 = x_0 + 1 modulo 3 keeps the uniform law; a step up or down, by a toss, is reversible
    too.
    """
    x = np.arange(600) % 3
    tosses = np.arange(600) // 3 % 2
    for steps, is_reversible in ((1, False), (1 + tosses, True)):
        first, last = (np.eye(3)[of % 3] for of in (x, x + steps))
        found = ut.reversibility(chains_by_hand(last[None], first), repeats=999)
        assert (found.p.item() > 0.1) == is_reversible
    assert found.z.item() < 1e-9, "each pair of symbols is met as often in both directions"


def test_the_p_value_of_swaps_is_that_of_all_swaps():
    """Ten originals: all 1,024 swaps can be written out. The functions are normals in both
    directions, so no p-value is extreme.
    """
    swaps = np.array(list(product((1.0, -1.0), repeat=10)))
    for seed in range(5):
        x = normals(keys(seed, range(10)), 2, np.float64)
        y = normals(keys(100 + seed, range(10)), 2, np.float64)
        found = ut.reversibility(chains_by_hand(y[None], x), repeats=9_999)
        both = np.concatenate([x, y])
        first, second = ((values - both.mean(0)) / both.std(0) for values in (x, y))
        turned = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
        odd = np.stack([*(second - first).T, turned], axis=1)
        odd /= np.sqrt((odd**2).sum(0))
        largest = np.abs(swaps @ odd).max(1)
        exact = (largest >= largest[0] * (1 - 1e-9)).mean()
        assert found.z.item() == pytest.approx(largest[0])
        assert found.p.item() == pytest.approx(exact, abs=4 * np.sqrt(exact / 9_999))


def test_the_seed_of_the_swaps_counts():
    before, after = (
        normals(keys(0, range(40)), 2, np.float64),
        normals(keys(1, range(40)), 2, np.float64),
    )
    run = chains_by_hand(after[None], before)
    first, again, other = (
        ut.reversibility(run, repeats=999, seed=seed).p.item() for seed in (0, 0, 1)
    )
    assert first == again != other


def nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_evidence_that_is_no_likelihood_is_named():
    with pytest.warns(
        UserWarning,
        match=r"no likelihood does not draw from the posterior, so the chain does not keep p\(x\)",
    ):
        ut.run(changed(items=4, corruption={"of": {"type": "epsilon"}}))


def test_the_state_of_a_latent_model_is_the_latent(tmp_path):
    model = DiffusionModel(
        model=str(tiny_pipelines.write("sd", tmp_path / "sd")),
        steps=4,
        image_size=tiny_pipelines.SIZE,
    )
    images = (
        (0.4 * normals(keys(1, range(2)), 3 * tiny_pipelines.SIZE**2))
        .reshape(2, 3, *[tiny_pipelines.SIZE] * 2)
        .clip(-1, 1)
    )
    originals = ut.sources.Images(np.arange(2), images, np.full(2, -1))
    forward, encoded = model.reverse().forward, []
    encoder = model.reverse().model.codec.network.encoder.register_forward_hook(
        lambda *args: encoded.append(len(args[1][0]))
    )
    first, second = ut.chain(originals, forward, model, 0.5, steps=2)
    encoder.remove()
    assert sum(encoded) == 2, "each image passes through the encoder once"
    seed = int(keys(0, Purpose.CHAIN, 1))
    once = ut.u_turn(originals, forward, model, 0.5, seed).reconstructions[:, 0]
    assert np.allclose(first.data, once, atol=1e-6)
    assert np.array_equal(second.data, model.reverse().decoded(second.block.images))
    assert second.block.images.shape[1] == 4
    assert model.reverse().model.codec is not None, (
        "the model of other U-turns keeps its autoencoder"
    )


@pytest.mark.slow
def test_chains_of_images():
    base = base_experiment(None, "items=3 steps=3 keep=1", None, None)
    data = measured_of({x: ut.run(repeated(base, x, 2)) for x in (0.4, 0.7)})
    assert np.isnan(data.per_call).all(), "too few U-turns to count effective draws"
    assert data.series.values.tolist() == ["distance"], "layers, whose order may invert"
    assert {"same_class"} < set(data.reading.values)
    draw_chains(data)


WORDS = ["a b c d e f g h", "b a d c f e", "a a b b c c d d", "h g f e"]


def test_chains_of_texts(tmp_path):
    """Overlap of spans with x_0 and with other texts, and an energy of token numbers."""
    model = tiny_language.write(tmp_path / "bert")
    (tmp_path / "texts.txt").write_text("\n".join(WORDS) + "\n")
    energy = "numpy:sum axis=1"
    experiment = ut.Experiment.from_dict(
        {
            **{
                "items": 4,
                "chunk": 3,
                "source": {"type": "tokens", "path": str(tmp_path / "texts.txt")},
            },
            "corruption": CHAIN["corruption"],
            "backward": (
                {"type": "repeated", "noise": 0.4, "of": {"type": "language", "model": str(model)}}
                | {"energy": energy, "beta": 0.5}
            ),
            "probes": [{"type": "chain", "has_energy": True}],
        }
    )
    run = ut.run(experiment)
    ids = experiment.parts.source.ids(np.arange(4))
    assert run.span.values.tolist() == [1, 2, 4]
    equal = np.array([[(a == b)[a >= 0].mean() for b in ids] for a in ids])
    chance = (equal.sum(axis=1) - 1) / 3
    assert np.allclose(run.independent_overlap.sel(noise=1, span=1), chance)
    assert run.accepted.mean() < 1
    assert (run.overlap.sel(noise=5) <= run.overlap.sel(noise=5, span=1)).all()


@pytest.mark.parametrize(
    ("text", "data", "expected"),
    [
        ("symbol number=2", [[0, 2, 2], [1, 1, 2]], [2, 1]),
        ("numpy:sum axis=1", [[1, 2], [3, 4]], [3, 7]),
    ],
)
def test_energies_by_name(text, data, expected):
    energy = energy_of(text)
    assert np.array_equal(energy(np.array(data)), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(energy))(np.array(data)), expected)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("symbol number=a", "energy: number = 'a': expected a symbol or token, 0 .. 3"),
        ("symbol number=4", "energy: number = 4: expected a symbol or token, 0 .. 3"),
        ("symbol number=1 number=2", "each key once"),
        ("symbol 3", "KEY=VALUE"),
        ("symbol colour=1", "unexpected keyword argument 'colour'"),
        ("class label=3", "expected one of strings"),
        ("class", "missing 1 required"),
        ("heat", "energy = 'heat': expected one of"),
    ],
)
def test_energies_that_are_none(text, words):
    with pytest.raises(ValueError, match=words):
        changed(backward={"energy": text})


def test_energies_that_are_not_finite_are_refused_with_their_items():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    originals = ut.sources.Strings(np.arange(10, 14), rhm, rhm.sample(4, seed=0))
    parts = originals, ut.Masking(), ut.backward.ExactPosterior(), 0.3
    with pytest.raises(ValueError, match=r"items where it is not finite = array\(\[11, 13\]\)"):
        next(ut.chain(*parts, steps=1, energy=lambda data: [0.0, np.nan, 1.0, np.inf]))
    with pytest.raises(ValueError, match=r"energy: shape = \(\): expected \(4,\)"):
        next(ut.chain(*parts, steps=1, energy=lambda data: 1.0))


def test_the_energy_of_a_class():
    import torch

    from uturn.sources.fashion_mnist import load_classifier

    images = uniforms(keys(0, range(3)), 32 * 32).reshape(3, 1, 32, 32).astype(np.float32)
    with torch.no_grad():
        expected = -load_classifier()(torch.from_numpy(images)).log_softmax(1)[:, 4]
    images.flags.writeable = False  # as those of a chain
    with warnings.catch_warnings(action="error"):
        assert np.allclose(energy_of("class label=4")(images), expected, atol=1e-5)


def test_with_an_energy_only_the_energy_is_compared():
    """The originals have the law p, the chain p exp(-beta E): neither the test of reversibility
    nor a chance level holds.
    """
    energy = {"energy": "symbol number=0", "beta": 1.5}
    run = ut.run(changed(backward=energy, probes=[{"type": "chain", "has_energy": True}]))
    with pytest.raises(ValueError, match="chains with an energy"):
        ut.reversibility(run)
    assert np.isnan(ut.relaxation(run).left).all()
    data = measured_of({0.4: run})
    assert np.allclose(data.energy.sel(estimate="value"), run.energy.mean(("item", "trajectory")))
    assert "p" not in data
    with pytest.raises(ValueError, match="has_energy"):
        ut.run(changed(backward=energy))


def test_runs_that_are_not_finished_are_refused(tmp_path):
    part = ut.run(changed(), tmp_path / "run", shard=(1, 2))
    for function in (ut.relaxation, ut.reversibility):
        with pytest.raises(ValueError, match="not finished"):
            function(part)


def relaxed(*times):
    """Relaxation times (value, low, high) of two readings at three noise levels."""
    return xr.Dataset(
        {"time": (("reading", "u_turn_noise", "estimate"), np.array(times, float))},
        {
            "reading": ["leaves", "class"],
            "u_turn_noise": [0.1, 0.2, 0.3],
            "estimate": ["value", "low", "high"],
        },
    )


def test_the_order_inverts_only_where_intervals_are_apart():
    fast, slow, between = (4, 3, 5), (16, 12, 20), (8, 4, 16)
    place, low, high = _inversion(
        relaxed((fast, between, slow), (slow, between, fast)), "leaves", "class"
    )
    assert (low, high) == (0.1, 0.3)
    assert abs(place - 0.2) < 1e-9
    assert np.isnan(
        _inversion(relaxed((fast, between, between), (slow, between, between)), "leaves", "class")
    ).all()
    longer, about = (np.nan, 64, np.inf), (np.nan, 4, np.inf)
    beyond = _inversion(
        relaxed((fast, between, longer), (longer, between, fast)), "leaves", "class"
    )
    assert np.isnan(beyond[0])
    assert beyond[1:].tolist() == [0.1, 0.3]
    assert np.isnan(
        _inversion(relaxed((fast, between, about), (longer, between, fast)), "leaves", "class")
    ).all()


def test_bundles_of_a_cluster_hold_whole_chains():
    tasks = [(block, level) for block in range(7) for level in range(5)]
    work = _Tasks(tasks, str, 8, together=lambda task: task[0])
    bundles = []
    while bundle := work.next(2):
        bundles.append(bundle)
    assert [task for bundle in bundles for task in bundle] == tasks
    assert all(len(bundle) % 5 == 0 for bundle in bundles)
    assert len(bundles) > 1


def test_effective_draws_of_independent_and_of_frozen_chains():
    spec = {
        "items": 50,
        "chunk": 50,
        "trajectories": 1,
        "corruption": {"noise": list(range(1, 33))},
    }
    draws, rhat = effective_draws(ut.run(changed(**spec, backward={"noise": 1.0})))
    assert 0.8 < draws < 1.3, "all leaves are drawn anew at each U-turn"
    assert rhat < 1.05
    slow, stuck = effective_draws(ut.run(changed(**spec, backward={"noise": 0.1})))
    assert slow < 0.1 < 1.05 < stuck
    short, _ = effective_draws(ut.run(changed(**spec | {"corruption": {"noise": [1, 2, 4, 8]}})))
    assert np.isnan(short)


def test_chains_with_an_energy_are_counted_without_their_first_half():
    """They start from another law; without an energy all U-turns count."""
    values = normals(keys(0, range(30)), 64, np.float64).T
    values[:32] += 9  # far from the law that they reach
    with_energy = effective_draws(chains_by_hand(values[..., None], energy=values))
    assert with_energy[0] > 0.8
    assert with_energy[1] < 1.05
    draws, rhat = effective_draws(chains_by_hand(values[..., None]))
    assert draws < 0.1
    assert rhat > 2


def test_calls_of_the_network_are_counted(tmp_path):
    """Heun's sampler calls it twice in each step but the last."""
    size, folder = tiny_pipelines.SIZE, tiny_pipelines.write("sd", tmp_path / "sd")
    options = {
        "model": str(folder),
        "scheduler": "HeunDiscreteScheduler",
        "steps": 8,
        "image_size": size,
    }
    model, made = DiffusionModel(**options), []
    originals = ut.sources.Images(
        np.arange(1), np.zeros((1, 3, size, size), np.float32), np.full(1, -1)
    )
    hook = model.reverse().model.network.register_forward_pre_hook(lambda *_: made.append(1))
    ut.u_turn(originals, model.reverse().forward, model, 0.5)
    hook.remove()
    for of, calls in (({"type": "diffusion"} | options, len(made)), ({"type": "exact"}, 1)):
        spec = json.dumps({"backward": {"of": of, "noise": 0.5}})
        assert calls_of(xr.Dataset(attrs={"spec": spec})) == calls
    assert len(made) == 7


def test_arviz_gets_every_chain_in_the_order_of_its_u_turns():
    """`ut.to_arviz`: a chain is a trajectory of an item, a draw a number of U-turns beyond the
    burn-in.
    """
    arviz = pytest.importorskip("arviz", reason="gives chains to arviz: arviz is not installed")
    run = ut.run(
        changed(
            items=3,
            corruption={"noise": [4, 2, 5, 1, 3, 6]},
            backward={"energy": "symbol number=3", "beta": 1.0},
            probes=[{"type": "chain", "has_energy": True}],
        )
    )
    posterior = ut.to_arviz(run, burn_in=2)["posterior"]
    assert posterior.energy.dims[:2] == ("chain", "draw")
    assert (posterior.sizes["chain"], posterior.sizes["draw"]) == (3 * 2, 4)
    assert posterior.draw.values.tolist() == [3, 4, 5, 6]
    assert {"energy", "after"} == {*posterior.data_vars}
    for item in range(3):
        for trajectory in range(2):
            chain = (
                run.isel(item=item, trajectory=trajectory).sortby("noise").sel(noise=slice(3, None))
            )
            for name in ("energy", "after"):
                np.testing.assert_array_equal(
                    posterior[name][2 * item + trajectory], chain[name].transpose("noise", ...)
                )
    assert arviz.ess(ut.to_arviz(run), method="mean").energy > 0
    with pytest.raises(
        ValueError, match=r"noise = \[1.0, 2.0, 5.0\]: expected all of 1, 2, .., 4 or more"
    ):
        ut.to_arviz(ut.run(changed(items=3)))


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"clones": 2}, "clones = 2"),
        (
            {"corruption": {"noise": [1, 2.5, 4]}},
            r"noise = \[2.5\]: expected whole numbers of U-turns",
        ),
        ({"backward": {"noise": True}}, "valid number"),
        (
            {"backward": {"noise": 1.5}},
            r"backward.noise = 1.5: expected at most 1 \(masked fraction",
        ),
        (
            {"corruption": {"of": {"type": "masked_leaves"}}, "backward": {"noise": 0.5}},
            "whole numbers of leaves, at most 4",
        ),
        ({"probes": [{"type": "tree_levels"}]}, "no noisy datum"),
        ({"backward": {"of": {"type": "diffusion"}}}, "does not go with"),
    ],
)
def test_what_no_chain_can_be_is_one_line(sections, words):
    with pytest.raises(ValueError, match=words):
        [*check(changed(**sections))]


def test_numbers_of_u_turns_are_not_searched(tmp_path):
    with pytest.raises(ValueError, match="unit of the noise = 'U-turns'"):
        ut.locate(
            changed(), reading="overlap, tree_level = 2", width=0.1, store=tmp_path / "search"
        )


class ReadsNoisy(ut.Probe):
    """A probe of the user that declares that it reads noisy data."""

    kinds = ("strings",)
    reads_noisy = True

    def variables(self, source):
        return {"noisy": Variable(("noise", "item", "trajectory"), "noisy")}

    def read(self, u_turns, source):
        return {"noisy": u_turns.noisy.values.mean(axis=1)[:, None]}


def test_a_probe_that_declares_that_it_reads_noisy_data_is_left_out():
    own = {"type": f"{__name__}:ReadsNoisy"}
    single = ut.Experiment.from_dict(
        CHAIN
        | {
            "corruption": {"type": "masking", "noise": [0.4]},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}, own, {"type": "parsed_levels"}],
        }
    )
    probes = repeated(single, 0.4, 2).to_dict()["probes"]
    assert [table["type"] for table in probes] == ["parsed_levels", "chain"]
    with pytest.raises(ValueError, match=r"ReadsNoisy.*no noisy datum"):
        [*check(changed(probes=[own]))]


def test_blocks_that_cannot_be_continued_are_named():
    class Own(ut.protocols.Originals):
        items, data = np.arange(3), np.zeros((3, 2))

    class Nothing(ut.protocols.Corruption):
        unit, max_noise = "nothing", 1.0

        def corrupt(self, data, noise, keys):
            return data

    class Same(ut.protocols.Backward):
        def reconstruct(self, noisy, streams, clones=1):
            return noisy[:, None]

    with pytest.raises(ValueError, match="needs its method `continued`"):
        next(ut.chain(Own(), Nothing(), Same(), 0.5, steps=1))


def test_ungrammatical_strings_are_refused():
    rhm = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=2, seed=0)
    draw = rhm.sample(3, seed=0)
    broken = {level: nodes[:, None].copy() for level, nodes in draw.latents.items()}
    broken[1][1] = -1
    originals = ut.sources.Strings(np.arange(3), rhm, draw)
    with pytest.raises(ValueError, match="1 of 3 ungrammatical"):
        originals.continued(broken, np.ones(3, bool))
    assert isinstance(originals.continued(broken, np.array([True, False, True])).draw, Draw)


# --- the command ----------------------------------------------------------------------------------

FILE = """
items = 40
chunk = 20
[source]
type = "rhm"
vocab_size = 6
multiplicity = 2
branching = 2
depth = 3
[corruption]
type = "masking"
noise = [0.5]
[backward]
type = "exact"
[[probes]]
type = "tree_levels"
"""


@pytest.mark.usefixtures("unsaved_figures")
def test_the_command(tmp_path):
    (tmp_path / "spec.toml").write_text(FILE)
    done = uturn(
        "chains",
        "spec.toml",
        "--noise",
        "0.2,0.6",
        "--steps",
        6,
        "--chains",
        2,
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    data = xr.open_zarr(tmp_path / "out" / "relaxation.zarr").load()
    run = xr.open_dataset(tmp_path / "out" / "noise-0.6", engine="uturn").load()
    assert run.noise.values.tolist() == [1, 2, 3, 4, 5, 6]
    mean = run.overlap.sel(tree_level=3).mean(("item", "trajectory")).values
    chance = float(run.independent_overlap[-1, :, 3].mean())
    left = data.left.sel(u_turn_noise=0.6, reading="overlap, tree_level = 3", estimate="value")
    assert np.allclose(left, (mean - chance) / (1 - chance))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Chains of U-turns" in page
    assert "Relaxation of each level" in done.stdout
    assert "left out, since chains have no noisy data: the probes tree_levels" in done.stdout
    again = uturn(
        "chains",
        "spec.toml",
        "--noise",
        "0.2,0.6",
        "--steps",
        6,
        "--chains",
        2,
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert again.returncode == 0
    write_dataset(
        data.assign(time=xr.full_like(data.time, 2.0)), tmp_path / "out" / "relaxation.zarr"
    )
    charts = next(of.charts for of in collect([tmp_path / "out"]).sections if of.kind == "chains")
    slides = {chart.name: chart.has_slider for chart in charts}
    assert slides == {
        "time": False,
        "left-0.2": True,
        "left-0.6": True,
    }, "the slider moves the number of U-turns alone"


def test_the_experiments_of_the_command():
    base = ut.Experiment.from_dict(
        changed().to_dict()
        | {
            "corruption": {"type": "masking", "noise": [0.5]},
            "backward": {"type": "exact"},
            "probes": [{"type": "tree_levels"}, {"type": "parsed_levels"}],
        }
    )
    spec = repeated(base, 0.3, 100, energy="symbol number=1", beta=2.0).to_dict()
    assert spec["corruption"] == {
        "type": "repeated",
        "of": {"type": "masking"},
        "noise": [*map(float, range(1, 65)), 100.0],
    }
    assert spec["backward"] == {
        "type": "repeated",
        "of": {"type": "exact"},
        "noise": 0.3,
        "energy": "symbol number=1",
        "beta": 2.0,
    }
    assert [probe["type"] for probe in spec["probes"]] == ["parsed_levels", "chain"]
