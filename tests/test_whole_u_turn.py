"""The fast paths of a whole U-turn give what the plain ones give: forms of evidence, beliefs,
joined tasks, runs in memory.
"""

import gc
import weakref

import numpy as np
import pytest

import uturn as ut
from small import strings
from uturn.core.box_muller import normal_pair
from uturn.core.protocols import Probe, Variable
from uturn.core.random import Streams, keys, normals, philox
from uturn.corruption.gaussian import noisy_leaf
from uturn.engine import measuring
from uturn.exact.inference.engine import sample_numba

LEVELS = {
    ut.Gaussian: (0.07, 0.0, np.inf, 1e-9),
    ut.Masking: (0.3, 0.0, 1.0),
    ut.UniformReplacement: (0.2, 0.0, 1.0),
    ut.EpsilonBelief: (0.5, 0.0),
}
CHANNELS = [(channel(), noise) for channel, levels in LEVELS.items() for noise in levels]


def noisy_strings(rhm, corruption, noise, items=5, trajectories=3):
    originals = ut.sources.Strings(np.arange(items), rhm, rhm.sample(items, seed=1))
    return originals, corruption.observe(
        originals, noise, Streams(3, originals.items, noise, range(trajectories))
    )


@pytest.fixture(
    scope="module", params=[(32, 8, 2, 4, 32), (9, 3, 3, 3, 5), (32, 8, 2, 9, 32)], ids=str
)
def rhm(request):
    *sizes, classes = request.param
    return ut.RandomHierarchyModel(*sizes, num_classes=classes, seed=0)


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS, ids=str)
def test_forms_of_evidence_change_no_bit(rhm, corruption, noise):
    _originals, noisy = noisy_strings(rhm, corruption, noise)
    evidence = corruption.log_evidence(noisy, np.float32)
    outputs = ("marginals", "upward", "downward")
    plain = ut.infer(rhm, evidence, outputs=outputs)
    for name in outputs:
        for level, messages in noisy.beliefs(name).items():
            assert np.array_equal(messages, getattr(plain, name)[level]), (name, level)
    key = keys(5, np.arange(len(evidence)))
    drawn = sample_numba(rhm, noisy.evidence, key, np.arange(2, dtype=np.uint64))
    for level, nodes in ut.sample_posterior(rhm, evidence, key, 2).items():
        assert np.array_equal(drawn[level], nodes)


