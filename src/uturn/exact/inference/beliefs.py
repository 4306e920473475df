"""The result of exact inference."""

from __future__ import annotations

import math
from typing import Any

from uturn.core.display import bar, page, table

OUTPUTS = ("marginals", "upward", "downward", "log_evidence")
_MOST_NUMBERS = 2**22  # of which means are shown


class NotComputedError(AttributeError, ValueError):
    """Raised when an output of `infer` is read that was not requested."""


class Beliefs:
    """The messages, marginals and log-evidence that were requested in a call of `infer`; reading
    another is a NotComputedError.

    `marginals`, {tree_level: (batch, nodes, symbols)}: posterior probability of every symbol at
    every node; 0 = leaves. `upward`, `downward`, of the same form: messages from a node's subtree
    to the node, and from the rest of the tree, normalised to 1; `upward[0]` is the normalised
    evidence, `upward[depth]` (batch, 1, n) does not include the class prior, which is
    `downward[depth]`. `log_evidence`, float64 (batch,): log of the sum over strings of p(string) *
    prod_i evidence_i, in nats; the evidence is not normalised first.
    """

    marginals: dict[int, Any]
    upward: dict[int, Any]
    downward: dict[int, Any]
    log_evidence: Any

    def __init__(self, **computed: Any) -> None:
        self.__dict__ |= {name: computed[name] for name in OUTPUTS if name in computed}

    def __getattr__(self, name: str) -> Any:  # called only for what was not computed
        if name not in OUTPUTS:
            raise AttributeError(f"Beliefs has no attribute {name!r}")
        raise NotComputedError(
            f"beliefs.{name} was not computed; call infer(..., outputs={(*self.outputs, name)})"
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(vars(self))

    def __repr__(self) -> str:
        computed = vars(self).values()
        counts = {
            len(next(iter(output.values())) if isinstance(output, dict) else output)
            for output in computed
        }
        depths = [max(output) for output in computed if isinstance(output, dict)]
        of = f", tree levels 0 .. {depths[0]}" if depths else ""
        return f"Beliefs({', '.join(self.outputs)}; {max(counts, default=0)} strings{of})"

    def _repr_html_(self) -> str:
        """A table of the levels, with the mean entropy of each computed message."""
        messages = {name: output for name, output in vars(self).items() if isinstance(output, dict)}
        if not messages:
            return page(repr(self))
        first = next(iter(messages.values()))
        some = max(1, _MOST_NUMBERS // sum(math.prod(level.shape[1:]) for level in first.values()))
        rows = []
        for level in sorted(first, reverse=True):
            _, nodes, symbols = first[level].shape
            means = [
                _number(entropy_of(output[level][:some]).mean()) / math.log(2)
                for output in messages.values()
            ]
            most = math.log2(symbols) or 1.0
            rows.append(
                (
                    level,
                    nodes,
                    symbols,
                    *(
                        bar(bits / most, f"{bits:.2f} of {math.log2(symbols):.2f}")
                        for bits in means
                    ),
                )
            )
        head = (
            "tree level",
            "nodes",
            "symbols",
            *(f"entropy of {name} (bits)" for name in messages),
        )
        count = len(first[0])
        note = (
            f"Mean over nodes and the first {some} strings."
            if some < count
            else "Mean over nodes and strings."
        )
        return page(
            repr(self),
            table(head, rows),
            note=f"{note} Level 0: leaves. Full bar: nothing is known.",
        )


def _number(value: Any) -> float:
    return float(value.detach() if hasattr(value, "detach") else value)


def entropy_of(p: Any) -> Any:
    """-sum p log p over the last axis, with 0 log 0 = 0, for numpy arrays and torch tensors."""
    positive = p > 0
    if hasattr(p, "new_ones"):
        logarithm = p.where(positive, p.new_ones(())).log()
    else:
        import numpy as np

        logarithm = np.log(np.where(positive, p, p.dtype.type(1)))
    return -(p * logarithm).sum(-1)
