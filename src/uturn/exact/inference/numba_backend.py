"""The fast backend: compiled kernels in the precision of the evidence.

Samples whose messages leave the range of float32 are computed again in float64; those that leave that range too, with
exponents of any size (`wide_range.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from uturn.core.memory import recycled
from uturn.core.progress import steps
from uturn.core.threads import over_blocks
from uturn.exact.inference.beliefs import Beliefs, entropy_of
from uturn.exact.inference.engine import Levels, PreparedGrammar, Truth, draw, prepared_grammar, propagate
from uturn.exact.inference.evidence import LOG, Evidence, ImpossibleEvidenceError, impossible_evidence
from uturn.exact.inference.kernels import FIXED_POINT
from uturn.exact.inference.tables import tables_of
from uturn.exact.inference.wide_range import WideRange

_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)
_COPY = 2**21  # evidence values copied at a time


def infer_numba(rhm: Any, evidence: Evidence, outputs: tuple[str, ...]) -> Beliefs:
    """`infer` for evidence of checked shape."""
    if "log_evidence" in outputs and evidence.kind != LOG:
        evidence = Evidence.of(evidence.log(np.arange(len(evidence))))
    batch = len(evidence)
    grammar = prepared_grammar(rhm, evidence.dtype, 0 if "log_evidence" in outputs else batch)
    out = _empty(grammar, batch, outputs)
    left = []
    for first in steps(range(0, batch, grammar.chunk)):
        rows = slice(first, min(first + grammar.chunk, batch))
        views = {name: x[rows] if name == "log_evidence" else {k: y[rows] for k, y in x.items()} for name, x in out.items()}
        left += [first + b for b in propagate(grammar, evidence.rows(first, rows.stop), views, first)]
    if left and grammar.dtype == _SINGLE:
        grammar, samples, left = prepared_grammar(rhm, _DOUBLE), left, []
        for part, values in _parts(samples, evidence, grammar):
            again = _empty(grammar, len(part), outputs)
            lost = propagate(grammar, values, again)
            good = np.setdiff1d(np.arange(len(part)), lost)
            for name, x in again.items():
                for target, source in [(out[name], x)] if name == "log_evidence" else [(out[name][k], x[k]) for k in x]:
                    target[part[good]] = source[good]
            left += part[lost].tolist()

    def finish(wide: WideRange, b: int) -> None:
        def store(name: str, numbers: tuple[np.ndarray, np.ndarray]) -> None:
            if name in out:
                for level, message in wide.messages(numbers).items():
                    out[name][level][b] = message[:, : rhm.num_symbols(level)]

        if "log_evidence" in out:
            out["log_evidence"][b] = wide.log_evidence
        store("upward", wide.up)
        if "downward" in out or "marginals" in out:
            wide.downward()
            store("downward", wide.down)
            wide.marginals()
            store("marginals", wide.down)

    _in_wide_range(rhm, evidence, left, finish)
    return Beliefs(**out)


def true_beliefs(rhm: Any, evidence: Evidence, truth: Truth) -> np.ndarray:
    """Marginals at the true symbols, averaged over the nodes of each level: float64 (batch, levels), to 1e-10.

    The marginals are not stored, which makes this faster than `infer`.
    """
    batch, nodes = len(evidence), np.array([rhm.num_nodes(level) for level in range(rhm.depth + 1)])
    truth = _checked(truth, rhm)
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    out, left = np.empty((batch, rhm.depth + 1), np.int64), []
    for first in steps(range(0, batch, grammar.chunk)):
        last = min(first + grammar.chunk, batch)
        left += [first + b for b in propagate(grammar, evidence.rows(first, last), {"beliefs": out[first:last]}, first, truth)]
    beliefs = out / (FIXED_POINT * nodes)
    impossible: list[int] = []
    for part, values in _parts(left, evidence, prepared_grammar(rhm, evidence.dtype)):
        try:  # `infer` computes these in the precision that they need
            marginals = infer_numba(rhm, values, ("marginals",)).marginals
        except ImpossibleEvidenceError as error:
            impossible += part[error.samples].tolist()
            continue
        for level, symbols in truth.symbols.items():
            at = symbols[part // truth.copies][..., None]
            beliefs[part, level] = np.take_along_axis(marginals[level], at, 2).mean(axis=(1, 2), dtype=np.float64)
    if impossible:
        raise impossible_evidence(impossible)
    return beliefs


def _checked(truth: Truth, rhm: Any) -> Truth:
    """`truth` in the memory order that the kernels read; they do not check symbols, which are places in memory."""
    symbols = {level: np.ascontiguousarray(nodes, np.int64) for level, nodes in truth.symbols.items()}
    for level, nodes in symbols.items():
        n = rhm.num_symbols(level)
        if nodes.size and not 0 <= nodes.min() <= nodes.max() < n:
            bad = nodes[(nodes < 0) | (nodes >= n)][0]
            raise ValueError(f"symbols[{level}] contains {bad}; expected the true symbols of grammatical strings, 0..{n - 1}")
    return Truth(symbols, truth.copies)


def sample_numba(rhm: Any, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray) -> Levels:
    """`sample_posterior` for evidence of checked shape, with one key per sample and a leading axis for the draws `numbers`."""
    batch, keys = len(evidence), np.ascontiguousarray(keys)
    grammar = prepared_grammar(rhm, evidence.dtype, batch)
    integers = np.dtype(np.int64)
    out = {level: recycled((len(numbers), batch, rhm.num_nodes(level)), integers) for level in range(rhm.depth + 1)}
    left = []
    for first in steps(range(0, batch, grammar.chunk)):
        rows = slice(first, min(first + grammar.chunk, batch))
        views = {level: x[:, rows] for level, x in out.items()}
        left += [first + b for b in draw(grammar, evidence.rows(first, rows.stop), keys[rows], numbers, views, batch, first)]
    if left and grammar.dtype == _SINGLE:
        grammar, samples, left = prepared_grammar(rhm, _DOUBLE), left, []
        for part, values in _parts(samples, evidence, grammar):
            again = {level: np.empty((len(numbers), len(part), x.shape[2]), np.int64) for level, x in out.items()}
            lost = draw(grammar, values, keys[part], numbers, again, len(part))
            for level, x in again.items():
                out[level][:, part] = x
            left += part[lost].tolist()

    def finish(wide: WideRange, b: int) -> None:
        for level, nodes in wide.draw(keys[b], numbers).items():
            out[level][:, b] = nodes.T

    _in_wide_range(rhm, evidence, left, finish)
    return out


def entropy_numba(rhm: Any, log_evidence: np.ndarray) -> Levels:
    """`posterior_entropy` for an array, in chunks of samples to bound memory.

    Let u(x) be the upward message of a node before scaling, and u_i that of its child i. The rule r of the node has the
    probability p(r) = m(y) p_r prod_i u_i(x_i) / u(y), with the marginal m(y) of its symbol y. The entropy of the rule given the
    symbol is therefore `sum_y m log u - sum_i sum_x m_i log u_i - sum_r p(r) log p_r`, which needs messages and marginals only.
    These are sums over all nodes of a level, so a small entropy is a difference of large numbers; rounding below 0 is cut off.
    """
    batch, L = len(log_evidence), rhm.depth
    grammar = prepared_grammar(rhm, _DOUBLE, 2**40)  # the same for any batch, since sums over bands round differently
    moments, root, left = np.empty((batch, 2, L + 1)), np.empty((batch, 1, rhm.num_classes)), []
    size = max(1, min(grammar.chunk, _COPY // (rhm.num_leaves * rhm.vocab_size)))
    evidence = Evidence.of(log_evidence)
    for first in range(0, batch, size):
        last = min(first + size, batch)
        values = recycled(log_evidence[first:last].shape, _DOUBLE)

        def copy(a: int, b: int, values: np.ndarray = values, part: np.ndarray = log_evidence[first:last]) -> None:
            values[a:b] = part[a:b]

        over_blocks(last - first, copy, rhm.num_leaves * rhm.vocab_size)
        out = {"moments": moments[first:last], "marginals": {L: root[first:last]}}
        left += [first + b for b in propagate(grammar, Evidence.of(values, evidence.log), out, first)]
    own, scales = moments[:, 0].T, moments[:, 1].T
    rules = np.zeros((L + 1, batch))  # entropy of all rules of a level
    rules[1:] = np.maximum(own[1:] - scales[1:] - own[:-1], 0)
    of_root = entropy_of(root[:, 0])

    def finish(wide: WideRange, b: int) -> None:
        wide.downward()
        wide.marginals()
        of_root[b] = entropy_of(wide.messages(wide.down)[L][0, : rhm.num_classes])
        rules[:, b] = wide.rule_entropies()

    _in_wide_range(rhm, evidence, left, finish)
    return {level: of_root + rules[level + 1 :].sum(axis=0) for level in range(L + 1)}


def _empty(grammar: PreparedGrammar, batch: int, outputs: tuple[str, ...]) -> dict[str, Any]:
    t = grammar.tables
    shapes = {level: (batch, t.branching ** (t.depth - level), int(n)) for level, n in enumerate(t.symbols)}
    out: dict[str, Any] = {}
    for name in outputs:
        if name == "log_evidence":
            out[name] = np.empty(batch)
        else:
            out[name] = {level: recycled(x, grammar.dtype) for level, x in shapes.items()}
    if "downward" in out:
        out["downward"][t.depth][:] = t.class_probability
    return out


def _parts(samples: list[int], evidence: Evidence, grammar: PreparedGrammar) -> Iterator[tuple[np.ndarray, Evidence]]:
    """Groups of the given samples, small enough to copy, and their log-evidence in the precision of `grammar`."""
    size = max(1, min(grammar.chunk, _COPY // (grammar.tables.vocab_size * grammar.tables.branching**grammar.tables.depth)))
    for first in range(0, len(samples), size):
        part = np.array(samples[first : first + size])
        yield part, Evidence.of(evidence.log(part).astype(grammar.dtype))


def _in_wide_range(rhm: Any, evidence: Evidence, samples: list[int], finish: Any) -> None:
    """Upward pass with exponents of any size, and `finish(wide, sample)`, for each of the samples, on all threads."""
    t = tables_of(rhm)
    impossible: list[int] = []

    def block(first: int, last: int) -> None:
        wide = WideRange(t)
        for b in samples[first:last]:
            if wide.upward(evidence.log(np.array([b]))[0]) == -np.inf:
                impossible.append(b)
            else:
                finish(wide, b)

    if samples:
        over_blocks(len(samples), block)
    if impossible:
        raise impossible_evidence(sorted(impossible))
