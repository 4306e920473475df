"""Analysis of a finished run of texts: what is kept, how many tokens change together and over what distance, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.checks import shown
from uturn.measures.calibration import calibration
from uturn.measures.changes import chi_parts, correlations_of, decided_by_few, present_pairs, susceptibility_of
from uturn.measures.scaling import correlation_length
from uturn.plotting.curves import estimated
from uturn.statistics import Replicates, crossing, replicates
from uturn.workflows.curves import ESTIMATE, band, curve, place, with_zero
from uturn.workflows.runs import KEPT_ATTRIBUTES, describe, missing_tasks, stored_spec
from uturn.workflows.texts import kept_texts, shown_texts

if TYPE_CHECKING:
    import xarray as xr

GROUPS = ("tokens", "regions", "segments", "layers", "tokens in layers", "sentence")
"""Groups of readings, in the order of the analysis."""


class Reading(NamedTuple):
    """A symmetric reading that is 1 if nothing changed: its group, its name in the group, values and value by chance."""

    group: str
    name: str
    values: xr.DataArray
    chance: float | None = None


def analyse_texts(run: xr.Dataset, source: Any = None) -> xr.Dataset:
    """What U-turns of texts keep, against noise x: the share of noisy tokens.

    Let c(x) be a mean over items, trajectories and clones at noise x. Between measured levels c is interpolated linearly, and
    c(0) = 1, since U-turns of length zero change nothing.

    - `similarity`: c of every reading. Group "tokens": share of the runs of 1, 2, 4, .. neighbouring tokens that are kept.
      "regions": share of the tokens of a region; "segments": share of segments kept whole; "layers" and "tokens in layers":
      cosine of the hidden states of a second model, averaged over tokens and token by token; "sentence": cosine of the embeddings
      of a sentence encoder.
    - `half_life` of a reading: smallest noise at which it has fallen halfway from 1 to its value at the largest noise, or, for
      sentences, to the mean similarity of two originals.
    - `chi`: susceptibility, the number of tokens that change together (`uturn.susceptibility`).
    - `transition`: t*, where chi peaks: the vertex of the parabola through the largest chi and its two neighbours, and `peak`,
      the height there. None if the largest value is at the smallest or the largest noise.
    - `correlation`: C(r)/C(0) at distance r in tokens, the mean over all pairs that exist in texts of different lengths
      (`uturn.measures.changes.present_pairs`), at distances with at least half as many pairs as there are neighbours.
    - `correlation_length`: xi in tokens, by a fit of C(r)/C(0) = A r**-a exp(-r/xi)
      (`uturn.measures.scaling.correlation_length`).
    - `gap` (runs with clones): E f(x0, x̂) - E f(x̂, x̂') of kept tokens and sentences, 0 if reconstructions are draws from the
      posterior (`uturn.calibration`, level .001, one family of tests).
    - `log_likelihood` (with a second model): of reconstructions, in nats per character; at noise 0 that of the originals.

    Parameters
    ----------
    run : Dataset of `uturn.run`, with the probe `kept_tokens`
    source : source of the run, optional
        For the texts that are shown; by default it is built from the spec of the run, if that needs no code of others.

    Returns
    -------
    Dataset
        similarity (reading, noise, estimate), half_life (reading, estimate), with the coordinates `group` and `name` of each
        reading; chance (reading), NaN where it is not known. chi, correlation_length (noise, estimate); correlation (noise,
        distance, estimate); transition, peak (estimate). gap (tested, noise, estimate), gap_p, p-values by Holm, and gap_visible
        (tested, noise), where `tested` names readings. log_likelihood (noise, estimate). `estimate`: value, low and high end of
        its 95 % interval over items (`uturn.statistics.Replicates`); NaN if a number does not exist, for the reason in the
        attribute `remark`. If tokens were kept, also the texts of the first items (`uturn.workflows.texts.shown_texts`).

    Raises
    ------
    ValueError
        If the run is not finished, or has no kept tokens.
    """
    import xarray as xr

    if not isinstance(run, xr.Dataset):
        raise ValueError(f"run = {shown(run)}: expected the dataset that uturn.run gives")
    if "kept" not in run or "span" not in run["kept"].dims:
        raise ValueError("the run has no share of kept tokens; expected one with a probe of type 'kept_tokens'")
    missing = missing_tasks(run)
    if missing:
        raise ValueError(
            f"the run is not finished: {missing} tasks are missing; run the same command again, or wait for the other shards"
        )
    run = run.sortby("noise")
    x = with_zero(run.noise.values)
    readings = list(readings_of(run))
    curves = [curve(one.values, x) for one in readings]
    half_lives = [
        place(of, lambda c, chance=one.chance: _half_life(x, c, chance), x)  # type: ignore[misc]
        for one, of in zip(readings, curves, strict=True)
    ]
    data = xr.Dataset(
        {
            "similarity": (
                ("reading", "noise", "estimate"),
                np.stack([band(of, least) for of, least in zip(curves, map(_least, readings), strict=True)]),
            ),
            "half_life": (("reading", "estimate"), np.stack(half_lives)),
            "chance": ("reading", [np.nan if one.chance is None else one.chance for one in readings]),
        },
        coords={
            "noise": ("noise", x, run.noise.attrs),
            "estimate": list(ESTIMATE),
            "reading": [f"{one.group}: {one.name}" for one in readings],
            "group": ("reading", [one.group for one in readings]),
            "name": ("reading", [one.name for one in readings]),
        },
    )
    texts = shown_texts(run, source)
    data = data.merge(_changes(run, x)).merge(_gaps(run, x)).merge(_likelihood(run, x)).merge(texts)
    data.attrs = {key: run.attrs[key] for key in KEPT_ATTRIBUTES if key in run.attrs}
    sizes = {"items": run.sizes["item"], "trajectories": run.sizes.get("trajectory", 1), "clones": run.sizes.get("clone", 1)}
    data.attrs |= {"description": describe(run), "remark": "; ".join(_remarks(data, run)), **sizes}
    return data


def readings_of(run: xr.Dataset) -> Iterator[Reading]:
    """The readings of a run that are 1 where nothing changed."""
    for span in run.span.values:
        yield Reading("tokens", f"{span} kept" if span > 1 else "kept", run["kept"].sel(span=span, drop=True))
    for region in run.region.values if "kept_region" in run else ():
        yield Reading("regions", str(region), run["kept_region"].sel(region=region, drop=True))
    if "kept_segments" in run:
        yield Reading("segments", "kept whole", run["kept_segments"])
    for prefix, model in _probes(run, "text_layers"):
        for group, variable in (("layers", "text_similarity"), ("tokens in layers", "token_similarity")):
            dim = f"{prefix}text_layer"
            for layer in run[dim].values if f"{prefix}{variable}" in run else ():
                words = f"{layer} of {model}" if prefix else str(layer)
                yield Reading(group, words, run[f"{prefix}{variable}"].sel({dim: layer}, drop=True))
    for prefix, model in _probes(run, "text_encoder"):
        chance = float(run[f"{prefix}sentence_chance"].isel(noise=0).mean())
        yield Reading("sentence", model, run[f"{prefix}sentence_similarity"], None if np.isnan(chance) else chance)


def _probes(run: xr.Dataset, kind: str) -> list[tuple[str, str]]:
    """Prefix of the variables, and name, of the probes of a kind."""
    tables = [table for table in stored_spec(run)["probes"] if table.get("type") == kind]
    return [(f"{table['name']}_" if table.get("name") else "", str(table.get("name") or table["model"])) for table in tables]


def _least(one: Reading) -> float:
    """The smallest value that a reading can have: 0 of shares, -1 of cosines."""
    return 0.0 if one.group in ("tokens", "regions", "segments") else -1.0


def _half_life(x: np.ndarray, c: np.ndarray, chance: float | None) -> float:
    """Smallest noise at which a curve has fallen halfway from 1 to chance, by default to its last value."""
    bottom = c[-1] if chance is None else chance
    return crossing(x, c, (1 + bottom) / 2, first=True) if bottom < 1 else float("nan")


# --- correlated changes --------------------------------------------------------------------------------------------------


def _changes(run: xr.Dataset, x: np.ndarray) -> xr.Dataset:
    """Susceptibility with its peak, correlations and correlation length; empty for a single trajectory."""
    import xarray as xr

    if "change_covariance" not in run:
        return xr.Dataset()
    chi = susceptibility_of(run)
    located = located_peak(run)
    pairs = present_pairs(run["change_covariance"])
    # The farther apart two sites are, the fewer pairs there are, and the larger the fluctuations of their mean.
    number = pairs.mean("item") * (pairs.sizes["distance"] - pairs.distance)
    near = np.flatnonzero((pairs.distance == 0) | (number >= number[1:2].max() / 2)) if number.size > 1 else [0]
    covariance, present = run["change_covariance"].isel(distance=near), pairs.isel(distance=near)
    found = correlations_of(covariance, present=present)
    names = ("correlation", "low", "high")
    data = {
        "chi": (("noise", "estimate"), _at(x, np.stack([chi[name] for name in ("chi", "low", "high")], -1))),
        "transition": ("estimate", located[:, 0]),
        "peak": ("estimate", located[:, 1]),
        "correlation": (("noise", "distance", "estimate"), _at(x, np.stack([found[name] for name in names], -1))),
    }
    if len(near) > 3:
        with np.errstate(invalid="ignore"):
            length = correlation_length(covariance, present=present)
        bounds = np.stack([length[name] for name in ("length", "low", "high")], -1)
        data["correlation_length"] = (("noise", "estimate"), _at(x, bounds))
    coords = {"distance": ("distance", covariance.distance.values, {"long_name": "distance in tokens"})}
    return xr.Dataset(data, {**coords, "noise": x, "estimate": list(ESTIMATE)})


def located_peak(run: xr.Dataset) -> np.ndarray:
    """Noise and height of the peak of chi with the ends of their intervals, (estimate, 2); NaN if there is none inside."""
    noise, of = run.noise.values, replicates(chi_parts(run))
    few = _decided_by_few(of)

    def statistic(means: np.ndarray) -> np.ndarray:
        return np.array(peak(noise, np.where(few, np.nan, means[:, 0] / means[:, 1])))

    with np.errstate(invalid="ignore", divide="ignore"):  # 0/0 where nothing changes
        found = of.interval(statistic)
    found[:, 0] = found[:, 0].clip(noise[0], noise[-1])
    return found


def _decided_by_few(of: Replicates) -> np.ndarray:
    """Noise levels at which the changes of a few texts decide; none, if this is so at all of them."""
    few = decided_by_few(of, lambda means: means[:, 1])
    return few & ~few.all()


def peak(noise: np.ndarray, chi: np.ndarray) -> tuple[float, float]:
    """Place and height of the maximum of a curve: the vertex of the parabola through its largest value and the two beside it.

    NaN if the largest value is the first or the last one. Values that are NaN are left out.

    >>> peak(np.array([0.1, 0.2, 0.5, 0.6]), np.array([1.0, 2.0, 1.0, 0.5]))
    (0.3..., 2.33...)
    """
    there = np.isfinite(chi)
    x, y = noise[there], chi[there]
    k = int(y.argmax()) if len(y) else 0
    if not 0 < k < len(y) - 1:
        return float("nan"), float("nan")
    a, b = x[k - 1] - x[k], x[k + 1] - x[k]
    left, right = (y[k - 1] - y[k]) / a, (y[k + 1] - y[k]) / b  # slopes; y = y_k + slope u + bend u²
    bend = (right - left) / (b - a)
    slope = left - bend * a
    if not bend < 0:
        return float(x[k]), float(y[k])
    return float(x[k] - slope / (2 * bend)), float(y[k] - slope**2 / (4 * bend))


def _at(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Readings at the noise levels x, NaN at noise 0 if that was not measured."""
    missing = len(x) - len(values)
    return np.concatenate([np.full((missing, *values.shape[1:]), np.nan), values])


# --- calibration and likelihood ------------------------------------------------------------------------------------------


def _gaps(run: xr.Dataset, x: np.ndarray) -> xr.Dataset:
    """Calibration gaps of kept tokens and sentences; empty for fewer than two clones or items."""
    import xarray as xr

    if run.sizes.get("clone", 1) < 2 or run.sizes["item"] < 2:
        return xr.Dataset()
    names = ["kept", *(f"{prefix}sentence_similarity" for prefix, _ in _probes(run, "text_encoder"))]
    names = [name for name in names if not run[name].isnull().any() and not run[f"clone_{name}"].isnull().any()]
    if not names:
        return xr.Dataset()
    found = calibration(run, names)
    tested = [_of_span(str(name)) for name in found.reading.values]
    values = np.stack([found[name].transpose("noise", "reading") for name in ("gap", "low", "high")], -1)
    return xr.Dataset(
        {
            "gap": (("tested", "noise", "estimate"), _at(x, values).swapaxes(0, 1)),
            "gap_p": (("tested", "noise"), _at(x, found.p_holm.transpose("noise", "reading").values).T),
            "gap_visible": (("tested", "noise"), _at(x, found.visible.transpose("noise", "reading").values).T),
            "calibration_level": found.attrs["level"],
        },
        {"tested": tested, "noise": x, "estimate": list(ESTIMATE)},
    )


def _of_span(name: str) -> str:
    """A reading of `calibration` in words: "kept, span = 4" -> "runs of 4 kept"."""
    variable, _, span = name.partition(", span = ")
    return variable if span in ("", "1") else f"runs of {span} {variable}"


def _likelihood(run: xr.Dataset, x: np.ndarray) -> xr.Dataset:
    """Log-likelihood of reconstructions, at noise 0 of originals; empty if it was not measured."""
    import xarray as xr

    probes = _probes(run, "text_likelihood")
    if not probes:
        return xr.Dataset()
    prefix, model = probes[0]
    original = run[f"{prefix}original_log_likelihood"].isel(noise=[0])
    values = run[f"{prefix}log_likelihood"]
    if len(x) > values.sizes["noise"]:
        start = original.expand_dims({dim: values[dim] for dim in ("trajectory", "clone") if dim in values.dims})
        values = xr.concat([start.assign_coords(noise=[0.0]), values], "noise", coords="minimal", compat="override")
    words = str(run[f"{prefix}log_likelihood"].attrs.get("long_name", "log-likelihood"))
    found = band(curve(values, x), -np.inf, np.inf)
    return xr.Dataset(
        {"log_likelihood": (("noise", "estimate"), found, {"long_name": words, "model": model})},
        {"noise": x, "estimate": list(ESTIMATE)},
    )


# --- remarks -------------------------------------------------------------------------------------------------------------


def _remarks(data: xr.Dataset, run: xr.Dataset) -> Iterator[str]:
    """Sentences on the numbers that do not exist or are not sure, with the reasons."""
    noise = data.noise.values
    if len(noise) < 3:
        yield "a single noise level: no half-lives"
    elif noise[-1] < 1 - 1e-9:
        yield f"half-lives are those of the fall from 1 to the value at noise {noise[-1]:.3g}"
    if data.sizes["reading"] and run.sizes["item"] == 1:
        yield "a single original: no intervals"
    if kept_texts(run) and "changed" not in data:
        yield "the texts are not shown: the source has changed, cannot be read, or needs code that the store names"
    if "chi" not in data:
        yield "a single trajectory: no susceptibility, no t*"
        return
    chi = np.where(estimated(data.chi.values), data.chi.values[:, 0], np.nan)
    measured = np.flatnonzero(np.isfinite(chi))
    if not len(measured):
        yield "nothing changes between trajectories: no susceptibility, no t*"
    elif np.isnan(data.transition[0]):
        k = int(np.nanargmax(chi))
        end, advice = ("largest", "other") if k == measured[-1] else ("smallest", "smaller")
        yield f"the susceptibility is largest at the {end} noise, {noise[k]:.3g}: no t*; measure {advice} levels"
    elif not _is_sure(run):
        yield "the peak of the susceptibility is not apart from its values at the ends: t* is not sure; measure more items"
    if "correlation_length" not in data:
        yield "too few distances for a correlation length"


def _is_sure(run: xr.Dataset) -> bool:
    """Whether the largest chi is above those at the smallest and the largest noise, with 97.5 % confidence each."""
    of = replicates(chi_parts(run))
    with np.errstate(invalid="ignore", divide="ignore"):
        chi = np.where(_decided_by_few(of), np.nan, of.mean[:, 0] / of.mean[:, 1])
        k, ends = int(np.nanargmax(chi)), np.flatnonzero(np.isfinite(chi))[[0, -1]]

        def above(means: np.ndarray) -> np.ndarray:
            ratio = means[:, 0] / means[:, 1]
            return ratio[k] - ratio[ends]

        return bool((of.interval(above)[1] > 0).all())
