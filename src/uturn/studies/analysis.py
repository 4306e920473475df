"""The study of a run: curves, places on them, and correlations of changes, computed from the
stored readings alone.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import LARGEST, expect
from uturn.core.messages import shown
from uturn.core.protocols import Variable
from uturn.measures.calibration import calibration, items_tested, label_of, twin_of
from uturn.measures.curves import crossing, levels_around
from uturn.measures.estimates import ESTIMATE, with_ends
from uturn.measures.intervals import rests_on_few
from uturn.measures.peaks import among
from uturn.measures.readings import WITHIN, independent_groups
from uturn.measures.replicates import Replicates
from uturn.studies.axes import Axes
from uturn.studies.changes import changes_of, why_no_changes
from uturn.studies.curves import band, curve, place, shares
from uturn.studies.moves import Moves
from uturn.studies.runs import describe, have_labels, instructions_of, missing_tasks, named_in
from uturn.studies.tables import TEXTS, Study

CENTRES = "mean", "median"
SHARES = (0.25, 0.5, 0.75)  # shares of the way from start to chance: labels of the dim `share`
_MOST_LEVELS = 512  # of a variable
_MOST_NAMES = 12  # of readings in an error
_MOST_NAMED = 4  # places of missing readings, or items, in a remark
# Different rows of readings that all occur several times, or equal ones whose trajectories differ.
_SURE = 16
_ROUNDING = 1e-6  # of readings in single precision
# Dims, named as those of no variable.
_LEVEL, _SERIES = "level of the variable", "series of the variable"
_FALSE_INVERSIONS = 0.05  # of series of equal curves
_NOT_SURE = (
    "not sure: at no noise is the last level below the first, in one test of all noise levels"
)
_KEPT = ("spec", "spec_hash", "seed", "models", "versions", "warnings", "accepted_changes")


def study(ds: xr.Dataset, centre: str = "mean") -> Study:
    """Curves of all readings of a run against noise, the noise levels at which they change, and the
    correlation of changes.

    A reading is a variable of the run, or one of its levels. Let c(x) be its mean over items at
    noise x, each with its mean over trajectories and clones, and c(0) its start
    (`uturn.protocols.Variable`). Between measured levels, c is interpolated linearly.

    - `curve` (reading, noise, estimate): c.
    - `place` (reading, share, axis, estimate): smallest noise at which c has gone a share .25, .5
      or .75 of the way from start to chance, on all axes of the run. If chance is not known, the
      value at the largest noise is used as the chance level; there is then no place unless the
      curve changes: the 95 % interval of its last minus its first level, paired over items, does
      not hold 0. The same is asked of a start that is guessed. `half_life` is the place at share
      .5; t* is the half-life of a class. `width`: distance between the places at .25 and .75.
      `start`, `chance` (reading).
    - `inversion` (series, axis, estimate) of ordered levels, such as layers: noise beyond which the
      last stays below the first.
    - `chi`, `xi` (changes, noise, estimate), `correlation` (changes, noise, distance, estimate):
      susceptibility, correlation length, C(r)/C(0); `peak`, `peak_at`: largest chi of the measured
      levels; noise of the peak.
    - `gap` (reading, noise, estimate), `gap_p` by Holm, `gap_visible`, the smallest detectable gap
      (runs with clones): 0 if reconstructions are draws from the posterior (`uturn.calibration`,
      level .001 in each family of tests).

    `estimate`: value, low and high end of its 95 % interval over items, or over grammars if there
    are several; NaN if the number does not exist (`remark` gives the reason). Coordinates of a
    reading: `variable`, `level`, `probe`, `model`, `group`, `family`, `unit`, `words`, and
    `originals`, the number of items that have it.

    `ds`: dataset of `uturn.run`. With `centre` = "median", c is the median over items, for heavy
    tails. Readings in [0, 1], correlations and gaps stay means.

    Examples
    --------
    >>> import uturn as ut
    >>> run = ut.readings({"kept": [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]}, noise=[0.2, 0.4, 0.6, 0.8], start=1, chance=0)
    >>> study(run).half_life.sel(reading="kept", axis="noise", estimate="value").item()
    0.5
    """
    expect(centre in CENTRES, "centre", centre, f"one of {', '.join(CENTRES)}")
    return study_of(finished_run(ds), centre)


def study_of(ds: xr.Dataset, centre: str = "mean") -> Study:
    """`study` for a run that may be unfinished: means leave out missing readings, and a remark
    reports them.
    """
    run = by_noise(checked_run(ds))
    axes, instructions = Axes(run), instructions_of(run)
    readings = {name: how for name, how in instructions.items() if how.role == "reading"}
    changes = [name for name, how in instructions.items() if how.role == "changes"]
    not_studied = {name: why for name in readings if (why := _no_reading(run, name))}
    not_studied |= {name: why for name in changes if (why := why_no_changes(run, name))}
    readings = {name: how for name, how in readings.items() if name not in not_studied}
    levels = [
        level
        for name, how in readings.items()
        for level in levels_of(run, name, how, axes, centre=centre)
    ]
    for level in levels:
        if level.originals < max(other.originals for other in levels) and not missing_tasks(run):
            few = f"{level.originals} of {run.sizes['item']} originals have this reading"
            level.texts["remark"] = "; ".join(filter(None, [few, level.texts["remark"]]))
    families, not_tested = _families(run, instructions)
    numbers = (
        _readings(levels, axes),
        _inversions(run, readings, axes, centre),
        changes_of(run, instructions, axes),
    )
    data = xr.merge([axes.coordinates(run), *numbers, _gaps(run, families, levels, axes)])
    data.attrs = {key: run.attrs[key] for key in _KEPT if key in run.attrs}
    medians = dict.fromkeys(level.texts["variable"] for level in levels if level.centre == "median")
    first_remarks = (
        [f"the curves of {', '.join(medians)} are medians over originals"] if medians else []
    )
    first_remarks += [f"{name} is not studied: {why}" for name, why in not_studied.items()]
    data.attrs |= {
        "description": describe(run),
        "items": run.sizes["item"],
        "trajectories": run.sizes.get("trajectory", 1),
        "clones": run.sizes.get("clone", 1),
        "remark": "; ".join(
            [*first_remarks, *_remarks(run, axes, levels, families, not_tested, "chi" in data)]
        ),
    }
    return Study(data.data_vars, data.coords, data.attrs)


def checked_run(ds: Any) -> xr.Dataset:
    """The dataset itself if it has readings of items at noise levels; otherwise ValueError."""
    sizes = ds.sizes if isinstance(ds, xr.Dataset) else {}
    is_run = sizes.get("noise", 0) * sizes.get("item", 0) > 0
    expect(
        is_run,
        "ds",
        dict(sizes) or ds,
        "the dataset that uturn.run gives, with dims noise and item",
    )
    noise = ds.noise.values
    sound = (
        noise.dtype.kind in "biuf" and ((noise >= 0) & ((noise < LARGEST) | np.isinf(noise))).all()
    )
    expect(
        sound and len(np.unique(noise)) == len(noise),
        "noise",
        noise.tolist(),
        "different levels, 0 or more",
    )
    for name in {"step", "t_over_T", "timestep", "log_snr"} & set(ds.coords):
        dims = ds[name].dims
        are_numbers = "item" not in dims and (dims != ("noise",) or ds[name].dtype.kind in "iuf")
        expect(are_numbers, name, ds[name].values.tolist(), "numbers, one for each noise level")
        # It takes the place of the noise, of which it is that of the nearest step.
        if name == "t_over_T":
            values = ds[name].values
            known = len(np.unique(values)) == len(values) and bool(
                (np.isfinite(values) & (values >= 0)).all()
            )
            expect(
                known,
                name,
                values.tolist(),
                "different numbers of 0 or more, one for each noise level",
            )
            is_noise = (
                np.abs(values - noise)
                <= 0.51 * np.diff(np.unique([0, *values])).min(initial=np.inf)
            ).all()
            expect(
                is_noise,
                name,
                values.tolist(),
                f"the noise {shown(noise.tolist())} in whole steps, or another name",
            )
    run: xr.Dataset = ds
    return run


def finished_run(ds: Any) -> xr.Dataset:
    """The dataset itself if it has all readings of a run (`checked_run`); otherwise ValueError."""
    run = checked_run(ds)
    if missing := missing_tasks(run):
        raise ValueError(
            f"the run is not finished: {missing} tasks are missing; run the same command again"
        )
    _check_originals(run)
    return run


def levels_in(run: xr.Dataset, name: str) -> Iterator[tuple[dict[str, int], str]]:
    """The levels of a variable, one for each combination of its own dims: indices along these,
    and the name of the reading.
    """
    sizes = {
        str(dim): size for dim, size in run[name].sizes.items() if dim not in ("noise", *WITHIN)
    }
    for at in np.ndindex(*sizes.values()):
        where = dict(zip(sizes, at, strict=True))
        yield where, label_of(name, {dim: run[name][dim].values[k] for dim, k in where.items()})


def _check_originals(run: xr.Dataset) -> None:
    """ValueError for a run in which originals occur several times, by labels or readings: copies
    would narrow all intervals.
    """
    advice = "expected each original once, and its U-turns along trajectory"
    for name in {"item", "item_name"} & set(run.coords):
        label, times = Counter(np.ravel(run[name].values).tolist()).most_common(1)[0]
        if times > 1:
            raise ValueError(f"{name} = {shown(label)} occurs {times} times; {advice}")
    readings = [
        run[name]
        for name, how in instructions_of(run).items()
        if how.role == "reading" and not _no_reading(run, name)
    ]
    rows = [of.transpose("item", ...).values.reshape(run.sizes["item"], -1) for of in readings]
    # All rows occur 2 (or 3, ..) times, or a multiple of that: for D different rows of other data
    # with about 2^-D at most; fewer suffice if they have many values. Where all rows are one, its
    # trajectories differ, and N originals agree with about 2^-N.
    copies = Counter(
        b"".join(parts)
        for parts in zip(*([row.tobytes() for row in part] for part in rows), strict=True)
    )
    times = math.gcd(*copies.values())
    if times < 2:
        return
    of_u_turns = [(of, [dim for dim in WITHIN[1:] if dim in of.dims]) for of in readings]
    differ = any(bool((of.max(dims) > of.min(dims)).any()) for of, dims in of_u_turns if dims)
    ordered = [np.sort(row, axis=0) for row in rows]
    # Different values among originals, less one.
    further = np.concatenate([(row[1:] > row[:-1]).sum(0) for row in ordered])
    several = len(copies) >= _SURE or further[further > 1].sum() >= _SURE
    if several or (len(copies) == 1 and times >= _SURE and differ):
        raise ValueError(
            f"the readings of all originals occur {times} times or a multiple of that; {advice}"
        )


def by_noise(run: xr.Dataset) -> xr.Dataset:
    """The run with increasing noise levels; those of images are the exact k/N of the whole
    steps.
    """
    if "t_over_T" in run.coords:  # the spec's levels are rounded to whole steps
        run = run.assign_coords(noise=("noise", run.t_over_T.values, run.noise.attrs))
    return run.sortby("noise")


def _no_reading(run: xr.Dataset, name: str) -> str:
    """Why a variable has no curve; "" if it has one."""
    values = run[name]
    if "item" not in values.dims:
        return "it has no dim item"
    if values.dtype.kind not in "biuf":
        return "its values are no numbers"
    if not values.size:
        return "it has no values"
    levels = math.prod(size for dim, size in values.sizes.items() if dim not in ("noise", *WITHIN))
    return f"it has more than {_MOST_LEVELS} levels" if levels > _MOST_LEVELS else ""


# --- readings -------------------------------------------------------------------------------------


@dataclass
class Level:
    """A reading: a level of a variable, with its curve and the places on it; `texts` are its
    coordinates.
    """

    instructions: Variable
    texts: dict[str, str]
    replicates: Replicates
    curve: np.ndarray
    place: np.ndarray
    width: np.ndarray
    start: float
    chance: float
    is_flat: bool
    moves: Moves
    originals: int
    centre: str


def levels_of(
    run: xr.Dataset,
    name: str,
    how: Variable,
    axes: Axes,
    confidence: float = 0.95,
    centre: str = "mean",
) -> Iterator[Level]:
    """The readings of a variable, one for each combination of its own dims; `confidence` of the
    intervals of curves.
    """
    values = run[name]
    dims = [str(dim) for dim in values.dims if dim not in ("noise", *WITHIN)]
    references = [_reference(run, name, rule) for rule in (how.start, how.chance)]
    stacked, start, chance = (_stacked(array, dims, _LEVEL) for array in (values, *references))
    outside = _outside(values, *bounds_of(how))
    if outside:  # then intervals are not clipped
        how = replace(how, bounds=(None, None))
    centre = "mean" if how.is_share else centre  # numbers in [0, 1] have no tails
    gone = [""] * stacked.sizes[_LEVEL] if missing_tasks(run) else list(_missing(stacked, run))
    few = _on_few(stacked, run) if how.is_share else [""] * stacked.sizes[_LEVEL]
    read = (
        stacked.notnull()
        .any([dim for dim in stacked.dims if dim not in ("item", _LEVEL)])
        .sum("item")
        .values
    )
    curves = _curves(stacked, start, axes.noise, how, confidence, centre)
    for k, ((where, label), (of, band_of)) in enumerate(
        zip(levels_in(run, name), curves, strict=True)
    ):
        top = of.mean[0] if how.start is not None else np.nan
        end = np.nan if chance is None else float(chance.isel({_LEVEL: k}).mean())
        is_flat = (how.guessed or np.isnan(end)) and not _changes(of, int(how.guessed))
        is_guess = how.guessed and not name.startswith("same_")  # what is the same starts at 1
        if is_flat and is_guess:  # nothing shows the start
            top, band_of[0] = np.nan, np.nan
        places, width = _places(of, np.nan if is_flat else top, end, axes)
        texts = {
            "reading": label,
            "variable": name,
            "level": ", ".join(str(values[dim].values[at]) for dim, at in where.items()),
            "words": str(values.attrs.get("long_name", name)),
            "group": how.group or how.probe,
            "family": how.family or how.probe,
            "order": how.order or "",
            **{key: getattr(how, key) for key in ("probe", "model", "unit")},
        }
        moves = Moves.of(of, axes.noise, int(how.guessed))
        level = Level(
            how,
            texts,
            of,
            band_of,
            places,
            width,
            float(top),
            end,
            is_flat,
            moves,
            int(read[k]),
            centre,
        )
        about_start = how.about_start if is_guess and np.isfinite(top) else ""
        texts["remark"] = "; ".join(
            [*_about(level, axes, gone[k]), *filter(None, [about_start, outside, gone[k], few[k]])]
        )
        yield level


def named_reading(run: xr.Dataset, reading: str) -> tuple[str, str, dict[str, list[int]], Variable]:
    """The variable, label, indices and instructions of a reading by its name; ValueError if there
    is none, or several.

    The name is that in the study, that of a variable with one level, or "first_layer" or
    "last_layer" for an end of a series.
    """
    matching, known = {}, []
    for name, how in instructions_of(run).items():
        if how.role != "reading" or _no_reading(run, name):
            continue
        levels = list(levels_in(run, name))
        for where, label in levels:
            ends = [] if how.order is None else [("first", 0), ("last", run.sizes[how.order] - 1)]
            short = [
                f"{end}_{str(how.order).rpartition('_')[2]}"
                for end, k in ends
                if where[str(how.order)] == k
            ]
            known += [name] * (label != name and len(levels) == 1) + short + [label]
            if reading in (label, name, *short):
                matching[label] = name, label, {dim: [k] for dim, k in where.items()}, how
    if len(matching) == 1:
        return next(iter(matching.values()))
    one = [name for name in known if known.count(name) == 1]  # names of one reading
    names = list(matching) or sorted(one, key=lambda name: "=" in name)  # short ones first
    close = [] if matching else difflib.get_close_matches(str(reading), names, n=3)
    meant = f"did you mean {' or '.join(map(repr, close))}? Expected" if close else "expected"
    rest = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    some = "; ".join(map(repr, names[:_MOST_NAMES]))
    raise ValueError(
        f"reading = {shown(reading)}: {meant} the name of one reading:"
        f" {some or 'the run has none'}{rest}"
    )


def reading_of(run: xr.Dataset, reading: str) -> tuple[xr.DataArray, float, float]:
    """Readings (noise, item, ..), start and chance of a reading by its name; NaN for those that
    are not known.
    """
    name, _, where, how = named_reading(run, reading)
    references = [_reference(run, name, rule) for rule in (how.start, how.chance)]
    start, chance = (
        np.nan if level is None else float(level.isel(where).mean()) for level in references
    )
    return run[name].isel({dim: at[0] for dim, at in where.items()}, drop=True), start, chance


def _stacked(array: xr.DataArray | None, dims: list[str], name: str) -> Any:
    """An array whose dims `dims` are stacked into one last dim; None for None."""
    if array is None:
        return None
    return (array.stack({name: dims}) if dims else array.expand_dims(name)).transpose(..., name)


def bounds_of(how: Variable) -> tuple[float, float]:
    """The bounds of a reading, infinite where there is none."""
    low, high = how.bounds
    return (-np.inf if low is None else low), (np.inf if high is None else high)


def _outside(values: xr.DataArray, low: float, high: float) -> str:
    """A remark on readings that leave their bounds by more than rounding; "" if none do."""
    least, most = float(values.min()), float(values.max())
    if least < low - _ROUNDING * max(1, abs(low)) or most > high + _ROUNDING * max(1, abs(high)):
        return (
            f"readings from {least:.3g} to {most:.3g} leave the bounds {low:g} and {high:g}, which"
            " are not used"
        )
    return ""


def _missing(stacked: xr.DataArray, run: xr.Dataset) -> Iterator[str]:
    """A remark for each level on its missing readings; "" if there are none."""
    empty = stacked.isnull().transpose(_LEVEL, "noise", "item", ...).values
    empty = empty.reshape(*empty.shape[:3], -1)
    for of_level in empty:
        # Others have no such level, as a text that lacks a region.
        items = np.flatnonzero(~of_level.all(axis=(0, 2)))
        gone = of_level[:, items]
        if not gone.any():
            yield ""
            continue
        x, whole = run.noise.values, gone.all(axis=(1, 2))
        where = [f"all at noise {x[k]:.3g}" for k in np.flatnonzero(whole)]
        where += [
            f"{_item(run, items[i])} at noise {x[k]:.3g}"
            for k, i in np.argwhere(gone.any(axis=2))
            if not whole[k]
        ]
        others = f" and {len(where) - _MOST_NAMED} more places" if len(where) > _MOST_NAMED else ""
        yield (
            f"{gone.sum()} of {gone.size} readings are missing:"
            f" {', '.join(where[:_MOST_NAMED])}{others}"
        )


def _on_few(stacked: xr.DataArray, run: xr.Dataset) -> list[str]:
    """For each level a remark if two originals (or grammars) make the spread of its share, else
    ""; levels share one remark.
    """
    few = rests_on_few(stacked.transpose("noise", ..., _LEVEL)) & (run.noise.values > 0)[:, None]
    two = (
        "two originals"
        if independent_groups(stacked).max() + 1 == run.sizes["item"]
        else "two grammars"
    )
    noises = run.noise.values[few.any(axis=1)]
    some = "some of " if few.shape[1] > 1 and len(noises) > 1 else ""
    advice = "others like them may be missing, and the interval too narrow"
    return [
        f"{two} make the spread at {some}{among(noises)}: {advice}" if at.any() else ""
        for at in few.T
    ]


def _without_readings(run: xr.Dataset, names: Collection[str]) -> list[str]:
    some = [
        run[name].notnull().any([dim for dim in run[name].dims if dim != "item"]).values
        for name in names
    ]
    return [_item(run, k) for k in np.flatnonzero(~np.logical_or.reduce(some))] if some else []


def _item(run: xr.Dataset, k: Any) -> str:
    """The name of an item or of its file, or else its number."""
    name = next((name for name in ("item_name", "file") if name in run.coords), None)
    # Which parts remarks.
    return (
        f"item {run.item.values[k]}" if name is None else str(run[name].values[k]).replace(";", ",")
    )


def _reference(run: xr.Dataset, name: str, rule: Any) -> xr.DataArray | None:
    """Start or chance of all levels of a variable, with its dims and possibly `item`; None if it
    is not known.
    """
    blank = (
        run[name]
        .isel({dim: 0 for dim in ("noise", *WITHIN) if dim in run[name].dims}, drop=True)
        .reset_coords(drop=True)
    )
    number: Any = np.nan
    if rule is None:
        return None
    if not isinstance(rule, str):
        number = float(rule)
    elif rule.startswith("same:"):
        number = _same(run, *named_in(rule))
    elif rule in run:
        named = run[rule].isel(noise=0, drop=True) if "noise" in run[rule].dims else run[rule]
        if named.dtype.kind not in "biuf" or not set(named.dims) <= {"item", *blank.dims}:
            which = f"{name}: type and dims of its start or chance {shown(rule)}"
            raise ValueError(
                f"{which} = {named.dtype}, {named.dims}: expected numbers, by item or by"
                f" {blank.dims}"
            )
        number = named.reset_coords(drop=True).astype(float)
    level = xr.zeros_like(blank, float) + number
    level = level.where(np.isfinite(level))
    return None if level.isnull().all() else level


def _same(run: xr.Dataset, name: str, other: str | None = None) -> float:
    """Probability that two labelled originals agree in a coordinate; for "same:a=b", share of
    those with a equal to b.
    """
    if name not in run or (other is not None and other not in run):
        return float("nan")
    named = [
        run[key].isel(noise=0).values if "noise" in run[key].dims else run[key].values
        for key in (name, other or name)
    ]
    if other is not None:
        if named[0].shape != named[1].shape or any(
            values.dtype.kind not in "biuf" for values in named
        ):
            raise ValueError(f"same:{name}={other}: expected two arrays of numbers with one shape")
        labelled = named[1] >= 0
        return float((named[0] == named[1])[labelled].mean()) if labelled.any() else float("nan")
    counts = np.unique(named[0][have_labels(named[0])], return_counts=True)[1]
    return float(np.sum((counts / counts.sum()) ** 2)) if len(counts) else float("nan")


def _curves(
    stacked: xr.DataArray,
    start: xr.DataArray | None,
    x: np.ndarray,
    how: Variable,
    confidence: float,
    centre: str,
) -> Iterator[tuple[Replicates, np.ndarray]]:
    """The mean curve of each level over the items that have it, with its start at noise 0, and
    its intervals.
    """
    if start is not None and "item" in start.dims and len(x) > stacked.sizes["noise"]:
        first = start.expand_dims(
            {
                dim: stacked.sizes[dim]
                for dim in stacked.dims
                if dim not in ("item", _LEVEL, "noise")
            }
        )
        first = first.expand_dims(noise=[0.0])
        stacked = xr.concat(
            [first, stacked.reset_coords(drop=True)], "noise", coords="minimal", compat="override"
        )
    there = (
        stacked.notnull()
        .any([dim for dim in stacked.dims if dim not in ("item", _LEVEL)])
        .transpose(_LEVEL, "item")
        .values
    )
    tops = (
        np.full(stacked.sizes[_LEVEL], np.nan)
        if start is None or "item" in start.dims
        else start.values
    )
    alike = bool((there == there[:1]).all())
    for levels in [np.arange(len(there))] if alike else np.arange(len(there))[:, None]:
        some = there[levels[0]] if there[levels[0]].any() else np.ones_like(there[0])
        values = stacked.isel({_LEVEL: levels, "item": some}).transpose(..., _LEVEL)
        of = curve(values, x, tops[levels], centre)
        bands = (
            shares(values, x, tops[levels], confidence)
            if how.is_share
            else band(of, *bounds_of(how), confidence)
        )
        for k in range(len(levels)):
            yield of._replace(mean=of.mean[:, k], deviations=of.deviations[:, :, k]), bands[:, k]


def _changes(of: Replicates, first: int) -> bool:
    """Whether a curve differs between its first and its last level; also if there is no interval
    of the paired difference.
    """
    _, low, high = of.interval(lambda c: c[-1] - c[first])
    return not low <= 0 <= high


def reaching(
    mean: np.ndarray, chance: float, axes: Axes, share: float
) -> Callable[[np.ndarray], float]:
    """A function: the first noise at which a curve like `mean` has gone a share of the way to
    chance (NaN: to its end).
    """
    finite, end = np.isfinite(axes.noise), mean[-1] if np.isnan(chance) else chance
    x, sign = axes.noise[finite], -1.0 if end > mean[0] else 1.0

    def statistic(c: np.ndarray) -> float:
        bottom = c[-1] if np.isnan(chance) else chance
        return crossing(
            x, sign * c[finite], sign * (bottom + (1 - share) * (c[0] - bottom)), first=True
        )

    return statistic


def _places(of: Replicates, top: float, chance: float, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Places (share, axis, estimate) and widths (axis, estimate); NaN without a start or for a
    single level.
    """
    x = axes.noise[np.isfinite(axes.noise)]
    if np.isnan(top) or len(x) < 3:
        return np.full((len(SHARES), len(axes.names), 3), np.nan), np.full(
            (len(axes.names), 3), np.nan
        )
    reached = partial(reaching, of.mean, chance, axes)

    def widths(c: np.ndarray) -> np.ndarray:
        ends = axes.convert(np.array([reached(SHARES[0])(c), reached(SHARES[-1])(c)]))
        return np.abs(ends[:, 1] - ends[:, 0])

    places = np.stack([axes.at(place(of, reached(share), x)) for share in SHARES])
    # Each place can lie anywhere between its two noise levels; the second place is not below the
    # first.
    brackets = axes.convert(np.ravel([levels_around(x, places[k, 0, 0]) for k in (0, -1)]))
    brackets *= np.where(brackets[:, 3:] < brackets[:, :1], -1, 1)
    with np.errstate(invalid="ignore"):
        value, low, high = of.interval(widths).T
        low = np.minimum(low, np.maximum(brackets[:, 2] - brackets[:, 1], 0))
        high = np.maximum(high, brackets[:, 3] - brackets[:, 0])
        most = [x[-1] if name == "noise" else np.inf for name in axes.names]
        return places, np.clip([value, low, high], 0, most).T


