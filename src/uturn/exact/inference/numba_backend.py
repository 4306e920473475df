"""The fast backend: compiled kernels in the precision of the evidence.

Samples whose messages leave the range of float32 are computed again in float64, and those that leave that range too by the
torch backend, in logarithms.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.memory import recycled
from uturn.core.progress import steps
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.engine import Levels, PreparedGrammar, Truth, draw, prepared_grammar, propagate
from uturn.exact.inference.evidence import LOG, Evidence
from uturn.exact.inference.kernels import FIXED_POINT

_SINGLE = np.dtype(np.float32)


def infer_numba(rhm: Any, evidence: Evidence, outputs: tuple[str, ...], samples: np.ndarray | None = None) -> Beliefs:
    """`infer` for evidence of checked shape; `samples`: their indices, for error messages."""
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
    if left:
        rest, values, samples = _wider(evidence, left, samples)
        if grammar.dtype == _SINGLE:
            again = infer_numba(rhm, Evidence.of(values), outputs, samples)
        else:
            import torch

            from uturn.exact.inference.torch_backend import infer_torch

            again = infer_torch(rhm, torch.from_numpy(values), outputs, samples)
        for name, x in out.items():
            found = getattr(again, name)
            for target, source in [(x, found)] if name == "log_evidence" else [(x[k], found[k]) for k in x]:
                target[rest] = source
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
    if left:
        rest, values, _ = _wider(evidence, left, None)
        marginals = infer_numba(rhm, Evidence.of(values), ("marginals",), rest).marginals
        for level, symbols in truth.symbols.items():
            at = symbols[rest // truth.copies][..., None]
            beliefs[rest, level] = np.take_along_axis(marginals[level], at, 2).mean(axis=(1, 2), dtype=np.float64)
    return beliefs


def _checked(truth: Truth, rhm: Any) -> Truth:
    """`truth` in the memory order that the kernels read; they do not check symbols, which are places in memory."""
    symbols = {level: np.ascontiguousarray(nodes, np.int64) for level, nodes in truth.symbols.items()}
    for level, nodes in symbols.items():
        n = rhm.num_symbols(level)
        low, high = (int(nodes.min()), int(nodes.max())) if nodes.size else (0, 0)
        expect(0 <= low <= high < n, f"range of symbols[{level}]", (low, high), f"symbols of grammatical strings, 0..{n - 1}")
    return Truth(symbols, truth.copies)


def sample_numba(
    rhm: Any, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray, samples: np.ndarray | None = None
) -> Levels:
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
    if left:
        rest, values, samples = _wider(evidence, left, samples)
        if grammar.dtype == _SINGLE:
            again = sample_numba(rhm, Evidence.of(values), keys[rest], numbers, samples)
        else:
            from uturn.exact.inference.torch_backend import sample_torch

            again = sample_torch(rhm, values, keys[rest], numbers, samples)
        for level, nodes in again.items():
            out[level][:, rest] = nodes
    return out


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


def _wider(evidence: Evidence, left: list[int], samples: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Samples that left the range of numbers, their log-evidence in float64, and their indices in the whole batch."""
    rest = np.array(left)
    return rest, evidence.log(rest).astype(np.float64), rest if samples is None else samples[rest]
