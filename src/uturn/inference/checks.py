"""Errors of exact inference that teach."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_shape(rhm: Any, shape: tuple[int, ...], dtype: Any, floating: bool) -> None:
    expected = f"(batch, num_leaves, vocab_size) = (batch, {rhm.num_leaves}, {rhm.vocab_size})"
    if len(shape) != 3 or tuple(shape[1:]) != (rhm.num_leaves, rhm.vocab_size):
        raise ValueError(f"log_evidence has shape {tuple(shape)}; expected {expected}")
    if not floating:
        raise ValueError(
            f"log_evidence has dtype {dtype}; expected natural logarithms as floating point numbers of shape {expected} "
            f"(a corruption's log_evidence(noisy) makes them)"
        )


def check_values(log_evidence: Any) -> None:
    """Raise if a value is NaN or +inf, or if all of a leaf's values are -inf; for arrays and tensors, a chunk at a time."""
    size = max(1, 2**22 // (log_evidence.shape[1] * log_evidence.shape[2]))
    for b in range(0, len(log_evidence), size):
        part = log_evidence[b : b + size]
        top = part.max(axis=2) if isinstance(part, np.ndarray) else part.detach().amax(2).cpu().numpy()  # NaN if one is
        bad = ~np.isfinite(top)
        if bad.any():
            sample, leaf = (int(i) for i in np.argwhere(bad)[0])
            raise _invalid_evidence(b + sample, leaf, float(top[sample, leaf]))


def _invalid_evidence(sample: int, leaf: int, top: float) -> ValueError:
    if top == -np.inf:
        return ValueError(
            f"log_evidence[{sample}, {leaf}] is -inf for all symbols; expected at least one possible symbol "
            f"(a leaf about which nothing is known has the same value, such as 0, for all)"
        )
    return ValueError(f"log_evidence[{sample}, {leaf}] contains {top}; expected finite values or -inf")


def impossible_evidence(samples: list[int]) -> ValueError:
    shown = ", ".join(map(str, samples[:10])) + (", ..." if len(samples) > 10 else "")
    return ValueError(
        f"log_evidence of sample(s) {shown} ({len(samples)} in all): no string of this grammar has positive probability, so "
        f"there is no posterior. Hard evidence (-inf) contradicts the grammar: check that it belongs to this grammar, or "
        f"soften it, for example by replacing -inf by a large negative number"
    )
