"""Fig. 8: layers of a network trained to classify strings, original against posterior sample, in
the ε-process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.random import Purpose, keys, uniforms
from uturn.measures.curves import inversion, transition
from uturn.measures.intervals import mean_curves
from uturn.measures.readings import grammar_means
from uturn.measures.replicates import estimate
from uturn.networks.classifiers import TreeClassifier
from uturn.networks.files import load_network
from uturn.paper.specs import experiment_of, mean_field
from uturn.paper.verdicts import Verdict, above, below, estimates, verdict, within
from uturn.paper.workshop import Scale, Workshop, accuracy
from uturn.probes.hidden_layers import HiddenLayers
from uturn.sources import RHMSource
from uturn.studies.plotting.levels import draw_similarities
from uturn.studies.plotting.style import (
    CLASS,
    MUTED,
    THEORY,
    level_bar,
    level_colors,
    mark_noise,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Layers of a network that learned the grammar"
CLAIM = (
    "In a network that learned the grammar, the last layer changes abruptly near the critical"
    " noise, the first smoothly."
)
CAPTION = (
    "A convolutional network with one block a tree level is trained to classify strings; U-turns"
    " draw from the exact posterior in the ε-process. Left: cosine similarity of standardised"
    " post-activations of original and reconstruction, layer by layer (bars: 95 % intervals of the"
    " first block and of the logits); triangles: independent strings; open circles: share of"
    " reconstructions in which the network sees the same class, scaled to 0 by chance. Right:"
    " probability that a latent of each tree level keeps its symbol, exact (points) and in"
    " mean-field theory (lines). Dashed: where mean-field theory has class and leaves swap order at"
    " this depth; dotted: ε*; red: where logits and first block swap."
)
# First coordinates of the random streams with the purpose CLASSIFIER.
_TRAIN, _HELD_OUT, _TEST, _REFERENCE, _BATCH = range(5)
SEED = 0


class Setup(NamedTuple):
    """Grammar, network and sizes of one scale."""

    vocab_size: int
    multiplicity: int
    branching: int
    depth: int
    width: int
    learning_rate: float
    training_strings: int
    steps: int
    items: int
    noise: tuple[float, ...]

    @property
    def source(self) -> RHMSource:
        return RHMSource(
            vocab_size=self.vocab_size,
            multiplicity=self.multiplicity,
            branching=self.branching,
            depth=self.depth,
        )


def setup(scale: Scale) -> Setup:
    if scale == "smoke":
        noise = np.unique(np.r_[np.arange(0, 1.01, 0.1), np.arange(0.72, 0.97, 0.03)].round(4))
        return Setup(16, 3, 2, 6, 64, 3e-3, 60_000, 3000, 600, tuple(noise.tolist()))
    noise = np.unique(np.r_[np.arange(0, 1.01, 0.05), np.arange(0.6, 0.85, 0.02)].round(4))
    return Setup(16, 4, 2, 7, 256, 1e-3, 300_000, 8000, 1000, tuple(noise.tolist()))


def strings(source: RHMSource, part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings and classes of a part of the data (training, held out, ..): (uint8 (count,
    num_leaves), int64 (count,)).
    """
    rhm = source.grammar(0, SEED)
    leaves = []
    classes = []
    for start in range(0, count, 20_000):  # latents of all strings at once would take much memory
        numbers = np.arange(start, min(start + 20_000, count))
        drawn = rhm.sample(len(numbers), keys(SEED, Purpose.CLASSIFIER, part, numbers))
        leaves.append(drawn.leaves.astype(np.uint8))
        classes.append(drawn.latents[rhm.depth][:, 0])
    return np.concatenate(leaves), np.concatenate(classes)


def trained_classifier(workshop: Workshop) -> Path:
    chosen = setup(workshop.scale)
    network = {
        name: value for name, value in chosen._asdict().items() if name not in ("items", "noise")
    }
    recipe = {
        **network,
        "seed": SEED,
        "batch": 256,
        "weight_decay": 0.01,
        "target": 0.995,
    }

    def prepared() -> tuple[Any, Any, Any]:
        leaves, classes = strings(chosen.source, _TRAIN, chosen.training_strings)

        def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
            rows = (
                uniforms(keys(SEED, Purpose.CLASSIFIER, _BATCH, [step]), recipe["batch"])[0]
                * len(leaves)
            ).astype(int)
            return leaves[rows].astype(np.int64), classes[rows]

        network = TreeClassifier(
            chosen.vocab_size, chosen.branching, chosen.depth, width=chosen.width, seed=SEED
        )
        held_out, right = strings(chosen.source, _HELD_OUT, 4000)
        return network, batch, (held_out.astype(np.int64), right)

    return workshop.classifier(
        "fig8-classifier",
        recipe,
        prepared,
        weight_decay=recipe["weight_decay"],
        decay=False,
        every=200,
    )


