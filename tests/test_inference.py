"""Exact inference: belief propagation against enumeration, against its twin in torch, and
against its own gradient.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from enumeration import joint_entropy, marginals, tree_posterior
from uturn.core.random import keys
from uturn.corruption import Gaussian
from uturn.exact.inference import (
    infer,
    mutual_information,
    posterior_entropy,
    prior_entropy,
    sample_posterior,
)
from uturn.exact.rhm import RandomHierarchyModel

EVERYTHING = ("marginals", "upward", "downward", "log_evidence")
MESSAGES = EVERYTHING[:3]
# (v, m, s, L, n): one band and several, every branching path of the kernels, v not a multiple of 4
# or 16, n != v
SHAPES = [
    (4, 2, 2, 3, 4),
    (32, 8, 2, 7, 32),
    (32, 8, 2, 8, 10),
    (7, 3, 2, 9, 11),
    (5, 4, 3, 3, 4),
    (6, 5, 5, 2, 3),
    (2, 2, 2, 1, 2),
]


def grammar(v, m, s, L, n, seed=0, uniform=True):
    if uniform:
        return RandomHierarchyModel(v, m, s, L, num_classes=n, seed=seed)
    rng = np.random.default_rng(seed)
    probabilities = {
        level: rng.dirichlet(np.ones(m), size=n if level == L else v) * 0.9 + 0.1 / m
        for level in range(1, L + 1)
    }
    classes = rng.dirichlet(np.ones(n)) * 0.9 + 0.1 / n
    return RandomHierarchyModel(
        v,
        m,
        s,
        L,
        num_classes=n,
        seed=seed,
        rule_probabilities=probabilities,
        class_probabilities=classes,
    )


def evidence(rhm, batch, strength=2.0, seed=0):
    return strength * np.random.default_rng(seed).normal(
        size=(batch, rhm.num_leaves, rhm.vocab_size)
    )


def largest_difference(a, b, names=MESSAGES):
    return max(
        float(
            np.abs(
                np.asarray(getattr(a, name)[level], np.float64)
                - np.asarray(getattr(b, name)[level], np.float64)
            ).max()
        )
        for name in names
        for level in getattr(a, name)
    )


@st.composite
def small_problem(draw):
    """A random grammar of at most 4,000 trees (any s, n != v, m and probabilities per level),
    and evidence, some of it -inf.
    """
    v, s = draw(st.integers(2, 4)), draw(st.integers(2, 3))
    L = draw(st.integers(1, 3 if s == 2 else 2))
    n = draw(st.integers(1, 4))
    m = {level: draw(st.integers(1, min(3, v**s // max(v, n)))) for level in range(1, L + 1)}
    trees = n
    for level in range(1, L + 1):
        trees *= m[level] ** (s ** (L - level))
    if trees > 4000:
        m = dict.fromkeys(m, 1)
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    probabilities = {
        k: rng.dirichlet(np.ones(m[k]), size=n if k == L else v) * 0.9 + 0.1 / m[k] for k in m
    }
    if draw(st.booleans()):
        probabilities = None
    classes = rng.dirichlet(np.ones(n)) * 0.9 + 0.1 / n
    rhm = RandomHierarchyModel(
        v,
        m,
        s,
        L,
        num_classes=n,
        seed=seed,
        rule_probabilities=probabilities,
        class_probabilities=classes,
    )
    log_evidence = draw(st.sampled_from([0.5, 3.0, 30.0])) * rng.normal(size=(2, s**L, v))
    possible = rhm.sample(2, seed=seed).leaves  # so that -inf never removes the last string
    hard = rng.random(log_evidence.shape) < draw(st.sampled_from([0.0, 0.4]))
    hard[np.arange(2)[:, None], np.arange(s**L), possible] = False
    return rhm, np.where(hard, -np.inf, log_evidence)


@settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(small_problem())
def test_matches_enumeration(problem):
    rhm, log_evidence = problem
    double = infer(rhm, log_evidence, outputs=EVERYTHING)
    single = infer(rhm, log_evidence.astype(np.float32), outputs=EVERYTHING)
    torch = infer(rhm, log_evidence, backend="torch", outputs=EVERYTHING)
    assert largest_difference(double, torch) < 1e-12
    for b, values in enumerate(log_evidence):
        expected, total = marginals(rhm, values)
        for level, p in expected.items():
            np.testing.assert_allclose(double.marginals[level][b], p, rtol=0, atol=1e-11)
            np.testing.assert_allclose(torch.marginals[level][b], p, rtol=0, atol=1e-11)
            # 30 * 6 * 2**-24 in the log-evidence.
            np.testing.assert_allclose(single.marginals[level][b], p, rtol=0, atol=3e-5)
        assert double.log_evidence[b] == pytest.approx(total, abs=1e-10)
        assert single.log_evidence[b] == pytest.approx(total, abs=1e-4)


# -- the two backends, and the messages ------------------------------------------------------------
@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_numba_equals_torch(shape, uniform):
    rhm = grammar(*shape, uniform=uniform)
    log_evidence = evidence(rhm, 37)
    double, exact = (
        infer(rhm, log_evidence, outputs=EVERYTHING),
        infer(rhm, log_evidence, "torch", EVERYTHING),
    )
    assert largest_difference(double, exact) < 1e-13
    np.testing.assert_allclose(double.log_evidence, exact.log_evidence, rtol=1e-14, atol=1e-13)
    single = infer(rhm, log_evidence.astype(np.float32), outputs=EVERYTHING)
    assert largest_difference(single, exact) < 2e-6
    np.testing.assert_allclose(single.log_evidence, exact.log_evidence, rtol=3e-7, atol=1e-6)
    for name in MESSAGES:
        for level, message in getattr(single, name).items():
            assert message.dtype == np.float32
            assert message.shape == (37, rhm.num_nodes(level), rhm.num_symbols(level))
            np.testing.assert_allclose(message.sum(-1), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        single.downward[rhm.depth][:, 0], np.tile(rhm.class_probabilities, (37, 1)), rtol=1e-6
    )
    weights = np.exp(log_evidence)
    np.testing.assert_allclose(
        double.upward[0], weights / weights.sum(-1, keepdims=True), rtol=1e-13
    )
    assert double.log_evidence.dtype == single.log_evidence.dtype == np.float64


def test_single_precision_of_torch_under_contradictory_evidence():
    """Strings that the grammar does not know, almost without noise: logarithms of messages are
    in the thousands.
    """
    import torch

    rhm = grammar(8, 2, 2, 5, 8)
    leaves = np.random.default_rng(0).integers(0, 8, (16, 32))
    process = Gaussian()
    single = process.log_evidence(process.corrupt(leaves, 1e-4, vocab_size=8, seed=0))
    assert single.max() > 1000
    exact = infer(rhm, single.astype(np.float64), outputs=EVERYTHING)
    values = torch.from_numpy(single).requires_grad_()
    mine = infer(rhm, values, outputs=EVERYTHING)
    (gradient,) = torch.autograd.grad(mine.log_evidence.sum(), values)
    assert gradient.dtype == mine.marginals[0].dtype == torch.float32
    np.testing.assert_allclose(gradient, exact.marginals[0], rtol=0, atol=1e-7)
    for name in MESSAGES:
        for level, message in getattr(mine, name).items():
            np.testing.assert_allclose(
                message.detach(), getattr(exact, name)[level], rtol=0, atol=1e-7
            )


@pytest.mark.parametrize("uniform", [True, False])
def test_gradient_of_log_evidence_is_the_leaf_marginal(uniform):
    import torch

    rhm = grammar(5, 3, 3, 2, 4, uniform=uniform)
    values = torch.from_numpy(evidence(rhm, 3))
    hard = torch.rand(values.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    truth = torch.from_numpy(rhm.sample(3, seed=2).leaves)
    values = values.masked_fill(
        hard.scatter(2, truth[..., None], False), -torch.inf
    ).requires_grad_()
    beliefs = infer(rhm, values, outputs=("log_evidence", "marginals"))
    (gradient,) = torch.autograd.grad(beliefs.log_evidence.sum(), values, retain_graph=True)
    np.testing.assert_allclose(gradient, beliefs.marginals[0].detach(), rtol=0, atol=1e-13)
    (second,) = torch.autograd.grad(beliefs.marginals[2].square().sum(), values)
    assert torch.isfinite(second).all()


def test_containers_follow_the_input():
    import torch

    rhm = grammar(4, 2, 2, 3, 4)
    array = evidence(rhm, 3).astype(np.float32)
    tensor = torch.from_numpy(array)
    for backend in ("auto", "numba", "torch"):
        assert isinstance(infer(rhm, array, backend).marginals[0], np.ndarray)
        assert isinstance(infer(rhm, tensor, backend).marginals[0], torch.Tensor)
    assert infer(rhm, array.astype(np.float16)).marginals[0].dtype == np.float32
    assert infer(rhm, tensor.to(torch.bfloat16)).marginals[0].dtype == torch.float32
    reference = infer(rhm, array)
    strided = np.asfortranarray(array)
    assert largest_difference(infer(rhm, strided), reference, ["marginals"]) == 0
    for outputs in EVERYTHING:
        empty = infer(rhm, array[:0], outputs=(outputs,))
        assert (
            len(empty.log_evidence if outputs == "log_evidence" else getattr(empty, outputs)[3])
            == 0
        )
        assert infer(rhm, tensor[:0], outputs=(outputs,)).outputs == (outputs,)


# -- extreme evidence ------------------------------------------------------------------------------
def pinned(strings, v, log_wrong):
    return np.where(np.arange(v) == strings[..., None], 0.0, log_wrong)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("log_wrong", [np.log(1e-30 / 8), -700.0, -1e4, -1e6])
def test_contradictory_evidence_is_exact(log_wrong, dtype):
    rhm = grammar(8, 2, 2, 4, 8)
    strings = np.random.default_rng(0).integers(8, size=(20, 16))
    assert not rhm.parse(strings).valid[4].any()
    log_evidence = pinned(strings, 8, log_wrong).astype(dtype)
    # A harmless one among them.
    log_evidence[-1] = pinned(rhm.sample(1, seed=0).leaves[0], 8, log_wrong)
    beliefs = infer(rhm, log_evidence, outputs=EVERYTHING)
    exact = infer(rhm, log_evidence.astype(np.float64), "torch", EVERYTHING)
    assert largest_difference(beliefs, exact) < (2e-7 if dtype == np.float32 else 1e-9)
    np.testing.assert_allclose(
        beliefs.log_evidence, exact.log_evidence, rtol=2e-7 if dtype == np.float32 else 1e-14
    )
    assert (beliefs.log_evidence[:-1] < log_wrong / 2).all()
    trees = sample_posterior(rhm, log_evidence, seed=0, num_draws=3)
    for draw in range(3):
        assert rhm.parse(trees[0][draw]).valid[4].all()
    entropy = posterior_entropy(rhm, log_evidence)
    assert all(np.isfinite(e).all() and (e >= -1e-9).all() for e in entropy.values())


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e30, np.float32), (1e30, np.float64), (1e299, np.float64)]
)
def test_evidence_of_any_size(size, dtype):
    """Far beyond 2**53 nats, where the posterior is one string, against sums of logarithms."""
    for seed, shape in enumerate([(4, 2, 2, 3, 4), (8, 2, 2, 5, 8), (4, 2, 3, 2, 2)]):
        rhm = grammar(*shape, uniform=seed != 2)
        log_evidence = evidence(rhm, 20, size, seed).astype(dtype)
        beliefs = infer(rhm, log_evidence, outputs=EVERYTHING)
        exact = infer(rhm, log_evidence.astype(np.float64), "torch", EVERYTHING)
        assert largest_difference(beliefs, exact, ("marginals",)) == 0
        np.testing.assert_allclose(
            beliefs.log_evidence, exact.log_evidence, rtol=0, atol=1e-15 * size * rhm.num_leaves
        )
        trees = sample_posterior(rhm, log_evidence)
        assert all((trees[level] == beliefs.marginals[level].argmax(-1)).all() for level in trees)


def test_a_large_constant_of_a_leaf_hides_no_difference():
    rhm = grammar(8, 2, 2, 4, 8)
    differences = 7.0 * np.random.default_rng(0).integers(200, size=(20, 16, 8))
    names = ("marginals", "upward", "downward")
    plain, shifted = (
        infer(rhm, differences + constant, outputs=names) for constant in (0, 2.0**50)
    )
    assert largest_difference(plain, shifted) < 1e-12


def test_partly_contradictory_evidence():
    """Contradictions of all sizes, spread over several nodes, so that none of them alone leaves
    the range of floats.
    """
    rng = np.random.default_rng(0)
    for _ in range(120):
        v, s = int(rng.integers(2, 12)), int(rng.integers(2, 5))
        L, m = (
            int(rng.integers(1, 6 if s == 2 else 3)),
            int(rng.integers(1, min(6, v ** (s - 1) + 1))),
        )
        rhm = grammar(v, m, s, L, v, seed=int(rng.integers(1e9)))
        strings = rng.integers(v, size=(16, s**L))
        log_evidence = pinned(strings, v, -(10 ** rng.uniform(0, 2.3, size=(16, 1, 1))))
        log_evidence += rng.normal(size=log_evidence.shape) * rng.choice([0, 1, 30])
        single = log_evidence.astype(np.float32)
        exact = infer(rhm, single.astype(np.float64), "torch", EVERYTHING)
        for values, tolerance in ((single, 3e-6), (single.astype(np.float64), 1e-12)):
            beliefs = infer(rhm, values, outputs=EVERYTHING)
            assert largest_difference(beliefs, exact) < tolerance
            np.testing.assert_allclose(
                beliefs.log_evidence, exact.log_evidence, rtol=3 * tolerance, atol=3 * tolerance
            )


def test_draws_from_contradictory_evidence():
    """Subtrees that say one thing, a context that says another, both beyond the range of
    float32.
    """
    rhm = grammar(4, 2, 2, 3, 4)
    rng = np.random.default_rng(2)
    for log_wrong in (-20.0, -45.0, -300.0):
        log_evidence = pinned(rng.integers(4, size=(6, 8)), 4, log_wrong).astype(np.float32)
        p = infer(rhm, log_evidence.astype(np.float64), "torch").marginals
        draws = 2000
        trees = sample_posterior(rhm, log_evidence, seed=1, num_draws=draws)
        for level in p:
            frequency = (trees[level][..., None] == np.arange(4)).mean(0)
            error = np.abs(frequency - p[level]) / np.sqrt(
                p[level] * (1 - p[level]) / draws + 1 / draws**2
            )
            assert error.max() < 6  # 1,080 numbers in all


def test_impossible_evidence_is_an_error():
    rhm = grammar(8, 2, 2, 3, 8)
    log_evidence = pinned(np.random.default_rng(0).integers(8, size=(3, 8)), 8, -np.inf)
    log_evidence[1] = pinned(rhm.sample(1, seed=0).leaves[0], 8, -np.inf)
    for work in (
        lambda: infer(rhm, log_evidence),
        lambda: infer(rhm, log_evidence.astype(np.float32), outputs=("log_evidence",)),
        lambda: infer(rhm, log_evidence, backend="torch"),
        lambda: sample_posterior(rhm, log_evidence),
        lambda: posterior_entropy(rhm, log_evidence),
    ):
        with pytest.raises(ValueError, match=r"sample\(s\) 0, 2 \(2 in all\)"):
            work()
    assert infer(rhm, log_evidence[1:2], outputs=("log_evidence",)).log_evidence[
        0
    ] == pytest.approx(rhm.log_likelihood(rhm.sample(1, seed=0).leaves)[0], rel=1e-14)


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_invalid_evidence_is_an_error(dtype, backend):
    rhm = grammar(7, 2, 2, 3, 7)
    for value, words in ((np.nan, "nan"), (np.inf, "inf"), (None, "-inf")):
        log_evidence = evidence(rhm, 40).astype(dtype)
        if value is None:
            log_evidence[33, 5] = -np.inf
        else:
            log_evidence[33, 5, 6] = value
        with pytest.raises(ValueError, match=rf"log_evidence\[33, 5\].*{words}"):
            infer(rhm, log_evidence, backend=backend)


def test_memory_of_a_deep_tree():
    """10^6 leaves: the log-evidence takes a few MB, not the tree."""
    import tracemalloc

    rhm = grammar(8, 3, 2, 20, 8)
    log_evidence = np.zeros((1, 2**20, 8), np.float32)
    infer(rhm, log_evidence[:0], outputs=("log_evidence",))
    tracemalloc.start()
    beliefs = infer(rhm, log_evidence, outputs=("log_evidence",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(beliefs.log_evidence[0]) < 1e-3  # all evidence 1: the total probability is 1
    assert peak < 32 * 2**20  # the tree would take 64


def test_memory_is_recycled_only_when_nothing_refers_to_it():
    rhm = grammar(32, 8, 2, 7, 32)
    first, second = (
        evidence(rhm, 40).astype(np.float32),
        evidence(rhm, 40, seed=1).astype(np.float32),
    )
    # A view of a view is all that is left of the result.
    kept = infer(rhm, first).marginals[0][3:5, ::7]
    before = kept.copy()
    trees = sample_posterior(rhm, first)[0][:, 1:3]
    drawn = trees.copy()
    for _ in range(3):
        infer(rhm, second)
        sample_posterior(rhm, second)
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(trees, drawn)


# -- a sample's results do not depend on its batch -------------------------------------------------
@pytest.mark.parametrize("shape", [(32, 8, 2, 7, 32), (7, 3, 2, 9, 11), (5, 4, 3, 3, 4)])
def test_results_do_not_depend_on_the_batch(shape):
    rhm = grammar(*shape)
    log_evidence = evidence(rhm, 64).astype(np.float32)
    # Redone.
    log_evidence[7] = pinned(
        np.random.default_rng(3).integers(shape[0], size=rhm.num_leaves), shape[0], -300.0
    )
    everything = infer(rhm, log_evidence, outputs=EVERYTHING)
    stream = keys(5, np.arange(64))
    trees = sample_posterior(rhm, log_evidence, seed=5, num_draws=2)
    rng = np.random.default_rng(0)
    for batch in (1, 3, 33):
        rows = rng.permutation(64)[:batch]
        if batch == 3:
            rows[0] = 7
        part = infer(rhm, log_evidence[rows], outputs=EVERYTHING)
        # Bit for bit.
        np.testing.assert_array_equal(part.log_evidence, everything.log_evidence[rows])
        drawn = sample_posterior(rhm, log_evidence[rows], seed=stream[rows], num_draws=2)
        for level in range(rhm.depth + 1):
            for name in MESSAGES:
                np.testing.assert_array_equal(
                    getattr(part, name)[level], getattr(everything, name)[level][rows]
                )
            np.testing.assert_array_equal(drawn[level], trees[level][:, rows])


def test_chunks_of_the_batch():
    """A batch that is worked on in several chunks, with samples to redo in all of them."""
    from uturn.exact.inference.engine import prepared_grammar

    rhm, whole = grammar(7, 3, 2, 9, 11), grammar(7, 3, 2, 9, 11)
    prepared_grammar(rhm, np.dtype(np.float32)).chunk = prepared_grammar(
        rhm, np.dtype(np.float64)
    ).chunk = 32
    log_evidence = evidence(rhm, 70).astype(np.float32)
    for b, log_wrong in ((3, -300.0), (40, -1e5), (69, -300.0)):
        log_evidence[b] = pinned(
            np.random.default_rng(b).integers(7, size=rhm.num_leaves), 7, log_wrong
        )
    a, b = (
        infer(rhm, log_evidence, outputs=EVERYTHING),
        infer(whole, log_evidence, outputs=EVERYTHING),
    )
    assert largest_difference(a, b) == 0
    np.testing.assert_array_equal(a.log_evidence, b.log_evidence)
    draws, expected = (sample_posterior(x, log_evidence, num_draws=3) for x in (rhm, whole))
    for level in expected:
        np.testing.assert_array_equal(draws[level], expected[level])
    log_evidence[66, 5, 6] = np.nan
    for work in (infer, sample_posterior):
        with pytest.raises(ValueError, match=r"log_evidence\[66, 5\].* = nan"):
            work(rhm, log_evidence)


def test_concurrent_calls_agree():
    rhm = grammar(7, 3, 2, 9, 11)
    log_evidence = [evidence(rhm, 20, seed=i) for i in range(6)]
    expected = [infer(rhm, x).marginals[9] for x in log_evidence]
    found = [None] * 6

    def work(i):
        for _ in range(5):
            found[i] = infer(rhm, log_evidence[i]).marginals[9]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


# -- posterior samples -----------------------------------------------------------------------------
def chi_square(trees, nodes, p):
    """Chi-square statistic of drawn strings (draws, leaves) against the enumerated posterior,
    and its degrees of freedom.
    """
    code = {tuple(string): i for i, string in enumerate(nodes.tolist())}
    counts = np.bincount([code[tuple(string)] for string in trees.tolist()], minlength=len(p))
    expected = p * len(trees)
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    return float((((counts - expected) ** 2)[keep] / expected[keep]).sum()), int(keep.sum()) - 1


def sampler_sharing_the_root(rhm, log_evidence, seed):
    """A wrong sampler: all samples of the batch take the first one's class."""
    trees = sample_posterior(rhm, log_evidence, seed=seed)
    root = trees[rhm.depth][:, 0]
    same = np.flatnonzero(root == root[0])
    return np.resize(trees[0][same], trees[0].shape)


