"""Analysis of a finished run of texts: what is kept, how many tokens change together and over what distance, calibration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from uturn.checks import shown
from uturn.measures.calibration import calibration
from uturn.measures.changes import chi_parts, correlations_of, present_pairs, susceptibility_of
from uturn.measures.peaks import about_few, about_peak, peak_of
from uturn.measures.scaling import correlation_length
from uturn.statistics import Replicates, crossing
from uturn.workflows.curves import ESTIMATE, band, curve, place, shares, with_zero
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
    - `chi`: susceptibility, the number of tokens that change together (`uturn.susceptibility`), and `n_eff`, the number of texts
      that decide it (`uturn.measures.changes`).
    - `transition`: t*, where chi peaks, with the interval of `uturn.measures.peaks.peak_of`: the levels at which chi is not below
      its largest value, `of_peak`, and half a step beyond; `plateau`: whether there are three of them or more. `peak`: chi there,
      as found, and `peak_cross_fitted`, read on other texts than those that chose the level. None if the largest value is at the
      smallest or the largest noise.
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
        distance, estimate); transition, peak (estimate); n_eff, of_peak (noise); plateau, peak_cross_fitted. gap (tested, noise,
        estimate), gap_p, p-values by Holm, and gap_visible (tested, noise), where `tested` names readings. log_likelihood (noise,
        estimate). `estimate`: value, low and high end of its 95 % interval over items: of shares of tokens that of
        `uturn.statistics.proportion`, of half-lives that of `uturn.statistics.located`, of others that of
        `uturn.statistics.Replicates`; NaN if a number does not exist, for the reason in the attribute `remark`. If tokens were
        kept, also the texts of the first items
        (`uturn.workflows.texts.shown_texts`).

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
                np.stack([_similarity(one, of, x) for one, of in zip(readings, curves, strict=True)]),
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
    changes, about = _changes(run, x)
    data = data.merge(changes).merge(_gaps(run, x)).merge(_likelihood(run, x)).merge(texts)
    data.attrs = {key: run.attrs[key] for key in KEPT_ATTRIBUTES if key in run.attrs}
    sizes = {"items": run.sizes["item"], "trajectories": run.sizes.get("trajectory", 1), "clones": run.sizes.get("clone", 1)}
    data.attrs |= {"description": describe(run), "remark": "; ".join([*_remarks(data, run), *about]), **sizes}
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


def _similarity(one: Reading, of: Replicates, x: np.ndarray) -> np.ndarray:
    """The curve of a reading with its intervals (noise, estimate): of shares of tokens those of proportions, else of cosines."""
    return shares(one.values, x) if one.group in ("tokens", "regions", "segments") else band(of, -1.0)


def _half_life(x: np.ndarray, c: np.ndarray, chance: float | None) -> float:
    """Smallest noise at which a curve has fallen halfway from 1 to chance, by default to its last value."""
    bottom = c[-1] if chance is None else chance
    return crossing(x, c, (1 + bottom) / 2, first=True) if bottom < 1 else float("nan")


# --- correlated changes --------------------------------------------------------------------------------------------------


def _changes(run: xr.Dataset, x: np.ndarray) -> tuple[xr.Dataset, list[str]]:
    """Susceptibility with its peak, correlations and correlation length, and remarks; empty for a single trajectory."""
    import xarray as xr

    if "change_covariance" not in run:
        return xr.Dataset(), ["a single trajectory: no susceptibility, no t*"]
    chi = susceptibility_of(run)
    located = peak_of(chi_parts(run))
    about = [*about_peak(located, run.noise.values), *about_few(chi.n_eff.values, run.noise.values)]
    none = np.full(3, np.nan)
    pairs = present_pairs(run["change_covariance"])
    # The farther apart two sites are, the fewer pairs there are, and the larger the fluctuations of their mean.
    number = pairs.mean("item") * (pairs.sizes["distance"] - pairs.distance)
    near = np.flatnonzero((pairs.distance == 0) | (number >= number[1:2].max() / 2)) if number.size > 1 else [0]
    covariance, present = run["change_covariance"].isel(distance=near), pairs.isel(distance=near)
    found = correlations_of(covariance, present=present)
    names = ("correlation", "low", "high")
    data = {
        "chi": (("noise", "estimate"), _at(x, np.stack([chi[name] for name in ("chi", "low", "high")], -1))),
        "n_eff": ("noise", _at(x, chi.n_eff.values)),
        "transition": ("estimate", np.array(located.place) if located.inside else none),
        "peak": ("estimate", np.array(located.height) if located.inside else none),
        "peak_cross_fitted": located.cross_fitted if located.inside else np.nan,
        "of_peak": ("noise", np.r_[np.zeros(len(x) - len(located.levels), bool), located.levels]),
        "plateau": located.plateau,
        "correlation": (("noise", "distance", "estimate"), _at(x, np.stack([found[name] for name in names], -1))),
    }
    if len(near) > 3:
        with np.errstate(invalid="ignore"):
            length = correlation_length(covariance, present=present)
        bounds = np.stack([length[name] for name in ("length", "low", "high")], -1)
        data["correlation_length"] = (("noise", "estimate"), _at(x, bounds))
    else:
        about.append("too few distances for a correlation length")
    coords = {"distance": ("distance", covariance.distance.values, {"long_name": "distance in tokens"})}
    return xr.Dataset(data, {**coords, "noise": x, "estimate": list(ESTIMATE)}), about


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
