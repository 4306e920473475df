"""The Random Hierarchy Model: a context-free grammar of fixed depth, drawn at random
(arXiv:2307.02129).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, DTypeLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from uturn.core import display
from uturn.core.checks import checked_array, checked_integer, expect
from uturn.core.files import check_regular, checked_path, whole_file
from uturn.core.memory import check_memory
from uturn.core.random import STRINGS, checked_seed, keys, streams, uniform_row, uniforms
from uturn.core.threads import over_blocks
from uturn.exact.grammar import Draw, RuleGrammar, Symbols, check_tuples, checked_depth

if TYPE_CHECKING:
    from uturn.core.evidence import Evidence
    from uturn.exact.inference.beliefs import Beliefs

Rules = Mapping[int, np.ndarray]
Laws = ArrayLike | Mapping[int, ArrayLike] | None
"""Probabilities of rules, of all levels or by level; None for uniform ones."""
_MOST_UNUSED = 2**16
"""Size of an alphabet, told by the largest leaf symbol, up to which most symbols may occur in no
rule."""
_MOST_DRAWN = 32
"""Nodes of a level in the drawing of a grammar."""
_FILE_FORMAT = "uturn.rhm"
_FILE_VERSION = "1"


@dataclass(frozen=True, repr=False)
class Parse:
    """The parse of each string, which is unique where it exists."""

    latents: dict[int, np.ndarray]
    """{tree_level: symbol of each node, int64 (batch, nodes)}, -1 if not valid."""
    valid: dict[int, np.ndarray]
    """{tree_level: whether the subtree below a node is grammatical, bool (batch, nodes)}."""
    rules: dict[int, np.ndarray]
    """{tree_level 1..depth: rule of each node, int64 (batch, nodes)}, -1 if not valid."""

    def __repr__(self) -> str:
        whole = self.valid[max(self.valid)]
        return f"Parse({len(whole)} strings, {int(whole.sum())} of them grammatical)"


def zipf(multiplicity: int, exponent: float) -> np.ndarray:
    """Rule probabilities (multiplicity,) proportional to k**-(1 + exponent), k = 1..multiplicity
    (arXiv:2505.07067).
    """
    multiplicity = checked_integer("multiplicity", multiplicity, 1)
    check_memory(f"{multiplicity} rule probabilities", 8 * multiplicity, "lower multiplicity")
    weights = np.arange(1, multiplicity + 1, dtype=float) ** -(1.0 + exponent)
    return np.asarray(weights / weights.sum())


class RandomHierarchyModel(RuleGrammar):
    """Random Hierarchy Model (Cagnetta et al., arXiv:2307.02129; section 3 of arXiv:2402.16991).

    The root (tree level L, the class) takes one of `num_classes` values. Every symbol `y` of tree
    level l owns m rules `y -> (x_1, .., x_s)` over the alphabet of level l-1; level 0 is the
    string. All tuples of a level are distinct, drawn uniformly without replacement among the v**s
    possible ones, so a string has at most one parse.

    Parameters
    ----------
    vocab_size : int, v >= 2
        Number of symbols of every level below the root.
    multiplicity : int or {tree_level: int}, m >= 1
        Number of rules (synonyms) of a symbol; `v * m <= v**s`, and `n * m <= v**s` at the root.
    branching : int, s >= 2
        Children of a node.
    depth : int, L, 1 .. 10,000
        Levels of rules; `num_leaves = s**L`.
    num_classes : int, n >= 1, optional
        Number of root symbols; v by default.
    seed : int
        The same arguments and seed give the same rules on every machine.
    rule_probabilities : array, or {tree_level: array}, optional
        Probabilities of the rules of a symbol, shape (m,) or (symbols, m), rows adding up to 1.
        Uniform by default; see `zipf`. A rule of probability 0 is no rule of the grammar.
    class_probabilities : array (n,), optional
        Uniform by default.

    Attributes
    ----------
    rules : {tree_level 1..L: int64 array (symbols, multiplicity, branching)}
    rule_probabilities : {tree_level 1..L: float64 array (symbols, multiplicity)}
    class_probabilities : float64 array (num_classes,)

    Examples
    --------
    >>> rhm = RandomHierarchyModel(vocab_size=8, multiplicity=2, branching=2, depth=3, seed=0)
    >>> {level: nodes.shape for level, nodes in rhm.sample(5, seed=1).latents.items()}
    {0: (5, 8), 1: (5, 4), 2: (5, 2), 3: (5, 1)}
    """

    def __init__(
        self,
        vocab_size: int,
        multiplicity: int | Mapping[int, int],
        branching: int,
        depth: int,
        num_classes: int | None = None,
        seed: int = 0,
        *,
        rule_probabilities: Laws = None,
        class_probabilities: ArrayLike | None = None,
    ) -> None:
        v = checked_integer("vocab_size", vocab_size, 2)
        s = checked_integer("branching", branching, 2)
        L = checked_depth(depth)
        n = v if num_classes is None else checked_integer("num_classes", num_classes, 1)
        key = keys(checked_seed(seed))
        levels = range(1, L + 1)
        sizes = _multiplicities(multiplicity, L)
        symbols = {level: n if level == L else v for level in levels}
        for level in levels:
            where = "the root (num_classes)" if level == L else f"tree level {level}"
            check_tuples(v, s, symbols[level], sizes[level], where)
        num_rules = {level: symbols[level] * sizes[level] for level in levels}
        check_memory("the rules", 16 * s * sum(num_rules.values()), "lower multiplicity or depth")
        rules = {}
        for level in levels:
            table = _distinct_tuples(v, s, num_rules[level], int(key), level)
            rules[level] = table.reshape(-1, sizes[level], s)
        self._set(rules, v, _laws_by_level(rule_probabilities, L), class_probabilities)

    @classmethod
    def from_rules(
        cls,
        rules: Mapping[int, ArrayLike] | Mapping[str, ArrayLike],
        vocab_size: int | None = None,
        *,
        rule_probabilities: Laws = None,
        class_probabilities: ArrayLike | None = None,
    ) -> RandomHierarchyModel:
        """A model with given rules; ValueError if a tuple occurs twice in a level, or sizes
        disagree.

        `rules`: {tree_level: integer array (symbols, multiplicity, branching)}, levels 1..depth as
        ints or decimal strings, depth being the root; values are 0-based symbols of the level
        below. In lists, symbols may have different numbers of rules; then the probabilities are
        lists of this form, too. `vocab_size`: by default the number of symbols of level 1, or the
        largest leaf symbol + 1 if depth is 1.
        """
        by_level = _by_level("rules", rules)
        L = len(by_level)
        laws = _laws_by_level(rule_probabilities, L)
        tables = {}
        for level, rows in by_level.items():
            if _is_ragged(rows):
                rows, laws[level] = _filled(level, rows, laws[level])
            table = checked_array(f"rules[{level}]", rows)
            are_rules = table.ndim == 3 and table.size and table.dtype.kind in "iu"
            expected = "integers of shape (symbols, multiplicity, branching)"
            expect(are_rules, f"rules[{level}]", rows, expected)
            tables[level] = table
        branchings = {table.shape[2] for table in tables.values()}
        is_one = len(branchings) == 1 and min(branchings) > 1
        expect(is_one, "rules: branching", branchings, "one number >= 2 for all levels")
        if vocab_size is None:
            v = _told_vocab_size(tables)
        else:
            v = checked_integer("vocab_size", vocab_size, 1)
        for level, table in tables.items():
            fits = level == L or len(table) == v
            expected = f"vocab_size = {v} below the root"
            expect(fits, f"rules[{level}]: symbols", len(table), expected)
            _check_symbols(f"rules[{level}]", table, v)
        model = cls.__new__(cls)
        model._set(tables, v, laws, class_probabilities)
        for level, table in tables.items():
            _check_distinct(level, table[model.rule_probabilities[level] > 0])
        return model

    def _set(
        self,
        rules: Rules,
        v: int,
        laws: dict[int, Any],  # as given by the user
        class_probabilities: ArrayLike | None,
    ) -> None:
        L = len(rules)
        self.vocab_size = v
        self.depth = L
        self.num_classes, _, self.branching = rules[L].shape
        self.rules = {}
        self.rule_probabilities = {}
        for level in range(1, L + 1):
            table = _frozen(rules[level], np.int64)
            name = f"rule_probabilities[{level}]"
            self.rules[level] = table
            self.rule_probabilities[level] = checked_law(name, laws[level], table.shape[:2])
        self.class_probabilities = checked_law(
            "class_probabilities", class_probabilities, (self.num_classes,)
        )

    # -- sizes -------------------------------------------------------------------------------------
    @property
    def multiplicity(self) -> int | dict[int, int]:
        """Rules per symbol: an int, or {tree_level: int} where it differs between levels."""
        sizes = {level: table.shape[1] for level, table in self.rules.items()}
        if len(set(sizes.values())) == 1:
            return int(sizes[1])
        return sizes

    @property
    def num_leaves(self) -> int:
        """Length of the strings, s**L."""
        return int(self.branching**self.depth)

    @property
    def rule_density(self) -> float | dict[int, float]:
        """Share f = m / v**(s-1) of the possible tuples used by the rules of a level with v
        symbols, in (0, 1].
        """
        tuples = self.vocab_size ** (self.branching - 1)
        m = self.multiplicity
        if isinstance(m, int):
            return float(m / tuples)
        return {level: k / tuples for level, k in m.items()}

    def num_nodes(self, tree_level: int) -> int:
        """Nodes of a tree level, s**(L - tree_level)."""
        return int(self.branching ** (self.depth - tree_level))

    def num_symbols(self, tree_level: int) -> int:
        """Alphabet size of a tree level: n at the root, v below."""
        return self.num_classes if tree_level == self.depth else self.vocab_size

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rules and probabilities (hexadecimal)."""
        digest = hashlib.sha256(f"{self.vocab_size} {self.branching} {self.depth}".encode())
        for level in self.rules:
            for array in (self.rules[level], self.rule_probabilities[level]):
                digest.update(str(array.shape).encode())
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        digest.update(self.class_probabilities.astype("<f8").tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return (
            f"RandomHierarchyModel(vocab_size={self.vocab_size}, multiplicity={self.multiplicity}, "
            f"branching={self.branching}, depth={self.depth}, num_classes={self.num_classes})"
        )

    def _repr_html_(self) -> str:
        """Sizes, and the uppermost levels of the tree in which class 0 and all symbols below it
        take their first rule.
        """
        levels = [np.array([0])]
        for level in range(self.depth, 0, -1):
            if len(levels[-1]) * self.branching > _MOST_DRAWN:
                break
            levels.append(self.rules[level][levels[-1], 0].reshape(-1))
        sizes = {
            "vocab_size v": self.vocab_size,
            "multiplicity m": self.multiplicity,
            "branching s": self.branching,
            "depth L": self.depth,
            "num_classes n": self.num_classes,
            "leaves": f"{self.branching}**{self.depth}",
            "rule density f": self.rule_density,
        }
        part = f"The upper {len(levels)} of {self.depth + 1} levels of the tree"
        if len(levels) > self.depth:
            part = "The whole tree"
        note = f"{part} of class 0, if every symbol takes its first rule; colours are symbols."
        drawing = display.tree([level.tolist() for level in levels], self.vocab_size)
        table = display.table(tuple(sizes), [[*map(_in_words, sizes.values())]])
        return display.page("Random Hierarchy Model", table, drawing, note=note)

    # -- drawing and reading strings ---------------------------------------------------------------
    def sample(self, count: int, seed: int | np.ndarray = 0) -> Draw:
        """Draw strings and their latents by ancestral sampling.

        `seed`: with an integer, string i depends on (seed, i) only, so `sample(10, seed)` equals
        the first ten strings of `sample(100, seed)`. A uint64 array (count,) holds one key for each
        string (`uturn.random.keys`).
        """
        count = checked_integer("count", count, 0)
        what = f"{count} strings of {self.branching}**{self.depth} leaves"
        check_memory(what, 16 * count * self.num_leaves, "draw fewer, or shorter ones")
        key = streams(seed, count, STRINGS)
        L = self.depth
        latents = {}
        for level in range(L + 1):
            latents[level] = np.empty((count, self.num_nodes(level)), np.int64)
        of_class = cumulative_sums(self.class_probabilities)
        latents[L][:, 0] = np.searchsorted(of_class, uniforms(key, 1)[:, 0], side="right")
        cumulative = {level: cumulative_sums(p) for level, p in self.rule_probabilities.items()}

        def block(first: int, last: int) -> None:
            offset = 1  # number of nodes above the level; node i of the tree uses random number i
            for level in range(L, 0, -1):
                parents = latents[level]
                children = latents[level - 1]
                rules = self.rules[level]
                sums = cumulative[level]
                start = np.uint64(offset)
                _draw_children(key, start, parents, rules, sums, first, last, children)
                offset += self.num_nodes(level)

        over_blocks(count, block, 8 * self.num_leaves)
        return Draw(latents)

    def parse(self, leaves: ArrayLike) -> Parse:
        """Symbol, rule and validity of every node of strings (batch, num_leaves); -1 where there
        is none.
        """
        nodes = self.checked_leaves(leaves)
        latents = {0: nodes}
        valid = {0: np.ones(nodes.shape, bool)}
        rules = {}
        for level in range(1, self.depth + 1):
            m = self.rules[level].shape[1]
            tuples = latents[level - 1].reshape(len(nodes), self.num_nodes(level), self.branching)
            index = self._readers[level](tuples)  # row of the flattened rule table, or -1
            valid[level] = index >= 0
            latents[level] = np.where(valid[level], index // m, -1)
            rules[level] = np.where(valid[level], index % m, -1)
        return Parse(latents, valid, rules)

    def log_likelihood(self, leaves: ArrayLike) -> np.ndarray:
        """Exact log-probability of strings in nats, (batch,) float64; -inf for strings that the
        grammar cannot produce.
        """
        parse = self.parse(leaves)
        root = parse.latents[self.depth][:, 0]
        is_valid = parse.valid[self.depth][:, 0]
        with np.errstate(divide="ignore"):
            total = np.where(is_valid, np.log(self.class_probabilities)[root], -np.inf)
            for level in range(1, self.depth + 1):
                # Invalid strings index with -1, which has no effect because their total is -inf.
                log_p = np.log(self.rule_probabilities[level])
                total += log_p[parse.latents[level], parse.rules[level]].sum(axis=1)
        return np.asarray(total)

    def completed(self, leaves: np.ndarray, keys: np.ndarray) -> dict[int, np.ndarray]:
        """The parse of each string, which is unique: {tree_level: int64 (batch, nodes)}, -1 where
        a node is ungrammatical.
        """
        return self.parse(leaves).latents

    def beliefs(self, evidence: Evidence, outputs: tuple[str, ...]) -> Beliefs:
        from uturn.exact.inference.engine import infer_numba

        return infer_numba(self, evidence, outputs)

    def posterior_draws(
        self, evidence: Evidence, keys: np.ndarray, numbers: np.ndarray
    ) -> dict[int, np.ndarray]:
        from uturn.exact.inference.engine import sample_numba

        return sample_numba(self, evidence, keys, numbers)

    def true_beliefs(self, evidence: Evidence, symbols: Symbols) -> np.ndarray:
        from uturn.exact.inference.engine import true_beliefs

        return true_beliefs(self, evidence, symbols)

    def checked_leaves(self, leaves: ArrayLike) -> np.ndarray:
        """`leaves` as an int64 array (batch, num_leaves) with symbols 0..v-1, or a ValueError."""
        return checked_leaves(leaves, self.vocab_size, self.num_leaves)

    @cached_property
    def _readers(self) -> dict[int, _TupleIndex]:
        readers = {}
        for level, table in self.rules.items():
            probabilities = self.rule_probabilities[level]
            readers[level] = _TupleIndex(table, probabilities, self.vocab_size)
        return readers

    # -- files -------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write the rules and probabilities to a safetensors file with a format version."""
        tensors = {"class_probabilities": self.class_probabilities}
        for level in self.rules:
            tensors[f"rules.{level}"] = self.rules[level]
            tensors[f"rule_probabilities.{level}"] = self.rule_probabilities[level]
        metadata = {
            "format": _FILE_FORMAT,
            "version": _FILE_VERSION,
            "vocab_size": str(self.vocab_size),
        }
        with whole_file(checked_path("path", path)) as file:
            file.write(save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> RandomHierarchyModel:
        """Read a grammar written by `save`; ValueError if the file is missing, damaged or of
        another kind.
        """
        path = checked_path("path", path)
        try:
            check_regular(path)
            with safe_open(str(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                form = (metadata.get("format"), metadata.get("version"))
                expected = f"{_FILE_FORMAT} version {_FILE_VERSION}"
                expect(form == (_FILE_FORMAT, _FILE_VERSION), f"{path}: format", form, expected)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{path} is not a readable grammar file ({error}); write one with rhm.save(path)"
            ) from None
        rules = {}
        laws = {}
        for name, tensor in tensors.items():
            kind, _, level = name.partition(".")
            if kind == "rules":
                rules[level] = tensor
                laws[int(level)] = tensors[f"rule_probabilities.{level}"]
        return cls.from_rules(
            rules,
            vocab_size=int(metadata["vocab_size"]),
            rule_probabilities=laws,
            class_probabilities=tensors["class_probabilities"],
        )


def checked_leaves(leaves: ArrayLike, vocab_size: int, num_leaves: int | None = None) -> np.ndarray:
    """Strings as an int64 array (batch, num_leaves) with symbols 0..v-1, or a ValueError; by
    default of any length.
    """
    array = checked_array("leaves", leaves)
    is_of_length = array.ndim == 2 and num_leaves in (None, array.shape[1])
    expected = f"integers of shape (batch, {num_leaves or 'num_leaves'})"
    fits = array.dtype.kind in "iu" and is_of_length
    expect(fits, f"leaves: {array.dtype} of shape", array.shape, expected)
    _check_symbols("leaves", array, vocab_size)
    return array.astype(np.int64, copy=False)


def _check_symbols(name: str, symbols: np.ndarray, vocab_size: int) -> None:
    extremes = [0, 0]
    if symbols.size:
        extremes = [int(symbols.min()), int(symbols.max())]
    wrong = [symbol for symbol in extremes if not 0 <= symbol < vocab_size]
    expected = f"symbols 0..{vocab_size - 1} (vocab_size = {vocab_size})"
    expect(not wrong, f"{name}: symbol", wrong, expected)


def _check_distinct(level: int, rules: np.ndarray) -> None:
    """ValueError if two of the rules (rules, branching) of a level are equal."""
    tuples, counts = np.unique(rules, axis=0, return_counts=True)
    twice = tuples[counts > 1][:1].tolist()
    expected = "distinct tuples, since a string would have several parses"
    expect(not twice, f"rules[{level}]: tuple", twice, expected)


def _told_vocab_size(tables: Mapping[int, np.ndarray]) -> int:
    """Size of the alphabet that rules tell: the number of symbols with rules at level 1, or the
    largest leaf symbol + 1 if that is the root.
    """
    if len(tables) > 1:
        return len(tables[1])
    v = int(tables[1].max()) + 1
    fits = v <= max(tables[1].size, _MOST_UNUSED)
    expect(fits, "rules[1]: symbol", v - 1, "0, 1, .., or vocab_size to be given")
    return v


class _TupleIndex:
    """Index of tuples in the flattened rule table, by a trie whose prefixes are numbered position
    by position.

    A prefix number is below the number of rules, so prefix * v + symbol fits in 64 bits for any
    v**s.
    """

    def __init__(self, table: np.ndarray, probabilities: np.ndarray, v: int) -> None:
        rules = np.flatnonzero(probabilities)
        flat = table.reshape(-1, table.shape[2])[rules]
        self.v = v
        self.codes: list[np.ndarray] = []
        prefix = np.zeros(len(flat), np.int64)
        for position in range(flat.shape[1]):
            codes, prefix = np.unique(prefix * v + flat[:, position], return_inverse=True)
            self.codes.append(codes)
        self.row = np.empty(len(flat), np.int64)
        self.row[prefix] = rules

    def __call__(self, tuples: np.ndarray) -> np.ndarray:
        is_rule = np.asarray((tuples >= 0).all(axis=-1))
        prefix = np.zeros(tuples.shape[:-1], np.int64)
        for position, codes in enumerate(self.codes):
            code = prefix * self.v + tuples[..., position]
            prefix = np.minimum(np.searchsorted(codes, code), len(codes) - 1)
            is_rule &= codes[prefix] == code
        return np.where(is_rule, self.row[prefix], -1)


@njit(inline="always", cache=True)
def inverse_cdf(cumulative, u):
    """Smallest k with u < cumulative[k]; the last k if rounding leaves none."""
    low = 0
    high = len(cumulative) - 1
    guess = min(int(u * len(cumulative)), high)  # right if all are equally likely
    if u < cumulative[guess] and (guess == 0 or cumulative[guess - 1] <= u):
        return guess
    while low < high:
        middle = (low + high) // 2
        if u < cumulative[middle]:
            high = middle
        else:
            low = middle + 1
    return low


@njit(nogil=True, cache=True)
def _draw_children(keys, offset, parents, rules, cumulative, first, last, out):
    s = rules.shape[2]
    u = np.empty(parents.shape[1])
    for b in range(first, last):
        uniform_row(keys[b], offset, u)
        for i in range(parents.shape[1]):
            y = parents[b, i]
            k = inverse_cdf(cumulative[y], u[i])
            for c in range(s):
                out[b, i * s + c] = rules[y, k, c]


def _distinct_tuples(v: int, s: int, count: int, key: int, level: int) -> np.ndarray:
    """`count` of the v**s tuples, (count, s), drawn uniformly without replacement, in random
    order.
    """
    total = v**s
    if 2 * count >= total:  # dense: a random permutation of all tuples
        order = np.argsort(uniforms(keys(key, [level]), total)[0], kind="stable")
        return tuples(order[:count], v, s)
    # Sparse: draw with replacement and keep first occurrences, which is uniform sampling without
    # replacement. The loop ends after a few rounds because at least half of the draws are new.
    rows = np.empty((0, s), np.int64)
    for attempt in range(1, 1000):
        u = uniforms(keys(key, [level], [attempt]), 2 * count * s).reshape(-1, s)
        rows = np.concatenate([rows, (u * v).astype(np.int64)])
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        rows = rows[first]
        if len(rows) >= count:
            return rows[:count]
    raise AssertionError("unreachable: every round at least halves what is missing on average")


def tuples(numbers: np.ndarray, v: int, s: int) -> np.ndarray:
    """The tuples (count, s) of v symbols with these numbers in lexicographic order."""
    return np.stack([numbers // v**position % v for position in range(s - 1, -1, -1)], axis=1)


def _in_words(size: object) -> str:
    """A size, or the sizes of the levels from the lowest to the highest."""
    if isinstance(size, Mapping):
        return ", ".join(map(_in_words, size.values()))
    return f"{size:.3g}" if isinstance(size, float) else str(size)


def _multiplicities(multiplicity: int | Mapping[int, int], depth: int) -> dict[int, int]:
    """Number of rules of a symbol at each level, or a ValueError."""
    levels = range(1, depth + 1)
    if not isinstance(multiplicity, Mapping):
        return dict.fromkeys(levels, checked_integer("multiplicity", multiplicity, 1))
    fits = set(multiplicity) == set(levels)
    expect(fits, "levels of multiplicity", list(multiplicity), f"every level 1..{depth}")
    sizes = {}
    for level in levels:
        sizes[level] = checked_integer(f"multiplicity[{level}]", multiplicity[level], 1)
    return sizes


def _by_level(name: str, tables: object, depth: int | None = None) -> dict[int, Any]:
    """A mapping with levels 1..depth, given as ints or decimal strings, or a ValueError."""
    entries = tables if isinstance(tables, Mapping) else {}
    by_level = {int(str(key)): value for key, value in entries.items() if str(key).isdecimal()}
    levels = set(range(1, (depth or len(entries)) + 1))
    is_whole = len(by_level) == len(entries) > 0 and set(by_level) == levels
    expected = f"every level 1..{depth or 'depth'} (depth = the root) once, as integers"
    expect(is_whole, name, tables, expected)
    return by_level


def _laws_by_level(probabilities: Laws, depth: int) -> dict[int, Any]:
    """Rule probabilities by level, from such a mapping or from those of all levels."""
    if isinstance(probabilities, Mapping):
        return _by_level("rule_probabilities", probabilities, depth)
    return dict.fromkeys(range(1, depth + 1), probabilities)


def _is_ragged(table: object) -> bool:
    """Whether lists of rules give symbols different numbers of rules."""
    if not isinstance(table, list | tuple):
        return False
    return len({len(rules) for rules in table if isinstance(rules, list | tuple)}) > 1


def _filled(
    level: int, table: Sequence[Any], probabilities: object
) -> tuple[list[list[Any]], list[list[float]]]:
    """Rules and probabilities of a level with equally many for each symbol: copies of the first
    rule with probability 0.
    """
    sizes = [len(rules) if isinstance(rules, list | tuple) else 0 for rules in table]
    laws = [np.full(size, 1 / max(size, 1)) for size in sizes]
    if isinstance(probabilities, Iterable):
        laws = [np.ravel(law) for law in probabilities]
    elif probabilities is not None:
        laws = []
    fits = all(sizes) and [len(law) for law in laws] == sizes
    expected = f"one for each of the rules, {sizes}, and at least one rule of each symbol"
    expect(fits, f"rule_probabilities[{level}]", probabilities, expected)
    most = max(sizes)
    rules = [[*row, *[row[0]] * (most - len(row))] for row in table]
    filled_laws = [[*law.tolist(), *[0.0] * (most - len(law))] for law in laws]
    return rules, filled_laws


def cumulative_sums(probabilities: np.ndarray) -> np.ndarray:
    """Cumulative sums along the last axis, in which rounding reaches no entry of probability 0:
    1 from the last positive one.
    """
    sums = np.cumsum(probabilities, axis=-1)
    sums_from_end = np.cumsum(probabilities[..., ::-1], axis=-1)[..., ::-1]
    is_last_positive = sums_from_end <= probabilities
    return np.where(is_last_positive, 1.0, sums)


def _frozen(values: ArrayLike, dtype: DTypeLike) -> np.ndarray:
    array = np.array(values, dtype=dtype, order="C")
    array.setflags(write=False)
    return array


def checked_law(name: str, probabilities: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Probabilities along the last axis, float64 and read-only, or a ValueError; None is the
    uniform law.
    """
    if probabilities is None:
        return _frozen(np.full(shape, 1 / shape[-1]), np.float64)
    values = np.asarray(probabilities, dtype=np.float64)
    array = np.broadcast_to(values, shape)
    total = array.sum(axis=-1, keepdims=True)
    are_laws = (array >= 0).all() and np.allclose(total, 1, rtol=0, atol=1e-6)
    expected = "probabilities adding up to 1 along the last axis"
    expect(values.ndim and are_laws, name, probabilities, expected)
    # Sums that are 1 up to rounding are not renormalised, so that saving and loading changes no
    # bit.
    is_exact = np.abs(total - 1) < 1e-12
    return _frozen(np.where(is_exact, array, array / total), np.float64)