def test_an_interrupted_call_waits_for_its_threads(monkeypatch):
    """Otherwise they would write to memory that is free."""
    import os
    import signal
    import time

    from uturn.core import threads

    started, ended = threading.Event(), threading.Event()

    def block(first, last):
        if threading.current_thread() is threading.main_thread():
            started.wait(10)
        elif not started.is_set():
            started.set()
            time.sleep(0.2)  # until the main thread waits for this one
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            ended.set()

    monkeypatch.setattr(threads, "num_threads", 2)
    # Jobs in the background of a shell ignore the signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            threads.over_blocks(12, block)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.is_set()


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("shape", [(3, 2, 2, 2, 3), (4, 2, 3, 1, 5), (3, 2, 2, 3, 2)])
def test_posterior_samples_follow_the_posterior(shape, uniform):
    rhm = grammar(*shape, uniform=uniform)
    log_evidence = evidence(rhm, 1, 1.0)
    nodes, p, _ = tree_posterior(rhm, log_evidence[0])
    draws = 20_000
    # One sample drawn many times, and many samples of the same evidence drawn once: two ways to be
    # wrong.
    many = sample_posterior(rhm, log_evidence, seed=1, num_draws=draws)[0][:, 0]
    once = sample_posterior(rhm, np.repeat(log_evidence, draws, 0).astype(np.float32), seed=2)[0]
    for strings in (many, once):
        statistic, freedom = chi_square(strings, nodes[0], p)
        assert statistic < freedom + 4.5 * np.sqrt(2 * freedom) + 10  # false alarm below 1e-5
    shared = sampler_sharing_the_root(rhm, np.repeat(log_evidence, draws, 0), seed=2)
    statistic, freedom = chi_square(shared, nodes[0], p)
    assert statistic > freedom + 4.5 * np.sqrt(2 * freedom) + 10


