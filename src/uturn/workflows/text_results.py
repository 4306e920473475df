"""Results of a run of texts: files of numbers, figures and texts, and tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.files import whole_file
from uturn.outputs import output_folder
from uturn.pages import write_page
from uturn.plotting.curves import evenly_spaced
from uturn.store import warnings_of
from uturn.workflows.curves import plain, with_interval
from uturn.workflows.text_analysis import GROUPS, analyse_texts
from uturn.workflows.token_page import token_page
from uturn.workflows.writing import check_results, write_figures, write_numbers

if TYPE_CHECKING:
    import xarray as xr

RESULTS = ("index.html", "analysis.zarr", "text.json", "curves.png", "curves.pdf", "tokens.html", "tokens.png", "tokens.pdf")


def write_text_results(run: xr.Dataset, out: str | Path, source: Any = None) -> xr.Dataset:
    """Analyse a finished run, and write its numbers, figures and texts into a folder or to a URL, replacing earlier ones.

    Writes `analysis.zarr` (the dataset of `analyse_texts`), `text.json` (its numbers), `curves.png`, `.pdf`, and, if the run kept
    tokens, `tokens.html`, `tokens.png`, `.pdf`: originals and reconstructions side by side, with changes marked. `source`: that
    of the experiment; by default it is built from the spec of the run. Returns the analysis.

    Raises
    ------
    ValueError
        If the run is not finished or has no kept tokens, or if the folder cannot be written to.
    """
    from uturn.plotting.text import draw_curves
    from uturn.plotting.tokens import draw_tokens

    with output_folder("out", out) as results:
        check_results(results)
        analysis, folder = analyse_texts(run, source), results.path
        write_numbers(folder, analysis, "text.json", text_numbers(analysis))
        write_figures(folder, {"curves": draw_curves, "tokens": draw_tokens}, analysis)
        page = folder / "tokens.html"
        if "original_piece" in analysis.coords:
            with whole_file(page) as file:
                file.write(token_page(analysis).encode())
        else:
            page.unlink(missing_ok=True)  # of an earlier run, which kept tokens
        write_page(folder)
        results.push(*RESULTS)
    return analysis


# --- numbers -----------------------------------------------------------------------------------------------------------


def text_numbers(analysis: xr.Dataset) -> dict[str, Any]:
    """The content of `text.json`: the numbers of an analysis with intervals; None if one does not exist."""
    found: dict[str, Any] = {
        "run": analysis.attrs["description"],
        "remark": analysis.attrs["remark"],
        "warnings": warnings_of(analysis.attrs),
        "spec_hash": analysis.attrs.get("spec_hash"),
        **{name: analysis.attrs[name] for name in ("items", "trajectories", "clones")},
        "noise": [float(x) for x in analysis.noise.values],
        "intervals": "95 %, from the differences between originals, each with all its U-turns",
        "kept": {group: _readings(analysis, group) for group in GROUPS if (analysis.group == group).any()},
    }
    if "chi" in analysis:
        found |= {
            "transition": plain(analysis.transition.values),
            "plateau": bool(analysis.plateau),
            "levels_of_peak": [float(x) for x in analysis.noise.values[analysis.of_peak.values]],
            "peak": plain(analysis.peak.values),
            "peak_cross_fitted": None if np.isnan(analysis.peak_cross_fitted) else float(analysis.peak_cross_fitted),
            "susceptibility": [
                {**plain(chi), "n_eff": float(number) if np.isfinite(number) else None}
                for chi, number in zip(analysis.chi.values, analysis.n_eff.values, strict=True)
            ],
            "correlation": {
                "distance": [float(r) for r in analysis.distance.values],
                "values": [[plain(v) for v in row] for row in analysis.correlation.values],
            },
        }
    if "correlation_length" in analysis:
        found["correlation_length"] = [_plain_length(v) for v in analysis.correlation_length.values]
    if "gap" in analysis:
        found["calibration"] = _calibration(analysis)
    if "log_likelihood" in analysis:
        attributes = analysis.log_likelihood.attrs
        found["log_likelihood"] = {
            "measures": f"{attributes.get('long_name', '')}, {attributes.get('model', '')}",
            "values": [plain(v) for v in analysis.log_likelihood.values],
        }
    return found


def _readings(analysis: xr.Dataset, group: str) -> dict[str, Any]:
    """Curves and half-lives of the readings of a group."""
    found = {}
    for k in np.flatnonzero(analysis.group.values == group):
        one = analysis.isel(reading=int(k))
        chance = float(one.chance)
        found[str(one.name.item())] = {
            "values": [plain(v) for v in one.similarity.values],
            "half_life": plain(one.half_life.values),
            **({"chance": chance} if np.isfinite(chance) else {}),
        }
    return found


def _plain_length(values: np.ndarray) -> dict[str, Any]:
    """A length with its interval; "infinite" where 1/length is not above 0."""
    return {name: "infinite" if np.isinf(v) else one for (name, one), v in zip(plain(values).items(), values, strict=True)}


def _calibration(analysis: xr.Dataset) -> dict[str, Any]:
    """Gaps at the measured noise levels, and whether none of them is detected."""
    level, there = float(analysis.calibration_level), np.isfinite(analysis.gap_p.isel(tested=0).values)
    one = analysis.isel(noise=there)
    return {
        "passed": bool((one.gap_p > level).all()),
        "level": level,
        "noise": [float(x) for x in one.noise.values],
        "gaps": {
            str(name): [{**plain(gap), "p_holm": float(p)} for gap, p in zip(one.gap[k].values, one.gap_p[k].values, strict=True)]
            for k, name in enumerate(one.tested.values)
        },
    }


# --- tables ------------------------------------------------------------------------------------------------------------


def text_summary(analysis: xr.Dataset, most: int = 8) -> Iterator[Any]:
    """Tables for a terminal (rich): t*, chi, xi and half-lives; and the gaps of a run with clones.

    Of groups with more than `most` readings, so many are shown.
    """
    from rich.table import Table

    remark = analysis.attrs["remark"]
    table = Table(title=f"U-turns of texts{f': {remark}' if remark else ''}", title_justify="left")
    for heading in ("", "noise [95 % interval]", "value there [95 % interval]"):
        table.add_column(heading, overflow="fold")
    if "chi" in analysis:
        words = f"susceptibility peaks{' (plateau)' if analysis.plateau else ''}, t*"
        table.add_row(words, with_interval(analysis.transition.values), _height(analysis))
    star = float(analysis.transition[0]) if "transition" in analysis else np.nan
    if "correlation_length" in analysis and np.isfinite(star):
        k = int(np.abs(analysis.noise.values - star).argmin())
        table.add_row(
            "correlation length near t*", f"{float(analysis.noise[k]):.3g}", _length(analysis.correlation_length.values[k])
        )
    for group in GROUPS:
        chosen = np.flatnonzero(analysis.group.values == group)
        for k in chosen[evenly_spaced(len(chosen), most)] if len(chosen) else ():
            one = analysis.isel(reading=int(k))
            table.add_row(f"half-life: {_words(group, str(one.name.item()))}", _half_life(one), _at_end(one))
    if "log_likelihood" in analysis:
        first, last = (with_interval(analysis.log_likelihood.values[k]) for k in (0, -1))
        table.add_row("log-likelihood, nats a character", f"{float(analysis.noise[-1]):.3g}", f"{last}; originals {first}")
    yield table
    if "gap" in analysis:
        yield _calibration_table(analysis, most)


def _words(group: str, name: str) -> str:
    """A reading in words."""
    span = name.partition(" ")[0]
    return {
        "tokens": "tokens kept" if name == "kept" else f"runs of {span} tokens kept",
        "regions": f"region {name}",
        "segments": "segments kept whole",
        "layers": f"hidden states, {name}",
        "tokens in layers": f"hidden states token by token, {name}",
        "sentence": f"sentence embedding, {name}",
    }[group]


def _height(analysis: xr.Dataset) -> str:
    """The largest chi as found and cross-fitted, and the number of texts that decide chi at the measured levels."""
    number = analysis.n_eff.values
    deciding = f"; n_eff {np.nanmin(number):.3g} to {np.nanmax(number):.3g}"
    if np.isnan(analysis.peak[0]):
        return f"chi none{deciding}"
    return f"chi {with_interval(analysis.peak.values)}, cross-fitted {float(analysis.peak_cross_fitted):.3g}{deciding}"


def _length(values: np.ndarray) -> str:
    """A length with its interval; only the lower end of an interval without an upper one."""
    return f"above {values[1]:.3g} tokens" if np.isinf(values[2]) else f"{with_interval(values)} tokens"


def _half_life(one: xr.Dataset) -> str:
    """The half-life of a reading; of one that falls before the first level, only that."""
    first = float(one.noise[1]) if one.sizes["noise"] > 1 else 0.0
    return f"below {first:.3g}" if float(one.half_life[0]) < first else with_interval(one.half_life.values)


def _at_end(one: xr.Dataset) -> str:
    return f"{with_interval(one.similarity.values[-1])} at noise {float(one.noise[-1]):.3g}"


def _calibration_table(analysis: xr.Dataset, most: int) -> Any:
    from rich.table import Table

    level = float(analysis.calibration_level)
    seen = float(analysis.gap_p.min()) <= level
    possible = bool(np.isfinite(analysis.gap_visible.where(analysis.gap_p.notnull())).any())
    verdict = "no draws from the posterior" if seen else "no gap is detected" if possible else "too few texts to detect a gap"
    table = Table(title=f"calibration, gap E f(x0, x̂) - E f(x̂, x̂') of the clones; {verdict}", title_justify="left")
    for heading in ("f", "noise of smallest p", "gap there [95 % interval]", "p by Holm", "gap that would be seen"):
        table.add_column(heading, overflow="fold")
    for k in evenly_spaced(analysis.sizes["tested"], most):
        row = analysis.isel(tested=k)
        worst = row.isel(noise=int(row.gap_p.argmin("noise", skipna=True)))
        visible = float(worst.gap_visible)
        table.add_row(
            str(row.tested.item()),
            f"{float(worst.noise):.3g}",
            with_interval(worst.gap.values),
            f"{float(worst.gap_p):.2g}",
            f"{visible:.2g}" if np.isfinite(visible) else "none",
        )
    return table
