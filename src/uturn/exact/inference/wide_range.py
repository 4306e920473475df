"""Exact belief propagation in float64 with exponents of any size, one sample at a time: slow, but correct for any evidence.

It computes the few samples whose messages leave the range of floating point numbers in the vectorised kernels (contradictory
evidence). A number is `a * 2**e`, with a = 0 or 1 <= a < 2 and a whole number e, both float64; e is -inf for 0 alone. Loops over
lanes, which are nodes of a level, become vector code.

Beside evidence of more than 2**53 = 9e15 nats, ordinary factors (probabilities of rules) are below rounding.
"""

# mypy: ignore-errors
# (numba compiles this file and infers its types)
from __future__ import annotations

from collections import namedtuple

import numpy as np
from numba import njit

from uturn.core.memory import aligned
from uturn.core.random import fold, uniform_at
from uturn.exact.inference.simd import (
    LANES,
    LOG2_DOUBLE,
    add,
    divide,
    exponent_of,
    fused,
    largest,
    load,
    mantissa_of,
    multiply,
    multiply_add,
    pointer,
    power_of_two,
    splat,
    store,
    subtract,
)
from uturn.exact.inference.tables import Tables

_ZERO, _LOWEST = -np.inf, -1.7e308  # the exponent of 0, and one below all others, so that differences are numbers
_LOG2_HIGH, _LOG2_LOW = LOG2_DOUBLE
_LOG2 = np.log(2)
_options = {"nogil": True, "cache": True, "error_model": "numpy"}

# Offsets of blocks of numbers `[symbol][lane]` in the workspace; their exponents are `exponents` further on.
Layout = namedtuple("Layout", "slot factors out total exponents")


@njit(**_options)
def _sums(ws, at, index, weight, first, last, out):
    """out = sum over the rules first .. last - 1 of weight[r] prod_i factor_i[index[r, i]], in every lane.

    The sum has the exponent of its largest term, and any a > 0, until it is normalised: a carry from a to the exponent would be
    lost in the rounding of exponents above 2**53.
    """
    s, lowest = index.shape[1], splat(_LOWEST)
    top = lowest
    for r in range(first, last):
        power = load(ws, at.factors + at.exponents + index[r, 0] * LANES)
        for i in range(1, s):
            power = add(power, load(ws, at.factors + at.exponents + i * at.slot + index[r, i] * LANES))
        top = largest(power, top)
    total = subtract(top, top)
    for r in range(first, last):
        power = load(ws, at.factors + at.exponents + index[r, 0] * LANES)
        term = multiply(splat(weight[r]), load(ws, at.factors + index[r, 0] * LANES))
        for i in range(1, s):
            power = add(power, load(ws, at.factors + at.exponents + i * at.slot + index[r, i] * LANES))
            term = multiply(term, load(ws, at.factors + i * at.slot + index[r, i] * LANES))
        total = multiply_add(term, power_of_two(subtract(power, top)), total)
    store(ws, out, total)
    store(ws, out + at.exponents, top)


@njit(**_options)
def _normalise(ws, at, block, count):
    """Divide the first `count` numbers of a block by their sum, which goes into `total`."""
    top = splat(_LOWEST)
    for x in range(count):
        top = largest(load(ws, block + at.exponents + x * LANES), top)
    total = subtract(top, top)
    for x in range(count):
        share = power_of_two(subtract(load(ws, block + at.exponents + x * LANES), top))
        total = multiply_add(load(ws, block + x * LANES), share, total)
    store(ws, at.total, total)
    store(ws, at.total + at.exponents, top)
    total = largest(total, splat(1e-300))  # a sum of 0 divides zeros
    for x in range(count):
        share = divide(load(ws, block + x * LANES), total)
        power = subtract(load(ws, block + at.exponents + x * LANES), top)
        store(ws, block + x * LANES, mantissa_of(share))
        store(ws, block + at.exponents + x * LANES, add(power, exponent_of(share)))


