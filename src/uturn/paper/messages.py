"""Messages per level against ε, exact and in theory: what figs. 11 to 14 have in common."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import xarray as xr

from uturn.paper import Verdict
from uturn.plotting.style import ACCENT, MUTED, THEORY, level_bar, level_colors, style
from uturn.random import Purpose, keys, uniforms
from uturn.rhm import RandomHierarchyModel
from uturn.statistics import Estimate, estimate, grammar_means, shift
from uturn.theory import MeanField

TOLERANCE = 0.005  # in ε, as in fig7: 2.5 standard deviations of the thresholds of grammars


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean of independent numbers with its 95 % interval of Student's t."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    mean = float(np.mean(values))
    return Estimate(mean, mean - half, mean + half)


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
    """Shift in ε of the mean curve of every level against a theory (noise, tree_level), with the verdict on it."""
    noise = values.noise.values
    shifts = []
    for level in levels:

        def displaced(curve: np.ndarray, level: int = level) -> float:
            return shift(noise, curve, theory_noise, theory[:, level])

        shifts.append(estimate(values.isel(tree_level=level), displaced))
    worst = int(np.argmax([abs(s.value) for s in shifts]))
    data = xr.Dataset(
        {
            "belief": grammar_means(values),
            "theory": (("theory_noise", "tree_level"), theory),
            "shift": (("shifted_level", "bound"), np.array(shifts)),
        },
        coords={"bound": ["value", "low", "high"], "shifted_level": list(levels), "theory_noise": theory_noise},
    )
    verdict = Verdict(
        f"shift in ε of the {what}, BP against {against}, levels {levels[0]} .. {levels[-1]}",
        ", ".join(f"{s.value:+.4f}" for s in shifts) + f"; largest {shifts[worst]} (level {levels[worst]})",
        "0",
        abs(shifts[worst].value) < TOLERANCE,
        f"all within {TOLERANCE}",
    )
    return data, verdict


def draw_levels(data: xr.Dataset, ylabel: str, theory_name: str) -> Any:
    """Left: curves of all levels, exact and in theory. Right: the shift in ε of every level with its interval."""
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.6), width_ratios=[1.75, 1], layout="constrained")
        depth = data.sizes["tree_level"] - 1
        colors = level_colors(depth + 1)
        for level in range(depth + 1):
            draw_level(left, data, level, colors[level], bold=level in (0, depth))
        if "mean_field" in data:
            some = (0, depth // 2, depth - 1)
            for level in some:
                line = data.mean_field.isel(tree_level=level)
                left.plot(data.theory_noise, line, color=colors[level], lw=1.3, ls=(0, (4, 2)), zorder=1)
            left.plot([], [], color=MUTED, lw=1.3, ls=(0, (4, 2)), label=f"mean field,\nlevels {some[0]}, {some[1]}, {some[2]}")
        left.axvline(data.attrs["critical_noise"], color=THEORY, lw=1, ls=":", zorder=1)
        left.text(data.attrs["critical_noise"] + 0.012, 0.96, rf"$\epsilon^*={data.attrs['critical_noise']:.3f}$", va="center")
        left.plot([], [], "o", color=MUTED, ms=4.5, label="exact (BP)")
        left.plot([], [], color=MUTED, lw=1.4, label=theory_name)
        left.legend(loc="upper left", bbox_to_anchor=(data.attrs["critical_noise"] + 0.005, 0.92), fontsize=9, handlelength=1.5)
        left.set(xlabel=r"noise $\epsilon$", ylabel=ylabel, xlim=(0, 1), ylim=(0, 1.03))
        left.set_title("all levels")
        level_bar(plt, left, depth + 1, "tree level (0 = leaves)")
        draw_shifts(right, data, colors)
    return figure


def draw_level(axes: Any, data: xr.Dataset, level: int, color: Any, bold: bool) -> None:
    """One level: points with the standard deviation between grammars, and the theory."""
    curve = data.belief.isel(tree_level=level)
    axes.plot(data.theory_noise, data.theory.isel(tree_level=level), color=color, lw=1.4, zorder=2)
    marker, size = ("o", 4.2) if bold else (".", 4)
    mean, spread = curve.mean("grammar"), curve.std("grammar")
    axes.errorbar(data.noise, mean, spread, fmt=marker, ms=size, lw=0.9, color=color, zorder=3)


def draw_shifts(axes: Any, data: xr.Dataset, colors: Sequence[Any]) -> None:
    levels = data.shifted_level.values
    value, low, high = (data["shift"].sel(bound=bound).values for bound in ("value", "low", "high"))
    axes.axvspan(-TOLERANCE, TOLERANCE, color=ACCENT, alpha=0.1, lw=0)
    axes.axvline(0, color=THEORY, lw=1)
    for k, level in enumerate(levels):
        axes.plot([low[k], high[k]], [level, level], color=colors[level], lw=2)
        axes.plot(value[k], level, "o", color=colors[level], ms=6)
    reach = 1.15 * max(1.6 * TOLERANCE, float(np.abs([low, high]).max()))
    axes.set(xlim=(-reach, reach), yticks=levels, xlabel=r"shift in $\epsilon$ (exact minus theory)", ylabel="tree level")
    ticks = [-TOLERANCE, 0, TOLERANCE]
    axes.set_xticks(ticks, ["0" if tick == 0 else f"{tick:+g}".replace("-", "−") for tick in ticks])
    axes.set_title("displacement, 95 % interval")
    axes.set_ylim(min(levels) - 0.6, max(levels) + 0.6)
