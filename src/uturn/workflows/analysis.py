"""Analysis of a finished run of images: noise and width of the class transition, inversion, and half-lives of layers.

Numbers are measured on the run's noise axis t/T and converted to its other axes (step, abar, log-SNR, sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.checks import shown
from uturn.pages.pictures import MOST_SHOWN, sample
from uturn.plotting.curves import evenly_spaced
from uturn.statistics import crossing, inversion, levels_around, transition
from uturn.workflows.clones import gaps_of
from uturn.workflows.curves import ESTIMATE, band, curve, no_curve, place, shares
from uturn.workflows.runs import (
    KEPT_ATTRIBUTES,
    LayerProbe,
    describe,
    kept_images,
    layer_probes,
    missing_tasks,
    originals,
    perceptual_probes,
)

if TYPE_CHECKING:
    import xarray as xr

SHARES = (0.25, 0.75)  # of the fall of the class, labels of the dim `share`
AGREEMENTS = ("same_class", "same_class_top5", "label_top1", "label_top5")
_LEAST_SHOWN, _MOST_SHOWN_BYTES = 8, 2**27  # originals in the analysis, and their images in memory


def analyse(run: xr.Dataset) -> xr.Dataset:
    """Noise and width of the class transition in each classifier, and the fall of the similarity of its layers.

    Let c(x) be a mean over items, trajectories and clones at noise x (t/T for images). Between measured levels c is interpolated
    linearly, and c(0) = 1, since U-turns of length zero change nothing.

    - `same_class`: share of U-turns that keep the predicted class. `chance`: probability that two independent originals have the
      same predicted class, sum_k p_k^2 with the shares p_k of the classes predicted for the originals of the run.
    - `transition`: t*, the smallest noise at which same_class has fallen halfway from 1 to chance. `width`: noise between a
      quarter and three quarters of that fall; `fall`: the noises at these two ends; `width_nats`: their difference in log-SNR.
      If the run did not record the classes of the originals, the value at the largest noise is used as the chance level.
    - `similarity`: mean cosine of each layer. `half_life`: smallest noise at which it has fallen halfway from 1 to its value at
      the largest noise.
    - `inversion`: noise beyond which the last layer (the logits) stays less similar than the first.
    - `perceptual_distance`: mean distance to the original (probe `perceptual`), 0 at noise 0. `half_rise`: smallest noise at
      which it has done half of its rise from 0 to its value at the largest noise.
    - `gap_class`, `gap_layer` (runs with clones): E f(x0, x̂) - E f(x̂, x̂') for the predicted class and the similarity of each
      layer, 0 if reconstructions are draws from the posterior (`uturn.calibration`, level .001).

    Parameters
    ----------
    run : Dataset of `uturn.run`, with one or more probes `network_layers`

    Returns
    -------
    Dataset
        similarity (classifier, noise, network_layer, estimate); same_class and other agreements (classifier, noise, estimate);
        chance (classifier); transition, inversion (classifier, axis, estimate); fall (classifier, share, axis, estimate); width
        and, for images, width_nats (classifier, estimate); half_life (classifier, network_layer, axis, estimate). With clones
        also gap_class (classifier, noise, estimate), gap_layer (classifier, noise, network_layer, estimate), their p-values by
        Holm over all of a classifier, gap_class_p, gap_layer_p, and the smallest gaps that would be seen, gap_class_visible,
        gap_layer_visible. `classifier`: name of the probe, or its classifier if it has no name. `estimate`: value, low and high
        end of its 95 % interval over items, clipped to the possible range: of shares that of `uturn.statistics.proportion` (both
        ends are the value at noise 0, where nothing changes), of places that of `uturn.statistics.located`, which holds the two
        measured levels around the place, of others that of `uturn.statistics.Replicates`; NaN if the number does not exist, for
        the reason in `remark`. `axis`: noise, and by interpolation the run's other axes. `layer`: names of the
        layers, "" beyond the last one of a classifier. `has_classes` (classifier): False for encoders, whose same_class, chance,
        transition, fall and width are NaN. With probes `perceptual` also perceptual_distance (perceptual, noise, estimate),
        half_rise (perceptual, axis, estimate), and in words what they measure, `measures`. If images were kept: `original`,
        `image` of the first items, for the grid.

    Raises
    ------
    ValueError
        If the run is not finished, or measured no network layers.
    """
    import xarray as xr

    if not isinstance(run, xr.Dataset):
        raise ValueError(f"run = {shown(run)}: expected the dataset that uturn.run gives")
    probes = layer_probes(run)
    missing = missing_tasks(run)
    if missing:
        raise ValueError(
            f"the run is not finished: {missing} tasks are missing; run the same command again, or wait for the other shards"
        )
    run = _by_noise(run)
    axes = _Axes(run)
    data = _side_by_side([_of_classifier(run, probe, axes) for probe in probes])
    distances = [_of_perceptual(run, name, variable, axes) for name, variable in perceptual_probes(run).items()]
    if distances:
        data = data.merge(xr.concat(distances, "perceptual", data_vars="all").set_coords("measures"))
    data = data.assign_coords({name: ("noise", values) for name, values in axes.values.items() if name != "noise"})
    data.noise.attrs.update(run.noise.attrs)
    data.attrs = {key: run.attrs[key] for key in KEPT_ATTRIBUTES if key in run.attrs}
    data.attrs.update(
        description=describe(run),
        items=run.sizes["item"],
        trajectories=run.sizes.get("trajectory", 1),
        clones=run.sizes.get("clone", 1),
        kept=kept_images(run),
    )
    judge = next((probe for probe in probes if probe.has_classes), None)
    return data.merge(_pictures(run, judge), combine_attrs="override")


def _by_noise(run: xr.Dataset) -> xr.Dataset:
    """The run with increasing noise levels; for images these are k/N of the whole number of steps."""
    if "t_over_T" in run.coords:  # levels of the spec are rounded to whole steps
        run = run.assign_coords(noise=("noise", run.t_over_T.values, run.noise.attrs))
    return run.sortby("noise")


def _of_classifier(run: xr.Dataset, probe: LayerProbe, axes: _Axes) -> xr.Dataset:
    """All numbers of one classifier."""
    import xarray as xr

    x, prefix = axes.noise, probe.prefix
    similarity, chance = curve(run[f"{prefix}similarity"], x), _chance(run, prefix)
    same_class = curve(run[f"{prefix}same_class"], x) if probe.has_classes else no_curve(x)
    same_share = _shares(run, f"{prefix}same_class", x) if probe.has_classes else np.full((len(x), len(ESTIMATE)), np.nan)
    layers = [str(layer) for layer in run[probe.layers].values]

    def fallen(share: float) -> Callable[[np.ndarray], float]:
        """The smallest noise at which a share of the fall of the class is done."""

        def located(c: np.ndarray) -> float:
            bottom = c[-1] if np.isnan(chance) else chance
            return crossing(x, c, bottom + (1 - share) * (1 - bottom), first=True)

        return located

    def width(c: np.ndarray) -> float:
        return fallen(SHARES[1])(c) - fallen(SHARES[0])(c)

    def nats(c: np.ndarray) -> float:
        return axes.log_snr(fallen(SHARES[0])(c)) - axes.log_snr(fallen(SHARES[1])(c))

    ends = [levels_around(x, fallen(share)(same_class.mean)) for share in SHARES]
    half_lives = [
        place(similarity, lambda c, k=k: transition(x, c[:, k]).location, x)  # type: ignore[misc]
        for k in range(len(layers))
    ]
    found = xr.Dataset(
        {
            "similarity": (("noise", "network_layer", "estimate"), band(similarity, -1)),
            "chance": chance,
            "transition": (("axis", "estimate"), axes.at(place(same_class, fallen(0.5), x))),
            "width": ("estimate", place(same_class, width, x, around=_distances(*ends))),
            **(
                {}
                if axes.angle is None
                else {"width_nats": ("estimate", place(same_class, nats, x, np.inf, around=_distances(*-axes.log_snr(ends))))}
            ),
            "fall": (("share", "axis", "estimate"), np.stack([axes.at(place(same_class, fallen(q), x)) for q in SHARES])),
            "inversion": (("axis", "estimate"), axes.at(place(similarity, lambda c: inversion(x, c[:, -1], c[:, 0]), x))),
            "half_life": (("network_layer", "axis", "estimate"), np.stack([axes.at(one) for one in half_lives])),
            "same_class": (("noise", "estimate"), same_share),
            **{name: (("noise", "estimate"), values) for name, values in _agreements(run, prefix, x).items()},
            **gaps_of(run, prefix, x),
            "layer": ("network_layer", np.array(layers, object)),
            "model": probe.classifier,
            "has_classes": probe.has_classes,
        },
        coords={
            "classifier": probe.name,
            "noise": x,
            "network_layer": np.arange(len(layers)),
            "axis": list(axes.values),
            "share": list(SHARES),
            "estimate": list(ESTIMATE),
        },
    )
    last_below_first = similarity.interval(lambda c: c[:, -1] - c[:, 0])[2] < 0  # with 97.5 % confidence, at each noise
    found["remark"] = "; ".join(_remarks(found, bool(last_below_first.any()), run))
    return found


def _of_perceptual(run: xr.Dataset, name: str, variable: str, axes: _Axes) -> xr.Dataset:
    """All numbers of one perceptual distance."""
    import xarray as xr

    distance = curve(run[variable], axes.noise, start=0.0)
    half = place(distance, lambda c: transition(axes.noise, -c, top=0.0).location, axes.noise)
    return xr.Dataset(
        {
            "perceptual_distance": (("noise", "estimate"), band(distance, 0, np.inf)),
            "half_rise": (("axis", "estimate"), axes.at(half)),
            "measures": str(run[variable].attrs.get("long_name", name)),
        },
        coords={"perceptual": name},
    )


def _side_by_side(classifiers: list[xr.Dataset]) -> xr.Dataset:
    """Numbers of several classifiers along `classifier`, NaN beyond the last layer, without agreements that all of them lack."""
    import xarray as xr

    layout: dict[str, Any] = {"data_vars": "all", "coords": "minimal", "compat": "override", "join": "outer"}
    data = xr.concat(classifiers, "classifier", fill_value={"layer": ""}, **layout)
    names = {name: data[name].astype(str) for name in ("layer", "model", "remark")} | {"has_classes": data.has_classes}
    data = data.drop_vars([name for name in AGREEMENTS if name in data and np.isnan(data[name]).all()])
    return data.assign_coords(names)


# --- curves, and noise levels located on them ---------------------------------------------------------------------------


def _shares(run: xr.Dataset, name: str, x: np.ndarray, start: float = 1.0) -> np.ndarray:
    """A share of U-turns with its intervals (noise, estimate); NaN without items."""
    values = run[name]
    if "label_top" in name:  # without items that have no label
        values = values.isel(item=values.notnull().all([dim for dim in values.dims if dim != "item"]).values)
    return shares(values, x, start) if values.sizes["item"] else np.full((len(x), len(ESTIMATE)), np.nan)


def _distances(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest distance of two places, each anywhere between its two levels, the second not before the first."""
    return float(np.maximum(0.0, end[0] - start[1])), end[1] - start[0]


def _agreements(run: xr.Dataset, prefix: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """Other shares of U-turns that keep the predicted class or the label: {name: array (noise, estimate)}."""
    starts = {"label_top1": _label_agreement(run, prefix), "label_top5": np.nan}
    measured = [name for name in AGREEMENTS[1:] if f"{prefix}{name}" in run]
    return {name: _shares(run, f"{prefix}{name}", x, starts.get(name, 1.0)) for name in measured}


def _chance(run: xr.Dataset, prefix: str) -> float:
    """Probability that two independent originals have the same predicted class; NaN if the run did not record the classes."""
    if f"{prefix}original_class" not in run:
        return float("nan")
    _, counts = np.unique(run[f"{prefix}original_class"].isel(noise=0).values, return_counts=True)
    return float(np.sum((counts / counts.sum()) ** 2))


def _label_agreement(run: xr.Dataset, prefix: str) -> float:
    """Share of labelled originals whose predicted class is their label; NaN if the run did not record both."""
    if f"{prefix}original_class" not in run or "label" not in run.coords:
        return float("nan")
    labelled = run.label.values >= 0
    same = run[f"{prefix}original_class"].isel(noise=0).values == run.label.values
    return float(same[labelled].mean()) if labelled.any() else float("nan")


class _Axes:
    """Noise levels of a run, with noise 0, on all its axes, and conversion of a noise to these axes by interpolation."""

    def __init__(self, run: xr.Dataset) -> None:
        measured = run.noise.values.astype(float)
        added = 0 if np.isclose(measured[0], 0) else 1
        self.noise, self.angle = np.r_[np.zeros(added), measured], None
        self.values: dict[str, np.ndarray] = {"noise": self.noise}
        if "step" in run.coords:
            self.values["step"] = np.r_[np.zeros(added), run.step.values]
        if "log_snr" in run.coords:
            # log-SNR and sigma are infinite at the ends, so interpolation uses the angle with tan(angle) = sigma.
            with np.errstate(over="ignore"):
                sigma = np.exp(-np.r_[np.full(added, np.inf), run.log_snr.values] / 2)
            self.angle = np.arctan(sigma)
            self.values |= self._of_angle(self.angle)

    @staticmethod
    def _of_angle(angle: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.where(angle < np.pi / 2, np.tan(angle), np.inf)
        with np.errstate(divide="ignore"):
            return {"abar": np.cos(angle) ** 2, "log_snr": -2 * np.log(sigma), "sigma": sigma}

    def log_snr(self, noise: Any) -> Any:
        """Log-SNR (nats) of a noise, by interpolation; of an array element by element."""
        assert self.angle is not None
        angle = np.asarray(np.interp(noise, self.noise, self.angle))
        return np.where(np.isnan(noise), np.nan, self._of_angle(angle)["log_snr"])

    def at(self, noise: np.ndarray) -> np.ndarray:
        """A noise and the ends of its interval (estimate,) on all axes: array (axis, estimate)."""
        rows = {"noise": noise}
        if "step" in self.values:
            rows["step"] = np.interp(noise, self.noise, self.values["step"])
        if self.angle is not None:
            rows |= self._of_angle(np.interp(noise, self.noise, self.angle))
        found = np.stack([np.where(np.isnan(noise), np.nan, rows[name]) for name in self.values])
        found[:, 1:].sort(axis=1)  # abar and log-SNR fall with noise
        return found


# --- remarks -------------------------------------------------------------------------------------------------------------


def _remarks(found: xr.Dataset, inverted: bool, run: xr.Dataset) -> Iterator[str]:
    """Sentences on the numbers that could not be located on the curves of a classifier, with the reasons."""
    x = found.noise.values
    at_end = f"{'t/T' if 'step' in run.coords else 'noise'} = {x[-1]:.3g}"
    single = run.sizes["item"] == 1
    if len(x) < 3:
        yield "a single noise level: t*, inversion and half-lives cannot be located"
    else:
        if found.has_classes:
            yield from _about_transition(found, at_end)
        else:
            yield "an encoder without classes: no t*"
        yield from _about_inversion(found, inverted or single)
        if "step" in run.coords and x[-1] < 1 - 1e-9:
            yield f"half-lives are those of the fall from 1 to the similarity at {at_end}"
        if found.has_classes and np.isnan(found.chance):
            yield f"chance level unknown: the share at {at_end} is used instead"
    if single:
        yield "a single original: no intervals"


def _about_transition(found: xr.Dataset, at_end: str) -> Iterator[str]:
    x, star = found.noise.values, found.transition.sel(axis="noise").values
    if np.isnan(star[0]) and found.chance > 1 - 1e-9:
        yield "all originals have one predicted class: no t*"
    elif np.isnan(star[0]):
        yield f"the class is not half lost up to {at_end} (kept by {float(found.same_class[-1, 0]):.0%}): no t*"
    elif star[0] < x[1]:
        axis = at_end.partition(" ")[0]
        yield f"t* lies below the smallest measured noise, {axis} = {x[1]:.3g}: measure smaller ones"
    elif star[2] >= x[-1]:
        yield f"the interval of t* reaches the largest measured noise, {at_end}"
    elif np.isnan(found.width.values[0]):
        yield f"three quarters of the class are not lost up to {at_end}: no width"


def _about_inversion(found: xr.Dataset, sure: bool) -> Iterator[str]:
    if np.isfinite(found.inversion[0, 0]):
        if not sure:
            yield "no sure inversion: at no noise does the interval of last minus first layer lie below 0"
    else:
        yield "the layers do not swap order" if found.sizes["network_layer"] > 1 else "a single layer: no inversion"


# --- pictures ------------------------------------------------------------------------------------------------------------


def _pictures(run: xr.Dataset, judge: LayerProbe | None) -> xr.Dataset:
    """Originals and reconstructions of some items, and whether the class was kept; empty if no images were kept.

    These are all items whose images were kept, or a sample of them. `judge`: the classifier whose classes count;
    without one, no class is lost.
    """
    import xarray as xr

    kept = kept_images(run)
    if not kept:
        return xr.Dataset()
    noisy = np.flatnonzero(~np.isclose(run.noise.values, 0))
    columns = [int(noisy[k]) for k in evenly_spaced(len(noisy), 10)] if len(noisy) else []
    of_each = run.image.dtype.itemsize * math.prod(run.image.shape[-3:]) * (len(columns) + 1)
    items = sample(kept, min(MOST_SHOWN, max(_LEAST_SHOWN, _MOST_SHOWN_BYTES // of_each)))
    some = run.isel(item=items, trajectory=0, clone=0, missing_dims="ignore")
    images = some.image.isel(noise=columns).load()
    before, names = originals(run, items)
    same = np.ones(images.shape[:2]) if judge is None else some[f"{judge.prefix}same_class"].isel(noise=columns).values
    return xr.Dataset(
        {
            "original": (("item", "channel", "row", "column"), before),
            "image": (("shown_noise", "item", "channel", "row", "column"), images.values),
            "image_same_class": (("shown_noise", "item"), same),
        },
        coords={
            "shown_noise": images.noise.values,
            "item": items,
            "item_name": ("item", np.array(names, str)),
        },
    )
