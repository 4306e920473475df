"""Exact belief propagation in float64 log space, one sample at a time: slow, but correct for any evidence.

It computes the few samples whose messages leave the range of floating point numbers in the vectorised kernels (contradictory
evidence). Messages are log-probabilities, so that a probability is zero only if it is exactly zero.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
from numba import njit

from uturn.inference.tables import Tables
from uturn.random import fold, uniform_at

_NO = -np.inf


@njit(nogil=True, cache=True)
def _normalise(row):
    """Subtract the log of the total from a row of logs; return it (-inf: the row is left as it is)."""
    top = row.max()
    if top == _NO:
        return _NO
    total = 0.0
    for x in range(len(row)):
        total += exp(row[x] - top)
    total = top + log(total)
    for x in range(len(row)):
        row[x] -= total
    return total


@njit(nogil=True, cache=True)
def upward(evidence, depth, symbols, multiplicity, rule_start, children, log_p, log_class, up):
    """Upward messages of one sample (Eq. 16-17 of arXiv:2402.16991) into `up[level][node, symbol]`; log-evidence."""
    s = children.shape[1]
    log_evidence = 0.0
    nodes = evidence.shape[0]
    first = 0  # node rows: leaves first, level by level, the root last
    for i in range(nodes):
        for x in range(evidence.shape[1]):
            up[i, x] = evidence[i, x]
        log_evidence += _normalise(up[i, : symbols[0]])
    for level in range(1, depth + 1):
        below, first = first, first + nodes
        nodes //= s
        n, m, start = symbols[level], multiplicity[level], rule_start[level]
        terms = np.empty(m)
        for node in range(nodes):
            for y in range(n):
                top = _NO
                for k in range(m):
                    rule = start + y * m + k
                    term = log_p[rule]
                    for i in range(s):
                        term += up[below + node * s + i, children[rule, i]]
                    terms[k] = term
                    top = max(top, term)
                total = 0.0
                if top > _NO:
                    for k in range(m):
                        total += exp(terms[k] - top)
                up[first + node, y] = top + log(total) if top > _NO else _NO
            if level < depth:
                log_evidence += _normalise(up[first + node, :n])
    n = symbols[depth]
    top, total = _NO, 0.0
    for y in range(n):
        top = max(top, up[first, y] + log_class[y])
    if top == _NO:
        return _NO
    for y in range(n):
        total += exp(up[first, y] + log_class[y] - top)
    _normalise(up[first, :n])
    return log_evidence + top + log(total)


@njit(nogil=True, cache=True)
def downward(depth, symbols, multiplicity, rule_start, children, log_p, log_class, up, down):
    """Downward messages (Eq. 18-19), given the upward ones."""
    s = children.shape[1]
    first, nodes = up.shape[0] - 1, 1
    down[first, : symbols[depth]] = log_class
    for level in range(depth, 0, -1):
        below = first - nodes * s
        n, m, start, v = symbols[level], multiplicity[level], rule_start[level], symbols[level - 1]
        terms = np.empty(n * m)
        top, total = np.empty(v), np.empty(v)
        for node in range(nodes):
            for i in range(s):
                top[:], total[:] = _NO, 0.0
                for r in range(n * m):
                    rule = start + r
                    term = log_p[rule] + down[first + node, r // m]
                    for j in range(s):
                        if j != i:
                            term += up[below + node * s + j, children[rule, j]]
                    terms[r] = term
                    x = children[rule, i]
                    top[x] = max(top[x], term)
                for r in range(n * m):
                    x = children[start + r, i]
                    if top[x] > _NO:
                        total[x] += exp(terms[r] - top[x])
                row = down[below + node * s + i, :v]
                for x in range(v):
                    row[x] = top[x] + log(total[x]) if top[x] > _NO else _NO
                _normalise(row)
        first, nodes = below, nodes * s


@njit(nogil=True, cache=True)
def marginals(up, down):
    """Turn `down` into log-marginals in place: up + down, normalised (Eq. 7)."""
    for node in range(up.shape[0]):
        for x in range(up.shape[1]):
            down[node, x] += up[node, x]
        _normalise(down[node])


@njit(nogil=True, cache=True)
def draw(key, numbers, depth, symbols, multiplicity, rule_start, children, log_p, log_class, up, out):
    """Posterior draws of one sample, walking down from the root: `out[draw, node row]`."""
    s = children.shape[1]
    for d in range(len(numbers)):
        stream = fold(key, numbers[d])
        first, nodes = up.shape[0] - 1, 1
        n = symbols[depth]
        weights = np.empty(n)
        top = (up[first, :n] + log_class).max()
        for y in range(n):
            weights[y] = exp(up[first, y] + log_class[y] - top)
        out[d, first] = pick(weights, uniform_at(stream, np.uint64(0)))
        index = 1  # random numbers of this draw: 0 for the root's symbol, then one per rule, top to bottom
        for level in range(depth, 0, -1):
            below = first - nodes * s
            m, start = multiplicity[level], rule_start[level]
            weights = np.empty(m)
            for node in range(nodes):
                y = out[d, first + node]
                top = _NO
                for k in range(m):
                    rule = start + y * m + k
                    weights[k] = log_p[rule]
                    for i in range(s):
                        weights[k] += up[below + node * s + i, children[rule, i]]
                    top = max(top, weights[k])
                for k in range(m):
                    weights[k] = exp(weights[k] - top)
                rule = start + y * m + pick(weights, uniform_at(stream, np.uint64(index)))
                index += 1
                for i in range(s):
                    out[d, below + node * s + i] = children[rule, i]
            first, nodes = below, nodes * s


@njit(nogil=True, cache=True)
def pick(weights, u):
    """Index drawn with probability proportional to `weights`, never one of weight 0."""
    target = u * weights.sum()
    last, cumulative = 0, 0.0
    for k in range(len(weights)):
        if weights[k] > 0:
            cumulative += weights[k]
            last = k
            if target < cumulative:
                break
    return last


@njit(nogil=True, cache=True)
def rule_entropies(depth, symbols, multiplicity, rule_start, children, log_p, up, log_marginal, out):
    """`out[level]` = sum over the nodes of a level of the entropy of the rule given the symbol, averaged over the marginal."""
    s = children.shape[1]
    first, nodes = up.shape[0] - 1, 1
    for level in range(depth, 0, -1):
        below = first - nodes * s
        m, start = multiplicity[level], rule_start[level]
        terms = np.empty(m)
        total = 0.0
        for node in range(nodes):
            for y in range(symbols[level]):
                if log_marginal[first + node, y] == _NO:
                    continue
                for k in range(m):
                    rule = start + y * m + k
                    terms[k] = log_p[rule]
                    for i in range(s):
                        terms[k] += up[below + node * s + i, children[rule, i]]
                _normalise(terms)
                entropy = 0.0
                for k in range(m):
                    if terms[k] > _NO:
                        entropy -= exp(terms[k]) * terms[k]
                total += exp(log_marginal[first + node, y]) * entropy
        out[level] = total
        first, nodes = below, nodes * s


class LogSpace:
    """The functions above with the tables of a grammar and the messages of one sample; each thread needs its own."""

    def __init__(self, tables: Tables) -> None:
        t = tables
        self.sizes = [t.branching ** (t.depth - level) for level in range(t.depth + 1)]
        self.up = np.full((sum(self.sizes), int(t.symbols.max())), _NO)
        self.down = np.empty((0, 0))
        self.log_class = np.log(t.class_probability)
        self.rules = (t.depth, t.symbols, t.multiplicity, t.rule_start, t.children, np.log(t.probability), self.log_class)

    def upward(self, evidence: np.ndarray) -> float:
        """Upward pass of one sample's log-evidence (leaves, v); returns its total log-evidence, which may be -inf."""
        self.log_evidence = float(upward(np.ascontiguousarray(evidence, np.float64), *self.rules, self.up))
        return self.log_evidence

    def downward(self) -> None:
        if not self.down.size:
            self.down = np.full_like(self.up, _NO)
        downward(*self.rules, self.up, self.down)

    def marginals(self) -> None:
        """Log-marginals, which overwrite the downward messages."""
        marginals(self.up, self.down)

    def rule_entropies(self) -> np.ndarray:
        """(L+1,) entropy of all rules of a level given the symbols they rewrite; call `marginals` first."""
        out = np.zeros(len(self.sizes))
        rule_entropies(*self.rules[:-1], self.up, self.down, out)
        return out

    def draw(self, key: np.uint64, numbers: np.ndarray) -> dict[int, np.ndarray]:
        out = np.empty((len(numbers), len(self.up)), np.int64)
        draw(key, numbers, *self.rules, self.up, out)
        return self.split(out.T)

    def split(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Cut an array whose first axis is the nodes into tree levels."""
        ends = np.cumsum(self.sizes)
        return {level: rows[end - nodes : end] for level, (nodes, end) in enumerate(zip(self.sizes, ends, strict=True))}
