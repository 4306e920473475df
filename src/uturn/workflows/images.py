"""From a diffusion model, images and classifiers to the paper's Figs. 1, 2 and 16: the experiment, its analysis, its files.

`image_experiment` describes the run, `uturn.run` does it, `analyse` finds where the class is lost, and `write_results` writes
numbers and figures. Everything is measured on the run's own axis t/T, and given on the others (step, abar, log-SNR, sigma) too.
"""

from __future__ import annotations

import json
import keyword
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.checks import checked_folder, checked_integer, checked_noise, shown
from uturn.files import whole_file
from uturn.statistics import Replicates, inversion, replicates, transition

if TYPE_CHECKING:
    import xarray as xr

    from uturn.experiment import Experiment

ESTIMATE = ("value", "low", "high")  # of the dim `estimate`: a number and the ends of its 95 % interval
RESULTS = ("analysis.zarr", "transition.json", "layers.png", "layers.pdf", "grid.png", "grid.pdf")
PICTURES = "reconstructions"  # folder of the PNG files of `save_images`
AGREEMENTS = ("same_class", "same_class_top5", "label_top1", "label_top5")
_MOST_SHOWN = 8  # originals in the image grid


def image_experiment(
    model: str = "fashion_mnist",
    data: str = "fashion_mnist",
    classifiers: Sequence[str] | None = None,
    *,
    weights: Sequence[str | None] | None = None,
    preset: str | None = None,
    scheduler: str = "ddpm",
    steps: int = 100,
    eta: float | None = None,
    timestep_spacing: str | None = None,
    pure_noise: bool = False,
    levels: int | Sequence[float] = 10,
    items: int = 40,
    trajectories: int = 1,
    size: int | None = None,
    channels: int | None = None,
    classes: str | None = None,
    labels: str | None = None,
    compare_labels: bool = True,
    dtype: str = "float32",
    device: str | None = None,
    batch_size: int | str = "auto",
    compile: bool = False,
    keep: int = 16,
    chunk: int | None = None,
    seed: int = 0,
) -> Experiment:
    """U-turns of images by a diffusion model, compared in the layers of classifiers.

    Parameters
    ----------
    model, preset, scheduler, steps, eta, timestep_spacing, pure_noise, dtype, device, batch_size, compile
        Of the backward `diffusion`, see `uturn.backward.DiffusionModel`.
    data : str
        "fashion_mnist", a folder of images (sub-folders are classes), or a .npy file.
    classifiers, weights : list of str
        Of the probes `network_layers`, and their weights, one each (None: as the probe chooses). The default is the classifier
        that comes with the embedded data. Several classifiers are told apart by names made from their strings, see `probe_names`.
    levels : int or list of float
        So many evenly spaced noise levels, the last one the whole chain; or the levels t/T themselves. Length zero, the identity,
        needs no measurement and is added by `analyse`.
    items, trajectories, seed
        Of the experiment.
    size, channels, classes
        Of a folder: resize and crop to size x size; 1 (grey) or 3 (RGB) channels; text file of class folders, in order.
    labels : str
        Of a .npy file: another one, of integers.
    compare_labels : bool
        Compare the classifiers' verdicts with the labels of the images too, if there are any; these must be the classifiers' own.
    keep : int
        Reconstructions of the first so many items are kept, lossless.
    chunk : int, optional
        Items a task, what is stored and resumed at once.

    Raises
    ------
    ValueError
        For options that do not fit together, and for what `Experiment.from_dict` refuses.
    """
    from uturn.experiment import Experiment

    items, keep = checked_integer("items", items, 1), checked_integer("keep", keep, 0)
    source: dict[str, Any] = {"type": "fashion_mnist"}
    allowed: tuple[str, ...] = ()
    if data != "fashion_mnist" and str(data).endswith(".npy"):
        source, allowed = {"type": "array", "path": str(data)}, ("labels",)
    elif data != "fashion_mnist":
        source, allowed = {"type": "images", "path": str(data)}, ("size", "channels", "classes")
    for name, value in (("size", size), ("channels", channels), ("classes", classes), ("labels", labels)):
        if value is not None:
            if name not in allowed:
                kind = "a .npy file" if name == "labels" else "a folder of images"
                raise ValueError(f"{name} = {value!r}: goes with {kind}, but data = {str(data)!r}; leave it out")
            source[name] = value
    classifiers, weights = _listed("classifiers", classifiers), _listed("weights", weights)
    if not classifiers:
        if data != "fashion_mnist":
            raise ValueError(
                f"classifiers: none given for data = {str(data)!r}; expected at least one, e.g. 'torchvision:convnext_base'"
            )
        classifiers = ["fashion_mnist"]
    if weights and len(weights) != len(classifiers):
        raise ValueError(f"weights: {len(weights)} for {len(classifiers)} classifiers; expected one for each, or none at all")
    probes: list[dict[str, Any]] = []
    probe: dict[str, Any]
    names = probe_names(classifiers)
    for name, classifier, chosen in zip(names, classifiers, weights or [None] * len(classifiers), strict=True):
        probe = {"type": "network_layers", "classifier": str(classifier), "weights": chosen or None, "name": name or None}
        if not compare_labels:
            probe["labels"] = False
        probes.append({key: value for key, value in probe.items() if value is not None})
    if keep:
        probes.append({"type": "images"} if keep >= items else {"type": "images", "first": keep})
    backward = {
        "type": "diffusion",
        "model": str(model),
        "preset": preset,
        "scheduler": scheduler,
        "steps": checked_integer("steps", steps, 1),
        "eta": eta,
        "timestep_spacing": timestep_spacing,
        "pure_noise": pure_noise,
        "dtype": dtype,
        "device": device,
        "batch_size": batch_size,
        "compile": compile,
    }
    return Experiment.from_dict(
        {
            "seed": seed,
            "items": items,
            "trajectories": trajectories,
            # A task is what a killed run loses, and one file a variable: small for small runs, not too many for large ones.
            "chunk": chunk or (20 if items <= 1000 else 50),
            "source": source,
            "corruption": {"type": "diffusion", "noise": noise_levels(levels, steps)},
            "backward": {key: value for key, value in backward.items() if value is not None},
            "probes": probes,
        }
    )