@njit(**_options)
def _pack(rows, rows_e, first, step, lanes, count, ws, at, block):
    """Copy the rows first, first + step, .. into the lanes of a block; lanes without a row get the last one."""
    for lane in range(LANES):
        row = first + min(lane, lanes - 1) * step
        for x in range(count):
            ws[block + x * LANES + lane] = rows[row, x]
            ws[block + at.exponents + x * LANES + lane] = rows_e[row, x]


@njit(**_options)
def _unpack(ws, at, block, rows, rows_e, first, step, lanes, count):
    for lane in range(lanes):
        for x in range(count):
            rows[first + lane * step, x] = ws[block + x * LANES + lane]
            rows_e[first + lane * step, x] = ws[block + at.exponents + x * LANES + lane]


@njit(**_options)
def upward(
    space, at, log_evidence, depth, symbols, multiplicity, rule_start, children, p, down_start, down_index, down_p, of_class, up,
    up_e,
):  # fmt: skip
    """Upward messages of one sample (Eq. 16-17 of arXiv:2402.16991) into `up[node, symbol]`; its log-evidence."""
    s, v, ws = children.shape[1], symbols[0], pointer(space)
    log_total = 0.0
    nodes = log_evidence.shape[0]
    below, first = 0, 0  # node rows: leaves first, level by level, the root last
    for i in range(nodes):
        highest = log_evidence[i].max()  # subtracted first, because the rounding of a large number hides differences
        log_total += highest
        for x in range(v):
            value = log_evidence[i, x] - highest
            up[i, x], up_e[i, x] = 0.0, _ZERO
            if value > _ZERO:
                n = np.floor(value / _LOG2)
                rest = fused(n, -_LOG2_LOW, fused(n, -_LOG2_HIGH, value))
                up[i, x], up_e[i, x] = np.exp(min(max(rest, 0.0), 0.7)), n
    for level in range(depth + 1):
        n, m = symbols[level], multiplicity[level]
        for node in range(0, nodes, LANES):
            lanes = min(LANES, nodes - node)
            if level == 0:
                _pack(up, up_e, node, 1, lanes, v, ws, at, at.out)
            else:
                for i in range(s):
                    _pack(up, up_e, below + node * s + i, s, lanes, symbols[level - 1], ws, at, at.factors + i * at.slot)
                for y in range(n):
                    r = rule_start[level] + y * m
                    _sums(ws, at, children, p, r, r + m, at.out + y * LANES)
            if level == depth:  # the evidence of a class, times its probability
                _unpack(ws, at, at.out, up, up_e, first, 1, 1, n)
                for y in range(n):
                    ws[at.factors + y * LANES] = up[first, y] * of_class[y]
                    ws[at.factors + at.exponents + y * LANES] = up_e[first, y]
                _normalise(ws, at, at.factors, n)
                lanes = 1
                log_total += np.log(ws[at.total]) + ws[at.total + at.exponents] * _LOG2
            _normalise(ws, at, at.out, n)
            _unpack(ws, at, at.out, up, up_e, first + node, 1, lanes, n)
            for lane in range(lanes):
                if ws[at.total + lane] == 0.0:
                    return _ZERO
                if level < depth:
                    log_total += np.log(ws[at.total + lane]) + ws[at.total + at.exponents + lane] * _LOG2
        below, first = first, first + nodes
        nodes //= s
    space[0] += 0.0  # the pointer does not keep the array alive
    return log_total