@pytest.mark.parametrize("shape", [(32, 8, 2, 8, 10), (5, 4, 3, 3, 4)])
def test_draws(shape):
    rhm = grammar(*shape, uniform=False)
    log_evidence = evidence(rhm, 5)
    one = sample_posterior(rhm, log_evidence, seed=3)
    many = sample_posterior(rhm, log_evidence, seed=3, num_draws=4)
    more = sample_posterior(rhm, log_evidence, seed=3, num_draws=6)
    for level in range(rhm.depth + 1):
        assert one[level].dtype == np.int64
        assert one[level].shape == (5, rhm.num_nodes(level))
        np.testing.assert_array_equal(one[level], many[level][0])
        np.testing.assert_array_equal(many[level], more[level][:4])
    assert (many[0][0] != many[0][1]).any()
    assert (one[0] != sample_posterior(rhm, log_evidence, seed=4)[0]).any()
    parse = rhm.parse(one[0])
    for level in range(rhm.depth + 1):  # the drawn latents are the parse of the drawn string
        np.testing.assert_array_equal(parse.latents[level], one[level])
    assert sample_posterior(rhm, log_evidence[:0], seed=3, num_draws=2)[0].shape == (
        2,
        0,
        rhm.num_leaves,
    )
    assert sample_posterior(rhm, log_evidence, seed=3, num_draws=0)[0].shape == (
        0,
        5,
        rhm.num_leaves,
    )


