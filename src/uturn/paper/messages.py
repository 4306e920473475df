"""Beliefs and messages of every level against ε, exact and in theory: what figs. 7 and 10 to 14 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import xarray as xr
from scipy.stats import t

from uturn.core.random import Purpose, keys, uniforms
from uturn.exact.rhm import RandomHierarchyModel
from uturn.exact.theory import MeanField
from uturn.measures.statistics import Estimate, estimate, grammar_means, shift
from uturn.paper.verdicts import Verdict, verdict, within

TOLERANCE = 0.005  # in ε: 2.5 standard deviations of the thresholds of grammars (fig6)


def mean_estimate(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Mean of independent numbers with its interval of Student's t."""
    with np.errstate(invalid="ignore"):  # infinite numbers
        half = np.std(values, ddof=1) / np.sqrt(len(values)) * t.ppf(0.5 + confidence / 2, len(values) - 1)
    mean = float(np.mean(values))
    return Estimate(mean, mean - float(half), mean + float(half))


@lru_cache(maxsize=2)
def quenched_downward(
    vocab_size: int, multiplicity: int, branching: int, depth: int, noise: tuple[float, ...], grammars: int, paths: int = 8
) -> np.ndarray:
    """Downward belief in the true symbol with the rules kept, only the siblings' messages in mean field.

    The annealed map (Eq. 53) replaces the number K of rules that compete with the true one by its mean. But the mean of
    1/(1+K) is larger than 1/(1 + mean K), by 10 % and more at small ε. Here random rules are drawn along paths from the root
    to a leaf, Eq. 8 is applied to them with siblings that send the mean-field upward message, and the resulting beliefs are
    averaged. A path meets one factor of every level, so nothing is lost by drawing one path at a time: at ε = 0, where siblings
    are known for certain, the result is exact (up to the number of paths).

    Returns
    -------
    array (grammars, noise, depth + 1)
        Mean over the paths of a grammar; tree level last, 0 = leaves.
    """
    v, m, s, L = vocab_size, multiplicity, branching, depth
    up = MeanField(v, m, s).curves(np.array(noise), L).upward
    result = np.zeros((grammars, len(noise), L + 1))
    result[..., L] = 1 / v
    symbols = np.eye(v)
    for g, seed in enumerate(keys(0, Purpose.PICTURE, np.arange(grammars)).tolist()):
        rhm = RandomHierarchyModel(v, m, s, L, seed=seed)
        u = uniforms(keys(seed, Purpose.PICTURE, np.arange(paths)), 2 * L + 1)
        for path in range(paths):
            symbol, message = int(u[path, 0] * v), np.full((len(noise), v), 1 / v)
            for level in range(L, 0, -1):
                rules = rhm.rules[level].reshape(-1, s)
                true = rules[symbol * m + int(u[path, 2 * level - 1] * m)]
                child = int(u[path, 2 * level] * s)
                right = up[:, level - 1, None]
                weight = np.repeat(message, m, axis=1)
                for sibling in range(s):
                    if sibling != child:
                        weight *= np.where(rules[:, sibling] == true[sibling], right, (1 - right) / (v - 1))
                message = weight @ symbols[rules[:, child]]
                message /= message.sum(axis=1, keepdims=True)
                symbol = int(true[child])
                result[g, :, level - 1] += message[:, symbol] / paths
    return result


def competing_rules(vocab_size: int, multiplicity: int, branching: int, depth: int, grammars: int) -> np.ndarray:
    """Numbers of rules that compete for a child whose siblings are known, counted in random grammars.

    Of a rule y -> (x_1, .., x_s) and one of its children i: rules with the same siblings and another symbol at i, of the same
    parent y, and of all parents. Mean over the rules and children of every tree level.

    Returns
    -------
    array (grammars, 2): of the same parent, of all parents
    """
    v, s = vocab_size, branching
    found = np.empty((grammars, depth, 2))
    for g, seed in enumerate(keys(0, Purpose.PICTURE, np.arange(grammars)).tolist()):
        rhm = RandomHierarchyModel(v, multiplicity, s, depth, seed=seed)
        for level, rules in rhm.rules.items():
            parents = np.repeat(np.arange(len(rules)), rules.shape[1])
            counts = np.zeros(2)
            for child in range(s):
                siblings = np.delete(rules.reshape(-1, s), child, axis=1) @ v ** np.arange(s - 1)
                for k, context in enumerate((siblings + v ** (s - 1) * parents, siblings)):
                    # All rules of a context differ in the child.
                    sizes = np.bincount(np.unique(context, return_inverse=True)[1])
                    counts[k] += (sizes * (sizes - 1)).sum() / sizes.sum() / s
            found[g, level - 1] = counts
    return found.mean(axis=1)


def compare(
    values: xr.DataArray, theory_noise: np.ndarray, theory: np.ndarray, levels: Sequence[int], what: str, against: str
) -> tuple[xr.Dataset, Verdict]:
    """Shift in ε of the mean curve of each level against a theory (noise, tree_level), with the verdict on it."""
    noise = values.noise.values
    shifts = []
    for level in levels:

        def displaced(curve: np.ndarray, level: int = level) -> float:
            return shift(noise, curve, theory_noise, theory[:, level])

        shifts.append(estimate(values.isel(tree_level=level), displaced))
    data = xr.Dataset(
        {
            "belief": grammar_means(values),
            "theory": (("theory_noise", "tree_level"), theory),
            "shift": (("shifted_level", "bound"), np.array(shifts)),
        },
        coords={"bound": ["value", "low", "high"], "shifted_level": list(levels), "theory_noise": theory_noise},
        attrs={"tolerance": TOLERANCE},
    )
    return data, shift_verdict(f"{what}, BP against {against}", shifts, levels)


def shift_verdict(what: str, shifts: Sequence[Estimate], levels: Sequence[int], prefix: str = "shift in ε of the ") -> Verdict:
    """All levels lie on the theory, up to the tolerance in ε."""
    worst = int(np.argmax([abs(s.value) for s in shifts]))
    return verdict(
        f"{prefix}{what}, levels {levels[0]} .. {levels[-1]}",
        ", ".join(f"{s.value:+.4f}" for s in shifts) + f"; largest {shifts[worst]} (level {levels[worst]})",
        "0",
        within([s.value for s in shifts], TOLERANCE, f"all within {TOLERANCE}"),
    )