@njit(**_options)
def downward(
    space, at, depth, symbols, multiplicity, rule_start, children, p, down_start, down_index, down_p, of_class, up,
    up_e, down, down_e,
):  # fmt: skip
    """Downward messages (Eq. 18-19), given the upward ones."""
    s, ws = children.shape[1], pointer(space)
    first, nodes = len(up) - 1, 1
    for y in range(symbols[depth]):
        down[first, y], down_e[first, y] = of_class[y], 0.0
    for level in range(depth, 0, -1):
        below, v = first - nodes * s, symbols[level - 1]
        for node in range(0, nodes, LANES):
            lanes = min(LANES, nodes - node)
            _pack(down, down_e, first + node, 1, lanes, symbols[level], ws, at, at.factors)
            for i in range(s):  # factors: the parent's message, and those of the other children
                for j in range(s - 1):
                    other = below + node * s + (j if j < i else j + 1)
                    _pack(up, up_e, other, s, lanes, v, ws, at, at.factors + (1 + j) * at.slot)
                for x in range(v):
                    begin, end = down_start[level, i, x], down_start[level, i, x + 1]
                    _sums(ws, at, down_index[i], down_p[i], begin, end, at.out + x * LANES)
                _normalise(ws, at, at.out, v)
                _unpack(ws, at, at.out, down, down_e, below + node * s + i, s, lanes, v)
        first, nodes = below, nodes * s
    space[0] += 0.0  # the pointer does not keep the array alive


@njit(**_options)
def marginals(space, at, up, up_e, down, down_e, widths):
    """Turn downward messages into marginals in place: up * down, normalised (Eq. 7)."""
    ws = pointer(space)
    first = 0
    while first < len(up):
        last = first
        while last < len(up) and widths[last] == widths[first]:
            last += 1
        for node in range(first, last, LANES):
            lanes, n = min(LANES, last - node), widths[first]
            _pack(up, up_e, node, 1, lanes, n, ws, at, at.factors)
            _pack(down, down_e, node, 1, lanes, n, ws, at, at.out)
            for x in range(n):
                own, other = at.out + x * LANES, at.factors + x * LANES
                store(ws, own, multiply(load(ws, own), load(ws, other)))
                store(ws, own + at.exponents, add(load(ws, own + at.exponents), load(ws, other + at.exponents)))
            _normalise(ws, at, at.out, n)
            _unpack(ws, at, at.out, down, down_e, node, 1, lanes, n)
        first = last
    space[0] += 0.0  # the pointer does not keep the array alive


@njit(**_options)
def _terms(children, p, first, count, up, up_e, row, term, power):
    """Terms `p_r prod_i up_i[x_i]` of the rules first .. of a node with the children `row` .., scaled to at most 2**s."""
    top = _LOWEST
    for k in range(count):
        term[k], power[k] = p[first + k], 0.0
        for i in range(children.shape[1]):
            x = children[first + k, i]
            term[k] *= up[row + i, x]
            power[k] += up_e[row + i, x]
        top = max(top, power[k])
    for k in range(count):
        term[k] *= 2.0 ** (power[k] - top)


@njit(**_options)
def _pick(weights, count, u):
    """Index drawn with probability proportional to the first `count` weights, never one of weight 0."""
    target = u * weights[:count].sum()
    last, below = 0, 0.0
    for k in range(count):
        if weights[k] > 0:
            below += weights[k]
            last = k
            if target < below:
                break
    return last


@njit(**_options)
def draw(
    key, numbers, depth, symbols, multiplicity, rule_start, children, p, down_start, down_index, down_p, of_class, up, up_e, out
):  # fmt: skip
    """Posterior draws of one sample, from the root down: `out[draw, node row]`."""
    s, n = children.shape[1], symbols[depth]
    term, power = np.empty(max(n, multiplicity.max())), np.empty(max(n, multiplicity.max()))
    for d in range(len(numbers)):
        stream = fold(key, numbers[d])
        first, nodes = len(up) - 1, 1
        for y in range(n):
            term[y] = up[first, y] * of_class[y] * 2.0 ** up_e[first, y]
        out[d, first] = _pick(term, n, uniform_at(stream, np.uint64(0)))
        index = 1  # random numbers of this draw: 0 for the root's symbol, then one per rule, top to bottom
        for level in range(depth, 0, -1):
            below = first - nodes * s
            m = multiplicity[level]
            for node in range(nodes):
                own = rule_start[level] + out[d, first + node] * m
                _terms(children, p, own, m, up, up_e, below + node * s, term, power)
                rule = own + _pick(term, m, uniform_at(stream, np.uint64(index)))
                index += 1
                for i in range(s):
                    out[d, below + node * s + i] = children[rule, i]
            first, nodes = below, nodes * s


