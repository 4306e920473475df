"""The experiments and results of `uturn chains`: relaxation times at each noise level, and where
their order inverts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from uturn.backward.diffusion import DiffusionModel
from uturn.core.checks import checked_integer, expect
from uturn.core.csv_text import csv_of
from uturn.core.experiment import Experiment
from uturn.core.files import named_errors, whole_file
from uturn.core.registry import as_part
from uturn.measures.calibration import holm
from uturn.measures.curves import crossing
from uturn.measures.estimates import Estimate, with_interval
from uturn.measures.replicates import replicates
from uturn.pages.charts import chart
from uturn.pages.results import write_figures
from uturn.pages.sections import Reader, Section, existing
from uturn.pages.views import Card, Chart, numbers
from uturn.store.outputs import OutputFolder, write_dataset
from uturn.studies.tables import TextTable
from uturn.tools.chains.figure import draw_chains, draw_strip
from uturn.tools.chains.measures import effective_draws, known, relaxation, reversibility, series_of

RESULTS = ("relaxation.zarr", "relaxation.csv", "relaxation.png")
FORMAT = "uturn.chains"
_EVERY = 64  # chains are read after each of so many U-turns


def base_experiment(
    spec: Path | None, images: str | None, text: str | None, originals: str | None
) -> Experiment:
    """The experiment of U-turns that is repeated: that of a file, of images, or of texts."""
    from uturn.presets.images import ImageOptions
    from uturn.presets.texts import TextOptions
    from uturn.tools.chains.energies import options_in

    given = [
        name
        for name, value in (("SPEC", spec), ("images", images), ("text", text))
        if value is not None
    ]
    expect(len(given) <= 1, "SPEC, images, text", given, "one of them")
    if spec is not None:
        return Experiment.from_file(spec)
    if text is not None:
        return TextOptions.from_dict(
            {"keep": 0, "items": 30, **options_in("text", text)}
        ).experiment()
    few = {"items": 16, "steps": 25, "keep": 6, "levels": 1}
    return ImageOptions.from_dict({**few, **options_in("images", images or "")}).experiment(
        originals
    )


def repeated(
    base: Experiment,
    noise: float,
    steps: int,
    *,
    energy: str | None = None,
    beta: float = 1.0,
    chains: int | None = None,
) -> Experiment:
    """The experiment whose U-turns at one noise level are repeated `steps` times; `chains`: of each
    original.

    Chains are read after each of the first 64 U-turns, then after powers of two, and the last.
    Probes that read noisy data are left out.
    """
    spec = base.to_dict()
    corruption = {key: value for key, value in spec["corruption"].items() if key != "noise"}
    again = spec["backward"]["type"]
    expect(
        again not in ("recorded", "repeated"), "backward", again, "one that makes single U-turns"
    )
    steps = checked_integer("steps", steps, 1)
    read = sorted(
        {*range(1, min(steps, _EVERY) + 1), *(2**k for k in range(steps.bit_length())), steps}
    )
    of_energy: dict[str, Any] = {} if energy is None else {"energy": energy, "beta": beta}
    probes = []
    for table, probe in zip(spec["probes"], base.probes, strict=True):
        if not probe.reads_noisy and table["type"] != "chain":
            probes.append(table)
    parts = {
        "corruption": {"type": "repeated", "of": corruption, "noise": read},
        "backward": {
            "type": "repeated",
            "of": spec["backward"],
            "noise": float(noise),
            **of_energy,
        },
        "probes": [*probes, {"type": "chain", "has_energy": energy is not None}],
    }
    made = Experiment.from_dict(
        spec | parts | {"clones": 1, "trajectories": chains or spec["trajectories"]}
    )
    has_level = energy is not None or any(
        of.role == "reading" and of.start is not None for of in made.variables().values()
    )
    expect(
        has_level,
        "probes",
        [table["type"] for table in spec["probes"]],
        "one whose readings have a start, such as 'scales'",
    )
    return made


def measured_of(runs: Mapping[float, xr.Dataset]) -> xr.Dataset:
    """What the chains show, by the noise level of a U-turn.

    `time` (u_turn_noise, reading, estimate), `left` (u_turn_noise, reading, noise, estimate), the
    noise being the number of U-turns, and `remark` (u_turn_noise, reading): `relaxation`.
    `inversion` (series, estimate): the noise of a U-turn at which the first and the last level of a
    variable have one relaxation time, and the measured levels around it, at which they clearly
    differ. By u_turn_noise: `accepted`, share of U-turns; `draws`, effective draws per U-turn,
    `per_call`, per call of the network, and `rhat`; without an energy `p`, adjusted over noise
    levels by Holm, and `z` of `reversibility` at the largest number of U-turns; with one `energy`
    (u_turn_noise, noise, estimate), its mean.
    """
    parts = list[xr.Dataset]()
    for run in runs.values():
        relaxed = relaxation(run)
        (draws, rhat) = effective_draws(run)
        accepted = float(run.accepted[-1].mean())
        part = relaxed.assign(
            accepted=accepted, draws=draws, per_call=draws / calls_of(run), rhat=rhat
        )
        if "energy" in run:
            energy = replicates(run.energy.sel(noise=relaxed.noise)).interval(lambda mean: mean)
            parts.append(part.assign(energy=(("noise", "estimate"), energy)))
        else:
            swaps = reversibility(run.isel(noise=[-1]))
            parts.append(part.assign(p=float(swaps.p[-1]), z=float(swaps.z[-1])))
    data = xr.concat(parts, "u_turn_noise").assign_coords(u_turn_noise=list(runs))
    series = series_of(data)
    places = [_inversion(data, names[0], names[-1]) for names in series.values()]
    data["inversion"] = ("series", "estimate"), np.reshape(places, (-1, 3))
    if "p" in data:
        data["p"] = "u_turn_noise", holm(data.p.values)
    data.noise.attrs["long_name"] = "U-turns"
    data.u_turn_noise.attrs["long_name"] = "noise of a U-turn"
    description = str(run.attrs.get("description", "")).partition(": ")[2]
    about = {
        "format": FORMAT,
        "version": 1,
        "description": description,
        "originals": run.sizes["item"],
    }
    return data.assign_coords(series=list(series)).assign_attrs(about)


def calls_of(run: xr.Dataset) -> float:
    """Calls of the network in a U-turn of one datum by a diffusion model; 1 for exact
    posteriors; else NaN.
    """
    of = json.loads(run.attrs["spec"])["backward"]
    backward = as_part("backward", of["of"])
    if isinstance(backward, DiffusionModel):
        forward = backward.reverse().forward
        return float(len(forward.placed(forward.step_of(of["noise"]))[1]))
    return 1.0 if of["of"]["type"] == "exact" else np.nan


def _inversion(data: xr.Dataset, first: str, last: str) -> np.ndarray:
    """Noise at which two readings have one relaxation time, and the levels around it at which their
    intervals are apart.

    Between these levels the log of the ratio is interpolated linearly; NaN if a time there is not
    known, or if there are none.
    """
    by_noise = data.sortby("u_turn_noise")
    x = by_noise.u_turn_noise.values
    a, b = (
        by_noise.time.sel(reading=name).transpose("u_turn_noise", "estimate").values
        for name in (first, last)
    )
    sign = np.where(a[:, 1] > b[:, 2], 1, np.where(a[:, 2] < b[:, 1], -1, 0))
    for left, right in pairwise(np.flatnonzero(sign)):
        if sign[left] != sign[right]:
            ratio = -sign[right] * np.log(a[left : right + 1, 0] / b[left : right + 1, 0])
            place = (
                crossing(x[left : right + 1], ratio, 0.0, first=True)
                if np.isfinite(ratio).all()
                else np.nan
            )
            return np.array([place, x[left], x[right]])
    return np.full(3, np.nan)


def table_of(data: xr.Dataset) -> TextTable:
    """Relaxation times as a table: a row for each reading with known chance, a column for each
    noise level.
    """
    heads = ("relaxation time, U-turns", *(f"noise {x:g}" for x in data.u_turn_noise.values))
    rows = []
    for name in known(data):
        of = data.sel(reading=name)
        cells = zip(
            of.remark.values.tolist(),
            of.time.transpose("u_turn_noise", "estimate").values,
            strict=True,
        )
        rows.append((name, *(remark or f"{Estimate(*time):.3g}" for remark, time in cells)))
    if "energy" in data:
        ends = data.energy.isel(noise=-1).transpose("u_turn_noise", "estimate").values
        rows.append((f"mean energy after {data.noise.values[-1]:g}", *map(with_interval, ends)))
    words = {
        "accepted": "accepted share",
        "draws": "effective draws per U-turn",
        "per_call": "per call of the network",
    }
    words |= {"rhat": "largest R̂ (above 1.05: too short)"}
    rows += [
        (label, *(f"{x:.3g}" for x in data[name].values))
        for name, label in words.items()
        if np.isfinite(data[name]).any()
    ]
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
    folder.push(
        *RESULTS, "relaxation.pdf", *(f"{name}.{end}" for name in strips for end in ("png", "pdf"))
    )
    return data


def words_of(data: xr.Dataset) -> str:
    """What the chains show, in sentences."""
    sentences = []
    for name, (place, low, high) in zip(
        data.series.values.tolist(), data.inversion.values, strict=True
    ):
        if np.isfinite(low):
            near = f", at about {place:.3g}" if np.isfinite(place) else ""
            levels = f"between noise {low:.3g} and {high:.3g}{near}"
            sentences.append(
                f"The order of the first and the last level of {name} inverts {levels}."
            )
    if "p" in data:
        p, x = min(zip(data.p.values.tolist(), data.u_turn_noise.values.tolist(), strict=True))
        seen = "The chain does not keep the law of the originals, or is not reversible"
        none = (
            "No deviation from their law and from reversibility is seen in chains of"
            f" {data.attrs['originals']} originals"
        )
        sentences.append(f"{seen if p <= 0.001 else none}: p = {p:.2g} at noise {x:g}.")
    else:
        sentences.append(
            "With an energy the originals have another law than the chain: reversibility is not"
            " tested."
        )
    return " ".join(sentences)


def chains_section(path: Path, reader: Reader) -> Section:
    """The section of the file `relaxation.zarr` of `uturn chains`."""
    data = reader.dataset(path)
    folder = path.parent
    _check_sizes(data, path)
    section = Section(
        "chains",
        "chains",
        "chains",
        "Chains of U-turns",
        covers="*",
        words=words_of(data),
        caption=str(data.attrs.get("description", "")),
        overview=table_of(data),
        charts=_charts(data),
        files=existing(folder, ("relaxation.csv", "relaxation.pdf")),
    )
    reader.add_picture(section, folder / "relaxation.png", "chains")
    for x in data.u_turn_noise.values:
        reader.add_picture(section, folder / f"strip-{x:g}.png", f"chains at noise {x:g}")
    claim = (
        "First and last level have one relaxation time at this noise; the range is between"
        " measured levels."
    )
    for name, place in zip(data.series.values.tolist(), data.inversion.values, strict=True):
        if np.isfinite(place[0]):
            label = f"order of {name} inverts"
            card = Card(label, "noise of a U-turn", claim, numbers(place), is_range=True)
            section.cards.append(card)
    return section


def _check_sizes(data: xr.Dataset, path: Path) -> None:
    """ValueError for another format, or more than a page shows."""
    form = data.attrs.get("format"), data.attrs.get("version")
    expect(form == (FORMAT, 1), f"format of {path}", form, f"{FORMAT}, version 1")
    names = data.reading.values.tolist()
    is_small = (
        data.sizes["u_turn_noise"] <= 64
        and len(names) <= 512
        and max(map(len, names), default=0) <= 200
    )
    expected = "at most 64 noise levels and 512 readings"
    expect(is_small, f"sizes of {path}", dict(data.sizes), expected)


def _charts(data: xr.Dataset) -> list[Chart]:
    """Relaxation times and the mean energy, and what is left of the original after 1, 2, 4, ..
    U-turns at each noise level.
    """
    charts = []
    of_known = data[["time", "left"]].sel(reading=known(data)).drop_vars(["variable", "order"])
    times = of_known.time.rename(u_turn_noise="noise").transpose("noise", "reading", "estimate")
    if (np.isfinite(times.sel(estimate="value")).sum("noise") > 1).any():
        of_times = chart(
            "time",
            "relaxation time",
            times,
            "noise",
            unit="U-turns",
            is_joined=True,
            is_shown=True,
            has_slider=False,
        )
        charts.append(of_times)
    if "energy" in data:
        energy = data.energy.transpose("noise", "u_turn_noise", "estimate")
        charts.append(chart("energy", "mean energy", energy, "noise", is_shown=True))
    doublings = data.noise.values[np.isin(data.noise, 2.0 ** np.arange(40))]  # a logarithmic axis
    for x in data.u_turn_noise.values:
        left = of_known.left.sel(u_turn_noise=x, noise=doublings, drop=True)
        left = left.transpose("noise", "reading", "estimate")
        if left.size:
            title = f"left of the original, noise {x:g}"
            charts.append(chart(f"left-{x:g}", title, left, "noise", is_shown=True))
    return charts
