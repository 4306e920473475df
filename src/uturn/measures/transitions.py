"""Class transitions: how often the U-turns of originals of one class end in another."""

from __future__ import annotations

import numpy as np
import xarray as xr


def class_transitions(run: xr.Dataset, name: str = "", num_classes: int | None = None) -> xr.DataArray:
    """Class transition matrices of a run of images: how often an original of one class is rebuilt as another.

    Entry (noise, a, b): of the reconstructions of all originals that the classifier assigns to class a, the share that it assigns
    to class b. Rows sum to 1; rows without items are NaN. U-turns that are not finished do not count.

    Parameters
    ----------
    run
        Results with `original_class` and `predicted_class` (probe `network_layers` on images). They are read one noise level at a
        time; the matrices take 4 num_classes^2 bytes a level (4 MB for 1,000 classes), so select levels of a long run first.
    name
        Name of the classifier, if the probe has one.
    num_classes
        By default the largest class in the run, plus 1.

    Returns
    -------
    DataArray float32 (noise, original_class, predicted_class), with the coordinate `count` (noise, original_class): number of
    reconstructions in a row.

    Raises
    ------
    ValueError
        If the run has no such variables, or classes beyond `num_classes`.
    """
    prefix = f"{name}_" if name else ""
    variables = [f"{prefix}original_class", f"{prefix}predicted_class"]
    if not set(variables) <= set(run):
        names = sorted(v.removesuffix("original_class").rstrip("_") for v in map(str, run) if v.endswith("original_class"))
        raise ValueError(
            f"name = {name!r}: the run has no variables {variables}; expected results of the probe network_layers on images, "
            f"with one of the names {names}"
        )
    before, after = run[variables[0]].transpose("noise", "item"), run[variables[1]].transpose("noise", "item", "trajectory")
    if num_classes is None:
        num_classes = int(max(np.fmax.reduce(values, axis=None, initial=-1) for values in (before.values, after.values))) + 1
    shares = np.full((run.sizes["noise"], num_classes, num_classes), np.nan, np.float32)
    counts = np.zeros((run.sizes["noise"], num_classes), np.int64)
    for k in range(run.sizes["noise"]):
        first, second = np.broadcast_arrays(before[k].values[:, None], after[k].values)
        done = np.isfinite(first) & np.isfinite(second)
        pairs = np.stack([first[done], second[done]]).astype(np.int64)
        if pairs.max(initial=-1) >= num_classes:
            raise ValueError(f"num_classes = {num_classes}, but the run has class {pairs.max()}; expected more, or None")
        table = np.bincount(pairs[0] * num_classes + pairs[1], minlength=num_classes**2).reshape(num_classes, num_classes)
        counts[k] = table.sum(axis=1)
        np.divide(table, counts[k][:, None], out=shares[k], where=counts[k][:, None] > 0, casting="unsafe")
    classes = {dim: np.arange(num_classes) for dim in ("original_class", "predicted_class")}
    return xr.DataArray(
        shares,
        {"noise": run.noise, **classes, "count": (("noise", "original_class"), counts)},
        ("noise", *classes),
        name=f"{prefix}class_transitions",
        attrs={"long_name": "share of the reconstructions of a class"},
    )