def examined(classifier: Path, statistics: Path, source: RHMSource) -> xr.Dataset:
    """Test accuracy of the network, and random pairs of strings, per layer: mean similarity of
    pairs of one class and of independent pairs.
    """
    network: Any = load_network(classifier)
    leaves, classes = strings(source, _TEST, 10_000)
    probe = HiddenLayers(network, "every block").load_statistics(statistics)
    order = np.argsort(classes, kind="stable")
    order = order[: len(order) // 2 * 2].reshape(-1, 2)
    order = order[classes[order[:, 0]] == classes[order[:, 1]]]
    pairs = {"same class": order, "independent": np.arange(len(leaves)).reshape(-1, 2)}
    compared = [probe.compare(leaves[pair[:, 0]], leaves[pair[:, 1]]) for pair in pairs.values()]
    return xr.Dataset(
        {
            "accuracy": accuracy(network, leaves.astype(np.int64), classes),
            "random_pairs": (
                ("pair", "network_layer"),
                np.stack([c.similarity.mean(axis=0) for c in compared]),
            ),
        },
        coords={"pair": list(pairs), "network_layer": list(probe.layers)},
        attrs={"test_strings": len(leaves), "training_steps": network.facts["steps"]},
    )


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    chosen = setup(workshop.scale)
    grammars = 24 if workshop.scale == "smoke" else 96
    classifier = trained_classifier(workshop)
    statistics = workshop.layer_statistics(
        "fig8-statistics", classifier, lambda: strings(chosen.source, _REFERENCE, 4000)[0]
    )
    source = chosen.source.model_dump()
    common = ("epsilon", chosen.noise, "tree_levels")
    layers = {
        "type": "network_layers",
        "classifier": str(classifier),
        "statistics": str(statistics),
    }
    # The same U-turns without the network: how much a grammar matters.
    many = {**source, "grammars": grammars}
    experiments = {
        "layers": experiment_of(
            source, *common, layers, items=chosen.items, trajectories=2, chunk=50, seed=SEED
        ),
        "grammars": experiment_of(many, *common, items=64 * grammars, chunk=64 * 24, seed=SEED),
    }
    files = {"classifier": classifier, "statistics": statistics}
    network = workshop.keep("fig8-network", examined, **files, source=chosen.source)
    return {**workshop.runs("fig8", experiments), "network": network}


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run, many, network = (runs[label].load() for label in ("layers", "grammars", "network"))
    source = json.loads(run.attrs["spec"])["source"]
    noise = run.noise.values
    v = source["vocab_size"]
    L = source["depth"]
    theory = mean_field(source)
    # Swap of class and leaves at this depth, and in deep trees.
    crossing = theory.class_crossing(L) or np.nan
    star = theory.critical_noise or np.nan
    # With less noise all curves are 1, with more they are at their floors: their order there is
    # random.
    near = (noise >= crossing / 2) & (noise <= (1 + star) / 2)

    def swap(curves: np.ndarray, high: int, low: int = 0) -> float:
        """ε at which two curves (noise, curve) swap order near the transition."""
        return inversion(noise[near], curves[near, high], curves[near, low])

    def swaps(c: np.ndarray) -> list[float]:
        return [swap(c, 2), swap(c, 1), swap(c, 1) - swap(c, 2)]

    # Agreement of the predicted class, scaled like the similarities: 1 for no change, 0 for chance.
    predicted = (run.same_class.astype(float) - 1 / v) / (1 - 1 / v)
    first, logits = (run.similarity.isel(network_layer=k, drop=True) for k in (0, -1))
    of_class, of_layers, later = estimates(
        xr.concat([first, logits, predicted], "curve").transpose(..., "curve"), swaps
    )
    exact = estimate(run.belief, lambda c: swap(c, -1))  # class and leaves of the same U-turns
    each_grammar = np.array(
        [swap(c, -1) for c in grammar_means(many.belief).transpose("grammar", ...).values]
    )
    over = ("item", "trajectory")
    allowed = 3 * float(each_grammar.std(ddof=1))
    floors = network.random_pairs.sel(pair="independent").values
    data = xr.Dataset(
        {
            "similarity": mean_curves(run.similarity),
            "inversion": ("estimate", list(of_layers)),
            "distance": run.distance.mean(over, dtype=float),
            "same_class": run.same_class.mean(over, dtype=float),
            "verdict": predicted.mean(over, dtype=float),
            "belief": run.belief.mean("item", dtype=float),
            "mean_field": (("noise", "tree_level"), theory.curves(noise, L).marginals),
            "random_pairs": network.random_pairs,
            "grammar_crossing": ("grammar", each_grammar),
        },
        attrs={
            **{name: source[name] for name in ("vocab_size", "multiplicity", "branching")},
            "critical_noise": star,
            "class_crossing": crossing,
            "exact_inversion": exact.value,
            "accuracy": float(network.accuracy),
            "training_steps": network.attrs["training_steps"],
        },
    )
    at = {"noise": int(np.argmin(np.abs(noise - of_layers.value)))}
    lost = float(logits.isel(at).where(run.same_class.isel(at) == 0).mean())
    return data, [
        verdict(
            "ε at which the predicted class and the first block swap order",
            f"{of_class}; class and leaves of the same U-turns: {exact}",
            f"{crossing:.4f} (mean field, class and leaves, L = {L})",
            within(
                of_class.value - crossing,
                allowed,
                f"within 3 standard deviations between grammars ({allowed:.4f})",
            ),
        ),
        verdict(
            "ε at which logits and first block swap order",
            f"{of_layers}, later than the predicted class by {later}; similarity of logits of"
            f" another class there: {lost:.2f} (independent strings: {floors[-1]:.2f})",
            f"later than the verdict, as logits tell more than the class; before ε* = {star:.4f}",
            above(
                later.low, 0, "interval of the difference above 0, interval of the swap below ε*"
            ),
            below(of_layers.high, star, ""),
        ),
        *_falls(run, floors, 1 / v),
    ]


def _falls(run: xr.Dataset, floor: np.ndarray, chance: float) -> list[Verdict]:
    """Place and width of the falls of class belief, logits and first block of the same items;
    each falls to its own floor.
    """
    similarity = run.similarity.mean("trajectory")
    layers = (similarity.isel(network_layer=k, drop=True) for k in (-1, 0))
    together = xr.concat(
        [run.belief.isel(tree_level=-1, drop=True), *layers], dim="curve"
    ).transpose("noise", "item", "curve")

    def falls(c: np.ndarray) -> list[float]:
        bottoms = (chance, floor[-1], floor[0])
        belief, logits, block = (
            transition(run.noise.values, c[:, k], 1.0, bottom) for k, bottom in enumerate(bottoms)
        )
        places = [belief.location, logits.location, logits.location - belief.location]
        return [*places, belief.width, logits.width, block.width, block.width - logits.width]

    belief, logits, later, width, *widths, narrower = estimates(together, falls)
    half = width.value / 2
    return [
        verdict(
            "half of the fall of the logits, and how much later than that of the exact class"
            " belief",
            f"{logits}; {later}",
            f"{belief.value:.4f}: the logits lose the class where it is lost",
            within(
                later.value, half, f"within half the width of the fall of the class ({half:.4f})"
            ),
        ),
        verdict(
            "width of the fall (a quarter to three quarters) of logits and first block",
            f"{widths[0]}; {widths[1]}; difference {narrower}",
            "abrupt for the logits, smooth for the first block",
            above(narrower.low, 0, "interval of the difference above 0"),
        ),
    ]


def draw(data: xr.Dataset) -> Figure:
    attrs = data.attrs
    with style() as plt:
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(11, 4.6), sharex=True, layout="constrained"
        )
        _draw_layers(left, data)
        _draw_levels(plt, right, data)
        for axes in (left, right):
            axes.axvline(attrs["class_crossing"], color=THEORY, lw=1, ls="--", zorder=1)
            mark_noise(axes, attrs["critical_noise"], r"$\epsilon^*$", aside=0.008)
            axes.set(xlabel=r"noise $\epsilon$", xlim=(0.4, 1))
        right.plot([], [], color=THEORY, lw=1, ls="--", label="class and leaves swap (mean field)")
        right.legend(
            loc="lower left",
            fontsize=8.5,
            frameon=True,
            facecolor="white",
            edgecolor="none",
            framealpha=1,
        )
    return figure


