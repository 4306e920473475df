"""Fig. 8: layers of a network trained to classify strings, original against posterior sample, in the ε-process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import mannwhitneyu

from uturn.experiment import Experiment
from uturn.paper import Scale, Verdict, Work
from uturn.paper.messages import TOLERANCE, mean_estimate
from uturn.plotting.style import CLASS, MUTED, THEORY, level_bar, level_colors, style
from uturn.random import Purpose, keys, uniforms
from uturn.sources import RHMSource
from uturn.statistics import Transition, estimate, grammar_means, inversion, replicates, transition
from uturn.theory import MeanField

if TYPE_CHECKING:
    import torch

TITLE = "Layers of a network that learned the grammar"
CAPTION = (
    "A convolutional network with one block a tree level is trained to classify strings; U-turns draw from the exact "
    "posterior in the ε-process. Left: cosine similarity of standardised post-activations of original and reconstruction, "
    "layer by layer (bars: 95 % intervals of the first block and of the logits); triangles: independent strings; "
    "open circles: share of reconstructions in which the network sees the same class, scaled to 0 by chance. Right: "
    "probability that a latent of each tree level keeps its symbol, exact (points) and in mean-field theory (lines). "
    "Dashed: where mean-field theory has class and leaves swap order at this depth; dotted: ε*; red: where logits and first "
    "block swap."
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
    training_strings: int
    steps: int
    items: int
    noise: tuple[float, ...]

    @property
    def source(self) -> RHMSource:
        return RHMSource(vocab_size=self.vocab_size, multiplicity=self.multiplicity, branching=self.branching, depth=self.depth)


def setup(scale: Scale) -> Setup:
    if scale == "smoke":
        noise = np.unique(np.r_[np.arange(0, 1.01, 0.1), np.arange(0.72, 0.97, 0.03)].round(4))
        return Setup(16, 3, 2, 6, 128, 60_000, 3000, 600, tuple(noise.tolist()))
    noise = np.unique(np.r_[np.arange(0, 1.01, 0.05), np.arange(0.6, 0.85, 0.02)].round(4))
    return Setup(16, 4, 2, 7, 256, 300_000, 8000, 1000, tuple(noise.tolist()))


def strings(source: RHMSource, part: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Strings and classes of a part of the data (training, held out, ..): (uint8 (count, num_leaves), int64 (count,))."""
    rhm = source.grammar(0, SEED)
    leaves, classes = [], []
    for start in range(0, count, 20_000):  # latents of all strings at once would take much memory
        numbers = np.arange(start, min(start + 20_000, count))
        drawn = rhm.sample(len(numbers), keys(SEED, Purpose.CLASSIFIER, part, numbers))
        leaves.append(drawn.leaves.astype(np.uint8))
        classes.append(drawn.latents[rhm.depth][:, 0])
    return np.concatenate(leaves), np.concatenate(classes)


def trained_classifier(scale: Scale, folder: Path, progress: bool = False) -> Path:
    """File of the trained network: made, or taken up, or found in the folder."""
    import torch

    from uturn.networks.classifiers import TreeClassifier
    from uturn.networks.files import save_network
    from uturn.networks.training import train

    chosen, path = setup(scale), folder.resolve() / "fig8-classifier.safetensors"
    recipe = {**chosen._asdict(), "seed": SEED, "batch": 256, "learning_rate": 1e-3, "weight_decay": 0.01, "target": 0.995}
    for unrelated in ("items", "noise"):
        del recipe[unrelated]
    if _is_trained(path, recipe):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    source = chosen.source
    leaves, classes = strings(source, _TRAIN, chosen.training_strings)
    held_out = strings(source, _HELD_OUT, 4000)
    network = TreeClassifier(chosen.vocab_size, chosen.branching, chosen.depth, width=chosen.width, seed=SEED)

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        chosen_rows = (uniforms(keys(SEED, Purpose.CLASSIFIER, _BATCH, [step]), recipe["batch"])[0] * len(leaves)).astype(int)
        batch = torch.from_numpy(leaves[chosen_rows].astype(np.int64))
        return torch.nn.functional.cross_entropy(model(batch), torch.from_numpy(classes[chosen_rows]))

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(model, *held_out)}

    # Another recipe has another file: what is left of its training is in nobody's way.
    name = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    history = train(
        network,
        loss,
        chosen.steps,
        recipe=recipe,
        checkpoint=folder / f"fig8-classifier-{name}.checkpoint",
        learning_rate=recipe["learning_rate"],
        weight_decay=recipe["weight_decay"],
        decay=False,
        evaluate=evaluate,
        every=200,
        target=("accuracy", recipe["target"]),
        progress=progress,
    )
    save_network(network, path, recipe=recipe, steps=history.steps, records=history.records)
    return path


