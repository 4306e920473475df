"""Hidden Markov models, against enumeration of all strings."""

from itertools import product

import numpy as np
import pytest

import uturn as ut
from small import one_line_error
from uturn.measures.hierarchy import site_changes

STATES, SYMBOLS, LENGTH = 3, 4, 5


def some_chain(seed=0, length=LENGTH):
    random = np.random.default_rng(seed)
    initial, transition = (
        random.dirichlet(np.ones(STATES)),
        random.dirichlet(np.ones(STATES), STATES),
    )
    return ut.HiddenMarkovModel(
        initial, transition, random.dirichlet(np.full(SYMBOLS, 0.5), STATES), length=length
    )


def all_pairs(chain):
    """Every (states, string) of a chain and its log-probability."""
    with np.errstate(divide="ignore"):
        first, step, emit = (
            np.log(law) for law in (chain.initial, chain.transition, chain.emission)
        )
    states = np.array(list(product(range(chain.num_states), repeat=chain.num_leaves)))
    strings = np.array(list(product(range(chain.vocab_size), repeat=chain.num_leaves)))
    of_states = first[states[:, 0]] + step[states[:, :-1], states[:, 1:]].sum(1)
    weight = of_states[:, None] + emit[states[:, None, :], strings[None]].sum(2)
    return states, strings, weight


def evidence(batch, *shape, seed=1):
    """Ordinary, very strong, and partly impossible evidence in turn."""
    values = 2 * np.random.default_rng(seed).normal(size=(batch, *shape))
    values[1] *= 1000
    values[2, 1, ..., :-1] = -np.inf
    return values


def marginals_of(table, probability, symbols):
    return np.stack([np.bincount(column, probability, minlength=symbols) for column in table.T])


CYCLE = ut.HiddenMarkovModel(
    [0.5, 0.5, 0],
    [[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]],
    [[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]],
    length=LENGTH,
)


@pytest.mark.parametrize(
    "chain", [some_chain(), CYCLE], ids=["all steps", "steps of probability 0"]
)
def test_marginals_and_evidence_of_a_chain_equal_enumeration(chain):
    states, strings, weight = all_pairs(chain)
    values = np.concatenate(
        [evidence(3, LENGTH, SYMBOLS), 1000 * evidence(10, LENGTH, SYMBOLS, seed=2)]
    )
    beliefs = ut.infer(chain, values, outputs=("marginals", "log_evidence"))
    assert ut.infer(chain, values[:0]).marginals[1].shape == (0, LENGTH, STATES)
    for b in range(13):
        seen = weight + values[b][np.arange(LENGTH), strings].sum(1)
        total = np.logaddexp.reduce(seen.ravel())
        p = np.exp(seen - total)
        assert beliefs.log_evidence[b] == pytest.approx(total, rel=1e-12, abs=1e-10)
        np.testing.assert_allclose(
            beliefs.marginals[1][b], marginals_of(states, p.sum(1), STATES), atol=1e-10
        )
        np.testing.assert_allclose(
            beliefs.marginals[0][b], marginals_of(strings, p.sum(0), SYMBOLS), atol=1e-10
        )


def test_zeros_in_a_chain_and_strong_evidence_equal_enumeration():
    """Terms of probability 0 are more than e**1000 above the others."""
    chain = ut.HiddenMarkovModel(
        [1, 0, 0], [[0.5, 0.5, 0], [0, 0.5, 0.5], [0, 0, 1]], [[1, 0], [0.5, 0.5], [0, 1]], length=5
    )
    states, strings, weight = all_pairs(chain)
    values = np.random.default_rng(0).normal(size=(30, 5, 2)) * 3000
    beliefs = ut.infer(chain, values)
    for b in range(30):
        seen = weight + values[b][np.arange(5), strings].sum(1)
        p = np.exp(seen - np.logaddexp.reduce(seen.ravel()))
        np.testing.assert_allclose(
            beliefs.marginals[1][b], marginals_of(states, p.sum(1), 3), atol=1e-10
        )
        np.testing.assert_allclose(
            beliefs.marginals[0][b], marginals_of(strings, p.sum(0), 2), atol=1e-10
        )


