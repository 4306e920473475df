"""Population dynamics against what is known exactly: limits, one level enumerated, exact belief
propagation, the annealed map.
"""

import os
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

import uturn as ut
from uturn.exact.population import _rows_of_children, _Setting, population_dynamics, threshold
from uturn.exact.theory import MeanField

CHANNELS = [ut.EpsilonBelief(), ut.Gaussian(), ut.Masking(), ut.UniformReplacement()]
ENSEMBLES = ["one grammar", "fresh rules"]
names = {"ids": lambda x: x if isinstance(x, str) else type(x).__name__}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
@pytest.mark.parametrize("channel", CHANNELS, **names)
def test_no_noise_and_full_noise(channel, ensemble):
    found = population_dynamics(
        6, 2, 2, channel, [0.0, channel.max_noise], 4, pool=60, ensemble=ensemble, replicates=2
    )
    assert found.beliefs.shape == found.standard_error.shape == (2, 5)
    np.testing.assert_allclose(found.beliefs[0], 1, atol=1e-12)
    np.testing.assert_allclose(found.beliefs[1, 0], 1 / 6, atol=1e-12)
    np.testing.assert_allclose(found.beliefs[1], 1 / 6, atol=1e-12)


def one_level(rhm, evidence_and_probability):
    """Exact mean belief in the root of a tree of one level: sum over classes, rules and
    observations of the children.
    """
    table = rhm.rules[1]
    n, m, s = table.shape
    total = 0.0
    for y, r in product(range(n), range(m)):
        for pieces in product(*(evidence_and_probability(x) for x in table[y, r])):
            evidence = np.stack([piece[0] for piece in pieces])
            up = evidence[np.arange(s), table].prod(axis=2).sum(axis=1)
            total += np.prod([piece[1] for piece in pieces]) * up[y] / up.sum()
    return total / (n * m)


@pytest.mark.parametrize("s", [2, 3])
def test_one_level_is_the_enumeration(s):
    v, m, noise = 4, 3, 0.4
    rhm = ut.RandomHierarchyModel(v, m, s, 1, seed=3)

    def masked(x):
        return [(np.ones(v), noise), (np.eye(v)[x], 1 - noise)]

    def replaced(x):
        seen = [(1 - noise) * np.eye(v)[a] + noise / v for a in range(v)]
        return [(seen[a], seen[x][a]) for a in range(v)]

    def pinned(x):
        return [((1 - noise) * np.eye(v)[x] + noise / v, 1.0)]

    def found(channel):
        result = population_dynamics(
            v, m, s, channel, noise, 1, pool=6000, grammar=rhm, replicates=16
        )
        return result.beliefs[1], result.standard_error[1]

    for channel, law in ((ut.Masking(), masked), (ut.UniformReplacement(), replaced)):
        mean, error = found(channel)
        assert 0 < error < 0.01
        assert abs(mean - one_level(rhm, law)) < 5 * error  # t of 15 degrees of freedom: 2e-4
    # Nothing is drawn but the rule, and every rule is used equally often.
    assert found(ut.EpsilonBelief())[0] == pytest.approx(one_level(rhm, pinned), abs=1e-12)


@pytest.mark.parametrize(
    ("channel", "noise"),
    list(zip(CHANNELS, [0.7, 0.09, 0.35, 0.22], strict=True)),
    ids=lambda x: type(x).__name__,
)
def test_deeper_levels_are_exact_belief_propagation(channel, noise):
    rhm, other = (ut.RandomHierarchyModel(8, 2, 2, 4, seed=seed) for seed in (1, 2))
    draw = rhm.sample(6000, seed=5)
    evidence = channel.log_evidence(channel.corrupt(draw.leaves, noise, vocab_size=8, seed=6))
    root = ut.infer(rhm, evidence, outputs=("upward",)).upward[4][np.arange(6000), 0, draw.classes]
    found, wrong = (
        population_dynamics(8, 2, 2, channel, noise, 4, pool=4000, grammar=grammar, replicates=8)
        for grammar in (rhm, other)
    )

    def distance(result):
        return abs(result.beliefs[4] - root.mean()) / np.hypot(
            result.standard_error[4], root.std() / np.sqrt(6000)
        )

    assert distance(found) < 4.5
    if isinstance(channel, ut.EpsilonBelief):  # precise enough to tell grammars apart
        assert distance(wrong) > 10


def test_fresh_rules_by_enumeration():
    # v = m = s = 2: symbol 0 owns (0, 0) and one of the other three tuples, symbol 1 the rest.
    a, b = 0.75, 0.25
    exact = a * a + np.mean([a * b, a * b, b * b])
    found = population_dynamics(
        2, 2, 2, ut.EpsilonBelief(), 0.5, 1, pool=4000, ensemble="fresh rules", replicates=12
    )
    assert 0 < found.standard_error[1] < 1e-3
    assert abs(found.beliefs[1] - exact) < 5 * found.standard_error[1]


