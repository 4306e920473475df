"""The rules of a grammar as flat arrays, for the compiled kernels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np


@dataclass(frozen=True)
class Tables:
    """Rules of all levels, joined along the first axis. Rule `r` of a level is row `rule_start[level] + r`, r = symbol * m + k.

    `inverse_*` list the rules of every level by the symbol x of child i: `inverse_rule[i]` from `inverse_start[level, i, x]` to
    `inverse_start[level, i, x + 1]` (a compressed sparse row index).
    """

    vocab_size: int
    branching: int
    depth: int
    num_classes: int
    symbols: np.ndarray  # (L+1,) alphabet size of a level
    multiplicity: np.ndarray  # (L+1,) rules per symbol, entry 0 unused
    rule_start: np.ndarray  # (L+1,)
    children: np.ndarray  # (rules, s) symbols of the children
    parent: np.ndarray  # (rules,) symbol that the rule rewrites
    probability: np.ndarray  # (rules,) float64
    uniform: np.ndarray  # (L+1,) bool: all rules of a symbol are equally likely, at that level
    inverse_start: np.ndarray  # (L+1, s, v+1)
    inverse_rule: np.ndarray  # (s, rules)
    class_probability: np.ndarray  # (n,)

    @cached_property
    def by_child(self) -> tuple[np.ndarray, np.ndarray]:
        """The rules in the order of `inverse_rule[i]`, for each child i.

        The symbols of the parent and of the other children, int64 (s, rules, s), and the probabilities, float64 (s, rules).
        """
        s, total = self.branching, len(self.children)
        index, probability = np.empty((s, total, s), np.int64), np.empty((s, total))
        for i, rules in enumerate(self.inverse_rule):
            index[i, :, 0] = self.parent[rules]
            index[i, :, 1:] = np.delete(self.children[rules], i, axis=1)
            probability[i] = self.probability[rules]
        return index, probability


_CACHE: WeakKeyDictionary[Any, Tables] = WeakKeyDictionary()


def tables_of(rhm: Any) -> Tables:
    """The tables of a RandomHierarchyModel, cached for each grammar."""
    tables = _CACHE.get(rhm)
    if tables is None:
        tables = _CACHE[rhm] = _build(rhm)
    return tables


def _build(rhm: Any) -> Tables:
    v, s, L, n = rhm.vocab_size, rhm.branching, rhm.depth, rhm.num_classes
    levels = range(1, L + 1)
    symbols = np.array([v] * L + [n], np.int64)
    multiplicity = np.array([0] + [rhm.rules[level].shape[1] for level in levels], np.int64)
    sizes = symbols * multiplicity
    rule_start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    children = np.concatenate([rhm.rules[level].reshape(-1, s) for level in levels]).astype(np.int64)
    probability = np.concatenate([rhm.rule_probabilities[level].reshape(-1) for level in levels]).astype(np.float64)
    parent = np.concatenate([np.repeat(np.arange(symbols[level]), multiplicity[level]) for level in levels])
    uniform = np.zeros(L + 1, bool)
    inverse_start = np.zeros((L + 1, s, v + 1), np.int64)
    inverse_rule = np.zeros((s, len(children)), np.int64)
    for level in levels:
        first, last = rule_start[level], rule_start[level] + sizes[level]
        p = probability[first:last]
        uniform[level] = p.min() == p.max()
        for i in range(s):
            column = children[first:last, i]
            inverse_rule[i, first:last] = first + np.argsort(column, kind="stable")
            inverse_start[level, i, 0] = first
            inverse_start[level, i, 1:] = first + np.cumsum(np.bincount(column, minlength=v))
    return Tables(
        v, s, L, n, symbols, multiplicity, rule_start, np.ascontiguousarray(children), parent.astype(np.int64), probability,
        uniform, inverse_start, inverse_rule, np.array(rhm.class_probabilities, np.float64),
    )  # fmt: skip