def _readings(levels: list[Level], axes: Axes) -> xr.Dataset:
    on_axes = {"axis": len(axes.names), "estimate": 3}
    sizes = {
        "curve": {"noise": len(axes.noise), "estimate": 3},
        "place": {"share": len(SHARES), **on_axes},
        "width": on_axes,
    }
    numbers = {
        key: (
            ("reading", *dims),
            np.array([getattr(level, key) for level in levels], float).reshape(-1, *dims.values()),
        )
        for key, dims in {**sizes, "start": {}, "chance": {}}.items()
    }
    names = ("reading", *TEXTS, "order", "remark")
    texts = {
        name: ("reading", np.array([level.texts[name] for level in levels], str)) for name in names
    }
    originals = "reading", np.array([level.originals for level in levels], int)
    labels = {"share": list(SHARES), "estimate": list(ESTIMATE)}
    readings = xr.Dataset(numbers, {**texts, **labels, "originals": originals})
    return readings.assign(half_life=readings.place.sel(share=0.5, drop=True))


def _inversions(
    run: xr.Dataset, instructions: dict[str, Variable], axes: Axes, centre: str
) -> xr.Dataset:
    """Noise beyond which the last level of each ordered series stays below the first, (series,
    axis, estimate).
    """
    finite, x = np.isfinite(axes.noise), axes.noise[np.isfinite(axes.noise)]
    places: list[np.ndarray] = []
    texts: list[tuple[str, ...]] = []  # name, first and last level, remark
    for name, how in instructions.items():
        if how.order is None or run.sizes[how.order] < 2:
            continue
        others = [str(dim) for dim in run[name].dims if dim not in ("noise", how.order, *WITHIN)]
        start = _reference(run, name, how.start)
        start = None if start is None or "item" in start.dims else start
        stacked, starts = (_stacked(array, others, _SERIES) for array in (run[name], start))
        for k in range(stacked.sizes[_SERIES]):
            values = stacked.isel({_SERIES: k}, drop=True)
            tops = np.nan if starts is None else starts.isel({_SERIES: k}).values
            of = curve(
                values.transpose(..., how.order),
                axes.noise,
                tops,
                "mean" if how.is_share else centre,
            )
            # A distance rises where a similarity falls.
            sign = -1.0 if of.mean[-1].sum() > of.mean[0].sum() else 1.0

            def difference(c: np.ndarray, sign: float = sign) -> np.ndarray:
                return sign * (c[finite, -1] - c[finite, 0])

            places.append(axes.at(place(of, lambda c: crossing(x, difference(c), 0.0), x)))
            # One test for the series: of two equal curves, .05 are below at some noise.
            tests = int((x > 0).sum())
            is_below = (
                of.interval(difference, 1 - 2 * _FALSE_INVERSIONS / max(tests, 1))[..., 2] < 0
            )
            remark = "" if is_below.any() else _NOT_SURE
            remark = "the levels do not swap order" if np.isnan(places[-1][0, 0]) else remark
            label = label_of(name, {dim: stacked[dim].values[k] for dim in others})
            texts.append(
                (label, str(run[how.order].values[0]), str(run[how.order].values[-1]), remark)
            )
    if not texts:
        return xr.Dataset()
    columns = zip(("series", "first", "last", "series_remark"), np.array(texts, str).T, strict=True)
    coords = {name: ("series", column) for name, column in columns}
    return xr.Dataset({"inversion": (("series", "axis", "estimate"), np.stack(places))}, coords)