def _listed(name: str, values: Any) -> list[Any]:
    """Texts as a list, also if there is only one, or none."""
    found = [values] if isinstance(values, str) else [] if values is None else values
    if not isinstance(found, list | tuple) or not all(value is None or isinstance(value, str) for value in found):
        raise ValueError(f"{name} = {shown(values)}: expected a list of texts")
    return list(found)


def noise_levels(levels: int | Sequence[float], steps: int) -> list[float]:
    """Noise levels t/T of a chain of `steps` reverse steps: so many evenly spaced steps k/steps, or a list as it is.

    >>> noise_levels(4, 50)
    [0.26, 0.5, 0.76, 1.0]
    """
    if isinstance(levels, str | bytes) or not isinstance(levels, Sequence | np.ndarray):
        count = checked_integer("levels", levels, 1)
        if count > steps:
            raise ValueError(f"levels = {count}, but the chain has {steps} steps; take at most as many levels, or more steps")
        return [(2 * i * steps + count) // (2 * count) / steps for i in range(1, count + 1)]
    return checked_noise(list(levels), 1).tolist()


def parsed_levels(text: str) -> int | list[float]:
    """Noise levels as written on a command line: "10", so many; "0.2,0.5,1.0", these.

    >>> parsed_levels("10"), parsed_levels("0.5,1.0")
    (10, [0.5, 1.0])
    """
    try:
        return int(text) if text.strip().isdecimal() else [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"levels = {text!r}: expected a number of levels, or levels t/T such as 0.2,0.5,1.0") from None


def probe_names(classifiers: Sequence[str]) -> list[str]:
    """Names of the probes of several classifiers: identifiers made from their strings, all different; "" for a single one.

    >>> probe_names(["torchvision:resnet50", "nets/resnet50.safetensors", "timm:vit_tiny.augreg"])
    ['resnet50', 'resnet50_2', 'vit_tiny_augreg']
    """
    if len(classifiers) == 1:
        return [""]
    names: list[str] = []
    for classifier in classifiers:
        text = str(classifier)
        word = text.rpartition(":")[2] if ":" in text and not Path(text).exists() else Path(text).stem
        word = re.sub(r"\W", "_", word, flags=re.ASCII).strip("_")[:80] or "classifier"
        if word[0].isdigit() or keyword.iskeyword(word):
            word = f"classifier_{word}"
        number = next(n for n in range(1, len(classifiers) + 1) if (word if n == 1 else f"{word}_{n}") not in names)
        names.append(word if number == 1 else f"{word}_{number}")
    return names


def missing_tasks(run: xr.Dataset) -> int:
    """Number of tasks (a noise level, a block of items) that are not done, as the run's store says; 0 if there was no store."""
    return int(run.attrs.get("missing_tasks", 0))


def analyse(run: xr.Dataset) -> xr.Dataset:
    """Where, and how sharply, classifiers see the class of images lost, and how their layers go: from any finished run.

    Let c(x) be a mean over items and trajectories at noise x (t/T for images), c(0) = 1 added, straight lines between levels.

    - `same_class`: share of U-turns whose predicted class is the original's. `chance`: probability that two independent originals
      agree, sum_k p_k^2 with the shares p_k of the classes predicted for the originals of the run.
    - `transition`: t*, where same_class has done half of its fall from 1 to chance, for the first time. `width`: noise
      between a quarter and three quarters of it. Without readings of the originals' classes, the last value stands for chance.
    - `similarity`, per layer; `half_life`: where it has done half of its fall from 1 to its value at the longest U-turn.
    - `inversion`: beyond it the last layer (the logits) is less similar than the first.

    Parameters
    ----------
    run : Dataset of `uturn.run`, with one or more probes `network_layers`

    Returns
    -------
    Dataset
        similarity (classifier, noise, network_layer, estimate); same_class and other agreements (classifier, noise, estimate);
        chance (classifier); transition, inversion (classifier, axis, estimate); width (classifier, estimate); half_life
        (classifier, network_layer, axis, estimate). `classifier`: names of the probes, or the classifier itself if its probe has
        none. `estimate`: value, low and high end of its 95 % interval over items (`uturn.statistics.Replicates`), cut off at the
        least and largest possible value; NaN where the number does not exist, `remark` says why. `axis`: noise, and by
        interpolation the run's other axes. `layer` names the layers, "" beyond the last one of a classifier. If images were kept:
        `original`, `image` of the first items, for the grid.

    Raises
    ------
    ValueError
        If the run is not finished, or measured no network layers.
    """
    import xarray as xr

    if not isinstance(run, xr.Dataset):
        raise ValueError(f"run = {shown(run)}: expected the dataset that uturn.run gives")
    probes = _probes(run)
    missing = missing_tasks(run)
    if missing:
        raise ValueError(
            f"the run is not finished: {missing} tasks are missing; run the same command again, or wait for the other shards"
        )
    if "t_over_T" in run.coords:  # of the steps that were done; the spec may say something in between
        run = run.assign_coords(noise=("noise", run.t_over_T.values, run.noise.attrs))
    run = run.sortby("noise")
    identity = not np.isclose(run.noise.values[0], 0)  # to be added
    x = np.r_[0.0, run.noise.values] if identity else run.noise.values.astype(float)
    axes = _Axes(run, x)
    deepest = max(run.sizes[layers] for _, layers, _ in probes)
    one_level = len(x) < 3

    def curves(name: str, first: float) -> Replicates:
        """Mean curve (noise, ..) of a variable and its replicates, from `first` at no noise on."""
        values = run[name]
        if "label_top" in name:  # without those that have no label
            values = values.isel(item=values.notnull().all([dim for dim in values.dims if dim != "item"]).values)
        if not values.sizes["item"]:
            return Replicates(np.full(len(x), np.nan), np.empty((0, len(x))), 0)
        found = replicates(values)
        if not identity:
            return found
        mean, deviations = found.mean, found.deviations
        mean = np.concatenate([np.full_like(mean[:1], first), mean])
        return Replicates(mean, np.concatenate([np.zeros_like(deviations[:, :1]), deviations], axis=1), found.groups)

    def band(curve: Replicates, least: float) -> np.ndarray:
        """A curve and the ends of its intervals, on a last axis; readings are between `least` and 1."""
        return np.clip(np.moveaxis(curve.interval(lambda mean: mean), 0, -1), least, 1)

    def located(statistic: Callable[[np.ndarray], float], curve: Replicates) -> np.ndarray:
        """A noise level found on a curve and the ends of its interval, between 0 and the largest noise."""
        return np.full(3, np.nan) if one_level else np.clip(curve.interval(statistic), 0, x[-1])

    measured: dict[str, list[Any]] = {}
    for prefix, layers, about in probes:
        similarity, same = curves(f"{prefix}similarity", 1.0), curves(f"{prefix}same_class", 1.0)
        chance = _chance(run, prefix)
        fall = partial(transition, x, top=1.0, bottom=None if np.isnan(chance) else chance)
        star = located(lambda c, fall=fall: fall(c).location, same)  # type: ignore[misc]
        width = located(lambda c, fall=fall: fall(c).width, same)  # type: ignore[misc]
        swap = located(lambda c: inversion(x, c[:, -1], c[:, 0]), similarity)
        inverted = bool((similarity.interval(lambda c: c[:, -1] - c[:, 0])[2] < 0).any())  # at some noise, for sure
        half_lives = [
            located(lambda c, k=k: transition(x, c[:, k]).location, similarity)  # type: ignore[misc]
            for k in range(run.sizes[layers])
        ]
        names = [str(layer) for layer in run[layers].values]
        entry = {
            "classifier": prefix.removesuffix("_") or about["classifier"],
            "model": about["classifier"],
            "layer": np.array(names + [""] * (deepest - len(names)), dtype=object),
            "similarity": _padded(band(similarity, -1), 1, deepest),
            "chance": chance,
            "transition": axes.at(star),
            "width": width,
            "inversion": axes.at(swap),
            "half_life": _padded(np.stack([axes.at(t) for t in half_lives]), 0, deepest),
            "remark": "; ".join(_remarks(run, x, same.mean, chance, star, swap, inverted, len(names))),
        }
        for name in AGREEMENTS:
            if f"{prefix}{name}" in run:
                first = 1.0 if name.startswith("same") else _label_agreement(run, prefix) if name == "label_top1" else np.nan
                entry[name] = band(same if name == "same_class" else curves(f"{prefix}{name}", first), 0)
            else:
                entry[name] = np.full((len(x), 3), np.nan)
        for key, value in entry.items():
            measured.setdefault(key, []).append(value)
    dims = {
        "similarity": ("classifier", "noise", "network_layer", "estimate"),
        "chance": ("classifier",),
        "transition": ("classifier", "axis", "estimate"),
        "width": ("classifier", "estimate"),
        "inversion": ("classifier", "axis", "estimate"),
        "half_life": ("classifier", "network_layer", "axis", "estimate"),
        **{name: ("classifier", "noise", "estimate") for name in AGREEMENTS},
    }
    data = xr.Dataset(
        {name: (dims[name], np.array(measured[name])) for name in dims},
        coords={
            "classifier": np.array(measured["classifier"], str),
            "noise": ("noise", x, dict(run.noise.attrs)),
            **{name: ("noise", values) for name, values in axes.values.items() if name != "noise"},
            "network_layer": np.arange(deepest),
            "axis": list(axes.values),
            "estimate": list(ESTIMATE),
            "layer": (("classifier", "network_layer"), np.array(measured["layer"]).astype(str)),
            "model": ("classifier", np.array(measured["model"], str)),
            "remark": ("classifier", np.array(measured["remark"], str)),
        },
        attrs={key: run.attrs[key] for key in ("spec", "spec_hash", "seed", "models", "versions") if key in run.attrs},
    )
    data = data.drop_vars([name for name in AGREEMENTS if np.isnan(data[name]).all()])
    data.attrs.update(description=describe(run), items=run.sizes["item"], trajectories=run.sizes.get("trajectory", 1))
    return data.merge(_pictures(run, probes[0][0]), combine_attrs="override")


def describe(run: xr.Dataset) -> str:
    """One line: model, what it is told, scheduler, steps, data."""
    spec = _spec(run)
    backward, source = spec["backward"], spec["source"]
    words = [_short(backward["model"])] if "model" in backward else []
    if "description" in run.attrs:
        words.append(run.attrs["description"])
    elif "scheduler" in backward:
        words.append(f"{backward['scheduler']}, {backward.get('steps', '?')} steps")
    count, trajectories = run.sizes["item"], run.sizes.get("trajectory", 1)
    words.append(f"{count} {'original' if count == 1 else 'originals'} of {_short(source.get('path', source.get('type', '?')))}")
    if trajectories > 1:
        words.append(f"{trajectories} U-turns of each")
    return " · ".join(words)


def numbers(analysis: xr.Dataset) -> dict[str, Any]:
    """What `transition.json` holds: the numbers of an analysis with intervals, on all axes; None where one does not exist."""

    def plain(values: Any) -> dict[str, float | None]:
        return {part: float(v) if np.isfinite(v) else None for part, v in zip(ESTIMATE, values, strict=True)}

    def on_axes(values: xr.DataArray) -> dict[str, dict[str, float | None]]:
        return {str(axis): plain(values.sel(axis=axis).values) for axis in values.axis.values}

    found = {}
    for name in analysis.classifier.values:
        one = analysis.sel(classifier=name)
        layers = [(k, str(layer)) for k, layer in enumerate(one.layer.values) if str(layer)]
        found[str(name)] = {
            "classifier": str(one.model.item()),
            "remark": str(one.remark.item()),
            "transition": on_axes(one.transition),
            "width": plain(one.width.values),
            "inversion": on_axes(one.inversion),
            "half_life": {layer: on_axes(one.half_life.isel(network_layer=k)) for k, layer in layers},
            "chance": float(one.chance) if np.isfinite(one.chance) else None,
            **{name: [plain(v) for v in one[name].values] for name in AGREEMENTS if name in one},
        }
    return {
        "run": analysis.attrs["description"],
        "spec_hash": analysis.attrs.get("spec_hash"),
        "items": analysis.attrs["items"],
        "trajectories": analysis.attrs["trajectories"],
        "noise": [float(x) for x in analysis.noise.values],
        "intervals": "95 %, Student's t, from the differences between originals, each with all its U-turns",
        "classifiers": found,
    }


def summary(analysis: xr.Dataset, most_layers: int = 8) -> Iterator[Any]:
    """Tables for a terminal (rich), one a classifier: t*, width, inversion, half-lives of at most so many layers."""
    from rich.table import Table

    axes = [str(axis) for axis in analysis.axis.values]
    titles = {"noise": str(analysis.noise.attrs.get("long_name", "noise")), "step": "step", "log_snr": "log SNR"}
    for name in analysis.classifier.values:
        one = analysis.sel(classifier=name)
        remark = str(one.remark.item())
        table = Table(title=f"{name}: {remark}" if remark else f"{name}", title_justify="left")
        for heading in ("", *(titles.get(axis, axis) for axis in axes)):
            table.add_column(heading, overflow="fold")
        table.add_row("class half lost, t*", *(_number(one.transition.sel(axis=axis).values, axis) for axis in axes))
        table.add_row("width of its fall", _number(one.width.values))
        table.add_row("logits fall below first layer", *(_number(one.inversion.sel(axis=axis).values, axis) for axis in axes))
        layers = [str(layer) for layer in one.layer.values if str(layer)]
        for k in chosen(len(layers), most_layers):
            half_life = one.half_life.isel(network_layer=k)
            table.add_row(f"half-life of {layers[k]}", *(_number(half_life.sel(axis=axis).values, axis) for axis in axes))
        yield table


def write_results(run: xr.Dataset, out: str | Path, *, save_images: bool = False) -> xr.Dataset:
    """Analyse a finished run and write its numbers and figures into a folder, in place of those that are there.

    Writes `analysis.zarr` (what `analyse` gives), `transition.json` (its numbers), `layers.png`, `.pdf` (Figs. 2, 16); if the run
    kept images, `grid.png`, `.pdf` (Fig. 1); and, for `save_images`, `reconstructions/` with a PNG (8 bit) of every
    kept one.
    The exact numbers of the images are in the run.

    Raises
    ------
    ValueError
        If the run is not finished or measured no network layers, or if the folder cannot be written to.
    """
    from uturn.datasets import write_dataset
    from uturn.plotting.images import draw_grid, draw_layers
    from uturn.plotting.style import style

    out = Path(out)
    check_folder(out, save_images, _kept_images(run) if "image" in run else 0)
    analysis = analyse(run)
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Elsewhere first: whoever looks sees the old results or the new ones, and two shards may end at the same time.
        work = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=out))
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror or error}); choose another folder") from None
    try:
        write_dataset(analysis, work / "analysis.zarr")
        with whole_file(work / "transition.json") as file:
            file.write(json.dumps(numbers(analysis), indent=1, ensure_ascii=False, allow_nan=False).encode())
        logging.getLogger("fontTools").setLevel(logging.ERROR)  # it warns of the fonts' dates
        with style() as plt:
            for name, figure in (("layers", draw_layers(analysis)), ("grid", draw_grid(analysis))):
                if figure is None:
                    continue
                for ending in ("png", "pdf"):
                    with whole_file(work / f"{name}.{ending}") as file:
                        figure.savefig(file, format=ending)
                plt.close(figure)
        if save_images:
            _save_images(run, work / PICTURES)
            _replace(work / PICTURES, out / PICTURES)
        for name in RESULTS:
            _replace(work / name, out / name)
    except OSError as error:
        raise ValueError(f"cannot write to {out} ({error.strerror or error}); make room, or choose another folder") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return analysis


