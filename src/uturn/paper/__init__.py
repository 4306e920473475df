"""The figures of arXiv:2402.16991 and what goes beyond them, one module each: measurement, analysis with verdicts, drawing.

A figure module has `TITLE`, `CAPTION`, `analyse(runs)` and `draw(data)`, and says what is to be measured in one of two ways:
`experiments(scale)` gives U-turn experiments by label; `measure(work)` computes anything else (trained networks, population
dynamics) with the tools of `Work`. `reproduce` does the rest. A module whose figure rests on a Bayesian channel names it in
`channels(scale)`: the law of its noise and the calibration of its posterior draws are verdicts of the figure, too.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from uturn.checks import checked_folder, one_line
from uturn.files import named_errors, whole_file

if TYPE_CHECKING:
    import xarray as xr

    from uturn.experiment import Experiment

FIGURES = (
    *("fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "fig10", "fig11", "fig12", "fig13", "fig14", "fig15"),
    *("s9", "controls", "learning", "schedulers", "thresholds"),
)
# The order in which all of them are made: those that take seconds first, those that train or denoise images last.
ORDER = (
    *("fig7", "fig9", "fig10", "fig4", "fig11", "fig12", "fig13", "fig14", "fig6", "fig3", "fig5", "fig15", "s9"),
    *("fig8", "controls", "schedulers", "thresholds", "fig2", "learning"),
)
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


@dataclass(frozen=True)
class Work:
    """Where and how a figure does its work: what it finished is kept in `folder`, and found there by the next call."""

    scale: Scale
    folder: Path
    workers: int | None = None
    progress: bool = False

    def run(self, label: str, experiment: Experiment) -> xr.Dataset:
        """The results of an experiment, run into `folder/label.zarr` or what is left of it."""
        from uturn.experiment import run

        return run(experiment, self.folder / f"{label}.zarr", workers=self.workers, progress=self.progress)

    def keep(self, label: str, settings: Mapping[str, Any], compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        """What `compute()` returns, kept in `folder/label.zarr` with its settings (plain data) and computed once for them."""
        import xarray as xr

        path, identity = self.folder / f"{label}.zarr", json.dumps(settings, sort_keys=True)
        if path.exists():
            try:
                kept = xr.open_zarr(path, zarr_format=3).load()
                if kept.attrs.get("settings") == identity and kept.attrs.get("digest") == _digest(kept):
                    return kept
            except (OSError, ValueError, KeyError, RuntimeError):
                pass  # damaged: computed again
        data = compute()
        data = data.assign_attrs(settings=identity, digest=_digest(data))
        write_dataset(data, path)
        return data


def _digest(data: xr.Dataset) -> str:
    """SHA-256 of all values and labels: a chunk that got lost would read as missing values."""
    digest = hashlib.sha256()
    for name in sorted(map(str, data.variables)):
        values = data[name].values
        text = values.dtype.kind not in "biufc"
        digest.update(f"{name} {values.shape}".encode() + (repr(values.tolist()).encode() if text else values.tobytes()))
    return digest.hexdigest()


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
    from uturn.paper.page import write_report

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
    results = []
    for name in dict.fromkeys(figures):
        start = time.monotonic()
        module = importlib.import_module(f"uturn.paper.{name}")
        announce(f"{name}: {module.TITLE}")
        work = Work(scale, out / scale, workers, progress)
        data, verdicts = module.analyse(measure(module, work))
        verdicts = verdicts + channel_verdicts(module, work)
        files = _save(out, name, data, module.draw(data))
        result = Result(name, module.TITLE, module.CAPTION, scale, verdicts, files, time.monotonic() - start)
        with whole_file(out / f"{name}.json") as file:
            file.write(json.dumps(asdict(result), indent=1, ensure_ascii=False).encode())
        results.append(result)
        write_report(out)
    return results


def measure(module: Any, work: Work) -> dict[str, xr.Dataset]:
    """What the analysis of a figure needs: {label: dataset}."""
    if hasattr(module, "measure"):
        return module.measure(work)
    # A figure made from the runs of another one names it in RUNS.
    figure = getattr(module, "RUNS", module.__name__.rpartition(".")[2])
    return {label: work.run(f"{figure}-{label}", experiment) for label, experiment in module.experiments(work.scale).items()}


def channel_verdicts(module: Any, work: Work) -> list[Verdict]:
    """Verdicts on the channels that a figure names, if any."""
    from uturn.paper.channels import verdicts

    return verdicts(module.channels(work.scale), work) if hasattr(module, "channels") else []


def load_results(out: str | Path) -> list[Result]:
    """Results of all figures found in an output folder."""
    from uturn.spec import validation_words

    results = []
    for name in FIGURES:
        path = Path(out) / f"{name}.json"
        if path.exists():
            try:
                result = TypeAdapter(Result).validate_json(path.read_bytes())
                # Pages link to these files, which lie beside them: never a script, never another folder.
                if result.figure != name or not all(re.fullmatch(r"\w[\w.-]*", file) for file in result.files.values()):
                    raise ValueError(f"figure {result.figure!r} with files {result.files}")
                if not {"png", "pdf", "data"} <= result.files.keys():
                    raise ValueError("files are missing")
                results.append(result)
            except (ValueError, OSError) as error:
                words = validation_words(error) if isinstance(error, ValidationError) else one_line(error)
                raise ValueError(f"{path} is damaged ({words}); run `uturn reproduce {name}` again") from None
    return results


def _save(out: Path, name: str, data: xr.Dataset, figure: Any) -> dict[str, str]:
    import matplotlib.pyplot as plt

    write_dataset(data, out / f"{name}.zarr")
    for ending in ("png", "pdf"):
        with whole_file(out / f"{name}.{ending}") as file:
            figure.savefig(file, format=ending)
    plt.close(figure)
    return {"png": f"{name}.png", "pdf": f"{name}.pdf", "data": f"{name}.zarr"}


def write_dataset(data: xr.Dataset, path: Path) -> None:
    """Write a labelled dataset to a new zarr folder, in place of what is there."""
    import shutil

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