def _is_trained(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a file holds a network of this recipe; a damaged one is made again."""
    from uturn.networks.files import load_network

    try:
        network: Any = load_network(path, "tree_classifier")
    except ValueError:
        return False
    return network.facts.get("recipe") == recipe and isinstance(network.facts.get("steps"), int)


def accuracy(model: Any, leaves: np.ndarray, classes: np.ndarray) -> float:
    """Share of strings whose class is the network's first choice."""
    import torch

    right = 0
    with torch.inference_mode():
        for start in range(0, len(leaves), 500):
            batch = torch.from_numpy(leaves[start : start + 500].astype(np.int64))
            right += int((model(batch).argmax(1).numpy() == classes[start : start + 500]).sum())
    return right / len(leaves)


def statistics_file(scale: Scale, classifier: Path) -> Path:
    """File of the means and variances of the layers over reference strings, next to the network's."""
    from uturn.networks.files import load_network
    from uturn.probes.hidden_layers import HiddenLayers

    path = classifier.with_name("fig8-statistics.safetensors")
    probe = HiddenLayers(load_network(classifier), "every block")
    if path.exists():
        try:
            probe.load_statistics(path)
            return path
        except ValueError:
            pass  # of another network, or damaged: made again
    probe.fit(strings(setup(scale).source, _REFERENCE, 4000)[0]).save_statistics(path)
    return path


def examined(scale: Scale, classifier: Path, statistics: Path) -> xr.Dataset:
    """Test accuracy of the network, and random pairs of strings, per layer: mean similarity of one class and of independent ones,
    and the squared distance of every independent pair."""
    from uturn.networks.files import load_network
    from uturn.probes.hidden_layers import HiddenLayers

    network: Any = load_network(classifier)
    leaves, classes = strings(setup(scale).source, _TEST, 10_000)
    probe = HiddenLayers(network, "every block").load_statistics(statistics)
    order = np.argsort(classes, kind="stable")
    order = order[: len(order) // 2 * 2].reshape(-1, 2)
    order = order[classes[order[:, 0]] == classes[order[:, 1]]]
    pairs = {"same class": order, "independent": np.arange(len(leaves)).reshape(-1, 2)}
    compared = [probe.compare(leaves[pair[:, 0]], leaves[pair[:, 1]]) for pair in pairs.values()]
    return xr.Dataset(
        {
            "accuracy": accuracy(network, leaves, classes),
            "random_pairs": (("pair", "network_layer"), np.stack([found.similarity.mean(axis=0) for found in compared])),
            "random_distances": (("number", "network_layer"), compared[1].distance),
        },
        coords={"pair": list(pairs), "network_layer": list(probe.layers)},
        attrs={"test_strings": len(leaves), "training_steps": network.facts["steps"]},
    )


def measure(work: Work) -> dict[str, xr.Dataset]:
    from uturn.networks.files import load_network
    from uturn.networks.training import fingerprint

    chosen, grammars = setup(work.scale), 24 if work.scale == "smoke" else 96
    classifier = trained_classifier(work.scale, work.folder, work.progress)
    statistics = statistics_file(work.scale, classifier)
    common = {"seed": SEED, "corruption": {"type": "epsilon", "noise": list(chosen.noise)}, "backward": {"type": "exact"}}
    source, tree = chosen.source.model_dump(), {"type": "tree_levels"}
    layers = {"type": "network_layers", "classifier": str(classifier), "statistics": str(statistics)}
    network = {**common, "items": chosen.items, "trajectories": 2, "chunk": 50, "source": source, "probes": [tree, layers]}
    # The same U-turns without the network, for many grammars: how much a grammar matters.
    many = {
        **common,
        "items": 64 * grammars,
        "chunk": 64 * 24,
        "source": {**source, "grammars": grammars},
        "probes": [tree],
    }
    settings = {"network": fingerprint(load_network(classifier)), "random_distances": True, **chosen._asdict()}
    return {
        "layers": work.run("fig8-layers", Experiment.from_dict(network)),
        "grammars": work.run("fig8-grammars", Experiment.from_dict(many)),
        "network": work.keep("fig8-network", settings, lambda: examined(work.scale, classifier, statistics)),
    }


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run, many, network = (runs[label].load() for label in ("layers", "grammars", "network"))
    table = json.loads(run.attrs["spec"])["source"]
    v, m, s, L = (table[key] for key in ("vocab_size", "multiplicity", "branching", "depth"))
    theory = MeanField(v, m, s)
    crossing, star = theory.class_crossing(L), theory.critical_noise
    if crossing is None or star is None:
        raise ValueError(f"vocab_size = {v}, multiplicity = {m}, depth = {L}: class and leaves do not swap; take a deeper tree")
    noise = run.noise.values
    # With less noise all curves are 1, with more they are at their floors: their order is chance there.
    window = (noise >= crossing / 2) & (noise <= (1 + star) / 2)

    def swap(high: int, low: int) -> Callable[[np.ndarray], float]:
        return lambda c: inversion(noise[window], c[window, high], c[window, low])

    def at(position: float) -> int:
        return int(np.argmin(np.abs(noise - position)))

    def mean_gap(c: np.ndarray, low: float, high: float) -> float:
        inside = (noise >= low) & (noise <= high)
        return float(np.trapezoid((c[:, -1] - c[:, 0])[inside], noise[inside]) / np.ptp(noise[inside]))

    # What the network says, scaled like the similarities: 1 for no change, 0 for chance.
    said = (run.same_class.astype(float) - 1 / v) / (1 - 1 / v)
    decided = xr.concat([*(run.similarity.isel(network_layer=k, drop=True) for k in (0, -1)), said], dim="curve").transpose(
        *run.similarity.dims[:3], "curve"
    )
    layer_swap, decided_swap = estimate(decided, swap(1, 0)), estimate(decided, swap(2, 0))
    later_swap = estimate(decided, lambda c: swap(1, 0)(c) - swap(2, 0)(c))
    exact_swap = estimate(run.belief, swap(-1, 0))
    grammar_swaps = np.array([swap(-1, 0)(curves) for curves in grammar_means(many.belief).transpose("grammar", ...).values])
    mean_swap, deviation = mean_estimate(grammar_swaps), float(grammar_swaps.std(ddof=1))
    half = mean_swap.high - mean_swap.value
    gaps = [
        estimate(run.similarity, lambda c: mean_gap(c, 0, crossing)),
        estimate(run.similarity, lambda c: mean_gap(c, star, 1)),
    ]

    floor = network.random_pairs.sel(pair="independent").values
    # Curves to compare in pairs: class belief, logits and first block of the same items.
    similarity = run.similarity.mean("trajectory")
    together = xr.concat(
        [run.belief.isel(tree_level=-1, drop=True), *(similarity.isel(network_layer=k, drop=True) for k in (-1, 0))], dim="curve"
    ).transpose("noise", "item", "curve")
    bottoms = [1 / v, floor[-1], floor[0]]

    def fall(c: np.ndarray, k: int) -> Transition:
        return transition(noise, c[:, k], 1.0, bottoms[k])

    halves = [estimate(together, lambda c, k=k: fall(c, k).location) for k in range(2)]  # type: ignore[misc]
    later = estimate(together, lambda c: fall(c, 1).location - fall(c, 0).location)
    widths = [estimate(together, lambda c, k=k: fall(c, k).width) for k in range(3)]  # type: ignore[misc]
    narrower = estimate(together, lambda c: fall(c, 2).width - fall(c, 1).width)

    over = ("item", "trajectory")
    lost = run.similarity.isel(network_layer=-1, noise=at(layer_swap.value)).where(
        run.same_class.isel(noise=at(layer_swap.value)) == 0
    )
    memory = float(lost.mean())
    kept = run.same_class.mean(over, dtype=float)
    unchanged = run.unchanged.isel(tree_level=-1, drop=True).mean(over, dtype=float)
    misjudged = float(np.abs(kept - unchanged).max())
    # By ranks: some units are nearly always silent, so that a few pairs are a hundred times as far apart as the others.
    ends = run.distance.sel(noise=1.0).isel(trajectory=0), network.random_distances
    independent = mannwhitneyu(*(values.transpose(..., "network_layer").values for values in ends)).pvalue
    right, count = float(network.accuracy), network.attrs["test_strings"]
    error = 1.96 * np.sqrt(right * (1 - right) / count)

    _, low, high = replicates(run.similarity).interval(lambda c: c)
    curves = run.similarity.mean(over, dtype=float)
    data = xr.Dataset(
        {
            "similarity": curves,
            "similarity_low": (curves.dims, low),
            "similarity_high": (curves.dims, high),
            "distance": run.distance.mean(over, dtype=float),
            "same_class": kept,
            "verdict": said.mean(over, dtype=float),
            "belief": run.belief.mean("item", dtype=float),
            "mean_field": (("noise", "tree_level"), theory.curves(noise, L).marginals),
            "random_pairs": network.random_pairs,
            "grammar_crossing": ("grammar", grammar_swaps),
        },
        attrs={
            "vocab_size": v,
            "multiplicity": m,
            "branching": s,
            "critical_noise": star,
            "class_crossing": crossing,
            "inversion": layer_swap.value,
            "inversion_low": layer_swap.low,
            "inversion_high": layer_swap.high,
            "exact_inversion": exact_swap.value,
            "accuracy": right,
            "training_steps": network.attrs["training_steps"],
        },
    )
    return data, [
        Verdict(
            f"accuracy of the network on {count} new strings",
            f"{right:.4f} ± {error:.4f} after {network.attrs['training_steps']} steps",
            "at least 0.99",
            right >= 0.99,
            ">= 0.99",
        ),
        Verdict(
            "ε at which the network's verdict and its first block swap order",
            f"{decided_swap}; class and leaves of the same U-turns: {exact_swap}",
            f"{crossing:.4f} (mean field, class and leaves, L = {L})",
            abs(decided_swap.value - crossing) < 3 * deviation,
            f"within 3 standard deviations between grammars ({3 * deviation:.4f})",
        ),
        Verdict(
            "ε at which logits and first block swap order",
            f"{layer_swap}, later than the verdict by {later_swap}; similarity of logits of another class there: {memory:.2f} "
            f"(independent strings: {floor[-1]:.2f})",
            f"later than the verdict, as logits tell more than the class; before ε* = {star:.4f}",
            later_swap.low > 0 and layer_swap.high < star,
            "interval of the difference above 0, interval of the swap below ε*",
        ),
        Verdict(
            f"logits - first block, mean over ε < {crossing:.3f} and over ε > ε* = {star:.3f}",
            f"{gaps[0]}; {gaps[1]}",
            "positive, then negative: the order of the layers inverts",
            gaps[0].low > 0 and gaps[1].high < 0,
            "intervals exclude 0",
        ),
        Verdict(
            f"ε at which class and leaves swap order, {len(grammar_swaps)} grammars",
            f"{mean_swap}, standard deviation {deviation:.4f}; the grammar of the network: {exact_swap.value:.4f}",
            f"{crossing:.4f} (mean field), up to its bias; a typical grammar",
            abs(mean_swap.value - crossing) < half + TOLERANCE
            and half < TOLERANCE
            and abs(exact_swap.value - mean_swap.value) < 2 * deviation,
            f"mean field within {TOLERANCE} of the t interval, which is no wider than ±{TOLERANCE}; the network's grammar "
            "within 2 standard deviations of the mean",
        ),
        Verdict(
            "half of the fall of the logits, and how much later than that of the exact class belief",
            f"{halves[1]}; {later}",
            f"{halves[0].value:.4f}: the logits lose the class where it is lost",
            abs(later.value) < widths[0].value / 2,
            f"within half the width of the fall of the class ({widths[0].value / 2:.4f})",
        ),
        Verdict(
            "width of the fall (a quarter to three quarters) of logits and first block",
            f"{widths[1]}; {widths[2]}; difference {narrower}",
            "abrupt for the logits, smooth for the first block",
            narrower.low > 0,
            "interval of the difference above 0",
        ),
        Verdict(
            "same predicted class against same class, largest difference over ε",
            f"{misjudged:.4f}",
            "at most the network's errors on two strings",
            misjudged < 0.02,
            "below 2 x 0.01",
        ),
        Verdict(
            "squared distance at ε = 1 against that of random pairs of strings, p-values of the layers (rank test)",
            ", ".join(f"{p:.2g}" for p in independent),
            "the same law: nothing is left of the original",
            bool(independent.min() * len(independent) > 1e-3),
            "none below 0.001 / number of layers",
        ),
    ]


def draw(data: xr.Dataset) -> Any:
    noise, attrs = data.noise.values, data.attrs
    layers, L = data.network_layer.values, data.sizes["tree_level"] - 1
    colors = level_colors(L + 1)
    fine = np.linspace(0, 1, 500)
    lines = MeanField(attrs["vocab_size"], attrs["multiplicity"], attrs["branching"]).curves(fine, L).marginals
    with style() as plt:
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True, layout="constrained")
        for k in range(len(layers)):
            edge = k in (0, len(layers) - 1)
            y = data.similarity.isel(network_layer=k)
            label = "logits" if k == len(layers) - 1 else f"block {k + 1}"
            left.plot(noise, y, color=colors[k], lw=2.4 if edge else 1.2, zorder=3 if edge else 2, label=label)
            if edge:
                low, high = (data[f"similarity_{side}"].isel(network_layer=k) for side in ("low", "high"))
                bars = np.maximum([y - low, high - y], 0)  # all equal to 1 but for rounding, without noise
                left.errorbar(noise, y, bars, fmt="o", ms=3.5, lw=1, color=colors[k], zorder=4)
            floor = float(data.random_pairs.sel(pair="independent").isel(network_layer=k))
            left.plot([1.015], [floor], "<", color=colors[k], ms=5, clip_on=False)
        left.axvspan(attrs["inversion_low"], attrs["inversion_high"], color=CLASS, alpha=0.15, lw=0)
        left.axvline(attrs["inversion"], color=CLASS, lw=1, label="logits and block 1 swap")
        left.plot(noise, data.verdict, "o", mfc="none", ms=4, mew=1, color=CLASS, label="same verdict, scaled", zorder=5)
        left.plot([], [], "<", color=MUTED, ms=5, label="independent strings")
        left.legend(loc="lower left", fontsize=8.5)
        left.set(ylabel="cosine similarity", title="layers of the trained network", ylim=(None, 1.03))
        for level in range(L + 1):
            edge = level in (0, L)
            right.plot(fine, lines[:, level], color=colors[level], lw=1.8 if edge else 0.9, zorder=2)
            right.plot(noise, data.belief.isel(tree_level=level), "o" if edge else ".", ms=4, color=colors[level], zorder=3)
        right.plot([], [], "o", color=MUTED, ms=4, label="exact (belief propagation)")
        right.plot([], [], color=MUTED, label="mean-field theory")
        right.set(ylabel="P(symbol unchanged)", title="levels of the tree", ylim=(0, 1.03))
        level_bar(plt, right, L + 1, "tree level (0 = leaves)")
        for axes in (left, right):
            axes.axvline(attrs["class_crossing"], color=THEORY, lw=1, ls="--", zorder=1)
            axes.axvline(attrs["critical_noise"], color=THEORY, lw=1, ls=":", zorder=1)
            axes.set(xlabel=r"noise $\epsilon$", xlim=(0.4, 1))
            axes.text(attrs["critical_noise"] + 0.008, 1.0, r"$\epsilon^*$", va="top")
        right.plot([], [], color=THEORY, lw=1, ls="--", label="class and leaves swap (mean field)")
        right.legend(loc="lower left", fontsize=8.5, frameon=True, facecolor="white", edgecolor="none", framealpha=1)
    return figure
