"""The fast backend."""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.inference.beliefs import Beliefs
from uturn.inference.checks import check_values, impossible_evidence
from uturn.inference.log_space import LogSpace
from uturn.inference.tables import tables_of


def infer_numba(rhm: Any, log_evidence: np.ndarray, outputs: tuple[str, ...]) -> Beliefs:
    """`infer` for a numpy array (batch, leaves, v) of floating point numbers."""
    batch, dtype = len(log_evidence), np.float64 if log_evidence.dtype == np.float64 else np.float32
    check_values(log_evidence)
    out = {
        name: {l: np.empty((batch, rhm.num_nodes(l), rhm.num_symbols(l)), dtype) for l in range(rhm.depth + 1)}
        for name in outputs if name != "log_evidence"
    }
    if "log_evidence" in outputs:
        out["log_evidence"] = np.empty(batch)
    _redo(rhm, log_evidence, list(range(batch)), out)
    return Beliefs(**{name: out[name] for name in outputs})


def _redo(rhm: Any, log_evidence: np.ndarray, samples: list[int], out: dict[str, Any]) -> None:
    space = LogSpace(tables_of(rhm))
    impossible = []
    for b in samples:
        log_p = space.upward(log_evidence[b])
        if log_p == -np.inf:
            impossible.append(b)
            continue
        if "log_evidence" in out:
            out["log_evidence"][b] = log_p
        if "upward" in out:
            _store(out["upward"], b, space.split(space.up))
        if "downward" in out or "marginals" in out:
            space.downward()
            if "downward" in out:
                _store(out["downward"], b, space.split(space.down))
        if "marginals" in out:
            space.marginals()
            _store(out["marginals"], b, space.split(space.down))
    if impossible:
        raise impossible_evidence(impossible)


def _store(levels: dict[int, np.ndarray], b: int, parts: dict[int, np.ndarray]) -> None:
    for level, part in parts.items():
        levels[level][b] = part


def sample_numba(rhm: Any, log_evidence: np.ndarray, keys: np.ndarray, num_draws: int) -> dict[int, np.ndarray]:
    check_values(log_evidence)
    batch = len(log_evidence)
    out = {l: np.empty((num_draws, batch, rhm.num_nodes(l)), np.int64) for l in range(rhm.depth + 1)}
    space = LogSpace(tables_of(rhm))
    impossible = []
    for b in range(batch):
        if space.upward(log_evidence[b]) == -np.inf:
            impossible.append(b)
            continue
        for level, nodes in space.draw(keys[b], num_draws).items():
            out[level][:, b] = nodes.T
    if impossible:
        raise impossible_evidence(impossible)
    return out


def posterior_entropy_numba(rhm: Any, log_evidence: np.ndarray) -> dict[int, np.ndarray]:
    check_values(log_evidence)
    L = rhm.depth
    entropy = {level: np.empty(len(log_evidence)) for level in range(L + 1)}
    space = LogSpace(tables_of(rhm))
    for b in range(len(log_evidence)):
        if space.upward(log_evidence[b]) == -np.inf:
            raise impossible_evidence([b])
        space.downward()
        space.marginals()
        root = space.down[-1, : rhm.num_classes]
        total = -float(np.sum(np.exp(root) * np.where(root > -np.inf, root, 0.0)))
        entropy[L][b] = total
        rules = space.rule_entropies()
        for level in range(L, 0, -1):
            total += rules[level]
            entropy[level - 1][b] = total
    return entropy
