"""Fig. 8: layers of a network trained to classify strings, original against posterior sample, in the ε-process."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.measures.statistics import Estimate, estimate, grammar_means, inversion, mean_curves, transition
from uturn.paper import string_classifier
from uturn.paper.fig7 import TOLERANCE
from uturn.paper.specs import experiment_of, mean_field
from uturn.paper.string_classifier import SEED
from uturn.paper.verdicts import Verdict, above, at_least, below, estimates, mean_estimate, verdict, within
from uturn.paper.workshop import Workshop
from uturn.studies.plotting.levels import draw_similarities
from uturn.studies.plotting.style import CLASS, MUTED, THEORY, level_bar, level_colors, mark_noise, style

TITLE = "Layers of a network that learned the grammar"
CLAIM = "In a network that learned the grammar, the last layer changes abruptly near the critical noise, the first smoothly."
CAPTION = (
    "A convolutional network with one block a tree level is trained to classify strings; U-turns draw from the exact posterior "
    "in the ε-process. Left: cosine similarity of standardised post-activations of original and reconstruction, layer by layer "
    "(bars: 95 % intervals of the first block and of the logits); triangles: independent strings; open circles: share of "
    "reconstructions in which the network sees the same class, scaled to 0 by chance. Right: probability that a latent of each "
    "tree level keeps its symbol, exact (points) and in mean-field theory (lines). Dashed: where mean-field theory has class and "
    "leaves swap order at this depth; dotted: ε*; red: where logits and first block swap."
)


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    chosen, grammars = string_classifier.setup(workshop.scale), 24 if workshop.scale == "smoke" else 96
    classifier = string_classifier.trained_classifier(workshop)
    statistics = workshop.layer_statistics("fig8-statistics", classifier, lambda: string_classifier.reference(chosen.source))
    source, common = chosen.source.model_dump(), ("epsilon", chosen.noise, "tree_levels")
    layers = {"type": "network_layers", "classifier": str(classifier), "statistics": str(statistics)}
    # The same U-turns without the network, for many grammars: how much a grammar matters.
    many = {**source, "grammars": grammars}
    experiments = {
        "layers": experiment_of(source, *common, layers, items=chosen.items, trajectories=2, chunk=50, seed=SEED),
        "grammars": experiment_of(many, *common, items=64 * grammars, chunk=64 * 24, seed=SEED),
    }
    return {**workshop.runs("fig8", experiments), "network": string_classifier.examined(workshop, classifier, statistics)}


class Places(NamedTuple):
    """Where mean-field theory puts the transition of a grammar."""

    crossing: float  # ε at which class and leaves swap order at the depth of the grammar
    star: float  # ε*, the threshold of infinitely deep trees


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run, many, network = (runs[label].load() for label in ("layers", "grammars", "network"))
    source = json.loads(run.attrs["spec"])["source"]
    v, L, theory = source["vocab_size"], source["depth"], mean_field(source)
    crossing, star = theory.class_crossing(L), theory.critical_noise
    if crossing is None or star is None:
        raise ValueError(f"depth = {L}: class and leaves do not swap; take a deeper tree")
    places = Places(crossing, star)
    # Agreement of the predicted class, scaled like the similarities: 1 for no change, 0 for chance.
    predicted = (run.same_class.astype(float) - 1 / v) / (1 - 1 / v)
    swaps = _swaps(run, predicted, places)
    each_grammar = grammar_means(many.belief).transpose("grammar", ...).values
    grammar_swaps = np.array([_swap(many.noise.values, beliefs, -1, 0, places) for beliefs in each_grammar])
    over = ("item", "trajectory")
    data = xr.Dataset(
        {
            "similarity": mean_curves(run.similarity),
            "inversion": ("estimate", list(swaps.layers)),
            "distance": run.distance.mean(over, dtype=float),
            "same_class": run.same_class.mean(over, dtype=float),
            "verdict": predicted.mean(over, dtype=float),
            "belief": run.belief.mean("item", dtype=float),
            "mean_field": (("noise", "tree_level"), theory.curves(run.noise.values, L).marginals),
            "random_pairs": network.random_pairs,
            "grammar_crossing": ("grammar", grammar_swaps),
        },
        attrs={
            **{name: source[name] for name in ("vocab_size", "multiplicity", "branching")},
            "critical_noise": star,
            "class_crossing": crossing,
            "exact_inversion": swaps.exact.value,
            "accuracy": float(network.accuracy),
            "training_steps": network.attrs["training_steps"],
        },
    )
    allowed = 3 * float(grammar_swaps.std(ddof=1))
    return data, [
        _accuracy(network),
        verdict(
            "ε at which the predicted class and the first block swap order",
            f"{swaps.predicted}; class and leaves of the same U-turns: {swaps.exact}",
            f"{crossing:.4f} (mean field, class and leaves, L = {L})",
            within(swaps.predicted.value - crossing, allowed, f"within 3 standard deviations between grammars ({allowed:.4f})"),
        ),
        _layer_swap(swaps, places, run, network),
        _order(run.similarity, places),
        _grammars(grammar_swaps, swaps.exact, places),
        *_falls(run, network.random_pairs.sel(pair="independent").values, 1 / v),
    ]


def _accuracy(network: xr.Dataset) -> Verdict:
    right, count = float(network.accuracy), network.attrs["test_strings"]
    return verdict(
        f"accuracy of the network on {count} new strings",
        f"{right:.4f} ± {1.96 * np.sqrt(right * (1 - right) / count):.4f} after {network.attrs['training_steps']} steps",
        "at least 0.99",
        at_least(right, 0.99),
    )


def _swap(noise: np.ndarray, curves: np.ndarray, high: int, low: int, places: Places) -> float:
    """ε at which two curves (noise, curve) swap order near the transition.

    With less noise all curves are 1, with more they are at their floors: their order there is random.
    """
    window = (noise >= places.crossing / 2) & (noise <= (1 + places.star) / 2)
    return inversion(noise[window], curves[window, high], curves[window, low])


class Swaps(NamedTuple):
    """ε at which two curves swap order."""

    predicted: Estimate  # predicted class and first block
    layers: Estimate  # logits and first block
    later: Estimate  # `layers` minus `predicted`
    exact: Estimate  # class and leaves of the same U-turns, by belief propagation


def _swaps(run: xr.Dataset, predicted: xr.DataArray, places: Places) -> Swaps:
    swap = partial(_swap, run.noise.values, places=places)
    first, logits = (run.similarity.isel(network_layer=k, drop=True) for k in (0, -1))
    together = xr.concat([first, logits, predicted], dim="curve").transpose(*run.similarity.dims[:3], "curve")

    def of_network(c: np.ndarray) -> list[float]:
        both = swap(c, high=2, low=0), swap(c, high=1, low=0)
        return [*both, both[1] - both[0]]

    of_class, of_layers, later = estimates(together, of_network)
    return Swaps(of_class, of_layers, later, estimate(run.belief, partial(swap, high=-1, low=0)))


def _layer_swap(swaps: Swaps, places: Places, run: xr.Dataset, network: xr.Dataset) -> Verdict:
    """Logits carry more than the class, so they swap later."""
    nearest = int(np.argmin(np.abs(run.noise.values - swaps.layers.value)))
    logits, same = run.similarity.isel(network_layer=-1, noise=nearest), run.same_class.isel(noise=nearest)
    floor = network.random_pairs.sel(pair="independent").values[-1]
    return verdict(
        "ε at which logits and first block swap order",
        f"{swaps.layers}, later than the predicted class by {swaps.later}; similarity of logits of another class there: "
        f"{float(logits.where(same == 0).mean()):.2f} (independent strings: {floor:.2f})",
        f"later than the verdict, as logits tell more than the class; before ε* = {places.star:.4f}",
        above(swaps.later.low, 0, "interval of the difference above 0, interval of the swap below ε*"),
        below(swaps.layers.high, places.star, ""),
    )


def _order(similarity: xr.DataArray, places: Places) -> Verdict:
    noise = similarity.noise.values

    def mean_gap(c: np.ndarray, low: float, high: float) -> float:
        inside = (noise >= low) & (noise <= high)
        return float(np.trapezoid((c[:, -1] - c[:, 0])[inside], noise[inside]) / np.ptp(noise[inside]))

    before = estimate(similarity, partial(mean_gap, low=0, high=places.crossing))
    after = estimate(similarity, partial(mean_gap, low=places.star, high=1))
    return verdict(
        f"logits - first block, mean over ε < {places.crossing:.3f} and over ε > ε* = {places.star:.3f}",
        f"{before}; {after}",
        "positive, then negative: the order of the layers inverts",
        above([before.low, -after.high], 0, "intervals exclude 0"),
    )


def _grammars(swaps: np.ndarray, exact: Estimate, places: Places) -> Verdict:
    """Swap of class and leaves in many grammars, and in the grammar of the network."""
    mean, deviation = mean_estimate(swaps), float(swaps.std(ddof=1))
    half = mean.high - mean.value
    return verdict(
        f"ε at which class and leaves swap order, {len(swaps)} grammars",
        f"{mean}, standard deviation {deviation:.4f}; the grammar of the network: {exact.value:.4f}",
        f"{places.crossing:.4f} (mean field), up to its bias; a typical grammar",
        within(
            mean.value - places.crossing,
            half + TOLERANCE,
            f"mean field within {TOLERANCE} of the t interval, which is no wider than ±{TOLERANCE}",
        ),
        below(half, TOLERANCE, ""),
        within(exact.value - mean.value, 2 * deviation, "the network's grammar within 2 standard deviations of the mean"),
    )


def _falls(run: xr.Dataset, floor: np.ndarray, chance: float) -> list[Verdict]:
    """Place and width of the falls of class belief, logits and first block of the same items; each falls to its own floor."""
    similarity = run.similarity.mean("trajectory")
    layers = (similarity.isel(network_layer=k, drop=True) for k in (-1, 0))
    together = xr.concat([run.belief.isel(tree_level=-1, drop=True), *layers], dim="curve").transpose("noise", "item", "curve")

    def falls(c: np.ndarray) -> list[float]:
        bottoms = (chance, floor[-1], floor[0])
        belief, logits, block = (transition(run.noise.values, c[:, k], 1.0, bottom) for k, bottom in enumerate(bottoms))
        places = [belief.location, logits.location, logits.location - belief.location]
        return [*places, belief.width, logits.width, block.width, block.width - logits.width]

    belief, logits, later, width, *widths, narrower = estimates(together, falls)
    half = width.value / 2
    return [
        verdict(
            "half of the fall of the logits, and how much later than that of the exact class belief",
            f"{logits}; {later}",
            f"{belief.value:.4f}: the logits lose the class where it is lost",
            within(later.value, half, f"within half the width of the fall of the class ({half:.4f})"),
        ),
        verdict(
            "width of the fall (a quarter to three quarters) of logits and first block",
            f"{widths[0]}; {widths[1]}; difference {narrower}",
            "abrupt for the logits, smooth for the first block",
            above(narrower.low, 0, "interval of the difference above 0"),
        ),
    ]


def draw(data: xr.Dataset) -> Any:
    attrs = data.attrs
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, layout="constrained")
        _draw_layers(left, data)
        _draw_levels(plt, right, data)
        for axes in (left, right):
            axes.axvline(attrs["class_crossing"], color=THEORY, lw=1, ls="--", zorder=1)
            mark_noise(axes, attrs["critical_noise"], r"$\epsilon^*$", aside=0.008)
            axes.set(xlabel=r"noise $\epsilon$", xlim=(0.4, 1))
        right.plot([], [], color=THEORY, lw=1, ls="--", label="class and leaves swap (mean field)")
        right.legend(loc="lower left", fontsize=8.5, frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return figure


def _draw_layers(axes: Any, data: xr.Dataset) -> None:
    noise, depth = data.noise.values, data.sizes["network_layer"] - 1
    names = [f"block {k}" for k in range(1, depth + 1)] + ["logits"]
    colors = draw_similarities(axes, noise, data.similarity.values, names)
    for color, floor in zip(colors, data.random_pairs.sel(pair="independent").values, strict=True):
        axes.plot([1.015], [floor], "<", color=color, ms=5, clip_on=False)
    swap, *ends = data.inversion.values
    axes.axvspan(*ends, color=CLASS, alpha=0.15, lw=0)
    axes.axvline(swap, color=CLASS, lw=1, label="logits and block 1 swap")
    axes.plot(noise, data.verdict, "o", mfc="none", ms=4, mew=1, color=CLASS, label="same predicted class, scaled", zorder=5)
    axes.plot([], [], "<", color=MUTED, ms=5, label="independent strings")
    axes.legend(loc="lower left", fontsize=8.5)
    axes.set(ylabel="cosine similarity", title="layers of the trained network", ylim=(None, 1.03))


def _draw_levels(plt: Any, axes: Any, data: xr.Dataset) -> None:
    L, fine = data.sizes["tree_level"] - 1, np.linspace(0, 1, 500)
    lines = mean_field(data.attrs).curves(fine, L).marginals
    for level, color in enumerate(level_colors(L + 1)):
        edge = level in (0, L)
        axes.plot(fine, lines[:, level], color=color, lw=1.8 if edge else 0.9, zorder=2)
        axes.plot(data.noise, data.belief.isel(tree_level=level), "o" if edge else ".", ms=4, color=color, zorder=3)
    axes.plot([], [], "o", color=MUTED, ms=4, label="exact (belief propagation)")
    axes.plot([], [], color=MUTED, label="mean-field theory")
    axes.set(ylabel="P(symbol unchanged)", title="levels of the tree", ylim=(0, 1.03))
    level_bar(plt, axes, L + 1, "tree level (0 = leaves)")
