"""Exact belief propagation in torch, in log space: differentiable, on any device with float64;
the reference implementation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from uturn.core.random import choices, streams, uniforms
from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import check_possible

Levels = dict[int, np.ndarray]

_CHUNK = 2**25  # terms (sample, node, rule) held at a time


def infer_torch(
    rhm: Any, log_evidence: torch.Tensor, outputs: tuple[str, ...], samples: Any = None
) -> Beliefs:
    """`infer` for a checked tensor (batch, leaves, v) of any precision, in float64, as
    logarithms are in the thousands.
    """
    parts = [_Tree(rhm, part).outputs(outputs) for part in _parts(rhm, log_evidence)]
    log_p = torch.cat([part["log_evidence"] for part in parts])
    check_possible(log_p.detach().cpu().numpy(), samples)
    computed: dict[str, Any] = {"log_evidence": log_p}
    for name in set(outputs) - {"log_evidence"}:
        computed[name] = {
            level: torch.cat([part[name][level] for part in parts])
            for level in range(rhm.depth + 1)
        }
    return Beliefs(**{name: computed[name] for name in outputs})


def sample_torch(
    rhm: Any, log_evidence: np.ndarray, keys: np.ndarray, numbers: np.ndarray, samples: Any
) -> Levels:
    """Posterior draws {tree_level: int64 (draws, batch, nodes)} of an array; random numbers as
    in kernels.py.
    """
    shape, first, totals = (len(numbers), len(log_evidence)), 0, []
    out = {
        level: np.empty((*shape, rhm.num_nodes(level)), np.int64) for level in range(rhm.depth + 1)
    }
    for part in _parts(rhm, torch.from_numpy(log_evidence)):
        tree, rows = _Tree(rhm, part), slice(first, first + len(part))
        for k, number in enumerate(numbers):
            for level, nodes in tree.draw(keys[rows], number).items():
                out[level][k, rows] = nodes
        totals.append(tree.log_p)
        first = rows.stop
    check_possible(torch.cat(totals).numpy(), samples)
    return out


def entropies(rhm: Any, log_evidence: np.ndarray) -> Levels:
    """Joint entropy of all nodes of each level given the evidence, {tree_level: (batch,)} in
    nats.
    """
    found, totals = [], []
    for part in _parts(rhm, torch.from_numpy(log_evidence)):
        tree = _Tree(rhm, part)
        found.append(tree.entropies())
        totals.append(tree.log_p)
    check_possible(torch.cat(totals).numpy())
    return {
        level: torch.cat([part[level] for part in found]).numpy() for level in range(rhm.depth + 1)
    }


def _parts(rhm: Any, values: torch.Tensor) -> Any:
    terms = max(rhm.num_nodes(level) * rhm.rules[level].size for level in rhm.rules)
    return values.split(max(1, _CHUNK // terms)) if len(values) else [values]


class _Tree:
    """Logarithms of messages, each normalised, of a part of a batch; `log_p`: the log-evidence."""

    def __init__(self, rhm: Any, log_evidence: torch.Tensor) -> None:
        def on_device(values: Any) -> torch.Tensor:
            return torch.tensor(values, device=log_evidence.device)

        self.rhm, self.dtype = rhm, log_evidence.dtype
        self.rules = {
            level: on_device(table.reshape(-1, rhm.branching)) for level, table in rhm.rules.items()
        }
        self.log_rule = {
            level: on_device(p.reshape(-1)).log() for level, p in rhm.rule_probabilities.items()
        }
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
        below = self.up[level - 1].unflatten(1, (self.rhm.num_nodes(level), self.rhm.branching))
        return [
            below[:, :, i, :].index_select(-1, self.rules[level][:, i])
            for i in range(self.rhm.branching)
        ]

    def _by_symbol(self, level: int) -> torch.Tensor:
        """log p(rule) prod_i up_i[x_i], (batch, nodes, symbols, rules of a symbol)."""
        return (sum(self._children(level)) + self.log_rule[level]).unflatten(
            -1, self.rhm.rules[level].shape[:2]
        )

    def down(self) -> dict[int, torch.Tensor]:
        """Logarithms of the downward messages."""
        s, L = self.rhm.branching, self.rhm.depth
        down = {L: self.log_class.expand(len(self.log_p), 1, -1)}
        for level in range(L, 0, -1):
            parts, symbols = self._children(level), self.rules[level]
            above = (
                down[level].repeat_interleave(self.rhm.rules[level].shape[1], dim=-1)
                + self.log_rule[level]
            )
            others = [above + sum(parts[j] for j in range(s) if j != i) for i in range(s)]
            messages = [
                _logsumexp_by(terms, symbols[:, i], self.rhm.vocab_size)
                for i, terms in enumerate(others)
            ]
            down[level - 1] = _normalised(torch.stack(messages, dim=2).flatten(1, 2))[0]
        return down

    def outputs(self, names: tuple[str, ...]) -> dict[str, Any]:
        """The log-evidence, and the messages of the given names, in the type of the evidence."""
        down = self.down() if "marginals" in names or "downward" in names else {}
        logs = {
            "upward": self.up,
            "downward": down,
            "marginals": {k: _normalised(self.up[k] + down[k])[0] for k in down},
        }
        messages = {name: logs[name] for name in logs if name in names}
        of_levels = {
            name: {k: x.exp().to(self.dtype) for k, x in levels.items()}
            for name, levels in messages.items()
        }
        return {"log_evidence": self.log_p, **of_levels}

    def draw(self, keys: np.ndarray, number: np.uint64) -> Levels:
        """One posterior draw of each sample, {tree_level: int64 (batch, nodes)}, from the root
        down.
        """
        rhm, s = self.rhm, self.rhm.branching
        u = uniforms(
            streams(keys, len(keys), number), 1 + sum(rhm.num_nodes(level) for level in rhm.rules)
        )
        root = self.up[rhm.depth][:, 0].numpy() + self.log_class.numpy()
        nodes, used = {rhm.depth: choices(_shares(root), u[:, 0])[:, None]}, 1
        for level in range(rhm.depth, 0, -1):
            parents = nodes[level]
            rules, below = (
                rhm.rules[level][parents],
                self.up[level - 1].numpy().reshape(*parents.shape, s, 1, -1),
            )
            terms = self.log_rule[level].numpy().reshape(rhm.rules[level].shape[:2])[parents]
            for i in range(s):
                terms = (
                    terms + np.take_along_axis(below[:, :, i], rules[..., i, None], axis=3)[..., 0]
                )
            chosen = choices(_shares(terms), u[:, used : used + parents.shape[1]])
            nodes[level - 1] = np.take_along_axis(rules, chosen[..., None, None], axis=2).reshape(
                len(keys), -1
            )
            used += parents.shape[1]
        return nodes

    def entropies(self) -> dict[int, torch.Tensor]:
        """Entropy of the class and, added up from above, of the rule of each node given its
        symbol.
        """
        down, L = self.down(), self.rhm.depth
        marginals = {level: _normalised(self.up[level] + down[level])[0].exp() for level in down}
        found = {L: torch.special.entr(marginals[L]).sum((1, 2))}
        for level in range(L, 0, -1):
            terms = self._by_symbol(level)
            share = (terms - _finite(_logsumexp(terms))[..., None]).exp()
            found[level - 1] = found[level] + (
                marginals[level] * torch.special.entr(share).sum(-1)
            ).sum((1, 2))
        return found


def _shares(logs: np.ndarray) -> np.ndarray:
    """exp(logs) up to a factor, along the last axis; NaN where all logs are -inf."""
    with np.errstate(invalid="ignore"):
        return np.exp(logs - logs.max(axis=-1, keepdims=True))


def _finite(values: torch.Tensor) -> torch.Tensor:
    return torch.where(values == -torch.inf, torch.zeros_like(values), values)


def _logsumexp(terms: torch.Tensor) -> torch.Tensor:
    """logsumexp over the last axis with gradient 0, not NaN, where all terms are -inf."""
    top = _finite(terms.detach().amax(-1, keepdim=True))
    total = (terms - top).exp().sum(-1)
    empty = total == 0
    logarithm = torch.where(empty, torch.ones_like(total), total).log() + top[..., 0]
    return torch.where(empty, torch.full_like(logarithm, -torch.inf), logarithm)


def _normalised(log_message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-messages normalised to total probability 1, and the logs of their former totals."""
    # First, because the rounding of a large number hides differences.
    top = _finite(log_message.detach().amax(-1, keepdim=True))
    rest = _logsumexp(log_message - top)
    return log_message - top - _finite(rest)[..., None], rest + top[..., 0]


def _logsumexp_by(terms: torch.Tensor, symbol: torch.Tensor, v: int) -> torch.Tensor:
    """logsumexp over the rules with the same child symbol, (..., rules) -> (..., v), by a padded
    index: differentiable.
    """
    order, counts = torch.argsort(symbol, stable=True), torch.bincount(symbol, minlength=v)
    column = torch.arange(int(counts.max()), device=symbol.device)
    index = (counts.cumsum(0) - counts)[:, None] + column
    padded = torch.cat([order, order.new_zeros(len(column))])[index.clamp(max=len(order))]
    return _logsumexp(terms[..., padded].masked_fill(column >= counts[:, None], -torch.inf))
