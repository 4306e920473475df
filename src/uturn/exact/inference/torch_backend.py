"""Exact belief propagation in torch, in log space: differentiable, on any device with float64;
the reference implementation.
"""

from __future__ import annotations

import numpy as np
import torch

from uturn.core.random import choices, streams, uniforms
from uturn.exact.grammar import RuleGrammar
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import check_possible

Levels = dict[int, np.ndarray]
Messages = dict[int, torch.Tensor]
"""A message at every node, {tree_level: (batch, nodes, symbols)}."""

_CHUNK = 2**25
"""Terms (sample, node, rule) held at a time."""


def infer_torch(
    rhm: RuleGrammar,
    log_evidence: torch.Tensor,
    outputs: tuple[str, ...],
    samples: np.ndarray | None = None,
) -> Beliefs:
    """`infer` for a checked tensor (batch, leaves, v) of any precision, in float64, as
    logarithms are in the thousands.
    """
    totals = []
    parts = []
    for part in _parts(rhm, log_evidence):
        tree = _Tree(rhm, part)
        totals.append(tree.log_p)
        parts.append(tree.outputs(outputs))
    log_p = torch.cat(totals)
    check_possible(log_p.detach().cpu().numpy(), samples)
    computed: dict[str, Messages | torch.Tensor] = {}
    for name in outputs:
        if name == "log_evidence":
            computed[name] = log_p
        else:
            computed[name] = _joined([part[name] for part in parts])
    return Beliefs(**computed)


def _joined(parts: list[Messages]) -> Messages:
    """The messages of a batch from those of its parts."""
    return {level: torch.cat([part[level] for part in parts]) for level in sorted(parts[0])}


def sample_torch(
    rhm: RuleGrammar,
    log_evidence: np.ndarray,
    keys: np.ndarray,
    numbers: np.ndarray,
    samples: np.ndarray | None,
) -> Levels:
    """Posterior draws {tree_level: int64 (draws, batch, nodes)} of an array; random numbers as
    in kernels.py.
    """
    out = {}
    for level in range(rhm.depth + 1):
        shape = (len(numbers), len(log_evidence), rhm.num_nodes(level))
        out[level] = np.empty(shape, np.int64)
    totals = []
    first = 0
    for part in _parts(rhm, torch.from_numpy(log_evidence)):
        tree = _Tree(rhm, part)
        rows = slice(first, first + len(part))
        for k, number in enumerate(numbers):
            for level, nodes in tree.draw(keys[rows], number).items():
                out[level][k, rows] = nodes
        totals.append(tree.log_p)
        first = rows.stop
    check_possible(torch.cat(totals).numpy(), samples)
    return out


def entropies(rhm: RuleGrammar, log_evidence: np.ndarray) -> Levels:
    """Joint entropy of all nodes of each level given the evidence, {tree_level: (batch,)} in
    nats.
    """
    parts = []
    totals = []
    for part in _parts(rhm, torch.from_numpy(log_evidence)):
        tree = _Tree(rhm, part)
        parts.append(tree.entropies())
        totals.append(tree.log_p)
    check_possible(torch.cat(totals).numpy())
    return {level: values.numpy() for level, values in _joined(parts).items()}


