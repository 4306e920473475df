"""The probe of single nodes of the tree of a string."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.probes.tree import check_tree

MOST_NODES = 64  # largest number of shown nodes of a tree level


class TreeNodes(Spec, Probe):
    """Single nodes of the trees of the `first` originals, for a picture of the tree; NaN for all later originals.

    `node_belief`: exact marginal of the original's symbol, averaged over trajectories, 0 .. 1. `node_unchanged`: 1 where a
    reconstruction has the symbol of the original, else 0. The dim `node` numbers the nodes level by level from the root (0), and
    each level from the left: node k has the children s k + 1 .. s k + s. Levels with more than 64 nodes are left out.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["tree_nodes"] = "tree_nodes"
    first: int = Field(default=4, ge=1)

    def variables(self, source: Any) -> dict[str, Variable]:
        return {
            "node_belief": Variable(("noise", "item", "node"), "marginal of the true symbol of a node", role="record"),
            "node_unchanged": Variable(("noise", "item", "trajectory", "node"), "whether a node is unchanged", role="record"),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        check_tree(self, source)
        return {"node": np.arange(sum(source.branching ** (source.depth - level) for level in shown_levels(source)))}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        before, after = u_turns.originals.draw.latents, u_turns.reconstructions
        levels, items = shown_levels(source), len(u_turns.originals.items)
        marginals = u_turns.noisy.beliefs("marginals")
        beliefs, unchanged = [], []
        for level in levels:
            of_copies = marginals[level].reshape(items, -1, *marginals[level].shape[1:])
            at = np.broadcast_to(before[level][:, None, :, None], (*of_copies.shape[:3], 1))
            beliefs.append(np.take_along_axis(of_copies, at, axis=3)[..., 0].mean(axis=1, dtype=np.float64))
            unchanged.append((after[level] == before[level][:, None]).astype(np.float32))
        readings = {"node_belief": np.concatenate(beliefs, axis=-1), "node_unchanged": np.concatenate(unchanged, axis=-1)}
        for values in readings.values():
            values[u_turns.originals.items >= self.first] = np.nan
        return readings


def shown_levels(source: Any) -> list[int]:
    """Tree levels with at most 64 nodes, from the root down."""
    return [level for level in range(source.depth, -1, -1) if source.branching ** (source.depth - level) <= MOST_NODES]
