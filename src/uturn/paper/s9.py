"""Fig. S9 (v3 of arXiv:2402.16991): U-turns of a two-mode Gaussian mixture: a class transition without inversion of layers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from uturn.experiment import Experiment, u_turn
from uturn.paper import Scale, Verdict, Work
from uturn.paper.channels import ChannelSpec, channel_spec
from uturn.plotting.style import CLASS, MUTED, THEORY, level_colors, style
from uturn.sources import GaussianMixtureSource
from uturn.statistics import crossing, estimate, hierarchy_index, nonincreasing, replicates, rescaled

if TYPE_CHECKING:
    import torch

TITLE = "Control without a hierarchy: a mixture of two Gaussians"
CAPTION = (
    "Two Gaussians in d = 1024, U-turns with the exact posterior, a classifier trained on the mixture. Left: cosine similarity "
    "of standardised post-activations of original and reconstruction, layer by layer, against diffusion time (bars: 95 % "
    "intervals). Middle: probability that the class is kept, measured (points) and from a one-dimensional integral "
    "(line); dotted: t* of the integral. Right: class and logits against the first block, both rescaled to 1 without noise and 0 "
    "for independent data: above the diagonal the class is the better preserved. The class is lost in a transition, but "
    "neither it nor the logits ever fall below the first block."
)
SOURCE = GaussianMixtureSource(dimension=1024, num_modes=2, separation=0.5)
RECIPE: dict[str, Any] = {
    "source": SOURCE.model_dump(),
    "width": 128,
    "num_layers": 4,
    "steps": 1000,
    "batch": 256,
    "learning_rate": 3e-4,
    "target": 0.999,
    "seed": 0,
}
_HELD_OUT, _REFERENCE, _TEST, _BATCHES = 0, 10_000, 20_000, 100_000  # first numbers of draws that are no originals


def trained_classifier(folder: Path, progress: bool = False) -> tuple[Path, Path]:
    """Files of the trained network and of the statistics of its layers; made once in a folder."""
    import torch

    from uturn.networks.classifiers import VectorClassifier
    from uturn.networks.files import load_network, save_network
    from uturn.networks.training import train
    from uturn.probes.hidden_layers import HiddenLayers

    path, statistics = (folder.resolve() / f"s9-{name}.safetensors" for name in ("classifier", "statistics"))
    try:
        kept: Any = load_network(path)
        HiddenLayers(kept, "every block").load_statistics(statistics)
        if kept.facts.get("recipe") == RECIPE:
            return path, statistics
    except ValueError:
        pass  # missing or damaged: trained again
    folder.mkdir(parents=True, exist_ok=True)
    held_out = SOURCE.fresh(np.arange(_HELD_OUT, 2000), RECIPE["seed"])
    network = VectorClassifier(SOURCE.dimension, 2, width=RECIPE["width"], num_layers=RECIPE["num_layers"], seed=RECIPE["seed"])

    def loss(model: torch.nn.Module, step: int) -> torch.Tensor:
        numbers = _BATCHES + step * RECIPE["batch"] + np.arange(RECIPE["batch"])
        batch = SOURCE.fresh(numbers, RECIPE["seed"])
        return torch.nn.functional.cross_entropy(model(torch.from_numpy(batch.values)), torch.from_numpy(batch.labels))

    history = train(
        network,
        loss,
        RECIPE["steps"],
        recipe=RECIPE,
        checkpoint=folder / "s9-classifier.checkpoint",
        learning_rate=RECIPE["learning_rate"],
        warmup=50,
        evaluate=lambda model: {"accuracy": _accuracy(model, held_out)},
        every=100,
        target=("accuracy", RECIPE["target"]),
        progress=progress,
    )
    reference = SOURCE.fresh(_REFERENCE + np.arange(4000), RECIPE["seed"]).values
    HiddenLayers(network, "every block").fit(reference).save_statistics(statistics)
    # Last, because it says that all is done.
    save_network(network, path, recipe=RECIPE, accuracy=history.records["accuracy"][-1][1], steps=history.steps)
    return path, statistics


def channels(scale: Scale) -> list[ChannelSpec]:
    return [channel_spec("mixture", SOURCE.model_dump(), "gaussian", scale, (0.5, 1.5, 2.5))]


def experiment(scale: Scale, classifier: Path, statistics: Path) -> Experiment:
    items, trajectories = (600, 1) if scale == "smoke" else (2000, 4)
    noise = np.r_[np.geomspace(0.02, 1, 9)[:-1], np.linspace(1, 3.5, 13), 4.5, np.inf].round(4)
    return Experiment.from_dict(
        {
            "items": items,
            "trajectories": trajectories,
            "chunk": 100,
            "source": SOURCE.model_dump(),
            "corruption": {"type": "gaussian", "noise": noise.tolist()},
            "backward": {"type": "exact"},
            "probes": [{"type": "network_layers", "classifier": str(classifier), "statistics": str(statistics)}],
        }
    )


def measure(work: Work) -> dict[str, xr.Dataset]:
    from uturn.networks.files import load_network

    classifier, statistics = trained_classifier(work.folder, work.progress)
    described = experiment(work.scale, classifier, statistics)
    run = work.run("s9-mixture", described)
    # Of vectors that had no part in the training: the held-out ones decided when it was to end.
    accuracy = _accuracy(load_network(classifier), SOURCE.fresh(_TEST + np.arange(2000), 0))
    return {"mixture": run.assign_attrs(accuracy=accuracy), "written out": written_out(described, classifier)}


def written_out(described: Experiment, classifier: Path, noise: float = 1.0, items: int = 100) -> xr.Dataset:
    """Similarities of the first items at one noise level by the definition: cosine of (a - mean)/deviation, unit by unit."""
    from uturn.networks.files import load_network
    from uturn.probes.hidden_layers import HiddenLayers

    source, corruption, backward, _ = described.parts
    probe = HiddenLayers(load_network(classifier), "every block")

    def activations(vectors: np.ndarray) -> dict[str, np.ndarray]:
        batches = list(probe.activations(vectors))
        return {layer: np.concatenate([batch[layer].double().numpy() for batch in batches]) for layer in probe.layers}

    (originals,) = source.blocks(np.arange(items), described.seed, described.items)
    rebuilt = u_turn(originals, corruption, backward, noise, described.seed).reconstructions[:, 0]
    reference = activations(SOURCE.fresh(_REFERENCE + np.arange(4000), RECIPE["seed"]).values)
    before, after = activations(originals.values), activations(rebuilt)
    rows = []
    for layer, values in reference.items():
        deviation = values.std(axis=0)
        used = deviation > 0  # a unit that is always off has no standard deviation
        a, b = ((x[layer] - values.mean(axis=0))[:, used] / deviation[used] for x in (before, after))
        rows.append((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))
    return xr.Dataset(
        {"similarity": (("network_layer", "item"), np.array(rows))},
        coords={"network_layer": list(reference), "item": np.arange(items), "noise": noise},
    )


def _accuracy(network: Any, vectors: Any) -> float:
    import torch

    with torch.inference_mode():
        guess = network(torch.from_numpy(vectors.values)).argmax(1).numpy()
    return float((guess == vectors.labels).mean())


def kept_mode(noise: Any, separation: float) -> np.ndarray:
    """Probability that a U-turn keeps the mode of two equal Gaussians of variance 1, a distance `separation` apart.

    Only the axis through the means matters. Along it the log-odds of the true mode are 2 (s + sqrt(s) z), z normal, with the
    signal-to-noise ratio s = abar separation^2 / 4. Two posterior draws agree with probability (1 + E tanh(s + sqrt(s) z)) / 2.
    """
    s = np.exp(-2 * np.asarray(noise, float))[..., None] * separation**2 / 4
    z = np.linspace(-9, 9, 2001)
    weight = np.exp(-(z**2) / 2)
    return 0.5 + 0.5 * (np.tanh(s + np.sqrt(s) * z) * weight).sum(-1) / weight.sum()


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    run = runs["mixture"].load()
    noise, over = run.noise.values, ("item", "trajectory")
    together = xr.concat([run.same_class.expand_dims(network_layer=["class"]), run.similarity], dim="network_layer")
    repeated = replicates(together)
    _, low, high = repeated.interval(lambda c: c)
    curves = together.mean(over, dtype=float).transpose("noise", "network_layer")
    theory = kept_mode(noise, SOURCE.separation * np.sqrt(SOURCE.dimension))
    fine = np.linspace(0, 8, 4001)
    expected = crossing(fine, kept_mode(fine, SOURCE.separation * np.sqrt(SOURCE.dimension)), 0.75)
    data = xr.Dataset(
        {
            "kept": curves,
            "kept_low": (curves.dims, low),
            "kept_high": (curves.dims, high),
            "same_class_theory": ("noise", theory),
            "rescaled": (curves.dims, rescaled(curves.values)),
        },
        attrs={"transition": expected},
    )
    star = estimate(run.same_class, lambda c: crossing(noise, c, 0.75), confidence=0.999)
    # Items are independent, so the sum over noise levels has a t distribution.
    difference = (run.same_class.mean("trajectory", dtype=float) - xr.DataArray(theory, dims="noise")).sum("noise")
    t = float(difference.mean() / (difference.std(ddof=1) / np.sqrt(run.sizes["item"])))
    # How far class and logits (first and last curve) are below the first block, in standard errors, at finite noise.

    def gap(c: np.ndarray) -> np.ndarray:
        lines = rescaled(c)
        return lines[:-1, [0, -1]] - lines[:-1, [1]]

    lowest = (gap(curves.values) / np.maximum(repeated.error(gap), 1e-3)).min(axis=0)
    first = run.similarity.isel(network_layer=0, drop=True)
    index = [hierarchy_index(values, first) for values in (run.same_class, run.similarity.isel(network_layer=-1, drop=True))]
    data["rescaled_error"] = (curves.dims, repeated.error(rescaled))
    data.attrs.update({f"index_{k}": getattr(index[0], k) for k in ("value", "low", "high")})
    accuracy = run.attrs["accuracy"]
    return data, [
        Verdict("accuracy of the classifier on 2,000 fresh vectors", f"{accuracy:.4f}", "1", accuracy >= 0.999, ">= 0.999"),
        Verdict(
            "t*: half of the class is lost",
            f"{star} (99.9 % interval)",
            f"{expected:.4f} (integral along the axis of the means)",
            star.low < expected < star.high and star.high - star.low < 0.2 * expected,
            "inside the interval, which is narrower than 20 % of it",
        ),
        Verdict(
            "probability that the class is kept, minus the integral, summed over noise levels: t statistic",
            f"{t:+.2f}",
            "0, standard deviation 1",
            abs(t) < 3.5,
            "below 3.5 in size",
        ),
        Verdict(
            "how far class and logits fall below the first block, rescaled: lowest difference in standard errors",
            f"{lowest[0]:+.1f}; {lowest[1]:+.1f}",
            "no inversion: not below",
            bool((lowest > -3.5).all()),
            f"above -3.5 at all {len(noise) - 1} noise levels (errors below 0.001 count as 0.001)",
        ),
        Verdict(
            "hierarchy index, class and logits against the first block",
            f"{index[0]}; {index[1]}",
            "0",
            all(estimate_.high < 0.05 for estimate_ in index),
            "intervals below 0.05",
        ),
        _by_definition(run, runs["written out"]),
    ]


def _by_definition(run: xr.Dataset, written: xr.Dataset) -> Verdict:
    measured = run.similarity.sel(noise=written.noise, item=written["item"].values, trajectory=0)
    error = np.abs(written.similarity - measured).max("item").values
    return Verdict(
        f"similarities at t = {float(written.noise):g} against their definition written out: largest difference in every layer",
        ", ".join(f"{value:.1e}" for value in error),
        "0: cosine of deviations from the mean, divided by their standard deviation",
        bool((error < 1e-4).all()),
        "below 1e-4 (single precision)",
    )


def draw(data: xr.Dataset) -> Any:
    finite = np.isfinite(data.noise.values)
    time = data.noise.values[finite]
    names = [str(name) for name in data.network_layer.values]
    colors = [CLASS, *level_colors(len(names) - 1)]
    labels = ["class", *(_words(name) for name in names[1:])]
    with style() as plt:
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=[1.15, 1, 0.95], layout="constrained")
        for k in range(1, len(names)):
            edge = k in (1, len(names) - 1)
            mean, low, high = (data[v].isel(network_layer=k).values[finite] for v in ("kept", "kept_low", "kept_high"))
            left.plot(time, mean, color=colors[k], lw=2.2 if edge else 1.2, label=labels[k])
            if edge:
                left.errorbar(time, mean, [mean - low, high - mean], fmt="o", ms=3, lw=0.9, color=colors[k])
        left.set(ylabel="cosine similarity", title="layers of the classifier")
        left.legend(loc="lower left")
        fine = np.geomspace(0.02, 4.5, 600)
        middle.plot(fine, kept_mode(fine, SOURCE.separation * np.sqrt(SOURCE.dimension)), color=THEORY, lw=1.4, label="integral")
        mean, low, high = (data[v].isel(network_layer=0).values[finite] for v in ("kept", "kept_low", "kept_high"))
        middle.errorbar(time, mean, [mean - low, high - mean], fmt="o", ms=4, lw=0.9, color=CLASS, label="measured")
        middle.axhline(0.5, color=MUTED, lw=0.8, ls="--")
        middle.text(0.021, 0.505, "chance", color=MUTED, fontsize=9, va="bottom")
        middle.set(ylabel="P(class kept)", title="class", ylim=(0.45, 1.02))
        middle.legend(loc="lower left", bbox_to_anchor=(0, 0.12))
        star = data.attrs["transition"]
        for axes in (left, middle):
            axes.axvline(star, color=CLASS, lw=1, ls=":")
            axes.set(xscale="log", xlabel="diffusion time $t$", xlim=(0.02, 4.6))
            axes.set_xticks([0.02, 0.1, 0.5, 1, 2, 5], ["0.02", "0.1", "0.5", "1", "2", "5"])
            axes.minorticks_off()
        left.set_ylim(-0.05, 1.03)
        middle.text(star * 1.08, 1.0, f"$t^*={star:.2f}$", va="top", color=CLASS)
        first = np.r_[1, nonincreasing(data.rescaled.isel(network_layer=1).values)]
        for k, label in ((0, "class"), (len(names) - 1, "logits")):
            right.plot(first, np.r_[1, data.rescaled.isel(network_layer=k).values], "o-", ms=3.5, color=colors[k], label=label)
        right.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
        right.set(xlabel="$r$ of the first block", ylabel="$r$", xlim=(-0.03, 1.03), ylim=(-0.06, 1.06), title="no inversion")
        right.text(0.97, 0.06, _index_text(data), ha="right", fontsize=10)
        right.legend(loc="center right")
    return figure


def _words(name: str) -> str:
    block = name.rpartition(".")[2]
    return f"block {int(block) + 1}" if block.isdigit() else name


def _index_text(data: xr.Dataset) -> str:
    value, low, high = (data.attrs[f"index_{k}"] for k in ("value", "low", "high"))
    return f"hierarchy index\n{value:.3f} [{low:.3f}, {high:.3f}]"
