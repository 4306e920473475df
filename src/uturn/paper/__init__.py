"""The figures of arXiv:2402.16991, one module each: its experiments, its analysis with verdicts, its drawing.

A figure module has `TITLE`, `CAPTION`, `experiments(scale)`, `analyse(runs)` and `draw(data)`; `reproduce` does the rest.
"""

from __future__ import annotations

import importlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

FIGURES = ("fig2", "fig5", "fig6", "fig7")
Scale = Literal["smoke", "paper"]


@dataclass(frozen=True)
class Verdict:
    """One number of a figure against what theory or paper expects of it.

    `measured` and `expected` are texts with units and intervals; `passed` is the comparison that was made, `rule` says which.
    """

    quantity: str
    measured: str
    expected: str
    passed: bool
    rule: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed", bool(self.passed))  # numpy's own bool is not JSON


@dataclass
class Result:
    """A reproduced figure: its verdicts and where its files are (paths relative to the output folder)."""

    figure: str
    title: str
    caption: str
    scale: str
    verdicts: list[Verdict]
    files: dict[str, str]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(verdict.passed for verdict in self.verdicts)


def reproduce(
    figures: Sequence[str],
    out: str | Path,
    scale: Scale = "smoke",
    workers: int | None = None,
    progress: bool = False,
    announce: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Run, analyse and draw figures of the paper; what a previous call finished is not computed again.

    Writes, for each figure, `out/<figure>.png`, `.pdf`, `.json` (verdicts), `<figure>.zarr` (the labelled data of the plot),
    and under `out/<scale>/` the raw runs; then `out/index.html`.

    Raises
    ------
    ValueError
        For an unknown figure or scale, before anything is computed.
    """
    from uturn.experiment import run
    from uturn.report import write_report

    unknown = [name for name in figures if name not in FIGURES]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}; expected some of {', '.join(FIGURES)}")
    if scale not in ("smoke", "paper"):
        raise ValueError(f"scale = {scale!r}: expected 'smoke' or 'paper'")
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write to {out}: {error.strerror}; choose another folder") from None
    results = []
    for name in dict.fromkeys(figures):
        start = time.monotonic()
        module = importlib.import_module(f"uturn.paper.{name}")
        announce(f"{name}: {module.TITLE}")
        runs = {
            label: run(experiment, out / scale / f"{name}-{label}.zarr", workers=workers, progress=progress)
            for label, experiment in module.experiments(scale).items()
        }
        data, verdicts = module.analyse(runs)
        files = _save(out, name, data, module.draw(data))
        result = Result(name, module.TITLE, module.CAPTION, scale, verdicts, files, time.monotonic() - start)
        (out / f"{name}.json").write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False), encoding="utf-8")
        results.append(result)
        write_report(out)
    return results


def load_results(out: str | Path) -> list[Result]:
    """Results of all figures found in an output folder."""
    results = []
    for name in FIGURES:
        path = Path(out) / f"{name}.json"
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                stored["verdicts"] = [Verdict(**verdict) for verdict in stored["verdicts"]]
                results.append(Result(**stored))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path} is damaged ({error}); run `uturn reproduce {name}` again") from None
    return results


def _save(out: Path, name: str, data: xr.Dataset, figure: Any) -> dict[str, str]:
    import shutil

    import matplotlib.pyplot as plt

    # Variable-length text: zarr has no specification for numpy's fixed-length one.
    text = {key: coord.astype(np.dtypes.StringDType()) for key, coord in data.coords.items() if coord.dtype.kind == "U"}
    data = data.assign_coords(text)
    shutil.rmtree(out / f"{name}.zarr", ignore_errors=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        data.to_zarr(out / f"{name}.zarr", mode="w", consolidated=True)
    for ending in ("png", "pdf"):
        figure.savefig(out / f"{name}.{ending}")
    plt.close(figure)
    return {"png": f"{name}.png", "pdf": f"{name}.pdf", "data": f"{name}.zarr"}