@pytest.mark.slow
def test_fresh_rules_are_close_to_the_annealed_threshold():
    found = threshold(16, 4, 2, ut.EpsilonBelief(), pool=1024, ensemble="fresh rules", replicates=2)
    critical = MeanField(16, 4, 2).critical_noise
    assert abs(found.value - critical) < 0.003
    assert found.phase == "transition"
    assert found.effective_epsilon == found.value
    # Shared rules are not: the spread between grammars is .008 about a mean of .8009 (99.9 % ranges
    # for 10 grammars).
    found = threshold(16, 4, 2, ut.EpsilonBelief(), pool=2048, replicates=10, tolerance=2e-3)
    assert abs(found.value - 0.8009) < 3.3 * 0.008 / np.sqrt(10)
    assert 0.0026 < found.spread < 0.0142
    assert found.standard_error == pytest.approx(found.spread / np.sqrt(10))


def test_channels_without_transition():
    for ensemble in ENSEMBLES:
        recovered = threshold(8, 1, 2, ut.Gaussian(), pool=4096, ensemble=ensemble, replicates=1)
        assert (recovered.value, recovered.phase, recovered.bits_per_leaf) == (
            np.inf,
            "always recovered",
            0,
        )
        lost = threshold(
            4, 4, 2, ut.Masking(), pool=256, ensemble=ensemble, replicates=1, tolerance=0.005
        )
        assert (lost.value, lost.phase, lost.bits_per_leaf) == (0, "always lost", 2)
        assert np.isnan(lost.standard_error)


def test_tiny_gaussian_noise_is_followed_until_it_decides():
    # Without redundancy (f = 1) any noise wins, but the typical leaf of the lowest level searched
    # doubts by 1e-12 at first.
    lost = threshold(16, 16, 2, ut.Gaussian(), pool=256, replicates=1, tolerance=0.005)
    assert (lost.value, lost.phase, lost.effective_epsilon) == (0, "always lost", 0)


def test_pools_of_certain_or_uninformative_leaves_decide_nothing():
    # 16 leaves, and levels of which no leaf is masked, or all are.
    assert threshold(4, 4, 2, ut.Masking(), pool=16, replicates=1, tolerance=0.005).value == 0
    assert threshold(4, 1, 2, ut.Masking(), pool=16, replicates=1, tolerance=0.005).value == 1


def test_replicates_that_do_not_agree():
    setting = _Setting.checked(8, 2, 2, ut.Gaussian(), 16, "fresh rules")
    found = setting.estimate(np.array([0.0, 0.5]))
    assert (found.phase, found.values[0]) == ("mixed", 0)
    assert found.value == found.values[1] / 2
    found = setting.estimate(np.array([0.5, 1.0]))
    assert (found.phase, found.values[1]) == ("mixed", np.inf)
    assert np.isnan(
        [
            found.value,
            found.standard_error,
            found.spread,
            found.effective_epsilon,
            found.bits_per_leaf,
        ]
    ).all()
    found = setting.estimate(np.array([1.0, 1.0]))
    assert (found.phase, found.value, found.bits_per_leaf) == ("always recovered", np.inf, 0)


def test_no_rule_is_preferred_in_pools_that_do_not_divide():
    # One node a symbol: it takes either of its two rules.
    rhm = ut.RandomHierarchyModel(4, 2, 2, 1, seed=2)
    exact = one_level(rhm, lambda x: [(0.6 * np.eye(4)[x] + 0.1, 1.0)])
    found = population_dynamics(
        4, 2, 2, ut.EpsilonBelief(), 0.4, 1, pool=4, grammar=rhm, replicates=300
    )
    assert 0 < found.standard_error[1] < 0.01
    assert abs(found.beliefs[1] - exact) < 4 * found.standard_error[1]


THREADS = """
import numba, numpy as np, uturn as ut
from uturn.exact.population import population_dynamics
for ensemble in ("one grammar", "fresh rules"):
    found = []
    for threads in (2, 1):
        numba.set_num_threads(threads)
        found.append(population_dynamics(6, 3, 3, ut.Gaussian(), [0.1, 0.2], 3, 300, ensemble, replicates=2).beliefs)
    np.testing.assert_array_equal(*found)
print("same")
"""


def test_numbers_do_not_depend_on_the_threads():
    # In a process of its own: the number of threads of this one may have been limited to one.
    found = subprocess.run(
        [sys.executable, "-c", THREADS],
        env={**os.environ, "NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "same", found.stderr


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_numbers_depend_on_the_seed_alone(ensemble):
    def beliefs(noise, seed=3):
        return population_dynamics(
            6, 3, 3, ut.Gaussian(), noise, 3, pool=300, ensemble=ensemble, seed=seed, replicates=2
        ).beliefs

    noise = np.array([[0.05, 0.1], [0.2, 0.3]])
    both = beliefs(noise)
    assert both.shape == (2, 2, 4)
    # Noise levels share random numbers, and nothing else.
    np.testing.assert_allclose(beliefs(0.2), both[1, 0], rtol=1e-12)
    assert (beliefs(noise, seed=4) != both).all()
    # More noise, less belief, since they share them.
    assert (np.diff(both.reshape(4, 4), axis=0) < 0).all()


def test_children_use_all_members_equally():
    rng = np.random.default_rng(0)
    symbols = rng.integers(0, 3, 3000)
    rows = _rows_of_children(symbols, rng.random(3001), 100)
    assert (rows // 100 == symbols).all()
    counts = np.bincount(rows, minlength=300).reshape(3, 100)
    assert (np.ptp(counts, axis=1) <= 1).all()
    assert np.abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.1  # in random order
