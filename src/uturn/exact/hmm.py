"""Hidden Markov models of strings: exact posterior, marginals, likelihood and draws, by forward and
backward messages.

They have no hierarchy: correlations decay exponentially with distance. All messages are logarithms,
so that evidence of any size is exact.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_integer, checked_numbers, expect
from uturn.core.evidence import Evidence
from uturn.core.memory import check_memory
from uturn.core.random import STRINGS, checked_seed, choices, keys, streams, uniforms
from uturn.exact.grammar import Draw, Grammar, Symbols
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import check_possible, check_values
from uturn.exact.rhm import checked_law, checked_leaves

_STATES = 2**62 + 2
"""Sub-stream of a reconstruction for its hidden states."""
_SMALLEST = 1e-250
"""Smaller sums may have lost terms."""
_AT_ONCE = 2**16
"""Terms of a sum over states in memory: half of a usual L2 cache."""


class _Logs(NamedTuple):
    """Logarithms of the laws of a chain."""

    initial: np.ndarray
    """Of the first state, (states,)."""
    transition: np.ndarray
    """Of the next state (columns) given a state (rows), (states, states)."""
    emission: np.ndarray
    """Of a symbol given its state, (states, symbols)."""


class HiddenMarkovModel(Grammar):
    """Strings x_1 .. x_N whose symbols are emitted by a Markov chain of hidden states s_1 .. s_N.

    `p(s, x) = pi(s_1) prod_i A(s_i, s_{i+1}) prod_i E(s_i, x_i)`, with pi = `initial` (states,), A
    = `transition` (states, states), the law of the next state (columns) given a state (rows), E =
    `emission` (states, symbols), and N = `length`. `uturn.infer` and `uturn.sample_posterior` take
    it in the place of a grammar, with two levels: 0, the symbols, and 1, the hidden states.

    >>> chain = HiddenMarkovModel([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.2, 0.8]], length=10)
    >>> {level: nodes.shape for level, nodes in chain.sample(3, seed=0).latents.items()}
    {0: (3, 10), 1: (3, 10)}
    """

    only_in_numpy = ("marginals", "log_evidence")
    depth = 1
    num_leaves: int

    def __init__(
        self, initial: ArrayLike, transition: ArrayLike, emission: ArrayLike, *, length: int
    ) -> None:
        first = checked_numbers("initial", initial)
        step = checked_numbers("transition", transition)
        emit = checked_numbers("emission", emission)
        S, v = emit.shape if emit.ndim == 2 else (0, 0)
        shapes = [first.shape, step.shape, emit.shape]
        where = "shapes of initial, transition, emission"
        expected = "(states,), (states, states), (states, symbols)"
        expect(shapes == [(S,), (S, S), (S, v)], where, shapes, expected)
        self.num_states = S
        self.vocab_size = v
        self.initial = checked_law("initial", first, (S,))
        self.transition = checked_law("transition", step, (S, S))
        self.emission = checked_law("emission", emit, (S, v))
        self.num_leaves = checked_integer("length", length, 1)

    @classmethod
    def drawn(
        cls, states: int, symbols: int, length: int, persistence: float = 0.9, seed: int = 0
    ) -> HiddenMarkovModel:
        """A chain whose first state is uniform, and whose emission of each state is uniform on the
        simplex.

        A state stays with the probability `persistence`, and otherwise goes to one of the others,
        all alike.
        """
        S = checked_integer("states", states, 1)
        v = checked_integer("symbols", symbols, 1)
        is_share = 0 <= persistence <= 1 and (S > 1 or persistence == 1)
        expect(is_share, "persistence", persistence, "a probability, and 1 for a single state")
        check_memory(f"{S} states and {v} symbols", 32 * S * (S + v), "take fewer")
        moved = (1 - persistence) / max(S - 1, 1)
        transition = np.full((S, S), moved) + (persistence - moved) * np.eye(S)
        weights = -np.log1p(-uniforms(keys(checked_seed(seed), np.arange(S)), v))
        emission = weights / weights.sum(axis=1, keepdims=True)
        return cls(np.full(S, 1 / S), transition, emission, length=length)

    def num_nodes(self, tree_level: int) -> int:
        """Number of symbols, or of hidden states, of a string."""
        return self.num_leaves

    def num_symbols(self, tree_level: int) -> int:
        """Number of different symbols (level 0) or hidden states (level 1)."""
        return self.num_states if tree_level else self.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the matrices and the length (hexadecimal)."""
        digest = hashlib.sha256(f"{self.num_leaves} {self.num_states} {self.vocab_size}".encode())
        for array in (self.initial, self.transition, self.emission):
            digest.update(array.astype("<f8").tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"HiddenMarkovModel(states={self.num_states}, symbols={self.vocab_size},"
            f" length={self.num_leaves})"
        )

    def sample(self, count: int, seed: int | np.ndarray = 0) -> Draw:
        """Draw strings with their hidden states: a `Draw` with level 0, the symbols, and level 1,
        the states.

        `seed`: an integer, of which string i depends on (seed, i) only, or one uint64 key for each
        string.
        """
        count = checked_integer("count", count, 0)
        N = self.num_leaves
        what = f"{count} strings of {N} symbols"
        check_memory(what, 40 * count * N, "draw fewer, or shorter ones")
        u = uniforms(streams(seed, count, STRINGS), 2 * N)
        states = np.zeros((count, N), np.int64)
        law = np.broadcast_to(self.initial, (count, self.num_states))
        for i in range(N):
            states[:, i] = choices(law, u[:, i])
            law = self.transition[states[:, i]]
        leaves = [choices(self.emission[states[:, i]], u[:, N + i]) for i in range(N)]
        return Draw({0: np.stack(leaves, axis=1), 1: states})

    def log_likelihood(self, leaves: ArrayLike) -> np.ndarray:
        """Exact log-probability of strings in nats, (batch,) float64; -inf for strings that the
        chain cannot produce.
        """
        symbols = checked_leaves(leaves, self.vocab_size, self.num_leaves)
        _, total = self._forward(self._logs.emission.T[symbols])
        return total

    # -- messages ----------------------------------------------------------------------------------
    @cached_property
    def _logs(self) -> _Logs:
        with np.errstate(divide="ignore"):
            return _Logs(np.log(self.initial), np.log(self.transition), np.log(self.emission))

    def infer(
        self, log_evidence: np.ndarray, marginals: bool = True
    ) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Marginals of symbols and states, {level: float64 (batch, N, ..)}, and the log-evidence
        (batch,), -inf if impossible.

        With `ell_i(s) = sum_x E(s, x) e_i(x)`: forward `alpha_i(s) ~ ell_i(s) sum_r alpha_{i-1}(r)
        A(r, s)`, backward `beta_i(s) ~ sum_r A(s, r) ell_{i+1}(r) beta_{i+1}(r)`. The states have
        `alpha beta`, the symbols `e_i(x) sum_s E(s, x) beta_i(s) sum_r alpha_{i-1}(r) A(r, s)`.
        """
        evidence = np.asarray(log_evidence, float)
        like = self._emitted(evidence)
        alpha, total = self._forward(like)
        if not marginals:
            return {}, total
        symbols = np.empty(evidence.shape)
        states = np.empty(like.shape)
        beta = np.zeros(like[:, 0].shape)
        for i in range(self.num_leaves - 1, -1, -1):
            before = self._logs.initial
            if i > 0:
                before = _product(alpha[:, i - 1], self.transition)
            states[:, i] = _normalised(alpha[:, i] + beta)
            symbols[:, i] = _normalised(_product(before + beta, self.emission) + evidence[:, i])
            beta = _product(like[:, i] + beta, self.transition.T)
            beta -= np.maximum(beta.max(axis=1, keepdims=True), -1e300)
        return {0: symbols, 1: states}, total

    def draw(
        self, log_evidence: np.ndarray, keys: np.ndarray, numbers: np.ndarray
    ) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Posterior draws {level: int64 (draws, batch, N)}, and the log-evidence (batch,), -inf
        where there is no posterior.

        The states are drawn from the last to the first, `p(s_i | s_{i+1}, y) ~ alpha_i(s_i) A(s_i,
        s_{i+1})`, then the symbols.
        """
        evidence = np.asarray(log_evidence, float)
        N = self.num_leaves
        alpha, total = self._forward(self._emitted(evidence))
        states = np.zeros((len(numbers), *evidence.shape[:2]), np.int64)
        symbols = np.zeros_like(states)
        for n, number in enumerate(numbers):
            u = uniforms(streams(keys, len(evidence), number), 2 * N)
            for i in range(N - 1, -1, -1):
                of_state = alpha[:, i]
                if i < N - 1:
                    of_state = of_state + self._logs.transition.T[states[n, :, i + 1]]
                states[n, :, i] = choices(_normalised(of_state), u[:, i])
                of_symbol = self._logs.emission[states[n, :, i]] + evidence[:, i]
                symbols[n, :, i] = choices(_normalised(of_symbol), u[:, N + i])
        return {0: symbols, 1: states}, total

    def completed(self, leaves: np.ndarray, keys: np.ndarray) -> dict[int, np.ndarray]:
        """Strings (batch, N) with hidden states drawn from their posterior by `keys` (batch,);
        -1 for impossible strings.
        """
        is_symbol = leaves[..., None] == np.arange(self.vocab_size)
        with np.errstate(divide="ignore"):
            evidence = np.log(np.float64(is_symbol))
        stream = streams(keys, len(leaves), _STATES)
        drawn, total = self.draw(evidence, stream, np.zeros(1, np.uint64))
        is_possible = np.isfinite(total)[:, None]
        return {0: leaves, 1: np.where(is_possible, drawn[1][0], -1)}

    def beliefs(self, evidence: Evidence, outputs: tuple[str, ...]) -> Beliefs:
        """`infer` in the type of the evidence, from `outputs` "marginals" and "log_evidence"."""
        marginals, total = self.infer(_logarithms(evidence), "marginals" in outputs)
        check_possible(total)
        computed: dict[str, dict[int, np.ndarray] | np.ndarray] = {}
        for name in outputs:
            if name == "log_evidence":
                computed[name] = total
            else:
                computed[name] = {
                    level: nodes.astype(evidence.dtype, copy=False)
                    for level, nodes in marginals.items()
                }
        return Beliefs(**computed)

    def posterior_draws(
        self, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray
    ) -> dict[int, np.ndarray]:
        draws, total = self.draw(_logarithms(evidence), keys, numbers)
        check_possible(total)
        return draws

    def true_beliefs(self, evidence: Evidence, symbols: Symbols) -> np.ndarray:
        marginals = self.beliefs(evidence, ("marginals",)).marginals
        copies = len(evidence) // len(symbols[0])
        means = []
        for level in sorted(symbols):
            truth = np.repeat(symbols[level], copies, axis=0)[..., None]
            of_truth = np.take_along_axis(marginals[level], truth, 2)
            means.append(of_truth.mean(axis=(1, 2), dtype=float))
        return np.stack(means, axis=-1)

    def _emitted(self, evidence: np.ndarray) -> np.ndarray:
        """log ell_i(s), (batch, N, states)."""
        sites = [_product(evidence[:, i], self.emission.T) for i in range(self.num_leaves)]
        return np.stack(sites, axis=1)

    def _forward(self, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log alpha_i(s), (batch, N, states) with sum 1 at each site, and the log-evidence
        (batch,).
        """
        alpha = np.empty(like.shape)
        total = np.zeros(len(like))
        before = self._logs.initial
        for i in range(self.num_leaves):
            message = like[:, i] + before
            size = _product(message, np.ones((self.num_states, 1)))
            alpha[:, i] = message - np.maximum(size, -1e300)
            total += size[:, 0]
            if i < self.num_leaves - 1:
                before = _product(alpha[:, i], self.transition)
        return alpha, total


def _logarithms(evidence: Evidence) -> np.ndarray:
    """The logarithms of evidence (batch, N, symbols); ValueError for NaN, +inf, or no symbol."""
    logarithms = evidence.log(np.arange(len(evidence)))
    check_values(logarithms)
    return logarithms


def _product(logs: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """log sum_r exp(logs[b, r]) matrix[r, j]; sums that may have lost terms are computed again
    with the logs of all terms.
    """
    largest = np.maximum(logs.max(axis=1, keepdims=True), -1e300)
    sums = np.einsum("br,rj->bj", np.exp(logs - largest), matrix)
    is_lost = (sums < _SMALLEST).any(axis=1)
    with np.errstate(divide="ignore"):
        found = largest + np.log(sums)
        lost = np.flatnonzero(is_lost)
        block = max(1, _AT_ONCE // matrix.size)
        for first in range(0, len(lost), block):
            rows = lost[first : first + block]
            found[rows] = _sum_of_terms(logs[rows, :, None] + np.log(matrix))
    return np.asarray(found)


def _sum_of_terms(logs: np.ndarray) -> np.ndarray:
    """log sum_r exp(logs[b, r, j])."""
    largest = np.maximum(logs.max(axis=1), -1e300)
    return np.asarray(largest + np.log(np.exp(logs - largest[:, None]).sum(axis=1)))


def _normalised(logs: np.ndarray) -> np.ndarray:
    """exp(logs) along the last axis, adding up to 1; NaN where all logs are -inf."""
    with np.errstate(invalid="ignore"):
        weights = np.exp(logs - logs.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True))
