"""Exact inference in the Random Hierarchy Model by belief propagation (section 3 and appendix A of
arXiv:2402.16991).

Two backends compute the same numbers: compiled SIMD kernels (numba, numpy arrays on the CPU) and
log-space torch (any device with float64, differentiable).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from uturn.core.checks import checked_integer, expect
from uturn.core.evidence import Evidence
from uturn.core.memory import check_memory
from uturn.core.random import streams
from uturn.exact.grammar import Grammar
from uturn.exact.inference.beliefs import OUTPUTS, Beliefs, NotComputedError, entropy_of
from uturn.exact.inference.evidence import (
    LogEvidence,
    check_shape,
    check_values,
    checked_evidence,
    floating_array,
    is_tensor,
)

if TYPE_CHECKING:
    from uturn.exact.rhm import RandomHierarchyModel

__all__ = [
    "Beliefs",
    "NotComputedError",
    "infer",
    "mutual_information",
    "posterior_entropy",
    "prior_entropy",
    "sample_posterior",
]
_BACKENDS = ("auto", "numba", "torch")


def infer(
    rhm: Grammar,
    log_evidence: LogEvidence,
    backend: str = "auto",
    outputs: Sequence[str] = ("marginals",),
) -> Beliefs:
    """Exact beliefs about every node of the tree, given evidence about the leaves.

    Belief propagation is exact because the factor graph is a tree (Eq. 7, 8 and 16-19 of
    arXiv:2402.16991). Upward, `up[y] ~ sum over rules y -> (x_1, .., x_s) of p(rule) * prod_i
    up_i[x_i]`; downward, to child i, `down_i[x] ~ sum over rules with x_i = x of p(rule) * down[y] *
    prod_{j != i} up_j[x_j]`; marginal `~ up * down`.

    Parameters
    ----------
    rhm : RandomHierarchyModel, or HiddenMarkovModel
        The levels of a hidden Markov model are 0, its symbols, and 1, its hidden states; see
        `HiddenMarkovModel.infer`.
    log_evidence : array or tensor (batch, num_leaves, vocab_size)
        Natural log of p(observation at leaf i | symbol a), up to a constant per leaf; -inf is
        allowed. Messages are float64 for float64 evidence, and float32 for other floating point
        types.
    backend : "auto", "numba" or "torch"
        "auto" uses torch for tensors and numba for arrays; hidden Markov models are computed in
        numpy. With both backends, tensors give tensors (on their device) and arrays give arrays.
        Only torch is differentiable: the gradient of `log_evidence` is `marginals[0]`.
    outputs : any of "marginals", "upward", "downward", "log_evidence"
        Outputs to compute. Other outputs take no memory.

    Returns
    -------
    Beliefs
        The numbers of a sample do not depend on the rest of the batch; with numba they are
        bit-identical.
    """
    expect(backend in _BACKENDS, "backend", backend, f"one of {_BACKENDS}")
    wanted = (outputs,) if isinstance(outputs, str) else tuple(outputs)
    are_outputs = wanted and set(wanted) <= set(OUTPUTS)
    expect(are_outputs, "outputs", outputs, f"one or more of {OUTPUTS}")
    names = tuple(name for name in OUTPUTS if name in wanted)
    has_tensor = is_tensor(log_evidence)
    if rhm.only_in_numpy:
        fits = backend != "torch" and set(names) <= set(rhm.only_in_numpy)
        listed = " and ".join(map(repr, rhm.only_in_numpy))
        expected = f"{listed}, computed in numpy, for {rhm!r}"
        expect(fits, f"backend = {backend!r}, outputs", names, expected)
    elif backend == "torch" or (backend == "auto" and has_tensor):
        beliefs = _in_torch(cast("RandomHierarchyModel", rhm), log_evidence, names)
        return beliefs if has_tensor else _converted(beliefs, lambda tensor: tensor.numpy())
    beliefs = rhm.beliefs(checked_evidence(rhm, log_evidence), names)
    if not has_tensor:
        return beliefs
    import torch

    return _converted(beliefs, torch.from_numpy)


def _in_torch(
    rhm: RandomHierarchyModel, log_evidence: LogEvidence, names: tuple[str, ...]
) -> Beliefs:
    import torch

    from uturn.exact.inference.torch_backend import infer_torch

    values = log_evidence
    if not is_tensor(values):
        values = torch.from_numpy(_for_torch(rhm, values))
    check_shape(rhm, tuple(values.shape), values.dtype, values.is_floating_point())
    if values.dtype != torch.float64:
        values = values.float()
    check_values(values)
    return infer_torch(rhm, values, names)


def sample_posterior(
    rhm: Grammar,
    log_evidence: LogEvidence,
    seed: int | np.ndarray = 0,
    num_draws: int | np.ndarray | None = None,
) -> dict[int, np.ndarray]:
    """Draw whole trees from the posterior, given evidence about the leaves.

    The draws are exact (Mezard and Montanari 2009, ch. 14): after one upward pass, every node from
    the root down draws its rule with probability `~ p(rule) * prod_i up_i[x_i]`.

    `rhm`, `log_evidence`: as in `infer`; tensors are copied to the CPU. `seed`: with an integer,
    sample b uses the key `uturn.random.keys(seed, b)`; a uint64 array (batch,) holds one key for
    each sample. Every random number is a function of (key, draw, node) only. `num_draws`:
    independent draws of every sample, 0 .. num_draws - 1, or those with the numbers of a uint64
    array (draws,); draw 0 equals the draw of `num_draws=None`. Returns {tree_level: int64 numpy
    array (batch, nodes)}, or (draws, batch, nodes) if `num_draws` is given.
    """
    evidence = checked_evidence(rhm, log_evidence)
    numbers: np.ndarray | None = None
    if isinstance(num_draws, np.ndarray) and num_draws.dtype == np.uint64 and num_draws.ndim == 1:
        numbers = np.ascontiguousarray(num_draws)
        count = len(numbers)
    else:
        count = 1 if num_draws is None else checked_integer("num_draws", num_draws, 0)
    size = 16 * count * len(evidence) * rhm.num_leaves
    check_memory(f"num_draws = {count}", size, "draw fewer, or fewer samples at a time")
    if numbers is None:
        numbers = np.arange(count, dtype=np.uint64)
    trees = rhm.posterior_draws(evidence, streams(seed, len(evidence)), numbers)
    if num_draws is None:
        return {level: nodes[0] for level, nodes in trees.items()}
    return trees


def prior_entropy(rhm: RandomHierarchyModel) -> dict[int, float]:
    """Joint entropy of all nodes of each tree level without any observation, {tree_level: nats}.

    Every level adds, for each node, the entropy of its rule averaged over its symbol to that of the
    class, because the string of a level has one parse. With uniform probabilities `H(X_0) = log n +
    (s**L - 1)/(s - 1) * log m`.
    """
    L = rhm.depth
    entropy = {L: float(entropy_of(rhm.class_probabilities))}
    counts = rhm.class_probabilities  # expected number of nodes of the level with each symbol
    for level in range(L, 0, -1):
        p = rhm.rule_probabilities[level]
        entropy[level - 1] = entropy[level] + float(counts @ entropy_of(p))
        uses = counts[:, None] * p  # expected number of uses of each rule
        counts = np.zeros(rhm.vocab_size)
        np.add.at(counts, rhm.rules[level], uses[:, :, None])
    return {level: entropy[level] for level in range(L + 1)}


def _for_torch(rhm: Grammar, log_evidence: LogEvidence) -> np.ndarray:
    """Evidence of checked shape as torch takes it: contiguous and writable."""
    return np.require(floating_array(rhm, log_evidence), requirements=["C", "W"])


def posterior_entropy(
    rhm: RandomHierarchyModel, log_evidence: LogEvidence
) -> dict[int, np.ndarray]:
    """Joint entropy of all nodes of each tree level given the observation, {tree_level: (batch,)}
    in nats; errors as in `infer`.

    `H(X_L | obs)` is the entropy of the root marginal, and `H(X_{l-1} | obs) = H(X_l | obs) + sum
    over nodes of sum_y marginal[y] * H(rule | y, obs)`, with `p(rule | y, obs) ~ p(rule) prod_i
    up_i[x_i]`. The error is absolute, about 1e-15 nats a node.
    """
    from uturn.exact.inference.torch_backend import entropies

    evidence = _for_torch(rhm, log_evidence)
    check_values(evidence)
    return entropies(rhm, evidence)


def mutual_information(
    rhm: RandomHierarchyModel, log_evidence: LogEvidence
) -> dict[int, np.ndarray]:
    """Information of each observation about all nodes of a tree level, `H(X_l) - H(X_l | obs)`,
    {tree_level: (batch,)} in nats.

    Its mean over noisy strings of the grammar is the mutual information; the value of a single
    sample can be negative.
    """
    before = prior_entropy(rhm)
    after = posterior_entropy(rhm, log_evidence)
    return {level: before[level] - after[level] for level in after}


def _converted(beliefs: Beliefs, convert: Callable[[Any], Any]) -> Beliefs:
    """Beliefs whose arrays or tensors are converted."""
    computed: dict[str, object] = {}
    for name in beliefs.outputs:
        output = getattr(beliefs, name)
        if isinstance(output, dict):
            computed[name] = {level: convert(values) for level, values in output.items()}
        else:
            computed[name] = convert(output)
    return Beliefs(**computed)
