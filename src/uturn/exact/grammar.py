"""A law of strings with hidden symbols, as belief propagation, sources and probes use it.

There are two: trees of rules (`uturn.RandomHierarchyModel`) and Markov chains
(`uturn.HiddenMarkovModel`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from uturn.core.checks import checked_integer, expect
from uturn.core.messages import shown

if TYPE_CHECKING:
    from uturn.core.evidence import Evidence
    from uturn.exact.inference.beliefs import Beliefs

MOST_DEPTH = 10_000
"""Largest number of tree levels. Float64 does not resolve differences between levels at this
depth.
"""

Symbols = Mapping[int, np.ndarray]
"""Symbols of all nodes, {tree_level: int64 (.., nodes)}; level 0 has the leaves."""


@dataclass(frozen=True, repr=False)
class Draw:
    """Strings with their trees: `latents[tree_level]` is an int64 array (count, nodes), from 0 =
    leaves to depth = class.
    """

    latents: dict[int, np.ndarray]

    @property
    def leaves(self) -> np.ndarray:
        """The strings, (count, num_leaves) int64."""
        return self.latents[0]

    @property
    def classes(self) -> np.ndarray:
        """The root symbols, (count,) int64."""
        return self.latents[max(self.latents)][:, 0]

    def __getitem__(self, rows: slice | np.ndarray) -> Draw:
        return Draw({level: nodes[rows] for level, nodes in self.latents.items()})

    def __repr__(self) -> str:
        count, length = self.leaves.shape
        return f"Draw({count} strings of {length} leaves, tree levels 0 .. {max(self.latents)})"


class Grammar(ABC):
    """A law of strings whose hidden symbols stand on tree levels 1 .. depth above the leaves."""

    only_in_numpy: ClassVar[tuple[str, ...]] = ()
    """The outputs of inference, for laws whose inference is computed in numpy alone. Empty: all
    outputs, by kernels or by torch.
    """
    vocab_size: int
    """Number of symbols of a leaf."""
    depth: int
    """Number of tree levels above the leaves."""
    branching: int | None = None
    """Number of children of a node; None if the strings have no tree."""
    if TYPE_CHECKING:  # may be an attribute or a property

        @property
        def num_leaves(self) -> int:
            """Number of symbols of a string."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that determines the law (hexadecimal)."""

    @abstractmethod
    def num_nodes(self, tree_level: int) -> int:
        """Number of nodes of a string at a tree level."""

    @abstractmethod
    def num_symbols(self, tree_level: int) -> int:
        """Number of different symbols at a tree level."""

    @abstractmethod
    def sample(self, count: int, seed: int | np.ndarray = 0) -> Draw:
        """Independent strings with their hidden symbols. `seed`: a number, or the random stream of
        each string, uint64 (count,).
        """

    @abstractmethod
    def log_likelihood(self, leaves: ArrayLike) -> np.ndarray:
        """Natural log of the probability of each string, float64 (batch,); -inf if impossible."""

    @abstractmethod
    def completed(self, leaves: np.ndarray, keys: np.ndarray) -> dict[int, np.ndarray]:
        """Hidden symbols of strings (batch, num_leaves), drawn from their posterior by `keys`,
        uint64 (batch,): {tree_level: int64 (batch, nodes)}; -1 where a string is impossible.
        """

    @abstractmethod
    def beliefs(self, evidence: Evidence, outputs: tuple[str, ...]) -> Beliefs:
        """`uturn.infer` on the CPU, for evidence of checked shape."""

    @abstractmethod
    def posterior_draws(
        self, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray
    ) -> dict[int, np.ndarray]:
        """`uturn.sample_posterior` for evidence of checked shape, by one key for each sample,
        uint64 (batch,): {tree_level: int64 (draws, batch, nodes)} of the draws `numbers`.
        """

    @abstractmethod
    def true_beliefs(self, evidence: Evidence, symbols: Symbols) -> np.ndarray:
        """Marginals of the true symbols, averaged over the nodes of each tree level, float64
        (batch, levels).

        `symbols`: those of the originals, {tree_level: int64 (originals, nodes)}. The samples of an
        original are next to each other.
        """


class RuleGrammar(Grammar):
    """A grammar of rules on a tree of fixed depth, as the compiled kernels and torch read it."""

    rules: dict[int, np.ndarray]
    """{tree_level 1 .. depth: int64 (symbols, multiplicity, branching)}."""
    rule_probabilities: dict[int, np.ndarray]
    """{tree_level 1 .. depth: float64 (symbols, multiplicity)}."""
    class_probabilities: np.ndarray
    """Probability of each root symbol, float64 (num_classes,)."""
    num_classes: int
    """Number of root symbols."""
    branching: int


def checked_depth(value: object, instead: str = "lower it") -> int:
    """`value` as a number of tree levels, 1 .. MOST_DEPTH, or a ValueError."""
    depth = checked_integer("depth", value, 1)
    expect(depth <= MOST_DEPTH, "depth", depth, f"at most {MOST_DEPTH} levels; {instead}")
    return depth


def check_tuples(
    vocab_size: int, branching: int, symbols: int = 0, multiplicity: int = 0, where: str = "a level"
) -> None:
    """ValueError if vocab_size**branching, the number of tuples, exceeds float64 or is below the
    number of rules.
    """
    sizes = f"vocab_size = {shown(vocab_size)}, branching"
    is_a_float = branching * math.log2(vocab_size) <= 1000
    expect(is_a_float, sizes, branching, "vocab_size**branching of at most 300 digits")
    most = vocab_size**branching // max(symbols, 1)  # the tuples of a level are distinct
    expected = f"at most {most}; lower multiplicity"
    expect(multiplicity <= most, f"{where}: multiplicity", multiplicity, expected)
