"""Strings as originals: of the Random Hierarchy Model, whole or hierarchically filtered
(arXiv:2408.15138), and of chains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import checked_integer, expect
from uturn.core.data import NoisingProcess
from uturn.core.evidence import Evidence
from uturn.core.files import checked_path, read_table
from uturn.core.inputs import File
from uturn.core.messages import one_line, shown
from uturn.core.own_parts import name_of
from uturn.core.protocols import Noisy, Originals, Source, Spec
from uturn.core.random import Purpose, Streams, keys
from uturn.exact.grammar import Draw, Grammar, check_tuples
from uturn.exact.hmm import HiddenMarkovModel
from uturn.exact.inference.evidence import checked_evidence
from uturn.exact.rhm import RandomHierarchyModel, zipf
from uturn.measures.covariances import Tree

if TYPE_CHECKING:
    from uturn.exact.theory import MeanField

_MOST_EVIDENCE = 256 * 2**20  # bytes of the evidence of a string, of which a task holds many
_MOST_BYTES = 8 * 2**30  # of the rules
# For the ε-process, clone k of trajectory t is posterior draw number t + k 2**32.
_CLONE_APART = np.uint64(2**32)


Trees = dict[int, np.ndarray]
"""Reconstructions of strings, {tree_level: int64 (items, draws, nodes)}."""


@dataclass(frozen=True, repr=False)
class Strings(Originals):
    """Originals from one grammar."""

    items: np.ndarray
    """Numbers of the items, int64 (batch,)."""
    rhm: Grammar
    """The law of the strings."""
    draw: Draw
    """The strings with their trees."""

    @property
    def data(self) -> np.ndarray:
        """The strings, int64 (batch, num_leaves)."""
        return self.draw.leaves

    @property
    def distance(self) -> Tree | None:
        """Distances of leaves in the tree. None for a chain: the differences of their places."""
        if self.rhm.branching is None:
            return None
        return Tree(self.rhm.num_leaves, self.rhm.branching)

    def reconstructed_shape(self) -> dict[int, tuple[int, ...]]:
        return {level: nodes.shape[1:] for level, nodes in self.draw.latents.items()}

    def data_of(self, reconstructions: Trees) -> np.ndarray:
        """The leaves of reconstructions, int64 (batch, draws, num_leaves)."""
        return reconstructions[0]

    def continued(self, reconstructions: Trees, taken: np.ndarray) -> Strings:
        is_broken = np.zeros(len(taken), bool)
        for nodes in reconstructions.values():
            is_broken |= (nodes < 0).any(axis=(1, 2)) & taken
        broken = f"{is_broken.sum()} of {len(taken)} ungrammatical strings"
        expected = "strings of the grammar; draw fewer leaves a step"
        expect(not is_broken.any(), "reconstructions", broken, expected)
        latents = {}
        for level, nodes in self.draw.latents.items():
            latents[level] = np.where(taken[:, None], reconstructions[level][:, 0], nodes)
        return replace(self, draw=Draw(latents))

    def observed_by(
        self, corruption: NoisingProcess, noise: float, streams: Streams
    ) -> NoisyStrings:
        """Noisy strings, one for each trajectory of each original.

        There is one for each original if the corruption draws nothing.
        """
        if not corruption.is_random:
            streams = streams.first()
        leaves = np.repeat(self.data, streams.count, axis=0)
        row_keys = streams.keys(corruption.purpose)
        noisy = corruption.corrupt_symbols(leaves, noise, row_keys, self.rhm.vocab_size)
        return NoisyStrings(noisy.values, noisy.noise, noisy.vocab_size, self.rhm, corruption)


@dataclass(frozen=True, eq=False, repr=False)
class NoisyStrings(Noisy):
    """Noisy strings of one grammar, with their exact messages and posterior draws."""

    rhm: Grammar = None  # type: ignore[assignment]  # fields of the base class have defaults
    channel: Any = None  # the corruption that made them, with its evidence
    _beliefs: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def log_evidence(self) -> np.ndarray:
        """Log-evidence of every leaf in nats, float32 (batch, num_leaves, vocab_size)."""
        log_evidence: np.ndarray = self.channel.log_evidence(self, np.float32)
        return log_evidence

    @cached_property
    def evidence(self) -> Evidence:
        """The evidence in the form in which the kernels read it fastest."""
        return checked_evidence(self.rhm, self.channel.evidence(self))

    def true_beliefs(self, symbols: dict[int, np.ndarray]) -> np.ndarray:
        """Exact marginals of the true symbols, averaged over nodes: float64 (batch, tree levels).

        `symbols`: those of the originals, {tree_level: int64 (originals, nodes)}. Noisy strings of
        one original are next to each other.
        """
        return self.rhm.true_beliefs(self.evidence, symbols)

    def beliefs(self, output: str, *also: str) -> dict[int, np.ndarray]:
        """Exact messages given the noisy strings, {tree_level: (batch, nodes, symbols)}.

        They are kept for other probes.
        `output`: "marginals", "upward" or "downward"; see `uturn.inference.infer`. `also`: further
        outputs needed later, computed in the same pass.
        """
        from uturn.exact.inference import infer

        if output not in self._beliefs:
            wanted = [name for name in dict.fromkeys((output, *also)) if name not in self._beliefs]
            computed = infer(self.rhm, self.evidence, outputs=tuple(wanted))
            for name in wanted:
                messages = getattr(computed, name)
                for nodes in messages.values():
                    nodes.flags.writeable = False  # read-only, since probes share them
                self._beliefs[name] = messages
        messages_of_output: dict[int, np.ndarray] = self._beliefs[output]
        return messages_of_output

    def repeated(self, clones: int) -> Noisy:
        """Every noisy string `clones` times, copies next to each other."""
        values = np.repeat(self.values, clones, axis=0)
        return Noisy(values, np.repeat(self.noise, clones), self.vocab_size)

    def parsed(self, leaves: np.ndarray, num_items: int, keys: np.ndarray) -> Trees:
        """Reconstructed strings (items * draws, num_leaves) as trees; -1 where ungrammatical.

        The hidden states of a chain are drawn given the string, with `keys` (items * draws,).
        """
        latents = self.rhm.completed(leaves, keys)
        return {
            level: nodes.reshape(num_items, -1, nodes.shape[1]) for level, nodes in latents.items()
        }

    def posterior_draws(self, streams: Streams, clones: int) -> Trees:
        """Exact posterior draws, from one upward pass for each noisy string."""
        from uturn.exact.inference import sample_posterior

        numbers = np.arange(clones, dtype=np.uint64)
        if not self.channel.is_random:
            # All trajectories of an item are draws given its only noisy string.
            trajectories = np.asarray(streams.trajectories, np.uint64)
            numbers = np.add.outer(trajectories, _CLONE_APART * numbers).reshape(-1)
            streams = streams.first()
        row_keys = streams.keys(Purpose.RECONSTRUCTION)
        drawn = sample_posterior(self.rhm, self.evidence, row_keys, numbers)
        trees = {}
        for level, nodes in drawn.items():
            trees[level] = nodes.swapaxes(0, 1).reshape(len(streams.items), -1, nodes.shape[2])
        return trees


class StringSource(Source[Strings]):
    """Strings of one or several grammars (or chains), over which the items are spread evenly.

    The coordinate `grammar` of the items is the number of the grammar. A source of one's own has
    the values `vocab_size`, `depth` (tree levels) and, for trees, `branching`. It defines
    `grammar`, or the blocks themselves.
    """

    kind: ClassVar[str] = "strings"
    required: ClassVar[tuple[str, ...]] = ("vocab_size", "depth")
    block_class: ClassVar[type[Originals]] = Strings
    site_name: ClassVar[str] = "leaves"
    batch_invariant: ClassVar[bool] = True

    if TYPE_CHECKING:  # may be fields, properties or values of the class

        @property
        def vocab_size(self) -> int:
            """Number of symbols."""

        @property
        def depth(self) -> int:
            """Number of tree levels above the leaves."""

        @property
        def branching(self) -> int:
            """Number of children of a node; only trees have it."""

    @property
    def num_leaves(self) -> int:
        """Number of symbols of a string: by default that of the leaves of a tree."""
        return int(self.branching**self.depth)

    @property
    def number(self) -> tuple[str, int]:
        """The option that says how many grammars there are, and its value."""
        return "grammars", 1

    @property
    def num_symbols(self) -> int:
        return checked_integer(f"{name_of(self, 'source')}.vocab_size", self.vocab_size, 2)

    @property
    def item_bytes(self) -> int:
        return 4 * self.vocab_size * self.num_leaves

    def grammar(self, number: int, seed: int) -> Grammar:
        """Grammar `number` of an experiment with this seed; ValueError if the source has none."""
        raise ValueError(
            f"{name_of(self, 'source')} has no grammars; define its method `grammar(number, seed)`"
        )

    def blocks(self, items: np.ndarray, seed: int, num_items: int) -> Iterator[Strings]:
        items = np.asarray(items)
        numbers = self._numbers(num_items)[items]
        for part in np.split(items, np.flatnonzero(np.diff(numbers)) + 1):
            grammar = self.grammar(int(self._numbers(num_items)[part[0]]), seed)
            self._check_grammar(grammar)
            draw = grammar.sample(len(part), keys(seed, Purpose.ORIGINAL, part))
            yield Strings(part, grammar, draw)

    def _check_grammar(self, grammar: object) -> None:
        """ValueError unless a grammar has the number of symbols and leaves of the source."""
        where = f"{name_of(self, 'source')}.grammar"
        if not isinstance(grammar, Grammar):
            expected = "a RandomHierarchyModel, or a HiddenMarkovModel"
            raise ValueError(f"{where} = {shown(grammar)}: expected {expected}")
        sizes = (grammar.vocab_size, grammar.num_leaves)
        expected = f"{(self.vocab_size, self.num_leaves)}, those of the source"
        expect(
            sizes == (self.vocab_size, self.num_leaves),
            f"{where}: symbols, leaves",
            sizes,
            expected,
        )

    def coordinates(self, seed: int, num_items: int) -> dict[str, np.ndarray]:
        option, count = self.number
        expected = f"at least one for each of {option} = {count}"
        expect(count <= num_items, "items", num_items, expected)
        return {"grammar": self._numbers(num_items)}

    def _numbers(self, num_items: int) -> np.ndarray:
        # Neighbouring items share a grammar, so that inference on a block of items takes few, large
        # batches.
        return np.arange(num_items) * self.number[1] // num_items


class GrammarSource(Spec, StringSource):
    """Strings of a grammar of one's own, in a file.

    `file`: a .safetensors file that `RandomHierarchyModel.save` wrote, or a .json file with the
    table `rules` and optionally `rule_probabilities`, `class_probabilities` and `vocab_size`, the
    arguments of `RandomHierarchyModel.from_rules`.
    """

    type: Literal["grammar"] = "grammar"
    file: File

    # One grammar for all tasks, also if the file changes meanwhile.
    @cached_property
    def _rhm(self) -> RandomHierarchyModel:
        return _grammar_of(self.file)

    @property
    def vocab_size(self) -> int:
        return self._rhm.vocab_size

    @property
    def branching(self) -> int:
        return int(self._rhm.branching)

    @property
    def depth(self) -> int:
        return self._rhm.depth

    @property
    def num_classes(self) -> int:
        return int(self._rhm.num_classes)

    def grammar(self, number: int, seed: int) -> RandomHierarchyModel:
        return self._rhm

    def fingerprint(self) -> str:
        return self._rhm.fingerprint


@cached_while_unchanged(files=lambda path: [path], maxsize=8)
def _grammar_of(path: str) -> RandomHierarchyModel:
    if not path.endswith(".json"):
        return RandomHierarchyModel.load(path)
    known = ("rules", "rule_probabilities", "class_probabilities", "vocab_size")
    try:
        table = read_table(Path(checked_path("file", path)))
        fits = isinstance(table, dict) and "rules" in table and set(table) <= set(known)
        expect(fits, "keys", table, f"rules, and perhaps {', '.join(known[1:])}")
        rhm = RandomHierarchyModel.from_rules(**table)
        size = 4 * rhm.vocab_size * rhm.num_leaves
        where = "bytes of evidence of a string"
        power = f"2**{size.bit_length() - 1}"
        expect(size <= _MOST_EVIDENCE, where, power, "fewer levels or symbols")
    except (OSError, ValueError) as error:
        raise ValueError(f"file = {path!r}: cannot be read ({one_line(error)})") from None
    return rhm


class RHMSource(Spec, StringSource):
    """Strings of the Random Hierarchy Model; the items are spread evenly over `grammars`
    independent grammars.

    `multiplicity`: rules of a symbol, one number or a list with one for each tree level 1 .. depth.
    `zipf_exponent`: exponent of the rule probabilities (`uturn.rhm.zipf`), which are uniform by
    default. The other options are those of `uturn.RandomHierarchyModel`. Coordinate of `item`:
    `grammar`.
    """

    type: Literal["rhm"] = "rhm"
    vocab_size: int = Field(ge=2)
    multiplicity: int | tuple[int, ...] = Field(union_mode="left_to_right")
    branching: int = Field(ge=2)
    depth: int = Field(ge=1)
    num_classes: int | None = Field(default=None, ge=1)
    grammars: int = Field(default=1, ge=1)
    zipf_exponent: float | None = Field(default=None, ge=-20, le=20)

    @property
    def number(self) -> tuple[str, int]:
        return "grammars", self.grammars

    @model_validator(mode="after")
    def _fits(self) -> RHMSource:
        v = self.vocab_size
        n = self.num_classes or v
        s = self.branching
        L = self.depth
        # Logarithms, because s**L and v**s can have any number of digits.
        evidence = 2 + math.log2(v) + L * math.log2(s)
        expected = f"lower ones, as a string needs 2**{evidence:.0f} bytes of evidence"
        is_small = evidence <= math.log2(_MOST_EVIDENCE)
        expect(is_small, "vocab_size, depth, branching", (v, L, s), expected)
        m = self.multiplicities()
        expected = f"a number >= 1, or one for each of {L} levels"
        expect(len(m) == L and min(m.values()) > 0, "multiplicity", self.multiplicity, expected)
        for level, rules in m.items():
            check_tuples(v, s, n if level == L else v, rules)
        most = max(v, n) * max(m.values())
        check_rules(most, s, L, f"multiplicity = {shown(self.multiplicity)}", "multiplicity")
        return self

    def mean_field(self) -> MeanField | None:
        """For one multiplicity and uniform rules."""
        from uturn.exact.theory import MeanField  # loads scipy.optimize

        if not isinstance(self.multiplicity, int) or self.zipf_exponent is not None:
            return None
        return MeanField(self.vocab_size, self.multiplicity, self.branching, self.num_classes)

    def multiplicities(self) -> dict[int, int]:
        """Rules of a symbol, {tree_level: number}."""
        m = self.multiplicity
        if isinstance(m, int):
            return dict.fromkeys(range(1, self.depth + 1), m)
        return dict(enumerate(m, 1))

    def rules(self) -> dict[str, Any]:  # arguments of a function
        """Arguments of `RandomHierarchyModel` for the rules.

        They are `multiplicity`, and `rule_probabilities` unless they are uniform.
        """
        m = self.multiplicities()
        if self.zipf_exponent is None:
            return {"multiplicity": m}
        laws = {level: zipf(rules, self.zipf_exponent) for level, rules in m.items()}
        return {"multiplicity": m, "rule_probabilities": laws}

    def grammar(self, number: int, seed: int) -> RandomHierarchyModel:
        """Grammar `number` (0 .. grammars - 1) of an experiment with this seed."""
        return _grammar(self, number, seed)


class FilteredRHMSource(RHMSource):
    """Strings of the Random Hierarchy Model whose structure above tree level `filtered_above` is
    removed.

    The nodes of level k = `filtered_above` are independent and uniform over the symbols (in
    arXiv:2408.15138 only given the class); the subtrees below them are those of source `rhm` with
    the same options and seed. k = depth is the source `rhm` itself, k = 0 gives independent leaves.
    This is again a Random Hierarchy Model, in which every tuple of symbols is a rule at the levels
    above k: v**(s - 1) rules of a symbol, so that a uniform class gives independent, uniform
    symbols. A node above level k is a random function of the nodes of level k below it.
    `zipf_exponent` applies up to level k.
    """

    type: Literal["filtered_rhm"] = "filtered_rhm"  # type: ignore[assignment]
    filtered_above: int = Field(ge=0)

    def mean_field(self) -> None:
        """None: levels above the filter have other numbers of rules."""

    @model_validator(mode="after")
    def _filtered(self) -> FilteredRHMSource:
        v = self.vocab_size
        n = self.num_classes or self.vocab_size
        s = self.branching
        L = self.depth
        expect(
            self.filtered_above <= L,
            "filtered_above",
            self.filtered_above,
            f"a tree level 0 .. {L}; {L} changes nothing",
        )
        divides = self.filtered_above == L or v**s % n == 0
        expect(
            divides,
            "num_classes",
            n,
            f"a divisor of vocab_size**branching = {v**s}, so that classes own as many tuples",
        )
        check_rules(
            v**s,
            s,
            L - self.filtered_above,
            f"filtered_above = {self.filtered_above}",
            "branching or vocab_size",
        )
        return self

    def rules(self) -> dict[str, Any]:
        v = self.vocab_size
        n = self.num_classes or self.vocab_size
        s = self.branching
        L = self.depth
        k = self.filtered_above
        sizes = {
            level: m if level <= k else v**s // (n if level == L else v)
            for level, m in self.multiplicities().items()
        }
        if self.zipf_exponent is None:
            return {"multiplicity": sizes}
        laws = {
            level: zipf(m, self.zipf_exponent) if level <= k else None for level, m in sizes.items()
        }
        return {"multiplicity": sizes, "rule_probabilities": laws}


@lru_cache(maxsize=32)
def _grammar(source: RHMSource, number: int, seed: int) -> RandomHierarchyModel:
    return RandomHierarchyModel(
        vocab_size=source.vocab_size,
        branching=source.branching,
        depth=source.depth,
        num_classes=source.num_classes,
        seed=int(keys(seed, Purpose.GRAMMAR, number)),
        **source.rules(),
    )


def check_rules(rules: int, branching: int, levels: int, option: str, lower: str) -> None:
    """ValueError if the rules of all levels would not fit into memory; it names an option and
    the value to lower.
    """
    gigabytes = 8 * rules * branching * levels / 2**30
    expect(
        gigabytes <= _MOST_BYTES / 2**30,
        option,
        f"{gigabytes:.0f} GB of rules",
        f"at most 8 GB; lower {lower}",
    )


_MATRICES = ("initial", "transition", "emission")


class HiddenMarkovSource(Spec, StringSource):
    """Strings of hidden Markov models, whose tree level 1 are the hidden states; items are spread
    evenly over `chains` chains.

    Options. `states`, `symbols`, `length`, `persistence`: chains drawn at random, as
    `HiddenMarkovModel.drawn`. Or `initial`, `transition`, `emission`: the matrices of one chain, in
    place of `states`, `symbols` and `persistence`. Coordinate of `item`: `grammar`, the number of
    the chain.
    """

    site_name: ClassVar[str] = "symbols"
    depth: ClassVar[int] = 1
    type: Literal["hmm"] = "hmm"
    length: int = Field(ge=1)
    states: int | None = Field(default=None, ge=1)
    symbols: int | None = Field(default=None, ge=1)
    persistence: float = Field(default=0.9, ge=0, le=1)
    chains: int = Field(default=1, ge=1)
    initial: tuple[float, ...] | None = None
    transition: tuple[tuple[float, ...], ...] | None = None
    emission: tuple[tuple[float, ...], ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> HiddenMarkovSource:
        given = [name for name in _MATRICES if getattr(self, name) is not None]
        sizes = [name for name in ("states", "symbols") if getattr(self, name) is not None]
        fits = (len(given) == 3 and not sizes and self.chains == 1) or (
            not given and len(sizes) == 2
        )
        expect(
            fits,
            "given",
            given + sizes,
            f"states and symbols, or all of {', '.join(_MATRICES)} for one chain",
        )
        self.grammar(0, 0)
        return self

    @property
    def number(self) -> tuple[str, int]:
        return "chains", self.chains

    @property
    def vocab_size(self) -> int:
        return self.grammar(0, 0).vocab_size

    @property
    def num_leaves(self) -> int:
        return self.length

    def grammar(self, number: int, seed: int) -> HiddenMarkovModel:
        """Chain `number` (0 .. chains - 1) of an experiment with this seed."""
        return _chain(self, number, seed)


@lru_cache(maxsize=32)
def _chain(source: HiddenMarkovSource, number: int, seed: int) -> HiddenMarkovModel:
    initial = source.initial
    transition = source.transition
    emission = source.emission
    if initial is not None and transition is not None and emission is not None:
        return HiddenMarkovModel(initial, transition, emission, length=source.length)
    of_chain = int(keys(seed, Purpose.GRAMMAR, number))
    return HiddenMarkovModel.drawn(
        source.states or 1, source.symbols or 1, source.length, source.persistence, of_chain
    )