@njit(**_options)
def rule_entropies(
    depth, symbols, multiplicity, rule_start, children, p, down_start, down_index, down_p, of_class, up, up_e, marginal,
    marginal_e, out,
):  # fmt: skip
    """`out[level]` = sum over the nodes of a level of the entropy of the rule given the symbol, averaged over the marginal."""
    s = children.shape[1]
    term, power = np.empty(multiplicity.max()), np.empty(multiplicity.max())
    first, nodes = len(up) - 1, 1
    for level in range(depth, 0, -1):
        below, m = first - nodes * s, multiplicity[level]
        for node in range(nodes):
            for y in range(symbols[level]):
                if marginal[first + node, y] > 0:
                    _terms(children, p, rule_start[level] + y * m, m, up, up_e, below + node * s, term, power)
                    total, entropy = term[:m].sum(), 0.0
                    for k in range(m):
                        if term[k] > 0:
                            entropy -= term[k] / total * np.log(term[k] / total)
                    out[level] += marginal[first + node, y] * 2.0 ** marginal_e[first + node, y] * entropy
        first, nodes = below, nodes * s


class WideRange:
    """The functions above with the tables of a grammar and the messages of one sample; each thread needs its own."""

    def __init__(self, tables: Tables) -> None:
        t = tables
        self.sizes = [t.branching ** (t.depth - level) for level in range(t.depth + 1)]
        self.widths = np.repeat(t.symbols, self.sizes)
        shape = sum(self.sizes), int(t.symbols.max())
        self.up = np.zeros(shape), np.full(shape, _ZERO)
        self.down = np.empty((0, 0)), np.empty((0, 0))
        slot, s = shape[1] * LANES, t.branching
        self.layout = Layout(slot, LANES, LANES + s * slot, 0, LANES + (s + 1) * slot)
        self.space = aligned((2 * self.layout.exponents,), np.dtype(np.float64))
        self.space[:] = 0
        of_rules = t.multiplicity, t.rule_start, t.children, t.probability, t.inverse_start, *t.by_child
        self.rules = t.depth, t.symbols, *of_rules, t.class_probability

    def upward(self, evidence: np.ndarray) -> float:
        """Upward pass of one sample's log-evidence (leaves, v); returns its total log-evidence, which may be -inf."""
        self.log_evidence = float(
            upward(self.space, self.layout, np.ascontiguousarray(evidence, np.float64), *self.rules, *self.up)
        )
        return self.log_evidence

    def downward(self) -> None:
        if not self.down[0].size:
            self.down = np.zeros_like(self.up[0]), np.full_like(self.up[1], _ZERO)
        downward(self.space, self.layout, *self.rules, *self.up, *self.down)

    def marginals(self) -> None:
        """Marginals, which overwrite the downward messages."""
        marginals(self.space, self.layout, *self.up, *self.down, self.widths)

    def rule_entropies(self) -> np.ndarray:
        """(L+1,) entropy of all rules of a level given the symbols they rewrite; call `marginals` first."""
        out = np.zeros(len(self.sizes))
        rule_entropies(*self.rules, *self.up, *self.down, out)
        return out

    def draw(self, key: np.uint64, numbers: np.ndarray) -> dict[int, np.ndarray]:
        out = np.empty((len(numbers), len(self.up[0])), np.int64)
        draw(key, numbers, *self.rules, *self.up, out)
        return self.split(out.T)

    def split(self, rows: np.ndarray) -> dict[int, np.ndarray]:
        """Cut an array whose first axis is the nodes into tree levels."""
        ends = np.cumsum(self.sizes)
        return {level: rows[end - nodes : end] for level, (nodes, end) in enumerate(zip(self.sizes, ends, strict=True))}

    def messages(self, numbers: tuple[np.ndarray, np.ndarray]) -> dict[int, np.ndarray]:
        """Normalised messages (`up` or `down`) as floating point numbers, {tree_level: (nodes, symbols)}."""
        return self.split(np.ldexp(numbers[0], np.maximum(numbers[1], -2000).astype(np.int64)))