# --- calibration ----------------------------------------------------------------------------------


def _families(
    run: xr.Dataset, instructions: dict[str, Variable]
) -> tuple[dict[str, list[str]], list[str]]:
    """The symmetric and ranked readings that are tested in each family, and those that lack
    readings for a test.
    """
    families: dict[str, list[str]] = {}
    not_tested = []
    for name, how in instructions.items():
        if (
            run.sizes.get("clone", 1) < 2
            or not (how.symmetric or how.ranked)
            or not twin_of(run, name)
        ):
            continue
        family = how.family or how.probe
        names = [*families.get(family, []), name]
        complete = items_tested(run, names)
        if not missing_tasks(run) and complete.sum() >= 2:
            families[family] = names
        elif not complete.all():
            not_tested.append(name)
    return families, not_tested


def _gaps(
    run: xr.Dataset, families: dict[str, list[str]], levels: list[Level], axes: Axes
) -> xr.Dataset:
    """Calibration gaps of symmetric and ranked readings (reading, noise, estimate), tested by
    families; empty without clones.
    """
    if not families:
        return xr.Dataset()
    tests = [calibration(run, names) for names in families.values()]
    joined = xr.concat(
        [test.drop_vars([key for key in test.coords if key not in test.dims]) for test in tests],
        "reading",
    )
    joined = joined.reindex(
        reading=[level.texts["reading"] for level in levels], noise=axes.noise
    ).transpose("reading", "noise")
    data = {
        "gap": (("reading", "noise", "estimate"), with_ends(joined, "gap")),
        "gap_p": (("reading", "noise"), joined.p_holm.values),
        "gap_visible": (("reading", "noise"), joined.visible.values),
        "gap_level": tests[0].attrs["level"],
    }
    return xr.Dataset(data, {"reading": joined.reading.values})