@pytest.mark.parametrize(("corruption", "noise"), CHANNELS, ids=str)
def test_beliefs_are_mean_marginals_of_the_truth(rhm, corruption, noise):
    originals, noisy = noisy_strings(rhm, corruption, noise)
    found = noisy.true_beliefs(originals.draw.latents)
    for level, marginals in noisy.beliefs("marginals").items():
        true = np.repeat(originals.draw.latents[level], len(found) // 5, axis=0)[..., None]
        wanted = np.take_along_axis(marginals, true, 2).mean(axis=(1, 2), dtype=float)
        np.testing.assert_allclose(found[:, level], wanted, rtol=0, atol=2e-7)


def test_beliefs_do_not_depend_on_the_batch(monkeypatch):
    from uturn.exact.inference import engine

    rhm = ut.RandomHierarchyModel(32, 8, 2, 9, seed=0)
    originals, noisy = noisy_strings(rhm, ut.Gaussian(), 0.07, 40, 3)
    whole = noisy.true_beliefs(originals.draw.latents)
    few, noisy_few = noisy_strings(rhm, ut.Gaussian(), 0.07, 3, 3)
    # Another cut of the tree, other lanes.
    assert np.array_equal(whole[:9], noisy_few.true_beliefs(few.draw.latents))
    monkeypatch.setattr(engine, "_LINK_BYTES", 2**17)
    monkeypatch.setattr(engine, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(engine, "_PREPARED", type(engine._PREPARED)())
    assert engine.prepared_grammar(rhm, np.dtype(np.float32), len(whole)).chunk % 3
    # In chunks that cut originals apart.
    assert np.array_equal(whole, noisy.true_beliefs(originals.draw.latents))


def test_beliefs_of_contradictory_evidence():
    """Samples beyond the range of float32 and of float64 among ordinary ones."""
    rhm = ut.RandomHierarchyModel(8, 2, 2, 5, seed=0)
    originals, _ = noisy_strings(rhm, ut.Masking(), 0.5, 6, 1)
    wrong = np.random.default_rng(0).integers(8, size=(6, 32, 1))
    log = np.zeros((6, 32, 8), np.float32)
    for sample, size in enumerate((1.0, 70.0, 700.0, 1e4, 3.0, 75.0)):
        np.put_along_axis(log[sample], wrong[sample], size, 1)

    class Given(ut.Masking):
        def log_evidence(self, noisy, dtype=None):
            return log[: len(noisy.values)]

    noisy = Given().observe(originals, 0.5, Streams(0, originals.items, 0.5))
    # The method of the subclass is asked.
    assert noisy.evidence.values is log or np.array_equal(noisy.evidence.values, log)
    found = noisy.true_beliefs(originals.draw.latents)
    for level, marginals in ut.infer(rhm, log.astype(float)).marginals.items():
        true = originals.draw.latents[level][..., None]
        wanted = np.take_along_axis(marginals, true, 2).mean(axis=(1, 2))
        np.testing.assert_allclose(found[:, level], wanted, rtol=0, atol=2e-6)


def test_impossible_samples_have_their_numbers_in_the_batch():
    rhm = ut.RandomHierarchyModel(8, 2, 2, 5, seed=0)
    originals, noisy = noisy_strings(rhm, ut.Masking(), 0.2, 70, 1)
    noisy.values[[7, 37, 69]] = np.random.default_rng(0).integers(8, size=(3, 32))
    work = (
        lambda: noisy.true_beliefs(originals.draw.latents),
        lambda: noisy.beliefs("marginals"),
        lambda: noisy.posterior_draws(Streams(0, originals.items, 0.2), 1),
    )
    for each in work:
        with pytest.raises(ValueError, match=r"sample\(s\) 7, 37, 69 \(3 in all\)"):
            each()


def test_symbols_outside_the_vocabulary_are_an_error():
    _originals, noisy = noisy_strings(
        ut.RandomHierarchyModel(8, 2, 2, 3, seed=0), ut.UniformReplacement(), 0.3
    )
    noisy.values[2, 5] = 8
    with pytest.raises(ValueError, match=r"expected integers -1..7"):
        noisy.beliefs("marginals")


@pytest.mark.parametrize("corruption", [ut.Gaussian(), ut.Masking()], ids=str)
def test_noisy_strings_are_freed_at_once(corruption):
    """Nothing that they keep refers to them, so their memory is free for the next batch without
    the garbage collector.
    """
    rhm = ut.RandomHierarchyModel(8, 2, 2, 3, seed=0)
    originals, noisy = noisy_strings(rhm, corruption, 0.3)
    noisy.true_beliefs(originals.draw.latents)
    gone = weakref.ref(noisy)
    gc.disable()
    try:
        del noisy
        assert gone() is None
    finally:
        gc.enable()


class Doubled(ut.Gaussian):
    """A channel with an evidence of its own."""

    def log_evidence(self, noisy, dtype=None):
        return 2 * super().log_evidence(noisy, dtype)


def test_the_evidence_of_ones_own_class_is_asked():
    rhm = ut.RandomHierarchyModel(8, 2, 2, 3, seed=0)
    _, noisy = noisy_strings(rhm, Doubled(), 0.3)
    right = ut.Gaussian().log_evidence(noisy, np.float32)
    assert np.array_equal(noisy.evidence.values, 2 * right)


# -- the run around it -----------------------------------------------------------------------------
def experiment(**changes):
    return ut.Experiment.from_dict(
        {
            **strings(
                "gaussian",
                [0.1, 0.3, 0.05],
                source={"depth": 4, "grammars": 3},
                items=23,
                trajectories=2,
                chunk=4,
            ),
            **changes,
        }
    )


FIVE = [measuring.Wanted(k, 0, np.arange(4 * k, 4 * k + 4)) for k in range(5)]


def joined(experiment):
    """Numbers of tasks that are measured together."""
    return [len(together.names) for together in measuring._joined(experiment, FIVE)]


def test_joined_tasks_are_the_tasks(monkeypatch, tmp_path):
    together = ut.run(experiment())
    assert joined(experiment()) == [5]
    monkeypatch.setattr("uturn.engine.measuring._JOINED_BYTES", 1)
    alone = ut.run(experiment(), tmp_path / "run")
    for name in together.data_vars:
        assert np.array_equal(together[name], alone[name])


def test_fewer_tasks_with_clones_are_joined(monkeypatch):
    """Draws of all clones are in memory together."""
    five = 5 * 4 * 2 * 512  # five tasks of 4 originals, 2 trajectories, 512 bytes
    monkeypatch.setattr("uturn.engine.measuring._JOINED_BYTES", five)
    for clones, expected in ((1, [5]), (2, [2, 2, 1]), (100, [1] * 5)):
        assert joined(experiment(clones=clones)) == expected


def test_own_parts_and_networks_are_not_joined():
    assert joined(experiment(backward={"type": "denoiser", "steps": 1})) == [1] * 5


class Labelled(Probe):
    """A probe with a coordinate of text and missing readings."""

    kinds = ("strings",)

    def variables(self, source):
        return {"own": Variable(("noise", "item", "part"), "items")}

    def coordinates(self, source):
        return {"part": ["all", "some", "none"]}

    def read(self, u_turns, source):
        items = u_turns.originals.items[:, None].astype(float)
        return {
            "own": np.where(
                [True, False, False],
                items,
                np.where((items % 3 > 0) & [True, True, False], items, np.nan),
            )
        }


def test_a_run_in_memory_is_the_stored_run(tmp_path):
    spec = experiment(probes=[{"type": "tree_levels"}, {"type": "test_whole_u_turn:Labelled"}])
    in_memory, stored = ut.run(spec), ut.run(spec, tmp_path / "run")
    assert set(in_memory.variables) == set(stored.variables)
    for name, values in stored.variables.items():
        other = in_memory[name].variable
        assert (values.dims, values.attrs, values.dtype) == (
            other.dims,
            other.attrs,
            other.dtype,
        ), name
        assert np.array_equal(values, other, equal_nan=values.dtype.kind == "f"), name
    assert set(in_memory.attrs) == set(stored.attrs)
    assert in_memory.attrs["complete"]


# -- normal numbers and the Gaussian leaf ----------------------------------------------------------
def test_normals_are_those_of_box_muller():
    """Against float64: the angle is exact, and the radius is off by the rounding of u to
    float32.
    """
    key = keys(9, np.arange(50))
    found = normals(key, 4 * 250).reshape(50, 250, 4)
    for row in (0, 17, 49):
        for call in range(250):
            words = [int(x) for x in philox(key[row], np.uint64(call))]
            for half, word in enumerate(words):
                u, turn = (
                    np.float64(np.float32(word & 0xFFFFFFFF) + np.float32(1)) * 2.0**-32,
                    (word >> 32) * 2.0**-32,
                )
                wanted = np.sqrt(-2 * np.log(u)) * np.array(
                    [np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)]
                )
                np.testing.assert_allclose(
                    found[row, call, 2 * half : 2 * half + 2], wanted, rtol=0, atol=2e-6
                )


def test_extreme_words_give_finite_normals():
    for a in (0, 1, 2**31, 2**32 - 1):
        for b in (0, 2**29 - 1, 2**29, 2**30, 2**31, 2**32 - 1):
            pair = normal_pair(np.uint32(a), np.uint32(b))
            assert np.isfinite(pair).all()
            assert np.hypot(*pair) <= 6.661


def test_tails_of_normals():
    """Numbers beyond 4 standard deviations: Poisson with a known mean; false-alarm rate 1e-3."""
    from scipy import stats

    x = normals(keys(11, np.arange(400)), 50_000)
    for side in (x > 4, x < -4):
        low, high = stats.poisson.interval(0.999, stats.norm.sf(4) * x.size)
        assert low <= side.sum() <= high


@pytest.mark.slow
def test_effective_epsilon_against_plain_integration():
    """Eq. 63 by a Monte Carlo average of the posterior over 400,000 leaves; five standard
    errors.
    """
    for t, v in ((0.05, 8), (0.02, 32), (0.4, 8)):
        noise = normals(keys(2, np.arange(40)), 10_000 * v, np.float64).reshape(-1, v)
        r = 1 / np.expm1(2 * t)
        logits = np.sqrt(r) * noise
        logits[:, 0] += r
        belief = np.exp(logits - logits.max(1, keepdims=True))
        belief /= belief.sum(1, keepdims=True)
        lost = (1 - belief[:, 0]) * v / (v - 1)
        assert abs(noisy_leaf(t, v).effective_epsilon - lost.mean()) < 5 * lost.std() / np.sqrt(
            len(lost)
        )
