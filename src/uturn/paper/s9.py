"""Fig. S9 (v3 of arXiv:2402.16991): U-turns of a two-mode Gaussian mixture: a class transition
without inversion of layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.measures.cloning import mixture_cloning_probability
from uturn.measures.curves import crossing, nonincreasing, rescaled
from uturn.measures.estimates import with_interval
from uturn.measures.hierarchy import hierarchy_index
from uturn.measures.intervals import mean_curves, proportion
from uturn.measures.replicates import Replicates, estimate, replicates
from uturn.networks.classifiers import VectorClassifier
from uturn.networks.files import load_network
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import Verdict, above, at_least, below, verdict
from uturn.paper.workshop import Scale, Workshop, accuracy
from uturn.sources import GaussianMixtureSource
from uturn.studies.plotting.levels import draw_similarities
from uturn.studies.plotting.style import (
    CLASS,
    MUTED,
    THEORY,
    bars,
    level_colors,
    mark_noise,
    style,
    ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Control without a hierarchy: a mixture of two Gaussians"
CLAIM = (
    "Data without a hierarchy can lose their class abruptly too, but then the last layers never"
    " fall below the first one."
)
CAPTION = (
    "Two Gaussians in d = 1024, U-turns with the exact posterior, a classifier trained on the"
    " mixture. Left: cosine similarity of standardised post-activations of original and"
    " reconstruction, layer by layer, against diffusion time (bars: 95 % intervals). Middle:"
    " probability that the class is kept, measured (points) and from a one-dimensional integral"
    " (line); dotted: t* of the integral. Right: class and logits against the first block, both"
    " rescaled to 1 without noise and 0 for independent data: above the diagonal the class is the"
    " better preserved. The class is lost in a transition, but neither it nor the logits ever fall"
    " below the first block."
)
SOURCE = GaussianMixtureSource(dimension=1024, num_modes=2, separation=0.5)
SEPARATION = SOURCE.separation * np.sqrt(SOURCE.dimension)  # of the means, in standard deviations
RECIPE: dict[str, Any] = {
    "source": SOURCE.model_dump(),
    "width": 128,
    "num_layers": 4,
    "steps": 1000,
    "batch": 256,
}
RECIPE |= {"learning_rate": 3e-4, "target": 0.999, "seed": 0}
# First numbers of draws other than originals.
_HELD_OUT = 0
_REFERENCE = 10_000
_TEST = 20_000
_BATCHES = 100_000


def trained_classifier(workshop: Workshop) -> Path:

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        return _examples(_BATCHES + step * RECIPE["batch"], RECIPE["batch"])

    def prepared() -> tuple[Any, Any, Any]:
        network = VectorClassifier(
            SOURCE.dimension, 2, RECIPE["width"], RECIPE["num_layers"], RECIPE["seed"]
        )
        return network, batch, _examples(_HELD_OUT, 2000)

    return workshop.classifier("s9-classifier", RECIPE, prepared, warmup=50, every=100)


def _examples(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` vectors and their modes, from number `first` on."""
    drawn = SOURCE.fresh(first + np.arange(count), RECIPE["seed"])
    return drawn.values, drawn.labels


def experiment(scale: Scale, classifier: Path, statistics: Path) -> Experiment:
    items, trajectories = (600, 1) if scale == "smoke" else (2000, 4)
    noise = np.r_[np.geomspace(0.02, 1, 9)[:-1], np.linspace(1, 3.5, 13), 4.5, np.inf].round(4)
    probe = {"type": "network_layers", "classifier": str(classifier), "statistics": str(statistics)}
    return experiment_of(
        SOURCE.model_dump(),
        "gaussian",
        noise,
        probe,
        items=items,
        trajectories=trajectories,
        chunk=100,
    )


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    classifier = trained_classifier(workshop)
    of_layers = workshop.layer_statistics(
        "s9-statistics", classifier, lambda: _examples(_REFERENCE, 4000)[0]
    )
    run = workshop.run("s9-mixture", experiment(workshop.scale, classifier, of_layers))
    # On fresh vectors: the held-out ones decided when the training stopped.
    return {
        "mixture": run.assign_attrs(
            accuracy=accuracy(load_network(classifier), *_examples(_TEST, 2000))
        )
    }


