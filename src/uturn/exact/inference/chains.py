"""`infer` and `sample_posterior` for hidden Markov models."""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.exact.hmm import HiddenMarkovModel
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import Evidence, check_values, impossible_evidence


def infer_chain(model: HiddenMarkovModel, evidence: Evidence, outputs: tuple[str, ...]) -> Beliefs:
    """`infer` for evidence of checked shape: marginals in the precision of the evidence, and the log-evidence."""
    if lacking := [name for name in outputs if name not in ("marginals", "log_evidence")]:
        raise ValueError(f"outputs = {lacking[0]!r}: messages of a tree; a hidden Markov model has 'marginals', 'log_evidence'")
    marginals, total = model.infer(_checked(evidence), "marginals" in outputs)
    _check_possible(total)
    computed: dict[str, Any] = {"log_evidence": total}
    if marginals:
        computed["marginals"] = {level: nodes.astype(evidence.dtype, copy=False) for level, nodes in marginals.items()}
    return Beliefs(**{name: computed[name] for name in outputs})


def draw_chain(model: HiddenMarkovModel, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray) -> dict[int, np.ndarray]:
    """`sample_posterior` for evidence of checked shape, with a leading axis for the draws `numbers`."""
    draws, total = model.draw(_checked(evidence), np.ascontiguousarray(keys), numbers)
    _check_possible(total)
    return draws


def _checked(evidence: Evidence) -> np.ndarray:
    values = evidence.log(np.arange(len(evidence)))
    check_values(values)
    return values


def _check_possible(total: np.ndarray) -> None:
    if (impossible := np.flatnonzero(total == -np.inf)).size:
        raise impossible_evidence(impossible.tolist())