def test_products_of_messages_below_the_range_of_float64_are_not_lost():
    """The sites at both ends make state 1 e**-800 as probable as state 0 each, those between
    them e**1700 times as probable.
    """
    chain = ut.HiddenMarkovModel([0.5, 0.5], np.eye(2), np.eye(2), length=8)
    values = np.array([[0, -400.0]] * 2 + [[-425.0, 0]] * 4 + [[0, -400.0]] * 2)
    batch = np.stack([values, values[:, ::-1], values / 100])  # in and out of range
    beliefs = ut.infer(chain, batch, outputs=("marginals", "log_evidence"))
    np.testing.assert_allclose(beliefs.marginals[1][0], [[np.exp(-100), 1]] * 8, rtol=1e-12)
    np.testing.assert_allclose(beliefs.marginals[1][1], [[1, np.exp(-100)]] * 8, rtol=1e-12)
    np.testing.assert_allclose(beliefs.marginals[1][2, :, 0], 1 / (1 + np.exp(1)), rtol=1e-12)
    np.testing.assert_allclose(
        beliefs.log_evidence, np.array([-1600, -1600, -16 + np.log1p(np.exp(-1))]) - np.log(2)
    )


def test_likelihoods_of_all_strings_add_up_to_one():
    chain = some_chain()
    _, strings, weight = all_pairs(chain)
    likelihood = chain.log_likelihood(strings)
    np.testing.assert_allclose(likelihood, np.logaddexp.reduce(weight, axis=0), atol=1e-10)
    assert np.exp(likelihood).sum() == pytest.approx(1, abs=1e-12)


def test_draws_of_a_chain_have_the_law_of_its_posterior():
    """Pairs of neighbouring states, and of state and symbol, by chi-square at 1e-4; the wrong
    sample fails.
    """
    from scipy.stats import chisquare

    chain = some_chain(length=4)
    states, strings, weight = all_pairs(chain)
    # Of the second: evidence of ordinary strength.
    values = evidence(3, 4, SYMBOLS) * np.array([1, 0.001, 1])[:, None, None]
    values[1] /= 2
    drawn = ut.sample_posterior(chain, values, seed=3, num_draws=4000)

    def p_value(sample, b):
        seen = weight + values[b][np.arange(4), strings].sum(1)
        p = np.exp(seen - np.logaddexp.reduce(seen.ravel()))
        joint = np.zeros((STATES, STATES, SYMBOLS))
        for k, row in enumerate(states):
            np.add.at(joint[row[0], row[1]], strings[:, 1], p[k])
        counts = np.zeros_like(joint)
        np.add.at(
            counts, (drawn[1][:, sample, 0], drawn[1][:, sample, 1], drawn[0][:, sample, 1]), 1
        )
        possible = joint > 1e-4
        expected = np.append(joint[possible], joint[~possible].sum()) * 4000
        observed = np.append(counts[possible], counts[~possible].sum())
        keep = expected > 0
        return chisquare(observed[keep], expected[keep]).pvalue if keep.sum() > 1 else 1.0

    assert min(p_value(0, 0), p_value(1, 1)) > 1e-4
    assert p_value(1, 0) < 1e-4


def test_strings_of_a_chain_do_not_depend_on_their_batch():
    chain = ut.HiddenMarkovModel.drawn(states=4, symbols=6, length=20, persistence=0.8, seed=2)
    assert (chain.sample(5, seed=1).leaves == chain.sample(50, seed=1).leaves[:5]).all()
    many = chain.sample(4000, seed=0).latents[1]
    assert (many[:, 1:] == many[:, :-1]).mean() == pytest.approx(0.8, abs=0.01)


