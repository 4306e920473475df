"""Checks of evidence about the leaves of a grammar."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import checked_array, expect
from uturn.core.evidence import SYMBOLS, Evidence
from uturn.exact.grammar import Grammar

if TYPE_CHECKING:
    import torch

MESSAGES = 0
"""A kernel reads messages from below, or one of the forms of `uturn.core.evidence`."""
LogEvidence = Any  # an array, a list of numbers, or a tensor


def check_shape(
    rhm: Grammar, shape: tuple[int, ...], dtype: np.dtype | torch.dtype, floating: bool
) -> None:
    """ValueError unless evidence has the shape (batch, num_leaves, vocab_size) and a floating
    point type.
    """
    expected = f"(batch, num_leaves, vocab_size) = (batch, {rhm.num_leaves}, {rhm.vocab_size})"
    fits = len(shape) == 3 and tuple(shape[1:]) == (rhm.num_leaves, rhm.vocab_size)
    expect(fits, "shape of log_evidence", shape, expected)
    expected = "natural logarithms as floating point numbers"
    expect(floating, "dtype of log_evidence", str(dtype), expected)


def check_values(log_evidence: np.ndarray | torch.Tensor, first_sample: int = 0) -> None:
    """ValueError if a value of an array or tensor is NaN or +inf, or if all values of a leaf are
    -inf.
    """
    size = max(1, 2**22 // (log_evidence.shape[1] * log_evidence.shape[2]))
    for b in range(0, len(log_evidence), size):
        part = log_evidence[b : b + size]
        if isinstance(part, np.ndarray):
            largest = part.max(axis=2)  # NaN if a value is NaN
        else:
            largest = part.detach().amax(2).cpu().numpy()
        is_bad = ~np.isfinite(largest)
        if is_bad.any():
            sample, leaf = np.argwhere(is_bad)[0].tolist()
            raise ValueError(
                f"log_evidence[{first_sample + b + sample}, {leaf}]: largest value ="
                f" {float(largest[sample, leaf])}: expected a finite largest value, such as 0 for"
                " all symbols of a leaf about which nothing is known"
            )


def check_possible(log_p: np.ndarray, samples: np.ndarray | None = None) -> None:
    """ValueError if no string of the grammar can explain some evidence; `samples`: indices in
    the batch, to name them.
    """
    impossible = np.flatnonzero(log_p == -np.inf)
    if not len(impossible):
        return
    names = (impossible if samples is None else samples[impossible]).tolist()
    listed = ", ".join(map(str, names[:10]))
    if len(names) > 10:
        listed += ", ..."
    raise ValueError(
        f"log_evidence of sample(s) {listed} ({len(names)} in all): no string of this grammar has"
        " positive probability, so there is no posterior; check that the evidence (-inf) belongs to"
        " this grammar, or replace -inf by a large negative number"
    )


def is_tensor(values: object) -> bool:
    """Whether `values` is a torch tensor; torch is not imported."""
    torch = sys.modules.get("torch")  # a tensor can exist only if torch is loaded
    return torch is not None and isinstance(values, torch.Tensor)


def checked_evidence(rhm: Grammar, evidence: Evidence | LogEvidence) -> Evidence:
    """Evidence of checked shape, from log-evidence if it is not in one of the other forms of
    `Evidence` already.
    """
    if not isinstance(evidence, Evidence):
        return Evidence.of(floating_array(rhm, evidence))
    expected: tuple[int, ...] = (rhm.num_leaves, rhm.vocab_size)
    if evidence.kind == SYMBOLS:
        expected = (rhm.num_leaves,)
    shape = evidence.values.shape  # with another one, the kernels would read beyond the end
    sizes = ", ".join(map(str, expected))
    expect(shape[1:] == expected, "shape of noisy strings", shape, f"(batch, {sizes})")
    return evidence


def floating_array(rhm: Grammar, values: LogEvidence) -> np.ndarray:
    """Evidence as a numpy array of checked shape and type (at most float64), without a copy
    where possible.
    """
    if is_tensor(values):
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
        values = values.cpu().numpy()
    array = checked_array("log_evidence", values)
    check_shape(rhm, array.shape, array.dtype, array.dtype.kind == "f")
    native = array.dtype.newbyteorder("=")
    dtype = native if native.itemsize <= 8 else np.dtype(np.float64)
    return array.astype(dtype, copy=False)
