"""Exact belief propagation in torch, in log space: differentiable, on any device with float64; the reference implementation."""

from __future__ import annotations

from typing import Any

import torch

from uturn.exact.inference.beliefs import Beliefs
from uturn.exact.inference.evidence import impossible_evidence

_CHUNK = 2**25  # terms (sample, node, rule) held at a time


def infer_torch(rhm: Any, log_evidence: torch.Tensor, outputs: tuple[str, ...]) -> Beliefs:
    """`infer` for a checked tensor (batch, leaves, v), float32 or float64; messages are of the same type.

    The computation is in float64: with contradictory evidence the logarithms of messages are in the thousands, and float32 would
    resolve only three digits of their differences.
    """
    s, L = rhm.branching, rhm.depth
    terms = max(rhm.num_nodes(level) * rhm.rules[level].shape[0] * rhm.rules[level].shape[1] for level in range(1, L + 1))
    size = max(1, _CHUNK // (terms * s))
    parts = [_infer_chunk(rhm, log_evidence[b : b + size], outputs) for b in range(0, max(1, len(log_evidence)), size)]
    log_p = torch.cat([part["log_evidence"][None] for part in parts], dim=1)[0]
    impossible = torch.nonzero(log_p.detach() == -torch.inf).flatten().tolist()
    if impossible:
        raise impossible_evidence(impossible)
    computed: dict[str, Any] = {"log_evidence": log_p}
    for name in outputs:
        if name != "log_evidence":
            computed[name] = {level: torch.cat([part[name][level] for part in parts]) for level in range(L + 1)}
    return Beliefs(**{name: computed[name] for name in outputs})


def _infer_chunk(rhm: Any, log_evidence: torch.Tensor, outputs: tuple[str, ...]) -> dict[str, Any]:
    s, L = rhm.branching, rhm.depth
    device, dtype = log_evidence.device, torch.float64
    batch = log_evidence.shape[0]
    rules = {level: torch.tensor(rhm.rules[level].reshape(-1, s), device=device) for level in rhm.rules}
    log_rule = {
        level: torch.tensor(p.reshape(-1), device=device, dtype=dtype).log() for level, p in rhm.rule_probabilities.items()
    }
    log_class = torch.tensor(rhm.class_probabilities, device=device, dtype=dtype).log()

    def children(level: int) -> list[torch.Tensor]:  # child i's log-message at every rule: (batch, nodes, rules)
        below = up[level - 1].unflatten(1, (rhm.num_nodes(level), s))
        return [below[:, :, i, :].index_select(-1, rules[level][:, i]) for i in range(s)]

    up = {}
    up[0], total = _normalised(log_evidence.to(dtype))
    log_p = total.sum(1)
    for level in range(1, L + 1):
        n, m = rhm.rules[level].shape[:2]
        terms = sum(children(level)) + log_rule[level]
        message = _logsumexp(terms.unflatten(-1, (n, m)))
        if level == L:  # the last normaliser includes the class prior
            log_p = log_p + _logsumexp(message + log_class)[:, 0]
        up[level], total = _normalised(message)
        if level < L:
            log_p = log_p + total.sum(1)
    out: dict[str, Any] = {}
    if "upward" in outputs:
        out["upward"] = {level: message.exp() for level, message in up.items()}
    if "marginals" in outputs or "downward" in outputs:
        down = {L: log_class.expand(batch, 1, -1)}
        for level in range(L, 0, -1):
            parts = children(level)
            m = rhm.rules[level].shape[1]
            above = down[level].repeat_interleave(m, dim=-1) + log_rule[level]
            messages = []
            for i in range(s):
                terms = above + sum(parts[j] for j in range(s) if j != i)
                messages.append(_logsumexp_by(terms, rules[level][:, i], rhm.vocab_size))
            down[level - 1] = _normalised(torch.stack(messages, dim=2).flatten(1, 2))[0]
        if "downward" in outputs:
            out["downward"] = {level: down[level].exp() for level in range(L + 1)}
        if "marginals" in outputs:
            out["marginals"] = {level: _normalised(up[level] + down[level])[0].exp() for level in range(L + 1)}
    result_dtype = log_evidence.dtype
    return {
        "log_evidence": log_p,
        **{name: {level: p.to(result_dtype) for level, p in levels.items()} for name, levels in out.items()},
    }


def _logsumexp(terms: torch.Tensor) -> torch.Tensor:
    """logsumexp over the last axis with gradient 0, not NaN, where all terms are -inf."""
    top = terms.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    total = (terms - top).exp().sum(-1)
    empty = total == 0
    logarithm = torch.where(empty, torch.ones_like(total), total).log() + top[..., 0]
    return torch.where(empty, torch.full_like(logarithm, -torch.inf), logarithm)


def _normalised(log_message: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-messages normalised to total probability 1, and the logs of their former totals."""
    total = _logsumexp(log_message)
    shift = torch.where(total == -torch.inf, torch.zeros_like(total), total)
    return log_message - shift[..., None], total


def _logsumexp_by(terms: torch.Tensor, symbol: torch.Tensor, v: int) -> torch.Tensor:
    """logsumexp over the rules with the same child symbol: (..., rules) -> (..., v).

    It gathers through a padded index (v, most rules of a symbol), which is differentiable on every device.
    """
    order = torch.argsort(symbol, stable=True)
    counts = torch.bincount(symbol, minlength=v)
    width = int(counts.max())
    column = torch.arange(width, device=symbol.device)
    index = (counts.cumsum(0) - counts)[:, None] + column
    padded = torch.cat([order, order.new_zeros(width)])[index.clamp(max=len(order))]
    picked = terms[..., padded]
    return _logsumexp(picked.masked_fill(column >= counts[:, None], -torch.inf))
