"""Hierarchical filtering: above level k nothing is left, below it nothing changes, and inference
stays exact.
"""

import numpy as np
import pytest
from scipy.stats import chisquare

import uturn as ut
from uturn.core.registry import part_class
from uturn.exact.rhm import RandomHierarchyModel
from uturn.sources.strings import FilteredRHMSource

OPTIONS = {"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3}


def grammar(k, **options):
    return FilteredRHMSource(**{**OPTIONS, **options}, filtered_above=k).grammar(0, 0)


def test_without_a_filter_it_is_the_grammar_itself():
    items = np.arange(20)
    for options in ({}, {"zipf_exponent": 1.0}, {"num_classes": 2}):
        plain = next(part_class("source", "rhm")(**OPTIONS, **options).blocks(items, 1, 20))
        filtered = next(
            part_class("source", "filtered_rhm")(**OPTIONS, **options, filtered_above=3).blocks(
                items, 1, 20
            )
        )
        np.testing.assert_array_equal(plain.data, filtered.data)
        assert plain.rhm.fingerprint == filtered.rhm.fingerprint


@pytest.mark.parametrize("k", [0, 1, 2])
def test_the_rules_up_to_the_level_are_those_of_the_grammar(k):
    plain, filtered = grammar(3), grammar(k)
    for level in range(1, k + 1):
        np.testing.assert_array_equal(plain.rules[level], filtered.rules[level])
    for level in range(k + 1, 4):
        assert filtered.rules[level].shape == (4, 4, 2), "every tuple is a rule"


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("classes", [4, 2])
def test_nodes_of_the_level_are_independent_and_uniform(k, classes):
    """Exactly: the log-probability of every possible string is that of independent subtrees with
    uniform roots.
    """
    whole = grammar(k, num_classes=classes, zipf_exponent=0.5)
    draw = whole.sample(200, seed=3)
    leaves = np.concatenate([draw.leaves, np.random.default_rng(0).integers(0, 4, (50, 8))])
    if k == 0:
        expected = np.full(len(leaves), -8 * np.log(4))
    else:
        parts = {level: whole.rules[level] for level in range(1, k + 1)}
        laws = {level: whole.rule_probabilities[level] for level in range(1, k + 1)}
        tree = RandomHierarchyModel.from_rules(parts, vocab_size=4, rule_probabilities=laws)
        expected = (
            tree.log_likelihood(leaves.reshape(-1, 2**k)).reshape(len(leaves), -1).sum(axis=1)
        )
    np.testing.assert_allclose(whole.log_likelihood(leaves), expected, rtol=1e-10)
    tuples = whole.sample(20_000, seed=1).latents[k].reshape(-1, 2)
    # Fixed seed, one false alarm in a thousand.
    assert chisquare(np.bincount(tuples @ [4, 1], minlength=16)).pvalue > 1e-3
    if classes == 4:
        other = grammar(3).sample(20_000, seed=1).latents[k].reshape(-1, 2)
        assert chisquare(np.bincount(other @ [4, 1], minlength=16)).pvalue < 1e-10, (
            "the control: the unfiltered grammar"
        )


def test_inference_is_that_of_separate_subtrees():
    whole, k = grammar(2), 2
    tree = RandomHierarchyModel.from_rules(
        {level: whole.rules[level] for level in (1, 2)}, vocab_size=4
    )
    evidence = np.log(np.random.default_rng(0).random((30, 8, 4)))
    found = ut.infer(whole, evidence).marginals
    separate = ut.infer(tree, evidence.reshape(60, 4, 4)).marginals
    for level in range(k + 1):
        np.testing.assert_allclose(
            found[level], separate[level].reshape(found[level].shape), rtol=1e-10
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filtered_above": 4}, "filtered_above = 4: expected a tree level 0 .. 3"),
        ({"filtered_above": 1, "num_classes": 3}, "num_classes = 3: expected a divisor"),
        ({"filtered_above": 1, "vocab_size": 2**20}, "GB; lower branching or vocab_size"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        FilteredRHMSource(**{**OPTIONS, **options})
