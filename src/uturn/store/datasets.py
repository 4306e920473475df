"""Atomic writing of labelled datasets to zarr folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uturn.core.files import whole_folder

if TYPE_CHECKING:
    import xarray as xr


def write_dataset(data: xr.Dataset, path: str | Path) -> None:
    """Write a dataset to a zarr folder, replacing an existing one; ValueError if it cannot be written."""
    # zarr does not specify numpy's fixed-length text, nor lone surrogates, which file names may contain.
    valid = np.vectorize(lambda text: str(text).encode(errors="backslashreplace").decode(), otypes=[object])
    text = {
        key: values.copy(data=valid(values.values).astype(np.dtypes.StringDType()))
        for key, values in data.variables.items()
        if values.dtype.kind == "U"
    }
    # Written in one step: an unfinished folder would be read as missing values.
    with whole_folder(path) as unfinished, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.assign(text).to_zarr(unfinished, mode="w", zarr_format=3, consolidated=True)