def run(source, corruption, noise=(0.2, 0.5), items=400, **options):
    spec = {
        "items": items,
        "clones": 4,
        "source": source,
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    return ut.run(
        ut.Experiment.from_dict(
            {**spec, "corruption": {"type": corruption, "noise": list(noise), **options}}
        )
    )


CHAIN = {"type": "hmm", "states": 3, "symbols": 4, "length": 12}


@pytest.mark.parametrize("corruption", ["masking", "gaussian", "uniform"])
def test_reconstructions_of_a_chain_are_draws_from_the_posterior(corruption):
    ds = run(CHAIN, corruption)
    assert ut.calibration(ds, "unchanged").attrs["passed"]
    gap = ds.unchanged.mean(("item", "trajectory", "clone")) - ds.belief.mean("item")
    assert float(abs(gap).max()) < 0.03


def test_the_epsilon_process_of_a_chain_fails_calibration():
    assert not ut.calibration(run(CHAIN, "epsilon"), "unchanged").attrs["passed"]


def test_a_chain_is_a_control_without_a_hierarchy():
    """No transition between its levels, no nested changes; of a grammar, as a positive control,
    there are some.
    """

    def indices(source, noise=(0.1, 0.3, 0.5, 0.7, 0.9, 1.0)):
        spec = {
            "items": 400,
            "trajectories": 8,
            "source": source,
            "corruption": {"type": "masking", "noise": list(noise)},
        }
        spec |= {"backward": {"type": "exact"}, "probes": [{"type": "tree_levels"}]}
        experiment = ut.Experiment.from_dict(spec)
        levels = ut.run(experiment).belief
        abrupt = ut.hierarchy_index(levels.isel(tree_level=-1), levels.isel(tree_level=0))
        return abrupt, ut.nesting_index(site_changes(experiment), branching=2)

    abrupt, nesting = indices(
        {"type": "hmm", "states": 4, "symbols": 8, "length": 16, "persistence": 0.8, "chains": 10}
    )
    assert abrupt.high == 0
    assert nesting.high < 0.05
    grammar = {
        "type": "rhm",
        "vocab_size": 16,
        "multiplicity": 4,
        "num_classes": 4,
        "branching": 2,
        "depth": 4,
        "grammars": 10,
    }
    abrupt, nesting = indices(grammar)
    assert abrupt.low > 0
    assert nesting.low > 0.15


def test_a_chain_of_given_matrices_in_a_spec():
    source = {
        "type": "hmm",
        "length": 6,
        "initial": [1, 0],
        "transition": [[0, 1], [1, 0]],
        "emission": [[1, 0], [0, 1]],
    }
    ds = run(source, "masking", noise=(1.0,), items=5)
    assert (ds.unchanged == 1).all()  # a deterministic chain is known without any symbol


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"states": 3}, "expected states and symbols"),
        ({"states": 3, "symbols": 2, "initial": [1.0]}, "expected states and symbols"),
        ({"initial": [1.0], "transition": [[0.5]], "emission": [[1.0]]}, "expected probabilities"),
        ({"states": 10**6, "symbols": 2}, "take fewer"),
    ],
)
def test_a_chain_that_is_not_described_is_one_line(options, line):
    with one_line_error(line):
        run({"type": "hmm", "length": 4, **options}, "masking")


@pytest.mark.parametrize("probe", ["tree_nodes", "parsed_levels", "messages"])
def test_probes_of_trees_refuse_chains_before_a_store_is_written(tmp_path, probe):
    spec = {
        "items": 2,
        "source": CHAIN,
        "corruption": {"type": "masking", "noise": [0.5]},
        "backward": {"type": "exact"},
    }
    with pytest.raises(ValueError, match=f"probe of a source without trees = '{probe}'"):
        ut.run(ut.Experiment.from_dict({**spec, "probes": [{"type": probe}]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
