"""Labelled datasets as zarr folders."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from uturn.files import named_errors

if TYPE_CHECKING:
    import xarray as xr


def write_dataset(data: xr.Dataset, path: Path) -> None:
    """Write a labelled dataset to a new zarr folder, in place of what is there."""
    # Variable-length text: zarr has no specification for numpy's fixed-length one.
    text = {key: coord.astype(np.dtypes.StringDType()) for key, coord in data.coords.items() if coord.dtype.kind == "U"}
    data = data.assign_coords(text)
    # Whole or not at all: a half-written folder reads as missing values.
    unfinished = path.with_name(f"{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with named_errors(path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.to_zarr(unfinished, mode="w", consolidated=True)
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
