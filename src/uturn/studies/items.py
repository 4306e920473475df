"""The originals of a run one by one: their readings at each noise level, and the noise at which half of the change is done."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from uturn.measures.calibration import label_of
from uturn.measures.statistics import WITHIN, crossing
from uturn.studies.analysis import by_noise
from uturn.studies.headline import headline_of
from uturn.studies.runs import NAMES, class_names_of, item_names

if TYPE_CHECKING:
    import pandas
    import xarray as xr

MOST_ITEMS = 10_000  # of a run whose originals are listed
_MOST_LEVELS = 24  # of a variable that is listed
HALF_LIFE = "half_life of "


def items_of(run: xr.Dataset, study: xr.Dataset) -> pandas.DataFrame:
    """A row for each original of a run: the content of `items.csv`.

    Columns: `item`, its number; `name`, that of the original or of its file; `half_life of R`, the smallest noise at which the
    original's own curve of R, the reading of the headline, is halfway from start to chance (for a class the noise at which the
    original loses it; empty if it keeps it); coordinates of originals, such as `label`; `R at X`, the mean of each reading R over
    trajectories and clones at each noise X. Variables with more than 24 levels are left out.
    """
    import pandas

    run, headline = by_noise(run), headline_of(study)
    columns = {"item": run.item.values, "name": item_names(run, np.arange(run.sizes["item"]), class_names_of(run))}
    others = {str(name): of.values for name, of in run.coords.items() if of.dims == ("item",) and name not in ("item", *NAMES)}
    table: dict[str, np.ndarray] = {}
    first = study.variable.values[study.reading.values == (headline and headline.reading)].tolist()
    for name in dict.fromkeys([*first, *study.variable.values.tolist()]):
        means = run[name].mean([dim for dim in WITHIN if dim in run[name].dims and dim != "item"])
        dims = [str(dim) for dim in means.dims if dim not in ("noise", "item")]
        if np.prod([means.sizes[dim] for dim in dims]) > _MOST_LEVELS:
            continue
        for at in np.ndindex(*(means.sizes[dim] for dim in dims)):
            place = dict(zip(dims, at, strict=True))
            label = label_of(name, {dim: run[name][dim].values[k] for dim, k in place.items()})
            curves = means.isel(place).transpose("noise", "item").values
            if headline is not None and headline.reading == label:
                columns[f"{HALF_LIFE}{label}"] = _half_lives(curves, study.sel(reading=label))
            table |= {f"{label} at {noise:.6g}": row for noise, row in zip(run.noise.values, curves, strict=True)}
    return pandas.DataFrame(columns | others | table)


def _half_lives(curves: np.ndarray, reading: xr.Dataset) -> np.ndarray:
    """Smallest noise at which each of the curves (noise, item) is halfway from start to chance; NaN if it never is."""
    start, chance, x = float(reading.start), float(reading.chance), reading.noise.values
    chance = float(reading.curve[-1, 0]) if np.isnan(chance) else chance
    sign, height = -1.0 if chance > start else 1.0, (start + chance) / 2
    curves = np.concatenate([np.full((len(x) - len(curves), curves.shape[1]), start), curves])
    there = np.isfinite(curves) & np.isfinite(x)[:, None]
    pairs = zip(sign * curves.T, there.T, strict=True)
    return np.array([crossing(x[known], of[known], sign * height, first=True) for of, known in pairs])
