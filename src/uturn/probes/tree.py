"""Probes of the latents of strings: unchanged nodes, and exact beliefs in the true symbols."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast

import numpy as np
from pydantic import Field

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.exact.rhm import RandomHierarchyModel
from uturn.probes.comparison import Comparison, Features
from uturn.sources.strings import NoisyStrings, Strings, StringSource

StringUTurns = UTurns[Strings, NoisyStrings]
MOST_NODES = 64  # largest number of shown nodes of a tree level
AS_LEVELS: dict[str, Any] = {
    "start": 1,
    "bounds": (0, 1),
    "group": "tree levels",
    "order": "tree_level",
}
"""Reading instructions of shares and beliefs of tree levels."""


def check_tree(probe: Spec, source: StringSource) -> None:
    """ValueError for a probe of trees and a source of strings without trees."""
    expect(
        hasattr(source, "branching"),
        "probe of a source without trees",
        probe.type,
        "'tree_levels' or 'changes'",
    )


class TreeLevels(Spec, Comparison[Strings, NoisyStrings, StringSource]):
    """Share of the nodes of each tree level whose symbol is unchanged, and the exact belief in the
    original's symbols.

    `unchanged`: share of the nodes with the symbol of the original, 0 .. 1; an ungrammatical node
    (-1) counts as changed. `belief`: exact marginal of the original's symbols given the noisy
    datum, averaged over nodes and trajectories, 0 .. 1. For exact posterior draws both have the
    same expectation, but `belief` has no sampling noise.
    """

    reads_noisy: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["tree_levels"] = "tree_levels"

    def variables(self, source: StringSource) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "tree_level")
        return {
            "unchanged": Variable(dims, "share of unchanged nodes", symmetric=True, **AS_LEVELS),
            "belief": Variable(
                ("noise", "item", "tree_level"), "mean marginal of the true symbol", **AS_LEVELS
            ),
        }

    def coordinates(self, source: StringSource) -> dict[str, np.ndarray]:
        return {"tree_level": np.arange(source.depth + 1)}

    def features(self, u_turns: StringUTurns, source: StringSource) -> tuple[Features, Features]:
        return u_turns.originals.draw.latents, u_turns.reconstructions

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        return {"unchanged": shares_of_equal_nodes(first, second)}

    def read(self, u_turns: StringUTurns, source: StringSource) -> dict[str, np.ndarray]:
        readings = super().read(u_turns, source)
        latents = u_turns.originals.draw.latents
        beliefs = u_turns.noisy.true_beliefs(latents)  # (noisy strings, levels)
        by_item = beliefs.reshape(len(latents[0]), -1, len(latents))
        return {**readings, "belief": by_item.mean(axis=1)}


def shares_of_equal_nodes(first: Features, second: Features) -> np.ndarray:
    """Share of the nodes of each tree level that are equal, (.., levels). Ungrammatical nodes (-1)
    are equal to none.
    """
    shares = [_share_of_equal_nodes(first[level], second[level]) for level in sorted(first)]
    return np.stack(shares, axis=-1)


def _share_of_equal_nodes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    share: np.ndarray = ((a == b) & (a >= 0)).mean(axis=-1, dtype=np.float64)
    return share


class ParsedLevels(Spec, Comparison[Strings, NoisyStrings, StringSource]):
    """Share of unchanged nodes of each tree level, with the tree of a reconstruction obtained by
    parsing its leaves.

    `parsed`: share of the nodes with the symbol of the original, 0 .. 1; an ungrammatical node
    counts as changed. For exact posterior draws and for denoised strings it equals `unchanged` of
    `TreeLevels`. A parsed node depends jointly on all leaves below it, so this reading tests
    whether a sampler draws leaves jointly; the sampler's own latents do not.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    type: Literal["parsed_levels"] = "parsed_levels"

    def variables(self, source: StringSource) -> dict[str, Variable]:
        check_tree(self, source)
        dims = ("noise", "item", "trajectory", "tree_level")
        long_name = "share of unchanged nodes after parsing the leaves"
        return {"parsed": Variable(dims, long_name, symmetric=True, **AS_LEVELS)}

    def coordinates(self, source: StringSource) -> dict[str, np.ndarray]:
        return {"tree_level": np.arange(source.depth + 1)}

    def features(self, u_turns: StringUTurns, source: StringSource) -> tuple[Features, Features]:
        originals = u_turns.originals
        leaves = u_turns.reconstructions[0]
        grammar = cast(RandomHierarchyModel, originals.rhm)  # a tree (`check_tree`)
        parsed = grammar.parse(leaves.reshape(-1, leaves.shape[2])).latents
        nodes = {
            level: of_level.reshape(*leaves.shape[:2], -1) for level, of_level in parsed.items()
        }
        return originals.draw.latents, nodes

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        return {"parsed": shares_of_equal_nodes(first, second)}


