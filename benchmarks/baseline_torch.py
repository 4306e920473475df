"""The fixed baseline of the inference benchmark: belief propagation in eager float32 torch, written for speed.

Linear space, so that nothing but multiplications and additions is left; the batch innermost, so that gathering a symbol
copies contiguous rows; messages normalised at every node. It has no protection against underflow. Do not improve it: numbers
of different versions are compared through it.
"""

from __future__ import annotations

import torch


class TorchBaseline:
    """All marginals from log-evidence, for a grammar with uniform rule probabilities, in chunks of the batch."""

    def __init__(self, rhm, chunk: int = 64, symbol_first: bool = True) -> None:
        self.s, self.L, self.chunk = rhm.branching, rhm.depth, chunk
        self.axis = 0 if symbol_first else 1  # of the symbol: messages are (symbol, node, batch) or (node, symbol, batch)
        self.rules = {}
        for level, table in rhm.rules.items():
            flat = torch.from_numpy(table.reshape(-1, self.s).copy())
            parent = torch.arange(table.shape[0]).repeat_interleave(table.shape[1])
            self.rules[level] = (table.shape[0], table.shape[1], parent, [flat[:, i].contiguous() for i in range(self.s)])
        self.v = rhm.vocab_size

    def __call__(self, log_evidence: torch.Tensor) -> dict[int, torch.Tensor]:
        """{tree_level: marginals (batch, nodes, symbols)}, as `uturn.infer` gives them."""
        turn = (2, 1, 0) if self.axis == 0 else (2, 0, 1)
        out: dict[int, torch.Tensor] = {}
        with torch.inference_mode():
            for b in range(0, len(log_evidence), self.chunk):
                for level, marginals in self._chunk(log_evidence[b : b + self.chunk]).items():
                    turned = marginals.permute(*turn)
                    whole = out.setdefault(level, torch.empty(len(log_evidence), *turned.shape[1:]))
                    whole[b : b + self.chunk].copy_(turned)
        return out

    def _children(self, message: torch.Tensor) -> list[torch.Tensor]:
        if self.axis == 0:
            return [message[:, i :: self.s] for i in range(self.s)]
        return [message[i :: self.s] for i in range(self.s)]

    def _chunk(self, log_evidence: torch.Tensor) -> dict[int, torch.Tensor]:
        axis, s, L = self.axis, self.s, self.L
        evidence = torch.softmax(log_evidence, dim=2)
        up = {0: evidence.permute(2, 1, 0).contiguous() if axis == 0 else evidence.permute(1, 2, 0).contiguous()}
        for level in range(1, L + 1):
            n, m, _, columns = self.rules[level]
            terms = None
            for child, column in zip(self._children(up[level - 1]), columns, strict=True):
                picked = child.index_select(axis, column)
                terms = picked if terms is None else terms.mul_(picked)
            message = terms.unflatten(axis, (n, m)).sum(axis + 1)
            up[level] = message.div_(message.sum(axis, keepdim=True))
        down = torch.full_like(up[L], 1 / up[L].shape[axis])
        marginals = {L: up[L]}
        for level in range(L, 0, -1):
            _, _, parent, columns = self.rules[level]
            children = self._children(up[level - 1])
            above = down.index_select(axis, parent)
            picked = [child.index_select(axis, column) for child, column in zip(children, columns, strict=True)]
            down = torch.empty_like(up[level - 1])
            for i, part in enumerate(self._children(down)):
                terms = above
                for j in range(s):
                    if j != i:
                        terms = terms * picked[j]
                shape = list(children[i].shape)
                message = torch.zeros(shape).index_add_(axis, columns[i], terms)
                part.copy_(message.div_(message.sum(axis, keepdim=True)))
            product = up[level - 1] * down
            marginals[level - 1] = product.div_(product.sum(axis, keepdim=True))
        return marginals
