"""Make figures: measure, analyse, draw, and write what comes out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uturn.checks import checked_folder
from uturn.datasets import write_dataset
from uturn.files import whole_file
from uturn.paper.page import write_report
from uturn.paper.registry import FIGURES, Figure, load_figure
from uturn.paper.results import Result, save_result
from uturn.paper.workshop import Scale, Workshop

if TYPE_CHECKING:
    import xarray as xr

    from uturn.paper.verdicts import Verdict


def reproduce(
    figures: Sequence[str],
    out: str | Path,
    scale: Scale = "smoke",
    workers: int | None = None,
    progress: bool = False,
    announce: Callable[[str], None] = lambda text: None,
    cluster: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Measure, analyse and draw figures of the paper; what a previous call finished is not computed again.

    Writes for each figure `out/<figure>.png`, `.pdf`, `.json` (verdicts) and `.zarr` (the labelled data of the plot), the raw
    runs under `out/<scale>/`, and after each figure the page `out/index.html`. `cluster`: arguments of `uturn.run` for a cluster.

    Raises
    ------
    ValueError
        For an unknown figure or scale, before anything is computed.
    """
    unknown = [name for name in figures if name not in FIGURES]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}; expected some of {', '.join(FIGURES)}")
    if scale not in ("smoke", "paper"):
        raise ValueError(f"scale = {scale!r}: expected 'smoke' or 'paper'")
    out = Path(checked_folder("out", out))
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from None
    workshop = Workshop(scale, out / scale, workers, progress, cluster or {})
    results = []
    for name in dict.fromkeys(figures):
        figure = load_figure(name)
        announce(f"{name}: {figure.TITLE}")
        results.append(_make(name, figure, workshop, out))
        write_report(out)
    return results


def _make(name: str, figure: Figure, workshop: Workshop, out: Path) -> Result:
    """Make one figure and write its files."""
    start = time.monotonic()
    data, verdicts = figure.analyse(figure.measure(workshop))
    verdicts = verdicts + channel_verdicts(figure, workshop)
    files = _save(out, name, data, figure.draw(data))
    result = Result(name, figure.TITLE, figure.CAPTION, workshop.scale, verdicts, files, time.monotonic() - start)
    save_result(result, out)
    return result


def channel_verdicts(figure: Figure | Any, workshop: Workshop) -> list[Verdict]:
    """Verdicts on the channels that a figure names, if any."""
    from uturn.paper.channels import verdicts

    return verdicts(figure.channels(workshop.scale), workshop)


def _save(out: Path, name: str, data: xr.Dataset, figure: Any) -> dict[str, str]:
    import matplotlib.pyplot as plt

    write_dataset(data, out / f"{name}.zarr")
    for ending in ("png", "pdf"):
        with whole_file(out / f"{name}.{ending}") as file:
            figure.savefig(file, format=ending)
    plt.close(figure)
    return {"png": f"{name}.png", "pdf": f"{name}.pdf", "data": f"{name}.zarr"}