def _parts(rhm: RuleGrammar, values: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Parts of a batch whose terms fit into memory."""
    if not len(values):
        return (values,)
    terms = max(rhm.num_nodes(level) * rhm.rules[level].size for level in rhm.rules)
    parts: tuple[torch.Tensor, ...] = values.split(max(1, _CHUNK // terms))
    return parts


class _Tree:
    """Logarithms of messages, each normalised, of a part of a batch; `log_p`: the log-evidence."""

    def __init__(self, rhm: RuleGrammar, log_evidence: torch.Tensor) -> None:
        def on_device(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, device=log_evidence.device)

        self.rhm = rhm
        self.dtype = log_evidence.dtype
        self.rules = {}
        self.log_rule = {}
        for level, table in rhm.rules.items():
            self.rules[level] = on_device(table.reshape(-1, rhm.branching))
            self.log_rule[level] = on_device(rhm.rule_probabilities[level].reshape(-1)).log()
        self.log_class = on_device(rhm.class_probabilities).log()
        self.up = {}
        self.up[0], total = _normalised(log_evidence.double())
        self.log_p = total.sum(1)
        for level in range(1, rhm.depth + 1):
            message = _logsumexp(self._by_symbol(level))
            if level == rhm.depth:  # the last normaliser includes the class prior
                self.log_p = self.log_p + _logsumexp(message + self.log_class)[:, 0]
            self.up[level], total = _normalised(message)
            if level < rhm.depth:
                self.log_p = self.log_p + total.sum(1)

    def _children(self, level: int) -> list[torch.Tensor]:
        """Log-message of child i at every rule, (batch, nodes, rules), for each i."""
        s = self.rhm.branching
        below = self.up[level - 1].unflatten(1, (self.rhm.num_nodes(level), s))
        rules = self.rules[level]
        return [below[:, :, i, :].index_select(-1, rules[:, i]) for i in range(s)]

    def _by_symbol(self, level: int) -> torch.Tensor:
        """log p(rule) prod_i up_i[x_i], (batch, nodes, symbols, rules of a symbol)."""
        terms = sum(self._children(level)) + self.log_rule[level]
        symbols, multiplicity, _ = self.rhm.rules[level].shape
        by_symbol: torch.Tensor = terms.unflatten(-1, (symbols, multiplicity))
        return by_symbol

    def down(self) -> dict[int, torch.Tensor]:
        """Logarithms of the downward messages."""
        s = self.rhm.branching
        L = self.rhm.depth
        down = {L: self.log_class.expand(len(self.log_p), 1, -1)}
        for level in range(L, 0, -1):
            children = self._children(level)
            rules = self.rules[level]
            multiplicity = self.rhm.rules[level].shape[1]
            above = down[level].repeat_interleave(multiplicity, dim=-1) + self.log_rule[level]
            messages = []
            for i in range(s):
                siblings = sum(children[j] for j in range(s) if j != i)
                message = _logsumexp_by(above + siblings, rules[:, i], self.rhm.vocab_size)
                messages.append(message)
            down[level - 1] = _normalised(torch.stack(messages, dim=2).flatten(1, 2))[0]
        return down

    def outputs(self, names: tuple[str, ...]) -> dict[str, Messages]:
        """The messages of the given names, in the type of the evidence."""
        logs = {"upward": self.up}
        if "marginals" in names or "downward" in names:
            down = self.down()
            logs["downward"] = down
            logs["marginals"] = {k: _normalised(self.up[k] + down[k])[0] for k in down}
        computed = {}
        for name, levels in logs.items():
            if name in names:
                computed[name] = {k: log.exp().to(self.dtype) for k, log in levels.items()}
        return computed

    def draw(self, keys: np.ndarray, number: np.uint64) -> Levels:
        """One posterior draw of each sample, {tree_level: int64 (batch, nodes)}, from the root
        down.
        """
        rhm = self.rhm
        s = rhm.branching
        above_leaves = sum(rhm.num_nodes(level) for level in rhm.rules)
        u = uniforms(streams(keys, len(keys), number), 1 + above_leaves)
        root = self.up[rhm.depth][:, 0].numpy() + self.log_class.numpy()
        nodes = {rhm.depth: choices(_shares(root), u[:, 0])[:, None]}
        used = 1
        for level in range(rhm.depth, 0, -1):
            parents = nodes[level]
            rules = rhm.rules[level][parents]
            below = self.up[level - 1].numpy().reshape(*parents.shape, s, 1, -1)
            log_rule = self.log_rule[level].numpy().reshape(rhm.rules[level].shape[:2])
            terms = log_rule[parents]
            for i in range(s):
                of_child = np.take_along_axis(below[:, :, i], rules[..., i, None], axis=3)
                terms = terms + of_child[..., 0]
            chosen = choices(_shares(terms), u[:, used : used + parents.shape[1]])
            children = np.take_along_axis(rules, chosen[..., None, None], axis=2)
            nodes[level - 1] = children.reshape(len(keys), -1)
            used += parents.shape[1]
        return nodes

    def entropies(self) -> dict[int, torch.Tensor]:
        """Entropy of the class and, added up from above, of the rule of each node given its
        symbol.
        """
        L = self.rhm.depth
        marginals = {}
        for level, down in self.down().items():
            marginals[level] = _normalised(self.up[level] + down)[0].exp()
        found = {L: torch.special.entr(marginals[L]).sum((1, 2))}
        for level in range(L, 0, -1):
            terms = self._by_symbol(level)
            share = (terms - _finite(_logsumexp(terms))[..., None]).exp()
            of_rules = torch.special.entr(share).sum(-1)
            found[level - 1] = found[level] + (marginals[level] * of_rules).sum((1, 2))
        return found


def _shares(logs: np.ndarray) -> np.ndarray:
    """exp(logs) up to a factor, along the last axis; NaN where all logs are -inf."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.exp(logs - logs.max(axis=-1, keepdims=True)))


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values == -torch.inf, torch.zeros_like(values), values)


def _logsumexp(terms: torch.Tensor) -> torch.Tensor:
    """logsumexp over the last axis with gradient 0, not NaN, where all terms are -inf."""
    largest = _finite(terms.detach().amax(-1, keepdim=True))
    total = (terms - largest).exp().sum(-1)
    is_empty = total == 0
    logarithm = torch.where(is_empty, torch.ones_like(total), total).log() + largest[..., 0]
    return torch.where(is_empty, torch.full_like(logarithm, -torch.inf), logarithm)


def _normalised(log_message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-messages normalised to total probability 1, and the logs of their former totals."""
    # First, because the rounding of a large number hides differences.
    largest = _finite(log_message.detach().amax(-1, keepdim=True))
    total = _logsumexp(log_message - largest)
    return log_message - largest - _finite(total)[..., None], total + largest[..., 0]


def _logsumexp_by(terms: torch.Tensor, symbol: torch.Tensor, v: int) -> torch.Tensor:
    """logsumexp over the rules with the same child symbol, (..., rules) -> (..., v), by a padded
    index: differentiable.
    """
    order = torch.argsort(symbol, stable=True)
    counts = torch.bincount(symbol, minlength=v)
    column = torch.arange(int(counts.max()), device=symbol.device)
    index = (counts.cumsum(0) - counts)[:, None] + column
    padded = torch.cat([order, order.new_zeros(len(column))])[index.clamp(max=len(order))]
    return _logsumexp(terms[..., padded].masked_fill(column >= counts[:, None], -torch.inf))
