"""Fig. 2: images after U-turns, and similarity of a classifier's layers against inversion time; here on Fashion-MNIST."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.experiment import Experiment
from uturn.networks.fashion_mnist import CLASS_NAMES, COARSE_CLASS
from uturn.paper import Scale, Verdict
from uturn.plotting.style import ACCENT, CLASS, MUTED, THEORY, level_colors, style
from uturn.probes import NetworkLayers
from uturn.probes.network_layers import hidden_layers_of
from uturn.random import Purpose, keys, uniforms
from uturn.sources import FashionMNISTSource
from uturn.statistics import Transition, estimate, inversion, replicates, transition

TITLE = "U-turns of images: a diffusion model and the layers of a classifier"
CAPTION = (
    "A class-unconditional diffusion model and a convolutional classifier on Fashion-MNIST. Top: originals and what they become "
    "when diffusion is reversed at t/T. Bottom left: cosine similarity of standardised post-activations of original and "
    "reconstruction, layer by layer (bars: 95 % intervals of the first block and of the logits); marks on the right: "
    "random pairs of originals of the same and of different classes. Bottom right: share of reconstructions that keep the "
    "predicted class, and the kind of garment (tops, trousers, dresses, shoes, bags), one level up the hierarchy. Dashed in "
    "both: the same U-turns with a deterministic scheduler."
)

LAYERS = NetworkLayers(classifier="fashion_mnist")


def experiments(scale: Scale) -> dict[str, Experiment]:
    items, steps = (60, 50) if scale == "smoke" else (1000, 250)
    noise = np.arange(1, 11) / 10 if scale == "smoke" else np.arange(1, 26) / 25
    runs = {}
    for label, scheduler in [("stochastic", "ddpm"), ("deterministic", "ddim")]:
        runs[label] = Experiment.from_dict(
            {
                "items": items,
                "chunk": 60 if scale == "smoke" else 50,
                "source": {"type": "fashion_mnist"},
                "corruption": {"type": "diffusion", "noise": noise.tolist()},
                "backward": {
                    "type": "diffusion",
                    "model": "fashion_mnist",
                    "scheduler": scheduler,
                    "steps": steps,
                    "timestep_spacing": "trailing",
                },
                "probes": [LAYERS.model_dump(exclude_none=True), {"type": "images"}],
            }
        )
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


def _kept(run: xr.Dataset, original: np.ndarray) -> xr.DataArray:
    """Whether the predicted class, and the kind of garment, are those of the original: dims .., label_set."""
    same = [run.same_class]
    predicted = run.predicted_class.astype(int)
    kind = xr.DataArray(COARSE_CLASS[original], dims="item")
    same.append((xr.DataArray(COARSE_CLASS[predicted.values], dims=predicted.dims) == kind).astype(float))
    return xr.concat(same, dim=xr.Variable("label_set", ["class", "kind"])).transpose(..., "label_set")


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    stochastic, deterministic = (runs[label].load() for label in ("stochastic", "deterministic"))
    source, layers_spec = FashionMNISTSource(), LAYERS
    images, labels = source.all_images()
    items = stochastic.sizes["item"]
    predicted = hidden_layers_of(layers_spec, source).predict(images).classes
    agreement = float((predicted == labels).mean())
    # Probability that two independent images agree, in class and in kind.
    chance = [float(np.sum((np.bincount(x) / len(x)) ** 2)) for x in (predicted, COARSE_CLASS[predicted])]

    # U-turns of length zero are the identity: the curves start at 1.
    noise = np.r_[0.0, stochastic.noise.values]

    def from_one(curve: np.ndarray) -> np.ndarray:
        return np.concatenate([np.ones_like(curve[:1]), curve])

    def fall(curve: np.ndarray, bottom: float) -> Transition:
        return transition(noise, from_one(curve), 1.0, bottom)

    floor = random_pairs(layers_spec, source)
    _, low, high = replicates(stochastic.similarity).interval(lambda c: c)
    kept, kept_ode = (_kept(run, predicted[:items]) for run in (stochastic, deterministic))
    over = ("item", "trajectory")
    curves = stochastic.similarity.mean(over, dtype=float)
    data = xr.Dataset(
        {
            "similarity": curves,
            "similarity_low": (curves.dims, low),
            "similarity_high": (curves.dims, high),
            "similarity_deterministic": deterministic.similarity.mean(over, dtype=float),
            "kept": kept.mean(over, dtype=float),
            "kept_deterministic": kept_ode.mean(over, dtype=float),
            "chance": ("label_set", chance),
            "random_pairs": floor,
            "original": (("item", "row", "column"), images[:items, 0]),
            "image": stochastic.image.isel(trajectory=0, channel=0),
            "image_deterministic": deterministic.image.isel(trajectory=0, channel=0),
        }
    )
    star, star_ode = (estimate(values, lambda c: fall(c[:, 1], chance[1]).location) for values in (kept, kept_ode))
    star_class = estimate(kept, lambda c: fall(c[:, 0], chance[0]).location)
    later = estimate(kept, lambda c: fall(c[:, 1], chance[1]).location - fall(c[:, 0], chance[0]).location)
    # Kind, logits and first block of the same U-turns, to compare their widths in pairs; each falls to its own floor.
    together = xr.concat(
        [kept.isel(label_set=1, drop=True), *(stochastic.similarity.isel(network_layer=k, drop=True) for k in (-1, 0))],
        dim="curve",
    ).transpose(..., "curve")
    bottoms = [chance[1], float(floor[1, -1]), float(floor[1, 0])]
    widths = [estimate(together, lambda c, k=k: fall(c[:, k], bottoms[k]).width) for k in range(3)]  # type: ignore[misc]
    narrower = [
        estimate(together, lambda c, k=k: fall(c[:, 2], bottoms[2]).width - fall(c[:, k], bottoms[k]).width)  # type: ignore[misc]
        for k in (0, 1)
    ]
    swap = estimate(stochastic.similarity, lambda c: inversion(noise, from_one(c[:, -1]), from_one(c[:, 0])))
    gap = estimate(stochastic.similarity, lambda c: c[0, -1] - c[0, 0])
    late = int(np.argmin(np.abs(stochastic.noise.values - 0.8)))
    gap_late = estimate(stochastic.similarity, lambda c: c[late, -1] - c[late, 0])
    end = [estimate(kept, lambda c, k=k: float(c[-1, k])) for k in (0, 1)]  # type: ignore[misc]
    standard = [np.sqrt(x * (1 - x) / stochastic.same_class.isel(noise=0).size) for x in chance]
    data.attrs.update(transition=star.value, transition_low=star.low, transition_high=star.high, inversion=swap.value)
    return data, [
        Verdict(
            "t*/T: half of the fall of the kind of garment",
            str(star),
            "inside the chain",
            0.3 < star.low and star.high < 0.8,
            "interval within 0.3 .. 0.8",
        ),
        Verdict(
            "width of the fall (a quarter to three quarters) of kind, logits, first block",
            f"{widths[0]}; {widths[1]}; {widths[2]}. First block minus kind, minus logits: {narrower[0]}; {narrower[1]}",
            "abrupt for kind and logits, smooth for the first block",
            narrower[0].low > 0 and narrower[1].low > 0,
            "intervals of the differences above 0",
        ),
        Verdict(
            "logits - first block at the shortest U-turn, and at t/T = 0.8",
            f"{gap}; {gap_late}",
            "positive, then negative: the order of the layers inverts",
            gap.low > 0 and gap_late.high < 0,
            "intervals exclude 0",
        ),
        Verdict(
            "t/T at which logits and first block swap order",
            str(swap),
            "at t*",
            abs(swap.value - star.value) < 0.1,
            "within 0.1 of t*/T",
        ),
        Verdict(
            "t*/T of the class, and how much later the kind is lost",
            f"{star_class}; {later}",
            "the lower of the two levels is lost first",
            later.low > 0,
            "interval of the difference above 0",
        ),
        Verdict(
            "same class, same kind after a full chain",
            f"{end[0]}; {end[1]}",
            f"{chance[0]:.3f}; {chance[1]:.3f}, independent draws",
            all(abs(e.value - c) < 4 * s for e, c, s in zip(end, chance, standard, strict=True)),
            f"within 4 standard errors ({4 * standard[0]:.3f}; {4 * standard[1]:.3f})",
        ),
        Verdict(
            "label agreement of the classifier on the real images",
            f"{agreement:.3f}",
            "at least 0.91",
            agreement >= 0.91,
            ">= 0.91",
        ),
        Verdict(
            "t*/T of the kind with the deterministic scheduler",
            str(star_ode),
            f"near {star.value:.2f}, though it does not draw from the posterior",
            abs(star_ode.value - star.value) < 0.1,
            "within 0.1",
        ),
    ]


def draw(data: xr.Dataset) -> Any:
    noise = data.noise.values
    layers = [str(name) for name in data.network_layer.values]
    colors = level_colors(len(layers))
    columns = np.flatnonzero(np.isclose(noise * 10, np.round(noise * 10)))
    shown = [0, 1, 3, 5, 7, 8, 9]  # one item of most classes: T-shirt, trousers, dress, sandal, sneaker, bag, boot
    tiles = np.stack(
        [
            np.concatenate([data.original[i].values, *(data.image.isel(noise=k, item=i).values for k in columns)], axis=1)
            for i in shown
        ]
    )
    with style() as plt:
        figure = plt.figure(figsize=(11, 9.6), layout="constrained")
        top, bottom = figure.subfigures(2, 1, height_ratios=[1.25, 1])
        axes = top.subplots()
        axes.imshow(np.concatenate(tiles), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_xticks(28 * np.arange(len(columns) + 1) + 13.5, ["original", *(f"{noise[k]:.1f}" for k in columns)])
        axes.set_yticks(28 * np.arange(len(shown)) + 13.5, [CLASS_NAMES[i] for i in shown])
        axes.tick_params(length=0)
        axes.xaxis.tick_top()
        axes.axvline(27.5, color=THEORY, lw=1)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("inversion time $t/T$")
        axes.xaxis.set_label_position("top")
        left, right = bottom.subplots(1, 2, width_ratios=[1.3, 1])
        for k, name in enumerate(layers):
            edge = k in (0, len(layers) - 1)
            y = np.r_[1, data.similarity.isel(network_layer=k)]
            left.plot(np.r_[0, noise], y, color=colors[k], lw=2.4 if edge else 1.3, label=name, zorder=3 if edge else 2)
            if edge:
                low, high = (data[f"similarity_{side}"].isel(network_layer=k).values for side in ("low", "high"))
                left.errorbar(noise, y[1:], [y[1:] - low, high - y[1:]], fmt="o", ms=4, lw=1, color=colors[k], zorder=4)
                ode = np.r_[1, data.similarity_deterministic.isel(network_layer=k)]
                left.plot(np.r_[0, noise], ode, color=colors[k], lw=1.1, ls="--", zorder=2)
            for pair, marker in ((0, "^"), (1, "_")):
                height = float(data.random_pairs.isel(pair=pair, network_layer=k))
                left.plot([1.045], [height], marker, color=colors[k], ms=7 if pair else 5, mew=2 if pair else 1, clip_on=False)
        left.axvspan(data.attrs["transition_low"], data.attrs["transition_high"], color=CLASS, alpha=0.12, lw=0)
        left.axvline(data.attrs["transition"], color=CLASS, lw=1, ls=":")
        left.text(data.attrs["transition"] + 0.015, 1.0, f"$t^*={data.attrs['transition']:.2f}\\,T$", color=CLASS, va="top")
        left.set(
            xlabel="inversion time $t/T$",
            ylabel="cosine similarity",
            xlim=(0, 1.03),
            ylim=(None, 1.03),
            title="layers of the classifier",
        )
        left.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
        left.plot([], [], "^", color=MUTED, ms=5, label="random pairs, same class")
        left.plot([], [], "_", color=MUTED, ms=7, mew=2, label="random pairs, different classes")
        left.legend(fontsize=8.5, loc="lower left")
        for k, (name, color) in enumerate((("class", ACCENT), ("kind of garment", CLASS))):
            solid, dashed = (np.r_[1, data[v].isel(label_set=k)] for v in ("kept", "kept_deterministic"))
            right.plot(np.r_[0, noise], solid, color=color, marker="o", ms=4, label=name, zorder=3)
            right.plot(np.r_[0, noise], dashed, color=color, lw=1.1, ls="--", zorder=2)
            right.axhline(float(data.chance[k]), color=color, lw=0.8, ls=":")
        right.plot([], [], color=MUTED, lw=1.1, ls="--", label="deterministic")
        right.plot([], [], color=MUTED, lw=0.8, ls=":", label="independent images")
        right.set(xlabel="inversion time $t/T$", ylabel="share kept", xlim=(0, 1.03), ylim=(0, 1.03), title="class and kind")
        right.legend(loc="upper right")
    return figure
