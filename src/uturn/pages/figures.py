"""Sections of a page for figures that `uturn reproduce` made: verdicts, curves, pictures, and the runs they come from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from uturn.core.files import check_plain
from uturn.pages.charts import charts_of, mark, number
from uturn.pages.pictures import images_of_figure, preview
from uturn.pages.trees import tree_of_figure, tree_of_store

if TYPE_CHECKING:
    import xarray as xr

    from uturn.pages.collect import Reader


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True)

    quantity: str
    measured: str
    expected: str
    passed: bool | None
    rule: str = ""
    measurements: list[str] = []


class _Result(BaseModel):
    """A file `figN.json`; what it has besides belongs to another version and is not shown."""

    model_config = ConfigDict(strict=True)

    figure: str
    title: str
    caption: str
    scale: str
    verdicts: list[_Verdict]
    files: dict[str, str]
    seconds: float = 0.0
    claim: str = ""


class Tally(NamedTuple):
    """Numbers of verdicts: `independent` of the judged ones rest on a measurement that no other of them has."""

    judged: int
    failed: int
    independent: int
    shown: int

    @property
    def words(self) -> str:
        """Such as "150 of 150 verdicts passed, on 139 independent measurements; shown and not judged: 9"."""
        said = f"{self.judged - self.failed} of {self.judged} verdicts passed"
        if self.independent < self.judged:
            said += f", on {self.independent} independent measurements"
        return said + (f"; shown and not judged: {self.shown}" if self.shown else "")


def tally(verdicts: Sequence[Mapping[str, Any]]) -> Tally:
    """Count verdicts. Figures that share a check of a channel repeat a verdict: what others have measured counts once."""
    judged = [one for one in verdicts if one["passed"] is not None]
    measured: set[str] = set()
    independent = 0
    for one in sorted(judged, key=lambda one: -len(one["measurements"])):  # the widest first: the others may be a part of it
        independent += not one["measurements"] or not measured.issuperset(one["measurements"])
        measured.update(one["measurements"])
    failed = sum(not one["passed"] for one in judged)
    return Tally(len(judged), failed, independent, len(verdicts) - len(judged))


def is_figure(path: Path) -> bool:
    """Whether a JSON file is the result of a figure, or a damaged one of this name."""
    if not (path.with_suffix(".png").exists() or path.with_suffix(".zarr").exists()):
        return re.fullmatch(r"fig\d+", path.stem) is not None
    return True


def order(path: Path) -> tuple[bool, int, str]:
    """fig2, fig3, .., fig15, then the others by name."""
    found = re.fullmatch(r"fig(\d+)", path.stem)
    return (found is None, int(found[1]) if found else 0, path.stem)


def figure_section(path: Path, read: Reader) -> dict[str, Any]:
    """The section of a figure; ValueError if its JSON file is damaged."""
    result = _Result.model_validate_json(path.read_bytes())
    # The page reads these files and links to them, so they must be plain names: no script, no other folder.
    names = [result.scale, *result.files.values()]
    if result.figure != path.stem or not all(re.fullmatch(r"\w[\w.-]*", name) for name in names):
        raise ValueError(
            f"figure = {result.figure!r}, scale = {result.scale!r}, files = {result.files}: expected the figure {path.stem!r}, "
            f"and names in its folder"
        )
    files = {kind: path.parent / name for kind, name in result.files.items()}
    found = re.fullmatch(r"(?:fig)?(S?\d+)", result.figure, re.IGNORECASE)
    verdicts = [verdict.model_dump() for verdict in result.verdicts]
    count = tally(verdicts)
    judged = f"{count.judged} verdicts, " + (f"{count.failed} failed" if count.failed else "all passed")
    judged += f"; {count.shown} more shown" if count.shown else ""
    one: dict[str, Any] = {
        "id": re.sub(r"[^\w-]", "-", result.figure),
        "kind": "figure",
        "title": f"Figure {found[1].upper()}. {result.title}" if found else result.title,
        "short": result.figure,
        "words": result.claim,
        "facts": f"{judged}; scale {result.scale}, {result.seconds:.0f} s.",
        "caption": result.caption,
        "verdicts": verdicts,
        "docs": "figures",
        "headlines": [],
        "charts": [],
        "files": [files[kind] for kind in ("pdf", "data") if kind in files and files[kind].exists()],
        "pictures": [],
        "details": _runs(path.parent / result.scale, result.figure, read),
    }
    if "png" in files and files["png"].exists():
        with read.part(files["png"]):
            one["pictures"].append(preview(files["png"], read.detail, "figure"))
    if "data" in files and files["data"].exists():
        with read.part(files["data"]):
            data = read.dataset(files["data"])
            one["charts"] = charts_of(data)
            _add_transition(one, data)
            one["grid"] = images_of_figure(data, read.detail)
            one["tree"] = _tree(path.parent / result.scale, result.figure, read) or tree_of_figure(data)
    return one


def _add_transition(one: dict[str, Any], data: xr.Dataset) -> None:
    """t* as a headline and in the charts, if the data have it; ε* of mean-field theory as a mark."""
    charts = [chart for chart in one["charts"] if chart["slides"]]
    star = [number(data.attrs.get(name, float("nan"))) for name in ("transition", "transition_low", "transition_high")]
    if star[0] is not None:
        axis = charts[0]["axes"][0]["words"] if charts else "noise"
        count = tally(one["verdicts"])
        supported = f"{one['words']} {count.judged - count.failed} of {count.judged} verdicts passed" if one["words"] else ""
        words = "half of the class is lost there"
        one["headlines"].append({"label": "t*", "axis": axis, "place": star, "claim": words, "supports": supported})
        for chart in charts:
            chart["marks"].append(mark("t*", {"noise": star}))
    if "critical_noise" in data.attrs:
        for chart in charts:
            chart["marks"].append(mark("ε* (mean field)", {"noise": [float(data.attrs["critical_noise"])] + [float("nan")] * 2}))


def _tree(folder: Path, figure: str, read: Reader) -> dict[str, Any] | None:
    """The tree of a raw run of a figure that has readings of single nodes; None if there is none."""
    for store in _stores(folder, figure):
        if (store / "node_belief").is_dir():
            with read.part(store):
                check_plain(store)
                from uturn.store.record import Store

                tree = tree_of_store(Store.open(store).dataset())
                return None if tree is None else tree | {"run": store.stem}
    return None


def _runs(folder: Path, figure: str, read: Reader) -> list[dict[str, str]]:
    """Spec hash, versions and spec of the raw runs of a figure."""
    found = []
    for store in _stores(folder, figure):
        with read.part(store):
            check_plain(store / "zarr.json")
            attributes = json.loads((store / "zarr.json").read_bytes()).get("attributes", {})
            if "spec" in attributes:
                found.append({"name": store.name, **read.about(attributes, store)})
    return found


def _stores(folder: Path, figure: str) -> list[Path]:
    """The raw runs of a figure, in a folder that is no link to another one."""
    return [] if folder.is_symlink() else sorted(folder.glob(f"{figure}-*.zarr"))
