"""Laws of the grammar: distinct tuples, one parse, likelihoods that add up, streams that do not
depend on the batch.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from uturn.exact.rhm import RandomHierarchyModel, zipf


@st.composite
def grammars(draw):
    v, s, L = draw(st.integers(2, 5)), draw(st.integers(2, 3)), draw(st.integers(1, 3))
    n = draw(st.integers(1, min(6, v**s)))
    m = draw(st.integers(1, v**s // max(v, n)))
    return RandomHierarchyModel(v, m, s, L, n, seed=draw(st.integers(0, 2**64 - 1)))


@settings(max_examples=40, deadline=None)
@given(grammars())
def test_rules_are_distinct_and_strings_parse_back(rhm):
    for level, table in rhm.rules.items():
        assert table.shape == (rhm.num_symbols(level), rhm.multiplicity, rhm.branching)
        assert table.min() >= 0
        assert table.max() < rhm.vocab_size
        flat = table.reshape(-1, rhm.branching)
        assert len(np.unique(flat, axis=0)) == len(flat)
    draw = rhm.sample(20, seed=3)
    parse = rhm.parse(draw.leaves)
    for level in range(rhm.depth + 1):
        assert np.array_equal(parse.latents[level], draw.latents[level])
        assert parse.valid[level].all()


def test_parse_of_every_string_of_a_small_grammar():
    rhm = RandomHierarchyModel(3, 2, 2, 2, seed=5)
    strings = np.array(list(itertools.product(range(3), repeat=4)))
    parse = rhm.parse(strings)
    tables = {
        level: {tuple(t): y for y, ts in enumerate(table.tolist()) for t in ts}
        for level, table in rhm.rules.items()
    }
    for row, string in enumerate(strings.tolist()):
        pair = [tables[1].get(tuple(string[:2]), -1), tables[1].get(tuple(string[2:]), -1)]
        root = tables[2].get(tuple(pair), -1)
        assert parse.latents[1][row].tolist() == pair
        assert parse.valid[1][row].tolist() == [x >= 0 for x in pair]
        assert parse.latents[2][row, 0] == root
    likelihood = np.exp(rhm.log_likelihood(strings))
    assert likelihood.sum() == pytest.approx(1, abs=1e-12)
    assert (likelihood > 0).sum() == 3 * 2**3  # classes times m**((d-1)/(s-1))
    assert np.array_equal(likelihood > 0, parse.valid[2][:, 0])


def test_sampling_follows_the_likelihood():
    rhm = RandomHierarchyModel(
        3, 2, 2, 2, seed=5, rule_probabilities=zipf(2, 1.0), class_probabilities=[0.5, 0.3, 0.2]
    )
    strings = np.array(list(itertools.product(range(3), repeat=4)))
    expected = np.exp(rhm.log_likelihood(strings))
    assert expected.sum() == pytest.approx(1, abs=1e-12)
    drawn = rhm.sample(20_000, seed=1).leaves @ [27, 9, 3, 1]
    counts = np.bincount(drawn, minlength=81)
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], 20_000 * expected[expected > 0]).pvalue > 1e-3
    # Negative control: another law is rejected.
    uniform = np.where(expected > 0, 1 / (expected > 0).sum(), 0)
    assert stats.chisquare(counts[expected > 0], 20_000 * uniform[expected > 0]).pvalue < 1e-6


def test_rules_are_drawn_uniformly():
    # Every tuple of every position is as likely as any other, also in the sparse method (rejection)
    # and the dense one.
    for multiplicity, seeds in ((1, 4000), (2, 2000)):  # 3 of 9 tuples, 6 of 9 tuples
        counts = np.zeros((3, 9))
        for seed in range(seeds):
            table = RandomHierarchyModel(3, multiplicity, 2, 1, seed=seed).rules[1]
            for y in range(3):
                counts[y] += np.bincount(table[y] @ [3, 1], minlength=9)
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_seeds_matter_and_prefixes_agree():
    a, b = (RandomHierarchyModel(8, 2, 2, 3, seed=seed) for seed in (0, 1))
    assert a.fingerprint != b.fingerprint
    assert a.fingerprint == RandomHierarchyModel(8, 2, 2, 3, seed=0).fingerprint
    assert not np.array_equal(a.rules[1], a.rules[2])
    long, short = a.sample(100, seed=4), a.sample(10, seed=4)
    for level in range(4):
        assert np.array_equal(long.latents[level][:10], short.latents[level])
        assert short.latents[level].dtype == np.int64
    assert not np.array_equal(a.sample(10, seed=5).leaves, short.leaves)
    assert a.parse(a.sample(0).leaves).latents[3].shape == (0, 1)


def test_huge_tuple_spaces():
    rhm = RandomHierarchyModel(1000, 3, 25, 1, seed=0)  # 10**75 tuples
    assert rhm.parse(rhm.sample(5).leaves).valid[1].all()
    assert not rhm.parse(np.zeros((1, 25), int)).valid[1].any()


def test_from_rules_and_files(tmp_path):
    rhm = RandomHierarchyModel(5, 2, 2, 3, num_classes=3, seed=1, rule_probabilities=zipf(2, 0.7))
    rhm.save(tmp_path / "grammar.safetensors")
    again = RandomHierarchyModel.load(tmp_path / "grammar.safetensors")
    assert again.fingerprint == rhm.fingerprint
    strings = {str(level): table.tolist() for level, table in rhm.rules.items()}
    other = RandomHierarchyModel.from_rules(strings, rule_probabilities=zipf(2, 0.7))
    assert other.fingerprint == rhm.fingerprint
    # Depth 1: largest symbol + 1.
    assert RandomHierarchyModel.from_rules({1: [[[0, 3]], [[1, 1]]]}).vocab_size == 4
    with pytest.raises(ValueError, match=r"rules\[1\]: symbol = 700000: expected .*vocab_size"):
        RandomHierarchyModel.from_rules({1: [[[0, 3]], [[1, 700_000]]]})
    (tmp_path / "cut").write_bytes((tmp_path / "grammar.safetensors").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable grammar file"):
        RandomHierarchyModel.load(tmp_path / "cut")
    with pytest.raises(ValueError, match="not a readable grammar file"):
        RandomHierarchyModel.load(tmp_path / "absent")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({1: [[[0, 1]]], 3: [[[0, 1]]]}, "every level"),
        ({1: [[[0, 1]], [[0, 1]]]}, "distinct tuples"),
        ({1: [[[0, 1]], [[1, -1]]]}, r"symbol = \[-1\]"),
        ({1: [[[0, 1]], [[1, 0]]], 2: [[[0, 1, 1]], [[1, 0, 0]]]}, "branching"),
    ],
)
def test_bad_rules_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        RandomHierarchyModel.from_rules(rules)