def _draw_layers(axes: Axes, data: xr.Dataset) -> None:
    noise = data.noise.values
    depth = data.sizes["network_layer"] - 1
    names = [f"block {k}" for k in range(1, depth + 1)] + ["logits"]
    colors = draw_similarities(axes, noise, data.similarity.values, names)
    for color, floor in zip(colors, data.random_pairs.sel(pair="independent").values, strict=True):
        axes.plot([1.015], [floor], "<", color=color, ms=5, clip_on=False)
    swap, *ends = data.inversion.values
    axes.axvspan(*ends, color=CLASS, alpha=0.15, lw=0)
    axes.axvline(swap, color=CLASS, lw=1, label="logits and block 1 swap")
    axes.plot(
        noise,
        data.verdict,
        "o",
        mfc="none",
        ms=4,
        mew=1,
        color=CLASS,
        label="same predicted class, scaled",
        zorder=5,
    )
    axes.plot([], [], "<", color=MUTED, ms=5, label="independent strings")
    axes.legend(loc="lower left", fontsize=8.5)
    axes.set(ylabel="cosine similarity", title="layers of the trained network", ylim=(None, 1.03))


def _draw_levels(plt: Any, axes: Axes, data: xr.Dataset) -> None:
    L = data.sizes["tree_level"] - 1
    fine = np.linspace(0, 1, 500)
    lines = mean_field(data.attrs).curves(fine, L).marginals
    for level, color in enumerate(level_colors(L + 1)):
        edge = level in (0, L)
        axes.plot(fine, lines[:, level], color=color, lw=1.8 if edge else 0.9, zorder=2)
        axes.plot(
            data.noise,
            data.belief.isel(tree_level=level),
            "o" if edge else ".",
            ms=4,
            color=color,
            zorder=3,
        )
    axes.plot([], [], "o", color=MUTED, ms=4, label="exact (belief propagation)")
    axes.plot([], [], color=MUTED, label="mean-field theory")
    axes.set(ylabel="P(symbol unchanged)", title="levels of the tree", ylim=(0, 1.03))
    level_bar(plt, axes, L + 1, "tree level (0 = leaves)")