def kept_mode(noise: Any) -> np.ndarray:
    """Probability that a U-turn keeps the mode: original and draw are exchangeable with two
    clones.
    """
    return mixture_cloning_probability(noise, SEPARATION**2)


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["mixture"].load()
    noise = run.noise.values
    together = xr.concat(
        [run.same_class.expand_dims(network_layer=["class"]), run.similarity], dim="network_layer"
    )
    repeated = replicates(together)
    kept = mean_curves(together)
    kept[:, 0] = proportion(run.same_class).values
    fine = np.linspace(0, 8, 4001)
    expected = crossing(fine, kept_mode(fine), 0.75)
    star = estimate(run.same_class, lambda c: crossing(noise, c, 0.75), confidence=0.999)
    first, logits = (run.similarity.isel(network_layer=k, drop=True) for k in (0, -1))
    index = [hierarchy_index(values, first) for values in (run.same_class, logits)]
    data = xr.Dataset(
        {
            "kept": kept,
            "same_class_theory": ("noise", kept_mode(noise)),
            "rescaled": (kept.dims[:2], rescaled(kept[..., 0].values)),
            "rescaled_error": (kept.dims[:2], repeated.error(rescaled)),
            "transition": ("estimate", [expected, np.nan, np.nan]),
            "index": ("estimate", list(index[0])),
        }
    )
    right = run.attrs["accuracy"]
    return data, [
        verdict(
            "accuracy of the classifier on 2,000 fresh vectors",
            f"{right:.4f}",
            "1",
            at_least(right, 0.999),
        ),
        verdict(
            "t*: half of the class is lost",
            f"{star} (99.9 % interval)",
            f"{expected:.4f} (integral along the axis of the means)",
            above(expected, star.low, "inside the interval, which is narrower than 20 % of it"),
            below(expected, star.high, ""),
            below(star.high - star.low, 0.2 * expected, ""),
        ),
        _no_inversion(kept[..., 0].values, repeated),
        verdict(
            "hierarchy index, class and logits against the first block",
            f"{index[0]}; {index[1]}",
            "0",
            below([interval.high for interval in index], 0.05, "intervals below 0.05"),
        ),
    ]


def _no_inversion(curves: np.ndarray, repeated: Replicates) -> Verdict:
    """How far class and logits (first and last curve) are below the first block, in standard
    errors, at finite noise.
    """

    def gap(c: np.ndarray) -> np.ndarray:
        lines = rescaled(c)
        return lines[:-1, [0, -1]] - lines[:-1, [1]]

    lowest = (gap(curves) / np.maximum(repeated.error(gap), 1e-3)).min(axis=0)
    return verdict(
        "how far class and logits fall below the first block, rescaled: lowest difference in"
        " standard errors",
        f"{lowest[0]:+.1f}; {lowest[1]:+.1f}",
        "no inversion: not below",
        above(
            lowest,
            -3.5,
            f"above -3.5 at all {len(curves) - 1} noise levels (errors below 0.001 count as 0.001)",
        ),
    )


def draw(data: xr.Dataset) -> Figure:
    star = float(data.transition[0])
    layers = [str(name) for name in data.network_layer.values[1:]]
    finite = np.isfinite(data.noise.values)
    # the class comes first
    time = data.noise.values[finite]
    kept = data.kept.values[finite]
    with style() as plt:
        figure, (left, middle, right) = plt.subplots(
            1, 3, figsize=(13, 4.2), width_ratios=[1.15, 1, 0.95], layout="constrained"
        )
        names = [f"block {int(name.rpartition('.')[2]) + 1}" for name in layers[:-1]] + layers[-1:]
        draw_similarities(left, time, kept[:, 1:], names)
        left.set(ylabel="cosine similarity", title="layers of the classifier", ylim=(-0.05, 1.03))
        left.legend(loc="lower left")
        fine = np.geomspace(0.02, 4.5, 600)
        middle.plot(fine, kept_mode(fine), color=THEORY, lw=1.4, label="integral")
        bars(middle, time, kept[:, 0], fmt="o", ms=4, lw=0.9, color=CLASS, label="measured")
        middle.axhline(0.5, color=MUTED, lw=0.8, ls="--")
        middle.text(0.021, 0.505, "chance", color=MUTED, fontsize=9, va="bottom")
        middle.set(ylabel="P(class kept)", title="class", ylim=(0.45, 1.02))
        middle.legend(loc="lower left", bbox_to_anchor=(0, 0.12))
        for axes, name in ((left, ""), (middle, f"$t^*={star:.2f}$")):
            mark_noise(axes, star, name, CLASS, aside=0.08 * star)
            axes.set(xscale="log", xlabel="diffusion time $t$", xlim=(0.02, 4.6))
            ticks(axes, [0.02, 0.1, 0.5, 1, 2, 5])
        _draw_plane(right, data)
    return figure


def _draw_plane(axes: Axes, data: xr.Dataset) -> None:
    first = np.r_[1, nonincreasing(data.rescaled.isel(network_layer=1).values)]
    last = data.sizes["network_layer"] - 1
    for k, label, color in ((0, "class", CLASS), (last, "logits", level_colors(last)[-1])):
        axes.plot(
            first,
            np.r_[1, data.rescaled.isel(network_layer=k).values],
            "o-",
            ms=3.5,
            color=color,
            label=label,
        )
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.set(
        xlabel="$r$ of the first block",
        ylabel="$r$",
        xlim=(-0.03, 1.03),
        ylim=(-0.06, 1.06),
        title="no inversion",
    )
    axes.text(
        0.97,
        0.06,
        f"hierarchy index\n{with_interval(data['index'].values, '.3f')}",
        ha="right",
        fontsize=10,
    )
    axes.legend(loc="center right")