# --- remarks --------------------------------------------------------------------------------------


def _about(level: Level, axes: Axes, gone: str) -> Iterator[str]:
    """Remarks on numbers of a reading that do not exist or are uncertain, with the reasons;
    `gone` says which are missing.
    """
    x = axes.noise[np.isfinite(axes.noise)]
    half, end = level.place[1, 0], f"{axes.words['noise']} = {x[-1]:.3g}"
    if turn := level.moves.turn:
        yield turn
    if level.is_flat and level.moves.changes:
        yield "the last level does not differ from the first, though others do: no half-life"
    elif level.is_flat:
        first = axes.noise[int(level.instructions.guessed)]
        yield (
            f"no change between {first:.3g} and {axes.noise[-1]:.3g}: the 95 % interval of the"
            " difference holds 0"
        )
    elif np.isnan(level.start):
        yield (
            f"{'no start is given' if level.instructions.start is None else 'its start is not known'}:"
            " no half-life"
        )
    if np.isnan(level.start) or level.is_flat or len(x) < 3:
        return
    if level.chance == level.start:
        yield "chance equals the value without noise: no half-life"
    elif np.isnan(half[0]) and len(missing := x[np.isnan(level.curve[: len(x), 0])]):
        if not gone:
            yield (
                f"no readings at {axes.words['noise']} ="
                f" {', '.join(f'{noise:.3g}' for noise in missing[:4])}"
            )
    elif np.isnan(half[0]):
        value = np.interp(x[-1], axes.noise, level.curve[:, 0])
        yield f"less than half of the change occurs up to {end}, where it is {value:.3g}"
    elif half[0] < x[1]:
        yield (
            f"half of the change is done below the smallest measured noise, {x[1]:.3g}: measure"
            " smaller ones"
        )
    elif half[2] >= x[-1]:
        yield f"the interval of the half-life reaches the largest measured noise, {x[-1]:.3g}"
    elif np.isnan(level.place[2, 0, 0]):
        yield f"less than three quarters of the change occur up to {end}: no width"