def check_folder(out: Path, save_images: bool, kept: int) -> None:
    """ValueError if results cannot be written to a folder: known before the run as well as after it."""
    checked_folder("out", out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"out = {str(out)!r} is a file; expected a folder")
    if (out / "zarr.json").exists():
        raise ValueError(f"out = {str(out)!r} is a store itself; choose another folder")
    if save_images:
        if not kept:
            raise ValueError("save_images: no images are kept; set keep to 1 or more")
        foreign = [f.name for f in (out / PICTURES).glob("*") if not re.fullmatch(r"item\d+-.*\.png", f.name)]
        if foreign:
            raise ValueError(
                f"{out / PICTURES} holds {foreign[0]!r}, which is none of the pictures written there; choose another folder"
            )


def chosen(count: int, most: int) -> list[int]:
    """At most so many of `count` places, evenly spaced, the first and the last among them.

    >>> chosen(36, 4)
    [0, 12, 23, 35]
    """
    return sorted({round(float(k)) for k in np.linspace(0, count - 1, min(count, most))})


# --- the run -----------------------------------------------------------------------------------------------------------


def _probes(run: xr.Dataset) -> list[tuple[str, str, dict[str, Any]]]:
    """Of every probe of network layers: prefix of its variables, dim of its layers, and its table in the spec."""
    tables = [table for table in _spec(run)["probes"] if table.get("type") == "network_layers"]
    by_prefix = {f"{t['name']}_" if t.get("name") else "": t for t in tables}
    found = []
    for name in run.data_vars:
        prefix = str(name).removesuffix("similarity")
        layers = f"{prefix}network_layer"
        if str(name).endswith("similarity") and layers in run[name].dims and f"{prefix}same_class" in run:
            found.append((prefix, layers, {"classifier": "classifier", **by_prefix.get(prefix, {})}))
    if not found:
        raise ValueError(
            "the run has no similarity of network layers and no same_class; expected one with a probe of type 'network_layers'"
        )
    order = list(by_prefix)
    return sorted(found, key=lambda probe: order.index(probe[0]) if probe[0] in order else len(order))


