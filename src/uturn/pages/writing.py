"""Files of a study in its folder of results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uturn.core.files import whole_file
from uturn.store.outputs import OutputFolder, output_folder


def check_results(out: OutputFolder) -> None:
    """ValueError if results cannot be written to a folder."""
    if out.path.exists() and not out.path.is_dir():
        raise ValueError(f"out = {out.where!r} is a file; expected a folder")
    if "zarr.json" in out.names(""):
        raise ValueError(f"out = {out.where!r} is a store itself; choose another folder")


def named_in(out: str | Path, names: Sequence[str]) -> list[str]:
    """Those of some names that are in a folder or at a URL."""
    with output_folder("out", out) as folder:
        there = folder.names("")
    return [name for name in names if name in there]


def write_figures(folder: Path, figures: Mapping[str, Callable[[], Any]]) -> None:
    """Draw figures to PNG and PDF files of the given names; those of a figure that is None are removed."""
    from uturn.studies.plotting.style import style

    logging.getLogger("fontTools").setLevel(logging.ERROR)  # suppresses warnings about the dates of fonts
    with style() as plt:
        for name, draw in figures.items():
            figure = draw()
            for path in (folder / f"{name}.png", folder / f"{name}.pdf"):
                if figure is None:
                    path.unlink(missing_ok=True)  # of an earlier run, which had more to draw
                else:
                    with whole_file(path) as file:
                        figure.savefig(file, format=path.suffix[1:])
            if figure is not None:
                plt.close(figure)