def _remarks(
    run: xr.Dataset,
    axes: Axes,
    levels: list[Level],
    families: dict[str, list[str]],
    not_tested: list[str],
    has_changes: bool,
) -> Iterator[str]:
    for name, of in {level.texts["variable"]: level.instructions for level in levels}.items():
        for key, rule in (("start", of.start), ("chance", of.chance)):
            if not set(named_in(rule)) <= set(run.variables):
                yield f"{name}: its {key} {shown(rule)} is not in the run"
    for name in not_tested:
        yield f"the calibration of {name} is not tested: some of its readings are missing"
    for names in families.values():
        tested = items_tested(run, names)
        if left := int((~tested).sum()):
            yield (
                f"the calibration of {', '.join(names)} leaves out {left} of {len(tested)}"
                " originals: readings are missing"
            )
    if not levels and not has_changes:
        yield "nothing in the run has a curve"
    if missing := missing_tasks(run):
        yield f"the run is not finished: {missing} tasks are missing"
    elif empty := _without_readings(run, {level.texts["variable"] for level in levels}):
        others = f" and {len(empty) - _MOST_NAMED} more" if len(empty) > _MOST_NAMED else ""
        yield f"no readings of {', '.join(empty[:_MOST_NAMED])}{others}"
    if np.isfinite(axes.noise).sum() < 3:  # noise 0 is counted
        yield "fewer than two finite noise levels above 0: no places on the curves"
    if run.sizes["item"] == 1:
        yield "a single original: no intervals"
    largest = float(run.noise[-1])
    most = axes.most if "max" in run.noise.attrs or "t_over_T" in run.coords else None
    if (
        any(np.isnan(level.chance) and np.isfinite(level.start) for level in levels)
        and most != largest
    ):
        yield (
            f"where chance is not known, the value at noise {largest:.3g} is used as the chance"
            " level"
        )
