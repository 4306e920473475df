"""Fig. 2: images after U-turns, and similarity of a classifier's layers against inversion time; here on Fashion-MNIST."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from uturn.core.experiment import Experiment
from uturn.core.random import Purpose, keys, uniforms
from uturn.measures.statistics import Estimate, Transition, estimate, inversion, replicates, transition
from uturn.paper.specs import experiment_of
from uturn.paper.verdicts import Verdict, above, at_least, inside, verdict, within
from uturn.paper.workshop import Scale, Workshop
from uturn.probes import NetworkLayers
from uturn.probes.network_layers import hidden_layers_of
from uturn.sources import FashionMNISTSource
from uturn.sources.fashion_mnist import CLASS_NAMES, COARSE_CLASS
from uturn.studies.plotting.levels import draw_similarities
from uturn.studies.plotting.style import ACCENT, CLASS, MUTED, THEORY, style

TITLE = "U-turns of images: a diffusion model and the layers of a classifier"
CLAIM = "Turned back from noise, an image keeps its class up to a critical noise, while its details fade from the start."
CAPTION = (
    "A class-unconditional diffusion model and a convolutional classifier on Fashion-MNIST. Top: originals and what they become "
    "when diffusion is reversed at t/T. Bottom left: cosine similarity of standardised post-activations of original and "
    "reconstruction, layer by layer (bars: 95 % intervals of the first block and of the logits); marks on the right: "
    "random pairs of originals of the same and of different classes; dotted line and band: t*, where half of the kind of garment "
    "is lost, with its 95 % interval. Bottom right: share of reconstructions that keep the "
    "predicted class, and the kind of garment (tops, trousers, dresses, shoes, bags), one level up the hierarchy. Dashed in "
    "both: the same U-turns with a deterministic scheduler."
)

LAYERS = NetworkLayers(classifier="fashion_mnist")
LABEL_SETS = ["class", "kind"]
_SHOWN = (0, 1, 3, 5, 7, 8, 9)  # items of the picture: T-shirt, trousers, dress, sandal, sneaker, bag, boot


def experiments(scale: Scale) -> dict[str, Experiment]:
    items, steps = (60, {"ddpm": 50, "ddim": 20}) if scale == "smoke" else (1000, {"ddpm": 250, "ddim": 250})
    noise = np.arange(1, 11) / 10 if scale == "smoke" else np.arange(1, 26) / 25
    probes, sizes = (LAYERS.model_dump(exclude_none=True), "images"), {"items": items, "chunk": 60 if scale == "smoke" else 50}
    runs = {}
    for label, scheduler in [("stochastic", "ddpm"), ("deterministic", "ddim")]:
        backward = {"type": "diffusion", "model": "fashion_mnist", "scheduler": scheduler, "steps": steps[scheduler]}
        backward["timestep_spacing"] = "trailing"
        runs[label] = experiment_of("fashion_mnist", "diffusion", noise, *probes, backward=backward, **sizes)
    return runs


def random_pairs(spec: NetworkLayers, source: Any, count: int = 500, seed: int = 0) -> xr.DataArray:
    """Mean similarity, per layer, of random pairs of different images of the same and of different classes: the floor lines."""
    images, labels = source.all_images()
    probe = hidden_layers_of(spec, source)
    u = uniforms(keys(seed, Purpose.IMAGE_PAIRS, np.arange(40 * count)), 2)
    first, second = (u * len(images)).astype(int).T
    same = (labels[first] == labels[second]) & (first != second)
    rows = []
    for chosen in (np.flatnonzero(same)[:count], np.flatnonzero(labels[first] != labels[second])[:count]):
        rows.append(probe.similarity(images[first[chosen]], images[second[chosen]]).mean(axis=0))
    return xr.DataArray(
        np.array(rows),
        dims=("pair", "network_layer"),
        coords={"pair": ["same class", "different class"], "network_layer": list(probe.layers)},
    )


def measure(workshop: Workshop) -> dict[str, xr.Dataset]:
    return workshop.runs("fig2", experiments(workshop.scale))


class Kept(NamedTuple):
    """What is kept of the predicted class and of the kind of garment, and what two independent images have in common.

    `values`: 1 where a reconstruction has the label of the original, dims .., label_set. `chance`: probability that two images of
    the source agree, (label_set,).
    """

    values: xr.DataArray
    chance: np.ndarray


def kept(run: xr.Dataset, predicted: np.ndarray) -> Kept:
    """Class and kind after the U-turns of a run; `predicted`: classes of all images of the source."""
    kinds, after = COARSE_CLASS[predicted], run.predicted_class.astype(int)
    original = xr.DataArray(kinds[: run.sizes["item"]], dims="item")
    same_kind = (xr.DataArray(COARSE_CLASS[after.values], dims=after.dims) == original).astype(float)
    values = xr.concat([run.same_class, same_kind], dim=xr.Variable("label_set", LABEL_SETS)).transpose(..., "label_set")
    return Kept(values, np.array([np.sum((np.bincount(x) / len(x)) ** 2) for x in (predicted, kinds)]))


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    stochastic, deterministic = (runs[label].load() for label in ("stochastic", "deterministic"))
    # The schedulers reach the same noise levels in different numbers of steps.
    deterministic = deterministic.drop_vars("step", errors="ignore")
    source = FashionMNISTSource()
    images, labels = source.all_images()
    predicted = hidden_layers_of(LAYERS, source).predict(images).classes
    floor = random_pairs(LAYERS, source)
    ours, ode = (kept(run, predicted) for run in (stochastic, deterministic))
    star, star_ode = (_half_lost(one, "kind") for one in (ours, ode))
    noise = np.r_[0, stochastic.noise.values]
    swap = estimate(stochastic.similarity, lambda c: inversion(noise, np.r_[1, c[:, -1]], np.r_[1, c[:, 0]]))
    _, low, high = replicates(stochastic.similarity).interval(lambda c: c)
    over = ("item", "trajectory")
    curves = stochastic.similarity.mean(over, dtype=float)
    data = xr.Dataset(
        {
            "similarity": curves,
            "similarity_low": (curves.dims, low),
            "similarity_high": (curves.dims, high),
            "similarity_deterministic": deterministic.similarity.mean(over, dtype=float),
            "kept": ours.values.mean(over, dtype=float),
            "kept_deterministic": ode.values.mean(over, dtype=float),
            "chance": ("label_set", ours.chance),
            "random_pairs": floor,
            "original": (("item", "row", "column"), images[: stochastic.sizes["item"], 0]),
            "image": stochastic.image.isel(trajectory=0, channel=0),
            "image_deterministic": deterministic.image.isel(trajectory=0, channel=0),
        },
        attrs={"transition": star.value, "transition_low": star.low, "transition_high": star.high, "inversion": swap.value},
    )
    agreement = float((predicted == labels).mean())
    return data, [
        verdict("t*/T: half of the fall of the kind of garment", star, "inside the chain", inside(star, 0.3, 0.8)),
        _widths(stochastic.similarity, ours, floor),
        _order(stochastic.similarity),
        verdict(
            "t/T at which logits and first block swap order",
            swap,
            "at t*",
            within(swap.value - star.value, 0.1, "within 0.1 of t*/T"),
        ),
        _class_before_kind(ours),
        _full_chain(ours),
        verdict(
            "label agreement of the classifier on the real images", f"{agreement:.3f}", "at least 0.91", at_least(agreement, 0.91)
        ),
        verdict(
            "t*/T of the kind with the deterministic scheduler",
            star_ode,
            f"near {star.value:.2f}, though it does not draw from the posterior",
            within(star_ode.value - star.value, 0.1),
        ),
    ]


def _fall(noise: xr.DataArray, curve: np.ndarray, bottom: float) -> Transition:
    """The fall of a curve, which starts at 1: U-turns of length zero are the identity."""
    return transition(np.r_[0, noise.values], np.r_[1, curve], 1.0, bottom)


def _half_lost(one: Kept, label_set: str) -> Estimate:
    """t/T at which half of the class, or of the kind, is lost."""
    k = LABEL_SETS.index(label_set)
    return estimate(one.values, lambda c: _fall(one.values.noise, c[:, k], one.chance[k]).location)


def _widths(similarity: xr.DataArray, one: Kept, floor: xr.DataArray) -> Verdict:
    """Widths of the falls of kind, logits and first block on the same U-turns; each falls to its own floor."""
    layers = (similarity.isel(network_layer=k, drop=True) for k in (-1, 0))
    together = xr.concat([one.values.isel(label_set=1, drop=True), *layers], dim="curve").transpose(..., "curve")
    bottoms = [one.chance[1], float(floor[1, -1]), float(floor[1, 0])]

    def width(c: np.ndarray, k: int) -> float:
        return _fall(similarity.noise, c[:, k], bottoms[k]).width

    widths = [estimate(together, partial(width, k=k)) for k in range(3)]
    narrower = [estimate(together, lambda c, k=k: width(c, 2) - width(c, k)) for k in (0, 1)]  # type: ignore[misc]
    return verdict(
        "width of the fall (a quarter to three quarters) of kind, logits, first block",
        f"{widths[0]}; {widths[1]}; {widths[2]}. First block minus kind, minus logits: {narrower[0]}; {narrower[1]}",
        "abrupt for kind and logits, smooth for the first block",
        above([difference.low for difference in narrower], 0, "intervals of the differences above 0"),
    )


def _order(similarity: xr.DataArray) -> Verdict:
    """Logits above the first block for short U-turns, below it for long ones."""
    late = int(np.argmin(np.abs(similarity.noise.values - 0.8)))
    gaps = [estimate(similarity, lambda c, k=k: c[k, -1] - c[k, 0]) for k in (0, late)]  # type: ignore[misc]
    return verdict(
        "logits - first block at the shortest U-turn, and at t/T = 0.8",
        f"{gaps[0]}; {gaps[1]}",
        "positive, then negative: the order of the layers inverts",
        above([gaps[0].low, -gaps[1].high], 0, "intervals exclude 0"),
    )


def _class_before_kind(one: Kept) -> Verdict:
    """Among the two levels of labels, the lower one is lost first."""
    noise, (bottom, bottom_kind) = one.values.noise, one.chance
    later = estimate(one.values, lambda c: _fall(noise, c[:, 1], bottom_kind).location - _fall(noise, c[:, 0], bottom).location)
    return verdict(
        "t*/T of the class, and how much later the kind is lost",
        f"{_half_lost(one, 'class')}; {later}",
        "the lower of the two levels is lost first",
        above(later.low, 0, "interval of the difference above 0"),
    )


def _full_chain(one: Kept) -> Verdict:
    """After a full chain nothing is left of the original."""
    end = [estimate(one.values, lambda c, k=k: float(c[-1, k])) for k in (0, 1)]  # type: ignore[misc]
    deviations = [found.value - chance for found, chance in zip(end, one.chance, strict=True)]
    error = np.sqrt(one.chance * (1 - one.chance) / one.values.isel(noise=0, label_set=0).size)
    return verdict(
        "same class, same kind after a full chain",
        f"{end[0]}; {end[1]}",
        f"{one.chance[0]:.3f}; {one.chance[1]:.3f}, independent draws",
        within(deviations, 4 * error, f"within 4 standard errors ({4 * error[0]:.3f}; {4 * error[1]:.3f})"),
    )


def draw(data: xr.Dataset) -> Any:
    with style() as plt:
        figure = plt.figure(figsize=(11, 9.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
        _draw_images(top.subplots(), data)
        left, right = bottom.subplots(1, 2, width_ratios=[1.3, 1])
        _draw_layers(left, data)
        _draw_labels(right, data)
    return figure


def _draw_images(axes: Any, data: xr.Dataset) -> None:
    """Originals, and what they become at every tenth of the chain; one item of most classes."""
    noise = data.noise.values
    columns = np.flatnonzero(np.isclose(noise * 10, np.round(noise * 10)))
    rows = [
        np.concatenate([data.original[i].values, *(data.image.isel(noise=k, item=i).values for k in columns)], axis=1)
        for i in _SHOWN
    ]
    axes.imshow(np.concatenate(rows), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_xticks(28 * np.arange(len(columns) + 1) + 13.5, ["original", *(f"{noise[k]:.1f}" for k in columns)])
    axes.set_yticks(28 * np.arange(len(_SHOWN)) + 13.5, [CLASS_NAMES[i] for i in _SHOWN])
    axes.tick_params(length=0)
    axes.xaxis.tick_top()
    axes.axvline(27.5, color=THEORY, lw=1)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("inversion time $t/T$")
    axes.xaxis.set_label_position("top")


def _draw_layers(axes: Any, data: xr.Dataset) -> None:
    """Similarity of every layer; first block and logits with intervals, and with the deterministic scheduler."""
    attrs, noise = data.attrs, np.r_[0, data.noise.values]
    names = [f"similarity{ending}" for ending in ("", "_low", "_high", "_deterministic")]
    curves, low, high, ode = (np.insert(data[name].transpose("noise", "network_layer").values, 0, 1, axis=0) for name in names)
    colors = draw_similarities(axes, noise, curves, low, high, [str(name) for name in data.network_layer.values])
    for k in (0, -1):
        axes.plot(noise, ode[:, k], color=colors[k], lw=1.1, ls="--", zorder=2)
    for k in range(len(colors)):
        for pair, marker in ((0, "^"), (1, "_")):
            height = float(data.random_pairs.isel(pair=pair, network_layer=k))
            axes.plot([1.045], [height], marker, color=colors[k], ms=7 if pair else 5, mew=2 if pair else 1, clip_on=False)
    axes.axvspan(attrs["transition_low"], attrs["transition_high"], color=CLASS, alpha=0.12, lw=0)
    axes.axvline(attrs["transition"], color=CLASS, lw=1, ls=":")
    axes.text(attrs["transition"] + 0.015, 1.0, f"$t^*={attrs['transition']:.2f}\\,T$", color=CLASS, va="top")
    axes.set(xlabel="inversion time $t/T$", ylabel="cosine similarity", xlim=(0, 1.03), ylim=(None, 1.03))
    axes.set_title("layers of the classifier")
    axes.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
    axes.plot([], [], "^", color=MUTED, ms=5, label="random pairs, same class")
    axes.plot([], [], "_", color=MUTED, ms=7, mew=2, label="random pairs, different classes")
    axes.legend(fontsize=8.5, loc="lower left")


def _draw_labels(axes: Any, data: xr.Dataset) -> None:
    """Share of reconstructions that keep class and kind."""
    noise = np.r_[0, data.noise.values]
    for k, (name, color) in enumerate((("class", ACCENT), ("kind of garment", CLASS))):
        solid, dashed = (np.r_[1, data[v].isel(label_set=k)] for v in ("kept", "kept_deterministic"))
        axes.plot(noise, solid, color=color, marker="o", ms=4, label=name, zorder=3)
        axes.plot(noise, dashed, color=color, lw=1.1, ls="--", zorder=2)
        axes.axhline(float(data.chance[k]), color=color, lw=0.8, ls=":")
    axes.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
    axes.plot([], [], color=MUTED, lw=0.8, ls=":", label="independent images")
    axes.set(xlabel="inversion time $t/T$", ylabel="share kept", xlim=(0, 1.03), ylim=(0, 1.03), title="class and kind")
    axes.legend(loc="upper right")
