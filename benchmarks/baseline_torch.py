"""The fixed baselines of the inference benchmark: belief propagation in eager float32 torch.

Linear space, so that nothing but multiplications and additions is left; the batch innermost, so
that gathering a symbol copies contiguous rows; messages normalised at every node; no protection
against underflow. `PlainBaseline` is what one writes down: messages [node][symbol][batch], gather,
multiply, sum. `TunedBaseline` is the same with memory reused in place, gathers shared, and the
layout [symbol][node][batch] as an alternative. Do not improve them: numbers of different versions
are compared through them.
"""

from __future__ import annotations

import torch


class PlainBaseline:
    """All marginals from log-evidence, for a grammar with uniform rule probabilities, in chunks
    of the batch.
    """

    def __init__(self, rhm, chunk: int) -> None:
        self.s, self.L, self.chunk = rhm.branching, rhm.depth, chunk
        self.rules = {level: torch.from_numpy(table.copy()) for level, table in rhm.rules.items()}

    def __call__(self, log_evidence: torch.Tensor) -> dict[int, torch.Tensor]:
        """{tree_level: marginals (batch, nodes, symbols)}, as `uturn.infer` gives them."""
        with torch.inference_mode():
            parts = [
                self._chunk(log_evidence[b : b + self.chunk])
                for b in range(0, len(log_evidence), self.chunk)
            ]
            return {level: torch.cat([part[level] for part in parts]) for level in parts[0]}

    def _gathered(self, message: torch.Tensor, level: int) -> list[torch.Tensor]:
        """For each child, its message at the symbol of every rule: (nodes, rules, batch)."""
        children = message.unflatten(0, (-1, self.s))
        return [children[:, i][:, self.rules[level][:, :, i].reshape(-1)] for i in range(self.s)]

    def _chunk(self, log_evidence: torch.Tensor) -> dict[int, torch.Tensor]:
        s, L = self.s, self.L
        up = {0: log_evidence.softmax(2).permute(1, 2, 0).contiguous()}
        for level in range(1, L + 1):
            n, m, _ = self.rules[level].shape
            terms = torch.stack(self._gathered(up[level - 1], level)).prod(0) if s > 2 else None
            if terms is None:
                first, second = self._gathered(up[level - 1], level)
                terms = first * second
            message = terms.unflatten(1, (n, m)).sum(2)
            up[level] = message / message.sum(1, keepdim=True)
        down = torch.full_like(up[L], 1 / up[L].shape[1])
        out = {L: up[L].permute(2, 0, 1).contiguous()}
        for level in range(L, 0, -1):
            m = self.rules[level].shape[1]
            above = down.repeat_interleave(m, 1)
            gathered, messages = self._gathered(up[level - 1], level), []
            for i in range(s):
                terms = above
                for j in range(s):
                    if j != i:
                        terms = terms * gathered[j]
                target = torch.zeros(terms.shape[0], up[level - 1].shape[1], terms.shape[2])
                message = target.index_add(1, self.rules[level][:, :, i].reshape(-1), terms)
                messages.append(message / message.sum(1, keepdim=True))
            down = torch.stack(messages, 1).flatten(0, 1)
            product = up[level - 1] * down
            out[level - 1] = (product / product.sum(1, keepdim=True)).permute(2, 0, 1).contiguous()
        return out


class TunedBaseline:
    """All marginals from log-evidence, for a grammar with uniform rule probabilities, in chunks
    of the batch.
    """

    def __init__(self, rhm, chunk: int = 64, symbol_first: bool = True) -> None:
        self.s, self.L, self.chunk = rhm.branching, rhm.depth, chunk
        # Of the symbol: messages are (symbol, node, batch) or (node, symbol, batch).
        self.axis = 0 if symbol_first else 1
        self.rules = {}
        for level, table in rhm.rules.items():
            flat = torch.from_numpy(table.reshape(-1, self.s).copy())
            parent = torch.arange(table.shape[0]).repeat_interleave(table.shape[1])
            self.rules[level] = (
                table.shape[0],
                table.shape[1],
                parent,
                [flat[:, i].contiguous() for i in range(self.s)],
            )
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
        up = {
            0: (
                evidence.permute(2, 1, 0).contiguous()
                if axis == 0
                else evidence.permute(1, 2, 0).contiguous()
            )
        }
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
            picked = [
                child.index_select(axis, column)
                for child, column in zip(children, columns, strict=True)
            ]
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
