"""Hidden Markov models of strings: exact posterior, marginals, likelihood and draws, by forward and backward messages.

They are a world without a hierarchy: correlations decay exponentially with distance (arXiv:2602.19619 audits samplers with them).
"""

# mypy: disable-error-code="no-untyped-def"
# (numba compiles the kernels and infers their types)
from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
from numba import njit

from uturn.core.checks import check_memory, checked_integer, checked_numbers
from uturn.core.random import STRINGS, checked_seed, fold, keys, streams, uniform_at, uniforms
from uturn.core.threads import over_blocks
from uturn.exact.rhm import Draw, checked_leaves, cumulative_sums, inverse_cdf

_STATES = 2**62 + 2  # sub-stream of a reconstruction for its hidden states
_SMALLEST = 1e-280  # smaller sums may have lost their largest term
_FACTOR = 1e-60  # products of five factors above this, and their sums, are in the range of float64
_options: Any = {"nogil": True, "cache": True, "error_model": "numpy"}


class HiddenMarkovModel:
    """Strings x_1 .. x_N whose symbols are emitted by a Markov chain of hidden states s_1 .. s_N.

    `p(s, x) = pi(s_1) prod_i A(s_i, s_{i+1}) prod_i E(s_i, x_i)`.

    `uturn.infer` and `uturn.sample_posterior` take it in the place of a grammar, with two levels: 0, the symbols, and 1, the
    hidden states.

    Parameters
    ----------
    initial : array (states,)
        pi, the law of the first hidden state.
    transition : array (states, states)
        A, the law of the next state (columns) given a state (rows).
    emission : array (states, symbols)
        E, the law of the symbol given the state.
    length : int N >= 1
        Number of symbols of a string.

    Raises
    ------
    ValueError
        For matrices whose shapes disagree, or rows that are no probabilities.

    Examples
    --------
    >>> import uturn as ut
    >>> chain = HiddenMarkovModel([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [[0.8, 0.2], [0.2, 0.8]], length=10)
    >>> draw = chain.sample(3, seed=0)
    >>> {level: nodes.shape for level, nodes in draw.latents.items()}
    {0: (3, 10), 1: (3, 10)}
    >>> beliefs = ut.infer(chain, np.zeros((1, 10, 2)))
    >>> beliefs.marginals[1].shape, beliefs.marginals[0][0, 0].round(3).tolist()
    ((1, 10, 2), [0.5, 0.5])
    """

    depth = 1

    def __init__(self, initial: Any, transition: Any, emission: Any, *, length: int) -> None:
        self.initial, self.transition, self.emission = (
            as_laws(name, values, ndim)
            for name, values, ndim in (("initial", initial, 1), ("transition", transition, 2), ("emission", emission, 2))
        )
        self.num_states, self.vocab_size = self.emission.shape
        if self.initial.shape != (self.num_states,) or self.transition.shape != (self.num_states, self.num_states):
            raise ValueError(
                f"initial has shape {self.initial.shape}, transition {self.transition.shape}, emission {self.emission.shape}; "
                f"expected (states,), (states, states) and (states, symbols)"
            )
        self.num_leaves = checked_integer("length", length, 1)

    @classmethod
    def drawn(cls, states: int, symbols: int, length: int, persistence: float = 0.9, seed: int = 0) -> HiddenMarkovModel:
        """A chain with random emissions.

        The first state is uniform. A state stays with the probability `persistence`, and otherwise goes to one of the others, all
        alike. The emission of each state is uniform on the simplex (normalised exponential numbers).

        Raises
        ------
        ValueError
            For sizes below 1, a single state with a persistence other than 1, or a persistence outside [0, 1].
        """
        S, v = checked_integer("states", states, 1), checked_integer("symbols", symbols, 1)
        if not 0 <= persistence <= 1 or (S == 1 and persistence != 1):
            raise ValueError(f"persistence = {persistence}: expected a probability, and 1 for a single state")
        check_memory(f"{S} states and {v} symbols", 32 * S * (S + v), "take fewer")
        moved = (1 - persistence) / max(S - 1, 1)
        transition = np.full((S, S), moved) + (persistence - moved) * np.eye(S)
        weights = -np.log1p(-uniforms(keys(checked_seed(seed), np.arange(S)), v))
        return cls(np.full(S, 1 / S), transition, weights / weights.sum(axis=1, keepdims=True), length=length)

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
        return f"HiddenMarkovModel(states={self.num_states}, symbols={self.vocab_size}, length={self.num_leaves})"

    def sample(self, count: int, seed: int | np.ndarray = 0) -> Draw:
        """Draw strings with their hidden states: a `Draw` with level 0, the symbols, and level 1, the states.

        `seed`: an integer, of which string i depends on (seed, i) only, or one uint64 key for each string.
        """
        count, N = checked_integer("count", count, 0), self.num_leaves
        check_memory(f"{count} strings of {N} symbols", 16 * count * N, "draw fewer, or shorter ones")
        key, leaves, states = streams(seed, count, STRINGS), *(np.empty((count, N), np.int64) for _ in range(2))
        laws = [cumulative_sums(law) for law in (self.initial, self.transition, self.emission)]
        over_blocks(count, lambda first, last: _draw_strings(key, *laws, first, last, states, leaves), 2 * N)
        return Draw({0: leaves, 1: states})

    def log_likelihood(self, leaves: Any) -> np.ndarray:
        """Exact log-probability of strings in nats, (batch,) float64; -inf for strings that the chain cannot produce."""
        leaves = checked_leaves(leaves, self.vocab_size, self.num_leaves)
        with np.errstate(divide="ignore"):
            like = np.log(self.emission.T)[leaves]
        return self._forward(like)[1]

    # -- messages ----------------------------------------------------------------------------------------------------
    def infer(self, log_evidence: np.ndarray, marginals: bool = True) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Marginals of symbols and states, {level: float64 (batch, N, ..)}, and the log-evidence (batch,), -inf if impossible.

        With `ell_i(s) = sum_x E(s, x) e_i(x)`: forward `alpha_i(s) ~ ell_i(s) sum_r alpha_{i-1}(r) A(r, s)`, backward
        `beta_i(s) ~ sum_r A(s, r) ell_{i+1}(r) beta_{i+1}(r)`. The states have `alpha beta`, the symbols
        `e_i(x) sum_s E(s, x) beta_i(s) sum_r alpha_{i-1}(r) A(r, s)`. Strings whose messages leave the range of float64 are
        computed once more with logarithms of messages.
        """
        evidence = np.ascontiguousarray(log_evidence, np.float64)
        batch, N, v = evidence.shape
        sizes = (v, self.num_states) if marginals else (0, 0)
        (symbols, states), total = (np.empty((batch, N, size)) for size in sizes), np.empty(batch)
        in_range, model = np.empty(batch, bool), (self.initial, self.transition, self.emission)

        def block(first: int, last: int) -> None:
            values = evidence[first:last]
            top = values.max(axis=2, keepdims=True)
            top[np.isneginf(top)] = 0
            some = slice(first, last)
            _scaled(*model, values, np.exp(values - top), symbols[some], states[some], total[some], in_range[some])
            total[some] += top.sum(axis=(1, 2))

        over_blocks(batch, block, N * (self.num_states + v) * self.num_states)
        if (rows := np.flatnonzero(~in_range)).size:
            values = evidence[rows]
            like = self._emitted(values)
            alpha, total[rows] = self._forward(like)
            if marginals:
                of_symbols, of_states = np.empty((len(rows), N, v)), np.empty((len(rows), N, self.num_states))
                _backward(*model, values, like, alpha, of_symbols, of_states)
                symbols[rows], states[rows] = of_symbols, of_states
        return ({0: symbols, 1: states} if marginals else {}), total

    def draw(self, log_evidence: np.ndarray, keys: np.ndarray, numbers: np.ndarray) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Posterior draws {level: int64 (draws, batch, N)}, and the log-evidence (batch,), -inf where there is no posterior.

        Forward messages are filtered; the states are then drawn from the last to the first, `p(s_i | s_{i+1}, y) ~ alpha_i(s_i)
        A(s_i, s_{i+1})`, and each symbol given its state.
        """
        evidence = np.ascontiguousarray(log_evidence, np.float64)
        alpha, total = self._forward(self._emitted(evidence))
        states, symbols = (np.empty((len(numbers), *evidence.shape[:2]), np.int64) for _ in range(2))

        def block(first: int, last: int) -> None:
            _draw_posterior(self.transition, self.emission, evidence, alpha, keys, numbers, first, last, states, symbols)

        over_blocks(len(evidence), block, len(numbers) * evidence.shape[1] * (self.num_states + self.vocab_size))
        return {0: symbols, 1: states}, total

    def completed(self, leaves: np.ndarray, keys: np.ndarray) -> dict[int, np.ndarray]:
        """Strings (batch, N) with hidden states drawn from their posterior given the string; -1 for impossible strings.

        `keys`, uint64 (batch,): one random stream for each string.
        """
        with np.errstate(divide="ignore"):
            evidence = np.log(np.float64(leaves[..., None] == np.arange(self.vocab_size)))
        drawn, total = self.draw(evidence, streams(keys, len(leaves), _STATES), np.zeros(1, np.uint64))
        return {0: leaves, 1: np.where(np.isfinite(total)[:, None], drawn[1][0], -1)}

    def _emitted(self, evidence: np.ndarray) -> np.ndarray:
        """log ell_i(s), (batch, N, states)."""
        like = np.empty((*evidence.shape[:2], self.num_states))
        emission = np.ascontiguousarray(self.emission.T)
        numbers = like.shape[1] * emission.size
        over_blocks(len(evidence), lambda first, last: _over_sites(evidence, emission, first, last, like), numbers)
        return like

    def _forward(self, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log alpha_i(s), (batch, N, states) with largest value 0 at each site, and the log-evidence (batch,)."""
        alpha, total = np.empty(like.shape), np.empty(len(like))

        def block(first: int, last: int) -> None:
            _filter(self.initial, self.transition, like, first, last, alpha, total)

        over_blocks(len(like), block, 4 * like.shape[1] * self.num_states**2)
        return alpha, total


def as_laws(name: str, values: Any, ndim: int) -> np.ndarray:
    """Probabilities along the last axis, float64 and read-only, or a ValueError."""
    array = checked_numbers(name, values)
    if array.ndim != ndim or not array.size or not ((array >= 0).all() and np.allclose(array.sum(-1), 1, rtol=0, atol=1e-6)):
        axes = "(states,)" if ndim == 1 else "(states, ..)"
        wrong = f", smallest value {array.min():g}, sums {np.unique(array.sum(-1))[:3]}" if array.size else ""
        raise ValueError(
            f"{name} has shape {array.shape}{wrong}; expected probabilities {axes} that add up to 1 along the last axis"
        )
    total = array.sum(axis=-1, keepdims=True)
    array = np.array(np.where(np.abs(total - 1) < 1e-12, array, array / total), order="C")
    array.setflags(write=False)
    return array


# -- kernels ------------------------------------------------------------------------------------------------------------
@njit(**_options)
def _scaled(initial, transition, emission, evidence, e, symbols, states, total, in_range):
    """`HiddenMarkovModel.infer` with messages that are scaled at each site, for strings where none is too small for float64.

    `e`: exp(evidence), divided by the largest value of each site. Products have at most five factors, entries of matrices, of e,
    alpha and beta, each of which is 0 or above `_FACTOR`; if not, `in_range` is False. No marginals if `states` is empty.
    """
    (count, N, v), S = e.shape, len(initial)
    like, before, alpha, beta, ahead = np.empty((N, S)), np.empty((N, S)), np.empty((N, S)), np.empty(S), np.empty(S)
    emitted, backwards, fits = np.ascontiguousarray(emission.T), np.ascontiguousarray(transition.T), True
    for matrix in (transition, emission, initial.reshape(1, S)):
        for value in matrix.ravel():
            fits &= value == 0 or value > _FACTOR
    for b in range(count):
        ok, scale = fits, 1.0
        total[b] = 0
        for i in range(N):
            like[i] = 0
            for x in range(v):
                weight = e[b, i, x]
                if weight > 0:
                    for s in range(S):
                        like[i, s] += weight * emitted[x, s]
                ok &= weight > _FACTOR or evidence[b, i, x] == -np.inf
            if i:
                before[i] = 0
                for r in range(S):
                    for s in range(S):
                        before[i, s] += alpha[i - 1, r] * transition[r, s]
            else:
                before[0] = initial
            norm = 0.0
            for s in range(S):
                alpha[i, s] = before[i, s] * like[i, s]
                norm += alpha[i, s]
            ok &= norm > _FACTOR
            if not ok:
                break
            for s in range(S):
                alpha[i, s] /= norm
                ok &= alpha[i, s] == 0 or alpha[i, s] > _FACTOR
            scale *= norm
            if scale < _FACTOR:
                total[b] += np.log(scale)
                scale = 1.0
        total[b] += np.log(scale)
        in_range[b] = ok
        if not ok or not states.size:
            continue
        beta[:] = 1
        for i in range(N - 1, -1, -1):
            norm = 0.0
            for s in range(S):
                states[b, i, s] = alpha[i, s] * beta[s]
                norm += states[b, i, s]
            symbols[b, i] = 0
            for s in range(S):
                states[b, i, s] /= norm
                for x in range(v):
                    symbols[b, i, x] += before[i, s] * beta[s] * emission[s, x]
                ahead[s] = like[i, s] * beta[s]
            norm = 0.0
            for x in range(v):
                symbols[b, i, x] *= e[b, i, x]
                norm += symbols[b, i, x]
            for x in range(v):
                symbols[b, i, x] /= norm
            ok &= norm > _FACTOR
            beta[:] = 0
            for s in range(S):
                for r in range(S):
                    beta[r] += ahead[s] * backwards[s, r]
            norm = beta.max()
            for s in range(S):
                beta[s] /= norm
                ok &= beta[s] == 0 or beta[s] > _FACTOR
        in_range[b] = ok


# Logarithms of messages, so that evidence of any size is exact.
@njit(**_options)
def _log_product(logs, matrix, out):
    """out[j] = log sum_r exp(logs[r]) matrix[r, j]; -inf where the sum is 0."""
    top = logs.max()
    if top == -np.inf:
        out[:] = -np.inf
        return
    out[:] = 0
    for r in range(len(logs)):
        weight = np.exp(logs[r] - top)
        if weight > 0:
            for j in range(len(out)):
                out[j] += weight * matrix[r, j]
    for j in range(len(out)):
        if out[j] >= _SMALLEST:
            out[j] = top + np.log(out[j])
            continue
        largest = -np.inf  # the terms are summed relative to the largest one of this sum
        for r in range(len(logs)):
            if matrix[r, j] > 0:
                largest = max(largest, logs[r])
        total = 0.0
        if largest > -np.inf:
            for r in range(len(logs)):
                if matrix[r, j] > 0:
                    total += np.exp(logs[r] - largest) * matrix[r, j]
        out[j] = largest + np.log(total) if total > 0 else -np.inf


@njit(**_options)
def _normalise(logs, out):
    """out ~ exp(logs), adding up to 1; NaN if all logs are -inf."""
    top, total = logs.max(), 0.0
    for j in range(len(out)):
        out[j] = np.exp(logs[j] - top)
        total += out[j]
    for j in range(len(out)):
        out[j] /= total


@njit(**_options)
def _over_sites(evidence, emission, first, last, like):
    for b in range(first, last):
        for i in range(evidence.shape[1]):
            _log_product(evidence[b, i], emission, like[b, i])


@njit(**_options)
def _filter(initial, transition, like, first, last, alpha, total):
    prior = np.log(initial)
    for b in range(first, last):
        total[b] = 0
        for i in range(like.shape[1]):
            row = alpha[b, i]
            if i:
                _log_product(alpha[b, i - 1], transition, row)
            else:
                row[:] = prior
            for s in range(len(row)):
                row[s] += like[b, i, s]
            top = row.max()
            total[b] += top
            if top > -np.inf:
                for s in range(len(row)):
                    row[s] -= top
        left = 0.0
        for s in range(alpha.shape[2]):
            left += np.exp(alpha[b, -1, s])
        total[b] += np.log(left)


@njit(**_options)
def _backward(initial, transition, emission, evidence, like, alpha, symbols, states):
    S, backwards, prior = len(initial), np.ascontiguousarray(transition.T), np.log(initial)
    beta, ahead, before = np.empty(S), np.empty(S), np.empty(S)
    of_symbols = np.empty(emission.shape[1])
    for b in range(len(evidence)):
        beta[:] = 0
        for i in range(like.shape[1] - 1, -1, -1):
            _normalise(alpha[b, i] + beta, states[b, i])
            if i:
                _log_product(alpha[b, i - 1], transition, before)
            else:
                before[:] = prior
            before += beta
            _log_product(before, emission, of_symbols)
            _normalise(of_symbols + evidence[b, i], symbols[b, i])
            ahead[:] = like[b, i] + beta
            _log_product(ahead, backwards, beta)
            beta -= beta.max()


@njit(**_options)
def _choose(logs, cumulative, u):
    """An index drawn with probability ~ exp(logs), by the uniform number u."""
    _normalise(logs, cumulative)
    for j in range(1, len(cumulative)):
        cumulative[j] += cumulative[j - 1]
    chosen = inverse_cdf(cumulative, u)
    while chosen > 0 and logs[chosen] == -np.inf:  # rounding of the last entries
        chosen -= 1
    return chosen


@njit(**_options)
def _draw_posterior(transition, emission, evidence, alpha, keys, numbers, first, last, states, symbols):
    N, S, v = alpha.shape[1], alpha.shape[2], evidence.shape[2]
    arrive, emit = np.log(transition), np.log(emission)
    of_states, of_symbols = np.empty(S), np.empty(v)
    for b in range(first, last):
        for n in range(len(numbers)):
            key, later = fold(keys[b], numbers[n]), 0
            for i in range(N - 1, -1, -1):
                logs = alpha[b, i] + arrive[:, later] if i < N - 1 else alpha[b, i].copy()
                later = _choose(logs, of_states, uniform_at(key, np.uint64(i)))
                states[n, b, i] = later
                symbols[n, b, i] = _choose(emit[later] + evidence[b, i], of_symbols, uniform_at(key, np.uint64(N + i)))


@njit(**_options)
def _draw_strings(keys, initial, transition, emission, first, last, states, leaves):
    N = leaves.shape[1]
    for b in range(first, last):
        state = inverse_cdf(initial, uniform_at(keys[b], np.uint64(0)))
        for i in range(N):
            if i:
                state = inverse_cdf(transition[state], uniform_at(keys[b], np.uint64(i)))
            states[b, i] = state
            leaves[b, i] = inverse_cdf(emission[state], uniform_at(keys[b], np.uint64(N + i)))