def _spec(run: xr.Dataset) -> dict[str, Any]:
    """The stored spec as plain data, its tables empty if the run has none; ValueError if it is not a spec."""
    empty: dict[str, Any] = {"source": {}, "backward": {}, "probes": []}
    try:
        spec = empty | json.loads(run.attrs.get("spec", "{}"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the run's attribute 'spec' is no JSON table ({error}); copy the store again") from None
    tables = spec["probes"] if isinstance(spec["probes"], list) else [None]
    if not all(isinstance(table, dict) for table in (spec["source"], spec["backward"], *tables)):
        raise ValueError("the run's attribute 'spec' is not the description of an experiment; copy the store again")
    return spec


def _kept_images(run: xr.Dataset) -> int:
    """Number of items whose images are kept."""
    for table in _spec(run)["probes"]:
        if table.get("type") == "images":
            first = table.get("first")
            return run.sizes["item"] if first is None else min(int(first), run.sizes["item"])
    return 0


def _chance(run: xr.Dataset, prefix: str) -> float:
    """Probability that two independent originals are predicted to be of one class; NaN if the run did not record the classes."""
    if f"{prefix}original_class" not in run:
        return float("nan")
    _, counts = np.unique(run[f"{prefix}original_class"].isel(noise=0).values, return_counts=True)
    return float(np.sum((counts / counts.sum()) ** 2))


def _label_agreement(run: xr.Dataset, prefix: str) -> float:
    """Share of originals whose predicted class is their label; NaN if the run did not record it."""
    if f"{prefix}original_class" not in run or "label" not in run.coords:
        return float("nan")
    labelled = run.label.values >= 0
    same = run[f"{prefix}original_class"].isel(noise=0).values == run.label.values
    return float(same[labelled].mean()) if labelled.any() else float("nan")


def _remarks(
    run: xr.Dataset,
    x: np.ndarray,
    same: np.ndarray,
    chance: float,
    star: np.ndarray,
    swap: np.ndarray,
    inverted: bool,
    num_layers: int,
) -> Iterator[str]:
    """What is missing in an analysis, and why, in words."""
    axis = "t/T" if "step" in run.coords else "noise"
    if len(x) < 3:
        yield "a single noise level: t*, inversion and half-lives cannot be located"
    elif np.isnan(star[0]):
        if chance > 1 - 1e-9:
            yield "all originals have one predicted class: no t*"
        else:
            yield f"the class is not half lost up to {axis} = {x[-1]:.3g} (kept by {same[-1]:.0%}): no t*"
    elif star[0] < x[1]:
        yield f"t* lies below the smallest measured noise, {axis} = {x[1]:.3g}: measure smaller ones"
    elif star[2] >= x[-1]:
        yield f"the interval of t* reaches the largest measured noise, {axis} = {x[-1]:.3g}"
    if len(x) >= 3 and np.isnan(swap[0]):
        yield "the layers do not swap order" if num_layers > 1 else "a single layer: no inversion"
    elif len(x) >= 3 and not inverted and run.sizes["item"] > 1:
        yield "no sure inversion: all intervals of last minus first layer reach 0 or above"
    if len(x) >= 3 and "step" in run.coords and x[-1] < 1 - 1e-9:
        yield f"half-lives: half of the fall up to {axis} = {x[-1]:.3g}"
    if np.isnan(chance) and len(x) >= 3:
        yield f"chance level unknown: the class is taken to be lost at {axis} = {x[-1]:.3g}"
    if run.sizes["item"] == 1:
        yield "a single original: no intervals"


class _Axes:
    """The run's axes of noise, and what a noise between two levels is on each of them."""

    def __init__(self, run: xr.Dataset, x: np.ndarray) -> None:
        added = len(x) - run.sizes["noise"]
        self.x, self.angle = x, None
        self.values: dict[str, np.ndarray] = {"noise": x}
        if "step" in run.coords:
            self.values["step"] = np.r_[np.zeros(added), run.step.values]
        if "log_snr" in run.coords:
            # log-SNR and sigma are infinite at the ends; the angle with tan(angle) = sigma = noise over signal is not.
            with np.errstate(over="ignore"):
                sigma = np.exp(-np.r_[np.full(added, np.inf), run.log_snr.values] / 2)
            self.angle = np.arctan(sigma)
            self.values |= self._of_angle(self.angle)

    @staticmethod
    def _of_angle(angle: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.where(angle < np.pi / 2, np.tan(angle), np.inf)
        with np.errstate(divide="ignore"):
            return {"abar": np.cos(angle) ** 2, "log_snr": -2 * np.log(sigma), "sigma": sigma}

    def at(self, noise: np.ndarray) -> np.ndarray:
        """Noise levels (estimate,), in or between those measured, on all axes: (axis, estimate)."""
        rows = {"noise": noise}
        if "step" in self.values:
            rows["step"] = np.interp(noise, self.x, self.values["step"])
        if self.angle is not None:
            rows |= self._of_angle(np.interp(noise, self.x, self.angle))
        found = np.stack([np.where(np.isnan(noise), np.nan, rows[name]) for name in self.values])
        found[:, 1:].sort(axis=1)  # abar and log-SNR fall with noise
        return found


def _padded(values: np.ndarray, axis: int, length: int) -> np.ndarray:
    """NaN up to a length along an axis."""
    widths = [(0, length - values.shape[axis] if k == axis else 0) for k in range(values.ndim)]
    return np.pad(values, widths, constant_values=np.nan)


# --- pictures ----------------------------------------------------------------------------------------------------------


def _pictures(run: xr.Dataset, prefix: str) -> xr.Dataset:
    """Originals, reconstructions and whether they kept the class, of the first items with images; empty if none were kept."""
    import xarray as xr

    count = min(_kept_images(run), _MOST_SHOWN)
    if "image" not in run or not count:
        return xr.Dataset()
    some = run.isel(item=slice(count), trajectory=0)
    columns = [k for k in range(run.sizes["noise"]) if not np.isclose(run.noise.values[k], 0)]
    columns = [columns[k] for k in chosen(len(columns), 10)] if columns else []
    images = some.image.isel(noise=columns).load()
    original, names = _originals(run, np.arange(count), images.shape[2:])
    pictures = {
        "original": (("item", "channel", "row", "column"), original),
        "image": (("shown_noise", "item", "channel", "row", "column"), images.values),
        "image_same_class": (("shown_noise", "item"), some[f"{prefix}same_class"].isel(noise=columns).values),
    }
    return xr.Dataset(
        pictures,
        coords={
            "shown_noise": images.noise.values,
            "item": np.arange(count),
            "item_name": ("item", np.array(names, str)),
        },
    )


def _originals(run: xr.Dataset, items: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """Original images of items, NaN if the source is not there any more, and what to call them."""
    from uturn.parts import build

    labels = run.label.values[items] if "label" in run.coords else np.full(len(items), -1)
    names = [f"class {label}" if label >= 0 else f"item {item}" for item, label in zip(items, labels, strict=True)]
    images = np.full((len(items), *shape), np.nan, np.float32)
    exact = np.flatnonzero(np.isclose(run.noise.values, 0))
    if len(exact):
        return run.image.isel(noise=exact[0], trajectory=0, item=items).values, names
    try:
        spec = _spec(run)
        # The spec of a store may name built-in sources only: the code of a user-defined one is not imported for it.
        source = build("source", spec["source"], trusted=False)
        if hasattr(source, "fingerprint") and source.fingerprint() != json.loads(run.attrs["models"])["source"]:
            return images, names  # other images by now
        images = np.concatenate([block.data for block in source.blocks(items, spec["seed"], run.sizes["item"])])
        class_names = source.class_names() if hasattr(source, "class_names") else None
    except (ValueError, OSError, KeyError, TypeError):  # results outlive the folder of originals: their places stay empty
        return images, names
    if class_names:
        names = [class_names[label] if 0 <= label < len(class_names) else name for name, label in zip(names, labels, strict=True)]
    return images, names


def _save_images(run: xr.Dataset, folder: Path) -> None:
    """Originals and kept reconstructions as PNG: item, noise and trajectory in the name."""
    from PIL import Image

    count = _kept_images(run)
    folder.mkdir()
    width = len(str(count - 1))

    def save(name: str, image: np.ndarray) -> None:
        if np.isfinite(image).all():
            pixels = np.round((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(folder / name)

    originals, _ = _originals(run, np.arange(count), run.image.shape[3:])
    for item in range(count):
        save(f"item{item:0{width}d}-original.png", originals[item])
    for level, noise in enumerate(run.noise.values):
        images = run.image.isel(noise=level, item=slice(count)).values
        for item in range(count):
            for trajectory in range(images.shape[1]):
                save(f"item{item:0{width}d}-noise{noise:.4f}-trajectory{trajectory}.png", images[item, trajectory])


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in the place of another one, if there is any of the two."""
    for attempt in range(20):
        try:
            if old.exists():
                os.replace(old, new.with_name(f"{new.name}.old{attempt}"))
            if new.exists():
                os.replace(new, old)
            return
        except OSError:  # another shard, which ended at the same time, did it between the two lines: once more
            if attempt == 19:
                raise


def _number(values: np.ndarray, axis: str = "") -> str:
    """A number with its interval, for a table."""
    value, low, high = (f"{v:.1f}" if axis == "step" else f"{v:.3g}" for v in values)
    if not np.isfinite(values[0]):
        return "none"
    return f"{value} [{low}, {high}]" if np.isfinite(values[1:]).all() else value


def _short(path: str) -> str:
    """The last part of a path, in proper Unicode."""
    return os.fsencode(Path(str(path)).name or str(path)).decode(errors="replace")
