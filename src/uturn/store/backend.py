"""Runs as xarray opens them, by an entry point of the group "xarray.backends"."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xarray as xr
from xarray.backends import BackendEntrypoint

from uturn.store.reading import open_run
from uturn.store.run_file import NAME


class RunBackend(BackendEntrypoint):
    """Opens runs by `xarray.open_dataset("runs/x", engine="uturn")`."""

    description = "Runs of uturn"

    def open_dataset(
        self,
        filename_or_obj: Any,  # noqa: ANN401 - as xarray passes it
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.Dataset:
        return open_run(filename_or_obj).drop_vars(drop_variables or [])

    def guess_can_open(self, filename_or_obj: object) -> bool:
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return Path(filename_or_obj, NAME).is_file()
