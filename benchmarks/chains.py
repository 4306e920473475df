"""Time of beliefs of hidden Markov models, against forward and backward messages in plain numpy.

    python benchmarks/chains.py [--rounds 5]

Random chains and normal evidence; medians of interleaved calls, and the largest difference of the
marginals.
"""

from __future__ import annotations

import argparse
from time import perf_counter

import numpy as np

import uturn as ut

SIZES = (
    (4, 8, 4096, 8),
    (16, 32, 1024, 8),
    (64, 64, 512, 4),
    (4, 8, 64, 512),
    (2, 2, 4096, 64),
)  # states, symbols, length, batch


def plain(chain: ut.HiddenMarkovModel, evidence: np.ndarray) -> np.ndarray:
    """Marginals of the symbols, by scaled messages for the whole batch at each site."""
    e = np.exp(evidence - evidence.max(axis=2, keepdims=True))
    like, before = e @ chain.emission.T, np.empty((*e.shape[:2], chain.num_states))
    before[:, 0] = chain.initial
    for i in range(1, e.shape[1]):
        alpha = before[:, i - 1] * like[:, i - 1]
        before[:, i] = alpha / alpha.sum(axis=1, keepdims=True) @ chain.transition
    marginals, beta = np.empty_like(e), np.ones((len(e), chain.num_states))
    for i in range(e.shape[1] - 1, -1, -1):
        weights = (before[:, i] * beta) @ chain.emission * e[:, i]
        marginals[:, i] = weights / weights.sum(axis=1, keepdims=True)
        beta = (like[:, i] * beta) @ chain.transition.T
        beta /= beta.max(axis=1, keepdims=True)
    return marginals


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="calls of each (default: 5)")
    rounds = parser.parse_args().rounds
    print("states symbols length batch   uturn ms   numpy ms   ratio   ns a site   difference")
    for states, symbols, length, batch in SIZES:
        chain = ut.HiddenMarkovModel.drawn(states, symbols, length, 0.9, seed=0)
        evidence = np.random.default_rng(0).normal(size=(batch, length, symbols))
        ours, theirs, difference = (
            [],
            [],
            np.abs(ut.infer(chain, evidence).marginals[0] - plain(chain, evidence)).max(),
        )
        for _ in range(rounds):
            for call, times in ((ut.infer, ours), (plain, theirs)):
                start = perf_counter()
                call(chain, evidence)
                times.append(perf_counter() - start)
        a, b = np.median(ours), np.median(theirs)
        sizes = f"{states:6d} {symbols:7d} {length:6d} {batch:5d}"
        print(
            f"{sizes} {1e3 * a:10.1f} {1e3 * b:10.1f} {a / b:7.2f} {1e9 * a / batch / length:11.0f}"
            f" {difference:12.1e}"
        )


if __name__ == "__main__":
    main()