# -- entropies -------------------------------------------------------------------------------------
@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(small_problem())
def test_entropies_match_enumeration(problem):
    rhm, log_evidence = problem
    before, after = prior_entropy(rhm), posterior_entropy(rhm, log_evidence)
    information = mutual_information(rhm, log_evidence)
    expected = joint_entropy(rhm)
    for level, entropy in expected.items():
        assert before[level] == pytest.approx(entropy, abs=1e-11)
    for b, values in enumerate(log_evidence):
        for level, entropy in joint_entropy(rhm, values).items():
            assert after[level][b] == pytest.approx(entropy, abs=1e-10)
            assert information[level][b] == pytest.approx(expected[level] - entropy, abs=1e-10)


def test_entropy_identities():
    rhm = grammar(8, 3, 2, 5, 8)
    nothing = np.zeros((2, 32, 8), np.float32)
    before, after = prior_entropy(rhm), posterior_entropy(rhm, nothing)
    # The closed form of a string's entropy.
    assert before[0] == pytest.approx(np.log(8) + 31 * np.log(3))
    for level in before:
        np.testing.assert_allclose(after[level], before[level], rtol=1e-12)
    # A string seen without noise carries its own entropy: mean information = prior entropy, here
    # without any spread.
    seen = pinned(rhm.sample(4, seed=0).leaves, 8, -np.inf)
    for level, gain in mutual_information(rhm, seen).items():
        np.testing.assert_allclose(gain, before[level], rtol=1e-12)


def test_messages_and_draws_do_not_depend_on_how_a_tree_is_cut():
    """Full batches run on whole trees, small ones on bands of levels: the same numbers in every
    bit.
    """
    from uturn.exact.inference import engine

    rhm = RandomHierarchyModel(32, 8, 2, 9, seed=0)
    values = 2 * np.random.default_rng(0).standard_normal((64, 512, 32)).astype(np.float32)
    single = np.dtype(np.float32)
    cuts = [engine.PreparedGrammar(rhm, single, whole).bands for whole in (False, True)]
    assert len(cuts[0]) > 1 == len(cuts[1])
    whole, draws = infer(rhm, values), sample_posterior(rhm, values, seed=1)
    banded = infer(rhm, values, outputs=("marginals", "log_evidence"))
    few, few_draws = infer(rhm, values[:3]), sample_posterior(rhm, values[:3], seed=1)
    for level in range(10):
        assert np.array_equal(whole.marginals[level], banded.marginals[level])
        assert np.array_equal(whole.marginals[level][:3], few.marginals[level])
        assert np.array_equal(draws[level][:3], few_draws[level])
