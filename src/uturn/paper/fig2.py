"""Fig. 2: images after U-turns, and similarity of a classifier's layers against inversion time;
here on Fashion-MNIST.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.core.random import Purpose, keys, uniforms
from uturn.measures.curves import inversion, transition
from uturn.measures.intervals import mean_curves
from uturn.measures.replicates import estimate
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import Verdict, above, below, estimates, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.probes import NetworkLayers
from uturn.sources import FashionMNISTSource
from uturn.sources.fashion_mnist import CLASS_NAMES, COARSE_CLASS
from uturn.studies.plotting.levels import draw_similarities
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, mark_noise, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "U-turns of images: a diffusion model and the layers of a classifier"
CLAIM = (
    "A U-turn keeps the class of an image up to a critical noise, while its details fade from the"
    " start."
)
CAPTION = (
    "A class-unconditional diffusion model and a convolutional classifier on Fashion-MNIST. Top:"
    " originals and their reconstructions when diffusion is reversed at t/T. Bottom left: cosine"
    " similarity of standardised post-activations of original and reconstruction, layer by layer"
    " (bars: 95 % intervals of the first block and of the logits); marks on the right: random pairs"
    " of originals of the same and of different classes; dotted line and band: t*, where half of"
    " the kind of garment is lost, with its 95 % interval. Bottom right: share of reconstructions"
    " that keep the predicted class, and the kind of garment (tops, trousers, dresses, shoes,"
    " bags), one level up the hierarchy. Dashed in both: the same U-turns with a deterministic"
    " scheduler."
)

LAYERS = NetworkLayers(classifier="fashion_mnist")
LABEL_SETS = ["class", "kind"]
# Items of the picture: T-shirt, trousers, dress, sandal, sneaker, bag, boot.
_SHOWN = (0, 1, 3, 5, 7, 8, 9)
# Of the same class, of others.
_PAIR_MARKS: list[dict[str, Any]] = [{"marker": "^", "ms": 5}, {"marker": "_", "ms": 7, "mew": 2}]


@dataclass(frozen=True)
class Sampling:
    """How one of the two schedulers samples at one scale."""

    scheduler: str
    steps: int
    """Steps of a full chain."""
    originals: int


@dataclass(frozen=True)
class Setup:
    """Sizes of one scale."""

    levels: int
    """Number of inversion times, evenly spaced up to the full chain."""
    chunk: int
    stochastic: Sampling
    """With 100 originals, more than 9 in 10 draws of them tell the half-lives of class and kind
    apart (with 60, 1 in 2)."""
    deterministic: Sampling
    """Its curves are shown beside the others and decide no verdict."""


_SETUPS: dict[Scale, Setup] = {
    "smoke": Setup(10, 50, Sampling("ddpm", 20, 100), Sampling("ddim", 10, 40)),
    "paper": Setup(25, 50, Sampling("ddpm", 250, 1000), Sampling("ddim", 250, 1000)),
}


def experiments(scale: Scale) -> dict[str, Experiment]:
    chosen = _SETUPS[scale]

    def experiment(sampling: Sampling) -> Experiment:
        backward = {
            "type": "diffusion",
            "model": "fashion_mnist",
            "scheduler": sampling.scheduler,
            "steps": sampling.steps,
            "timestep_spacing": "trailing",
        }
        return experiment_of(
            "fashion_mnist",
            "diffusion",
            np.arange(1, chosen.levels + 1) / chosen.levels,
            LAYERS.model_dump(exclude_none=True),
            "images",
            backward=backward,
            items=sampling.originals,
            chunk=chosen.chunk,
        )

    return {
        "stochastic": experiment(chosen.stochastic),
        "deterministic": experiment(chosen.deterministic),
    }


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return {
        **workshop.runs("fig2", experiments(workshop.scale)),
        "classifier": classified(workshop),
    }


def classified(workshop: Workshop) -> xr.Dataset:
    """The classifier on all images, stored once."""
    return workshop.keep(
        "fig2-classifier",
        classification,
        models=experiments("smoke")["stochastic"].models(),
        count=500,
    )


def classification(models: Mapping[str, str], count: int) -> xr.Dataset:
    """The classifier on all images: `predicted` and `label`; `random_pairs`, its mean similarity,
    per layer, of random pairs of different images of the same and of different classes.

    `models` are the fingerprints of the classifier and of the images; `count`, the number of pairs.
    """
    images, labels = FashionMNISTSource().all_images()
    probe = LAYERS.bind(FashionMNISTSource()).hidden_layers
    u = uniforms(keys(0, Purpose.IMAGE_PAIRS, np.arange(40 * count)), 2)
    first, second = (u * len(images)).astype(int).T
    same_class = (labels[first] == labels[second]) & (first != second)
    other_class = labels[first] != labels[second]
    similarities = []
    for chosen in (same_class, other_class):
        pair = np.flatnonzero(chosen)[:count]
        similarities.append(
            probe.similarity(images[first[pair]], images[second[pair]]).mean(axis=0)
        )
    return xr.Dataset(
        {
            "predicted": ("number", probe.predict(images).classes),
            "label": ("number", labels),
            "random_pairs": (("pair", "network_layer"), np.array(similarities)),
        },
        coords={"pair": ["same class", "different class"], "network_layer": list(probe.layers)},
    )


def labels_retained(run: xr.Dataset, predicted: np.ndarray) -> tuple[xr.DataArray, np.ndarray]:
    """Whether a reconstruction has the class and the kind of garment of its original, 0 or 1,
    with the dim label_set last; and the probability that two images of the source, with the
    classes `predicted`, agree in each, (label_set,).
    """
    kinds = COARSE_CLASS[predicted]
    after = run.predicted_class.astype(int)
    original = xr.DataArray(kinds[: run.sizes["item"]], dims="item")
    same_kind = (xr.DataArray(COARSE_CLASS[after.values], dims=after.dims) == original).astype(
        float
    )
    same = xr.concat(
        [run.same_class, same_kind], dim=xr.Variable("label_set", LABEL_SETS)
    ).transpose(..., "label_set")
    return same, np.array([np.sum((np.bincount(x) / len(x)) ** 2) for x in (predicted, kinds)])


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    stochastic, deterministic, classifier = (
        runs[label].load() for label in ("stochastic", "deterministic", "classifier")
    )
    # The schedulers reach the same noise levels in different numbers of steps.
    deterministic = deterministic.drop_vars("step", errors="ignore")
    noise = stochastic.noise.values
    similarity = stochastic.similarity
    predicted = classifier.predicted.values
    (same, chance), (same_ode, _) = (
        labels_retained(run, predicted) for run in (stochastic, deterministic)
    )

    def half_lost(c: np.ndarray) -> list[float]:
        """t/T at which half of class and of kind is lost, and how much later the kind is."""
        of_class, of_kind = (_fall(noise, c[:, k], chance[k]).location for k in (0, 1))
        return [of_class, of_kind, of_kind - of_class]

    half_class, star, later = estimates(same, half_lost)
    swap = estimate(
        similarity, lambda c: inversion(np.r_[0, noise], np.r_[1, c[:, -1]], np.r_[1, c[:, 0]])
    )
    over = ("item", "trajectory")
    data = xr.Dataset(
        {
            "similarity": mean_curves(similarity),
            "transition": ("estimate", list(star)),
            "similarity_deterministic": deterministic.similarity.mean(over, dtype=float),
            "kept": same.mean(over, dtype=float),
            "kept_deterministic": same_ode.mean(over, dtype=float),
            "chance": ("label_set", chance),
            "random_pairs": classifier.random_pairs,
            "original": (
                ("item", "row", "column"),
                FashionMNISTSource().all_images()[0][: stochastic.sizes["item"], 0],
            ),
            "image": stochastic.image.isel(trajectory=0, channel=0),
        },
        attrs={"inversion": swap.value},
    )
    return data, [
        verdict(
            "t*/T: half of the fall of the kind of garment",
            star,
            "inside the chain",
            above(star.low, 0.3, "interval within 0.3 .. 0.8"),
            below(star.high, 0.8, ""),
        ),
        _widths(
            same, similarity, (chance[1], *classifier.random_pairs.values[1, [-1, 0]].tolist())
        ),
        verdict(
            "t/T at which logits and first block swap order",
            swap,
            "at t*",
            within(swap.value - star.value, 0.1, "within 0.1 of t*/T"),
        ),
        verdict(
            "t*/T of the class, and how much later the kind is lost",
            f"{half_class}; {later}",
            "the lower of the two levels is lost first",
            above(later.low, 0, "interval of the difference above 0"),
        ),
        _after_full_chain(same, chance),
    ]


def _fall(noise: np.ndarray, curve: np.ndarray, floor: float) -> Any:
    """Transition of a curve that starts at 1: U-turns of length zero are the identity."""
    return transition(np.r_[0, noise], np.r_[1, curve], 1.0, floor)


def _widths(same: xr.DataArray, similarity: xr.DataArray, floors: tuple[float, ...]) -> Verdict:
    """Widths of the falls of kind, logits and first block in the same U-turns; each falls to its
    own floor.
    """
    noise = similarity.noise.values
    layers = (similarity.isel(network_layer=k, drop=True) for k in (-1, 0))
    together = xr.concat([same.isel(label_set=1, drop=True), *layers], dim="curve").transpose(
        ..., "curve"
    )

    def widths(c: np.ndarray) -> list[float]:
        kind, logits, block = (_fall(noise, c[:, k], floor).width for k, floor in enumerate(floors))
        return [kind, logits, block, block - kind, block - logits]

    *each, minus_kind, minus_logits = estimates(together, widths)
    return verdict(
        "width of the fall (a quarter to three quarters) of kind, logits, first block",
        f"{'; '.join(map(str, each))}. First block minus kind, minus logits: {minus_kind};"
        f" {minus_logits}",
        "abrupt for kind and logits, smooth for the first block",
        above([minus_kind.low, minus_logits.low], 0, "intervals of the differences above 0"),
    )


def _after_full_chain(same: xr.DataArray, chance: np.ndarray) -> Verdict:
    shares = estimates(same, lambda c: c[-1])
    error = 4 * np.sqrt(chance * (1 - chance) / same.isel(noise=0, label_set=0).size)
    return verdict(
        "same class, same kind after a full chain",
        f"{shares[0]}; {shares[1]}",
        f"{chance[0]:.3f}; {chance[1]:.3f}, independent draws",
        within(
            [share.value for share in shares] - chance,
            error,
            f"within 4 standard errors ({error[0]:.3f}; {error[1]:.3f})",
        ),
    )


def draw(data: xr.Dataset) -> Figure:
    with style() as plt:
        figure = plt.figure(figsize=(11, 9.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
        _draw_images(top.subplots(), data)
        left, right = bottom.subplots(1, 2, width_ratios=[1.3, 1])
        _draw_layers(left, data)
        _draw_labels(right, data)
    return figure


def _draw_images(axes: Axes, data: xr.Dataset) -> None:
    """Originals and their reconstructions from every tenth of the chain; one item of most
    classes.
    """
    noise = data.noise.values
    columns = np.flatnonzero(np.isclose(noise * 10, np.round(noise * 10)))
    rebuilt = data.image.transpose("item", "noise", ...).values[:, columns]
    rows = [np.concatenate([data.original.values[i], *rebuilt[i]], axis=1) for i in _SHOWN]
    axes.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_xticks(
        28 * np.arange(len(columns) + 1) + 13.5, ["original", *(f"{noise[k]:.1f}" for k in columns)]
    )
    axes.set_yticks(28 * np.arange(len(_SHOWN)) + 13.5, [CLASS_NAMES[i] for i in _SHOWN])
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.axvline(27.5, color=THEORY, lw=1)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("inversion time $t/T$")
    axes.xaxis.set_label_position("top")


def _draw_layers(axes: Axes, data: xr.Dataset) -> None:
    (star, low, high) = data.transition.values
    noise = np.r_[0, data.noise.values]
    ode = data.similarity_deterministic.transpose("noise", "network_layer").values
    colors = draw_similarities(
        axes, noise, np.insert(data.similarity.values, 0, 1, axis=0), data.network_layer.values
    )
    for k in (0, -1):
        axes.plot(noise, np.r_[1, ode[:, k]], color=colors[k], lw=1.1, ls="--", zorder=2)
    for k, color in enumerate(colors):
        for height, look in zip(data.random_pairs.values[:, k], _PAIR_MARKS, strict=True):
            axes.plot([1.045], [height], color=color, clip_on=False, **look)
    axes.axvspan(low, high, color=CLASS, alpha=0.12, lw=0)
    mark_noise(axes, star, f"$t^*={star:.2f}\\,T$", CLASS, aside=0.015)
    axes.set(
        xlabel="inversion time $t/T$", ylabel="cosine similarity", xlim=(0, 1.03), ylim=(None, 1.03)
    )
    axes.set_title("layers of the classifier")
    axes.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
    for label, look in zip(("same class", "different classes"), _PAIR_MARKS, strict=True):
        axes.plot([], [], ls="", color=MUTED, label=f"random pairs, {label}", **look)
    axes.legend(fontsize=8.5, loc="lower left")


def _draw_labels(axes: Axes, data: xr.Dataset) -> None:
    noise = np.r_[0, data.noise.values]
    for k, (name, color) in enumerate((("class", ACCENT), ("kind of garment", CLASS))):
        solid, dashed = (
            np.r_[1, data[v].isel(label_set=k)] for v in ("kept", "kept_deterministic")
        )
        axes.plot(noise, solid, color=color, marker="o", ms=4, label=name, zorder=3)
        axes.plot(noise, dashed, color=color, lw=1.1, ls="--", zorder=2)
        axes.axhline(float(data.chance[k]), color=color, lw=0.8, ls=":")
    axes.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
    axes.plot([], [], color=MUTED, lw=0.8, ls=":", label="independent images")
    axes.set(
        xlabel="inversion time $t/T$",
        ylabel="share kept",
        xlim=(0, 1.03),
        ylim=(0, 1.03),
        title="class and kind",
    )
    axes.legend(loc="upper right")
