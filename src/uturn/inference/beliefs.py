"""The result of exact inference."""

from __future__ import annotations

from typing import Any

OUTPUTS = ("marginals", "upward", "downward", "log_evidence")


class NotComputedError(AttributeError, ValueError):
    """Raised when an output of `infer` is read that was not requested."""


class Beliefs:
    """The messages, marginals and log-evidence that were requested in a call of `infer`.

    Attributes
    ----------
    marginals : {tree_level: (batch, nodes, symbols)}
        Posterior probability of every symbol at every node; 0 = leaves.
    upward : {tree_level: (batch, nodes, symbols)}
        Message from a node's subtree to the node, normalised to 1. `upward[0]` is the normalised evidence; `upward[depth]`
        (batch, 1, n) does not include the class prior.
    downward : {tree_level: (batch, nodes, symbols)}
        Message from the rest of the tree to the node, normalised to 1. `downward[depth]` is the class prior.
    log_evidence : (batch,) float64
        Log of the sum over strings of p(string) * prod_i evidence_i, in nats; the evidence is not normalised first.

    Raises
    ------
    NotComputedError
        If an output is read that was not requested. It is an AttributeError and a ValueError.
    """

    def __init__(self, **computed: Any) -> None:
        self._computed = {name: computed[name] for name in OUTPUTS if name in computed}

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the computed outputs."""
        return tuple(self._computed)

    def _get(self, name: str) -> Any:
        if name not in self._computed:
            wanted = (*self._computed, name)
            raise NotComputedError(f"beliefs.{name} was not computed; call infer(..., outputs={wanted})")
        return self._computed[name]

    @property
    def marginals(self) -> dict[int, Any]:
        return self._get("marginals")

    @property
    def upward(self) -> dict[int, Any]:
        return self._get("upward")

    @property
    def downward(self) -> dict[int, Any]:
        return self._get("downward")

    @property
    def log_evidence(self) -> Any:
        return self._get("log_evidence")

    def __repr__(self) -> str:
        lines = []
        for name, value in self._computed.items():
            shape = {k: tuple(x.shape) for k, x in value.items()} if isinstance(value, dict) else tuple(value.shape)
            lines.append(f"  {name}: {shape}")
        return "Beliefs(\n" + "\n".join(lines) + "\n)"


def entropy_of(p: Any) -> Any:
    """-sum p log p over the last axis, with 0 log 0 = 0, for numpy arrays and torch tensors."""
    positive = p > 0
    if hasattr(p, "new_ones"):
        logarithm = p.where(positive, p.new_ones(())).log()
    else:
        import numpy as np

        logarithm = np.log(np.where(positive, p, p.dtype.type(1)))
    return -(p * logarithm).sum(-1)
