"""The result of exact inference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from uturn.core.display import bar, page, table

OUTPUTS = ("marginals", "upward", "downward", "log_evidence")
_MOST_NUMBERS = 2**22
"""Numbers of which means are shown."""


class NotComputedError(AttributeError, ValueError):
    """Raised when an output of `infer` is read that was not requested."""


class Beliefs:
    """The messages, marginals and log-evidence that were requested in a call of `infer`; reading
    another is a NotComputedError.
    """

    # Arrays, or tensors.
    marginals: dict[int, Any]
    """{tree_level: (batch, nodes, symbols)}: posterior probability of every symbol at every node; 0
    = leaves."""
    upward: dict[int, Any]
    """Messages from a node's subtree to the node, of the same form, normalised to 1. `upward[0]` is
    the normalised evidence; `upward[depth]` (batch, 1, n) does not include the class prior."""
    downward: dict[int, Any]
    """Messages from the rest of the tree, of the same form, normalised to 1. `downward[depth]` is
    the class prior."""
    log_evidence: Any
    """float64 (batch,): log of the sum over strings of p(string) * prod_i evidence_i, in nats; the
    evidence is not normalised first."""

    def __init__(self, **computed: object) -> None:
        self.__dict__ |= {name: computed[name] for name in OUTPUTS if name in computed}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - called only for what was not computed
        if name not in OUTPUTS:
            raise AttributeError(f"Beliefs has no attribute {name!r}")
        raise NotComputedError(
            f"beliefs.{name} was not computed; call infer(..., outputs={(*self.outputs, name)})"
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that were computed."""
        return tuple(vars(self))

    @property
    def _messages(self) -> dict[str, dict[int, Any]]:
        return {name: output for name, output in vars(self).items() if isinstance(output, dict)}

    def __repr__(self) -> str:
        levels = ""
        count = len(self.log_evidence) if "log_evidence" in self.outputs else 0
        for output in self._messages.values():
            levels = f", tree levels 0 .. {max(output)}"
            count = len(output[0])
        return f"Beliefs({', '.join(self.outputs)}; {count} strings{levels})"

    def _repr_html_(self) -> str:
        """A table of the levels, with the mean entropy of each computed message."""
        messages = self._messages
        if not messages:
            return page(repr(self))
        first = next(iter(messages.values()))
        numbers = sum(math.prod(level.shape[1:]) for level in first.values())
        shown = max(1, _MOST_NUMBERS // numbers)
        rows = []
        for level in sorted(first, reverse=True):
            _, nodes, symbols = first[level].shape
            most = math.log2(symbols)
            bars = []
            for output in messages.values():
                bits = _number(entropy_of(output[level][:shown]).mean()) / math.log(2)
                bars.append(bar(bits / (most or 1.0), f"{bits:.2f} of {most:.2f}"))
            rows.append((level, nodes, symbols, *bars))
        entropies = [f"entropy of {name} (bits)" for name in messages]
        head = ("tree level", "nodes", "symbols", *entropies)
        strings = f"the first {shown} strings" if shown < len(first[0]) else "strings"
        note = f"Mean over nodes and {strings}. Level 0: leaves. Full bar: nothing is known."
        return page(repr(self), table(head, rows), note=note)


def _number(value: Any) -> float:  # noqa: ANN401 - a number, or a tensor
    return float(value.detach() if hasattr(value, "detach") else value)


def entropy_of(p: Any) -> Any:  # noqa: ANN401 - an array gives an array, a tensor a tensor
    """-sum p log p over the last axis, with 0 log 0 = 0, for numpy arrays and torch tensors."""
    positive = p > 0
    if isinstance(p, np.ndarray):
        logarithm = np.log(np.where(positive, p, p.dtype.type(1)))
    else:
        logarithm = p.where(positive, p.new_ones(())).log()
    return -(p * logarithm).sum(-1)
