"""The results of `uturn chains`: curves and relaxation times at each noise level, and where their order inverts."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import xarray as xr

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import expect
from uturn.core.experiment import Experiment
from uturn.core.files import named_errors, whole_file
from uturn.core.registry import as_part
from uturn.measures.calibration import holm
from uturn.measures.statistics import crossing, replicates, with_interval
from uturn.pages.results import write_figures
from uturn.store.outputs import OutputFolder, write_dataset
from uturn.studies.tables import TextTable, csv_of
from uturn.tools.chains.figure import draw_chains, draw_strip
from uturn.tools.chains.measures import effective_draws, relaxation, reversibility

RESULTS = ("relaxation.zarr", "relaxation.csv", "relaxation.png")
FORMAT = "uturn.chains"


def base_experiment(spec: Path | None, images: str | None, text: str | None, originals: str | None) -> Experiment:
    """The experiment of U-turns that is repeated: that of a file, of images, or of texts."""
    from uturn.engine.sweep import parsed_value

    given = {name: value for name, value in (("spec", spec), ("images", images), ("text", text)) if value is not None}
    expect(len(given) <= 1, "SPEC, images, text", [*given], "one of them")
    if spec is not None:
        return Experiment.from_file(spec)
    pairs = [pair.partition("=") for pair in (images or text or "").split()]
    expect(all(key and value for key, _, value in pairs), "options", images or text, "KEY=VALUE, separated by blanks")
    options = {key: parsed_value(value) for key, _, value in pairs}
    if text is not None:
        from uturn.presets.texts import TextOptions

        return TextOptions.from_dict({"keep": 0, "items": 30, **options}).experiment()
    from uturn.presets.images import ImageOptions

    return ImageOptions.from_dict({"items": 16, "steps": 25, "keep": 6, "levels": 1, **options}).experiment(originals)


def measured_of(runs: Mapping[float, xr.Dataset]) -> xr.Dataset:
    """What the chains show, by the noise level of a U-turn.

    `time` (u_turn_noise, reading, estimate), `left` (u_turn_noise, reading, noise, estimate), the noise being the number of
    U-turns, and `remark` (u_turn_noise, reading): `relaxation`. `inversion` (series, estimate): the noise of a U-turn at which
    the first and the last level of a variable have one relaxation time, and the measured levels around it, at which they clearly
    differ. By u_turn_noise:
    `accepted`, share of U-turns; `draws`, effective draws per U-turn, `per_call`, per call of the network, and `rhat`;
    without an energy `p`, adjusted over noise levels by Holm, and `z` of `reversibility` at the largest number of U-turns; with
    one `energy` (u_turn_noise, noise, estimate), its mean.
    """
    parts = list[xr.Dataset]()
    for run in runs.values():
        relaxed, (draws, rhat), accepted = relaxation(run), effective_draws(run), float(run.accepted[-1].mean())
        part = relaxed.assign(accepted=accepted, draws=draws, per_call=draws / calls_of(run), rhat=rhat)
        if "energy" in run:
            energy = replicates(run.energy.sel(noise=relaxed.noise)).interval(lambda mean: mean)
            parts.append(part.assign(energy=(("noise", "estimate"), energy)))
        else:
            swaps = reversibility(run.isel(noise=[-1]))
            parts.append(part.assign(p=float(swaps.p[-1]), z=float(swaps.z[-1])))
    data = xr.concat(parts, "u_turn_noise").assign_coords(u_turn_noise=list(runs))
    series = _series(data)
    places = [_inversion(data, names[0], names[-1]) for names in series.values()]
    data["inversion"] = ("series", "estimate"), np.array(places).reshape(-1, 3)
    data.noise.attrs["long_name"] = "U-turns"
    data.u_turn_noise.attrs["long_name"] = "noise of a U-turn"
    description = str(next(iter(runs.values())).attrs.get("description", "")).partition(": ")[2]
    if "p" in data:
        data["p"] = "u_turn_noise", holm(data.p.values)
    about = {"format": FORMAT, "version": 1, "description": description, "originals": run.sizes["item"]}
    return data.assign_coords(series=list(series)).assign_attrs(about)


def calls_of(run: xr.Dataset) -> float:
    """Calls of the network in a U-turn of one datum by a diffusion model; 1 for exact posteriors; else NaN."""
    of = json.loads(run.attrs["spec"])["backward"]
    backward, noise = as_part("backward", of["of"]), of["noise"]
    if isinstance(backward, DiffusionModel):
        forward = backward.reverse().forward
        return float(len(forward.placed(forward.step_of(noise))[1]))
    return 1.0 if of["of"]["type"] == "exact" else float("nan")


def known(data: xr.Dataset) -> list[str]:
    """The readings whose chance is known."""
    return data.reading.values[np.isfinite(data.left).any(("u_turn_noise", "noise", "estimate")).values].tolist()


def _series(data: xr.Dataset) -> dict[str, list[str]]:
    """The readings, with known chance, of each variable that has levels in an order: {variable: readings}."""
    found = defaultdict[str, list[str]](list)
    of_known = data.sel(reading=known(data))
    for name, variable, order in zip(*(of_known[of].values.tolist() for of in ("reading", "variable", "order")), strict=True):
        if order:
            found[variable].append(name)
    return {variable: names for variable, names in found.items() if len(names) > 1}


def _inversion(data: xr.Dataset, first: str, last: str) -> np.ndarray:
    """Noise at which two readings have one relaxation time, and the levels around it at which their intervals are apart.

    Between these levels the log of the ratio is interpolated linearly; NaN if a time there is not known, or if there are none.
    """
    by_noise = data.sortby("u_turn_noise")
    x = by_noise.u_turn_noise.values
    a, b = (by_noise.time.sel(reading=name).transpose("u_turn_noise", "estimate").values for name in (first, last))
    sign = np.where(a[:, 1] > b[:, 2], 1, np.where(a[:, 2] < b[:, 1], -1, 0))
    for left, right in pairwise(np.flatnonzero(sign)):
        if sign[left] != sign[right]:
            ratio = -sign[right] * np.log(a[left : right + 1, 0] / b[left : right + 1, 0])
            place = crossing(x[left : right + 1], ratio, 0.0, first=True) if np.isfinite(ratio).all() else np.nan
            return np.array([place, x[left], x[right]])
    return np.full(3, np.nan)


def table_of(data: xr.Dataset) -> TextTable:
    """Relaxation times as a table: a row for each reading with known chance, a column for each noise level."""
    heads = ("relaxation time, U-turns", *(f"noise {x:g}" for x in data.u_turn_noise.values))
    rows = []
    for name in known(data):
        of = data.sel(reading=name)
        remarks, times = of.remark.values.tolist(), of.time.transpose("u_turn_noise", "estimate").values
        rows.append((name, *(remark or with_interval(time) for remark, time in zip(remarks, times, strict=True))))
    words = {"accepted": "accepted share", "draws": "effective draws per U-turn", "per_call": "per call of the network"}
    words |= {"rhat": "largest R̂ (above 1.05: too short)"}
    if "energy" in data:
        ends = data.energy.isel(noise=-1).transpose("u_turn_noise", "estimate").values
        rows.append((f"mean energy after {data.noise.values[-1]:g}", *map(with_interval, ends)))
    rows += [(label, *(f"{x:.3g}" for x in data[name].values)) for name, label in words.items() if np.isfinite(data[name]).any()]
    return TextTable("Relaxation of each level", heads, rows)


def write_chains(runs: Mapping[float, xr.Dataset], folder: OutputFolder) -> xr.Dataset:
    """Measure the chains of all noise levels, and write numbers and figures."""
    data = measured_of(runs)
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    write_dataset(data, folder.path / "relaxation.zarr")
    frame = data[["time"]].to_dataframe()["time"].unstack("estimate").add_prefix("time_")
    frame["left"] = data.left.sel(estimate="value").isel(noise=-1).to_series()
    frame["remark"] = data.remark.to_series()
    with whole_file(folder.path / "relaxation.csv") as file:
        file.write(csv_of(frame.reset_index()).encode())
    strips = {f"strip-{x:g}": partial(draw_strip, run) for x, run in runs.items() if "image" in run}
    write_figures(folder.path, {"relaxation": partial(draw_chains, data), **strips})
    folder.push(*RESULTS, "relaxation.pdf", *(f"{name}.{end}" for name in strips for end in ("png", "pdf")))
    return data


def words_of(data: xr.Dataset) -> list[str]:
    """What the chains show, as sentences."""
    sentences = []
    for name, (place, low, high) in zip(data.series.values.tolist(), data.inversion.values, strict=True):
        if np.isfinite(low):
            near = f", at about {place:.3g}" if np.isfinite(place) else ""
            levels = f"between noise {low:.3g} and {high:.3g}{near}"
            sentences.append(f"The order of the first and the last level of {name} inverts {levels}.")
    if "p" not in data:
        return [*sentences, "With an energy the originals have another law than the chain: reversibility is not tested."]
    worst = int(np.argmin(data.p.values))
    p, x = float(data.p.values[worst]), float(data.u_turn_noise.values[worst])
    seen = f"The chain does not keep the law of the originals, or is not reversible: p = {p:.2g} at noise {x:g}."
    none = f"No deviation from the law of the originals and from reversibility is seen among {data.attrs['originals']} originals"
    return [*sentences, seen if p <= 0.001 else f"{none} (smallest p = {p:.2g})."]