class Messages(Spec, Probe[Strings, NoisyStrings, StringSource]):
    """Exact messages at the true symbols, averaged over the nodes of each level and over
    trajectories.

    These are the beliefs of Figs. 12 and 13 of arXiv:2402.16991, 0 .. 1. `directions`: "upward",
    "downward" or both.
    """

    reads_noisy: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["messages"] = "messages"
    directions: tuple[Literal["upward", "downward"], ...] = ("upward", "downward")

    def variables(self, source: StringSource) -> dict[str, Variable]:
        check_tree(self, source)
        dims = ("noise", "item", "tree_level")
        read_as: dict[str, Any] = {"bounds": (0, 1), "group": "messages"}
        return {
            f"{name}_belief": Variable(dims, f"mean {name} message at the true symbol", **read_as)
            for name in self.directions
        }

    def coordinates(self, source: StringSource) -> dict[str, np.ndarray]:
        return {"tree_level": np.arange(source.depth + 1)}

    def read(self, u_turns: StringUTurns, source: StringSource) -> dict[str, np.ndarray]:
        return {
            f"{name}_belief": true_beliefs(u_turns, name, *self.directions)
            for name in self.directions
        }


def true_beliefs(u_turns: StringUTurns, output: str, *also: str) -> np.ndarray:
    """Messages at the true symbols, averaged over the nodes of a level and over trajectories:
    float64 (items, levels).

    `output`: "upward" or "downward".
    """
    latents = u_turns.originals.draw.latents
    messages = u_turns.noisy.beliefs(output, *also)
    columns = []
    for level in sorted(latents):
        right = _at_true_symbols(messages[level], latents[level])
        columns.append(right.reshape(len(right), -1).mean(axis=1, dtype=np.float64))
    return np.stack(columns, axis=-1)


def _at_true_symbols(messages: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Messages (items * trajectories, nodes, symbols) at the symbols (items, nodes) of the
    originals: (items, trajectories, nodes).
    """
    of_items = messages.reshape(len(symbols), -1, *messages.shape[1:])
    at = np.broadcast_to(symbols[:, None, :, None], (*of_items.shape[:3], 1))
    return np.take_along_axis(of_items, at, axis=3)[..., 0]


class TreeNodes(Spec, Probe[Strings, NoisyStrings, StringSource]):
    """Single nodes of the trees of the `first` originals, for a picture of the tree; NaN for all
    later originals.

    `node_belief`: exact marginal of the original's symbol, averaged over trajectories, 0 .. 1.
    `node_unchanged`: 1 where a reconstruction has the symbol of the original, else 0. The dim
    `node` numbers the nodes level by level from the root (0), and each level from the left: node k
    has the children s k + 1 .. s k + s. Levels with more than 64 nodes are left out.
    """

    reads_noisy: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("strings",)
    batch_invariant: ClassVar[bool] = True
    type: Literal["tree_nodes"] = "tree_nodes"
    first: int = Field(default=4, ge=1)

    def variables(self, source: StringSource) -> dict[str, Variable]:
        return {
            "node_belief": Variable(
                ("noise", "item", "node"), "marginal of the true symbol of a node", role="record"
            ),
            "node_unchanged": Variable(
                ("noise", "item", "trajectory", "node"),
                "whether a node is unchanged",
                role="record",
            ),
        }

    def coordinates(self, source: StringSource) -> dict[str, np.ndarray]:
        check_tree(self, source)
        nodes = [source.branching ** (source.depth - level) for level in shown_levels(source)]
        return {"node": np.arange(sum(nodes))}

    def read(self, u_turns: StringUTurns, source: StringSource) -> dict[str, np.ndarray]:
        before = u_turns.originals.draw.latents
        after = u_turns.reconstructions
        marginals = u_turns.noisy.beliefs("marginals")
        beliefs = []
        unchanged = []
        for level in shown_levels(source):
            of_node = _at_true_symbols(marginals[level], before[level])
            beliefs.append(of_node.mean(axis=1, dtype=np.float64))
            unchanged.append((after[level] == before[level][:, None]).astype(np.float32))
        readings = {
            "node_belief": np.concatenate(beliefs, axis=-1),
            "node_unchanged": np.concatenate(unchanged, axis=-1),
        }
        for values in readings.values():
            values[u_turns.originals.items >= self.first] = np.nan
        return readings


def shown_levels(source: StringSource) -> list[int]:
    """Tree levels with at most 64 nodes, from the root down."""
    return [
        level
        for level in range(source.depth, -1, -1)
        if source.branching ** (source.depth - level) <= MOST_NODES
    ]
