"""An atlas: U-turns of many models of images, with their transitions on one axis, log-SNR.

rows = read_atlas("examples/atlas/here.toml")       # a file describes the models, one row each (`AtlasRow`)
table = measure_atlas(rows, "results/atlas")        # each row is a run of `uturn images` in a store of its own
table.transition                                    # (entry, estimate), in nats
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from uturn.core.checks import checked_path, described, expect, one_line, shown
from uturn.core.files import clear_caches, named_errors, read_table, whole_file
from uturn.core.progress import duration
from uturn.engine.run import run
from uturn.pages import write_page
from uturn.pages.results import check_results, write_figures
from uturn.presets.images import ImageOptions
from uturn.store.outputs import output_folder, write_dataset
from uturn.studies.tables import TextTable
from uturn.tools.atlas.figure import draw_atlas
from uturn.tools.atlas.numbers import PATCHES, entry_of, largest_eigenvalue_of, numbers_of, table_of, to_csv

RESULTS = ("index.html", "atlas.zarr", "atlas.csv", "atlas.png", "atlas.pdf")
_PATHS = (  # options that may be paths
    *("model", "data", "labels", "classes", "classifiers", "weights"),
    *("perceptual", "perceptual_linear", "prompt", "class_prompts"),
)


class AtlasRow(ImageOptions):
    """A row of an atlas: the options of `uturn images`, and the following.

    `name`: of its store, unique in the file. `title`: its label in the figure, by default the name. `group`: its heading in the
    figure. `like`: name of an earlier row that supplies the options and facts missing from this row. `patch`: side of the patches
    of pixels whose changes give chi and xi, with several trajectories. `facts`: texts or numbers for the table of results, such
    as licence, parameters, gpu_hours; in the figure, `data` sets the colour of a row and `kind` its marker.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ImageOptions.panels,
        "Row": ("name", "title", "group", "like", "patch", "facts"),
    }

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=80)
    title: str = ""
    group: str = ""
    like: str = ""
    patch: int = Field(4, ge=1)
    facts: dict[str, str | int | FiniteFloat] = Field({})

    def _probes(self) -> list[dict[str, Any]]:
        changes = {"type": "changes", "name": PATCHES, "patch": self.patch}
        return super()._probes() + ([changes] if self.trajectories > 1 else [])


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    defaults: dict[str, Any] = {}
    models: list[dict[str, Any]] = Field(min_length=1)


def read_atlas(path: str | Path) -> list[AtlasRow]:
    """The rows of an atlas file (TOML): `[[models]]`, one table a row, and `[defaults]`, options of all rows.

    Paths are relative to the folder of the file; values that name nothing there (hub ids) are passed through unchanged.
    """
    path = Path(checked_path("atlas", path))
    try:
        return _rows(_File.model_validate(read_table(path)), path.parent)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the atlas {path}: {one_line(error, 1000)}") from None


def _rows(file: _File, folder: Path) -> list[AtlasRow]:
    expect(not {"name", "like"} & file.defaults.keys(), "defaults", sorted(file.defaults), "options, without name and like")
    rows: dict[str, AtlasRow] = {}
    tables: dict[str, dict[str, Any]] = {}
    for number, table in enumerate(file.models, 1):
        try:
            base = file.defaults
            if like := table.get("like"):
                expect(like in tables, "like", like, f"the name of a row before it: {', '.join(tables) or 'none'}")
                base = tables[like]
            merged = {**{key: value for key, value in base.items() if key not in ("name", "title")}, **table}
            if isinstance(merged.get("facts"), dict):
                merged["facts"] = {**base.get("facts", {}), **merged["facts"]}
            row = AtlasRow.from_dict({key: _placed(key, value, folder) for key, value in merged.items()})
            is_free = row.name.casefold() not in {"atlas", *rows}  # some file systems ignore case
            expect(is_free, "name", row.name, "another name; NAME.zarr is taken")
        except (ValueError, TypeError) as error:
            raise ValueError(f"models, row {number} (name = {shown(table.get('name'))}): {error}") from None
        rows[row.name.casefold()], tables[row.name] = row, merged
    return list(rows.values())


def _placed(key: str, value: Any, folder: Path) -> Any:
    """The absolute path of an option that names a file or folder in this folder; other values are returned unchanged."""
    if isinstance(value, list):
        return [_placed(key, one, folder) for one in value]
    is_text = key == "prompt" and not str(value).endswith(".txt")
    if key not in _PATHS or not isinstance(value, str) or value in ("", "fashion_mnist", "generated") or is_text:
        return value
    kind, place = ("clip:" if value.startswith("clip:") else ""), value.removeprefix("clip:")
    return f"{kind}{os.path.abspath(folder / place)}" if os.path.exists(folder / place) else value


def chosen(rows: Sequence[AtlasRow], only: Sequence[str]) -> list[AtlasRow]:
    names = [row.name for row in rows]
    expect(set(only) <= set(names), "only", list(only), f"some of {', '.join(names)}")
    return [row for row in rows if not only or row.name in only]


def listed(rows: Sequence[AtlasRow]) -> TextTable:
    facts = list(dict.fromkeys(name for row in rows for name in row.facts))
    heads = ("name", "model", "scheduler, steps", "U-turns", *(name.replace("_", " ") for name in facts))
    lines = []
    for row in rows:
        levels = row.levels if isinstance(row.levels, int) else len(row.levels)
        u_turns = row.items * row.trajectories * row.clones * levels
        of_facts = (str(row.facts.get(name, "")) for name in facts)
        lines.append((row.name, Path(row.model).name, f"{row.scheduler}, {row.steps}", f"{u_turns:,}", *of_facts))
    return TextTable("", heads, lines)


def measure_atlas(
    rows: Sequence[AtlasRow], out: str | Path, *, announce: Callable[[str], object] = lambda text: None, **options: Any
) -> xr.Dataset:
    """Run the rows of an atlas, one after the other, each into its own store, and write the table and the figure.

    Row NAME is run into `NAME.zarr` in `out`, a folder or URL, with `options` of `uturn.run`. A row that fails is reported to
    `announce`, has NaN and the error in `failure`, and the others go on. Returns and writes the dataset `atlas.zarr`.
    """
    entries: list[xr.Dataset] = []
    with output_folder("out", out) as folder:
        check_results(folder)
        is_own = "transition" in folder.names("atlas.zarr") or "atlas.zarr" not in folder.names("")
        expect(is_own, "atlas.zarr in out", folder.where, "another folder; it is no table of an atlas, and would be replaced")
        originals = None if folder.is_remote else os.path.abspath(folder.place("originals"))
        with named_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(rows, 1):
            announce(f"{row.name} ({number} of {len(rows)})")
            began = time.monotonic()
            try:
                experiment = row.experiment(originals)
                ds = run(experiment, folder.place(f"{row.name}.zarr"), **options)
                entries += numbers_of(row, ds, largest_eigenvalue_of(experiment))
                announce(f"{row.name}: done, {duration(time.monotonic() - began)}")
            except Exception as error:  # a user's model can raise any exception
                failure = described(error, 1000)
                entries.append(entry_of(row, failure=failure))
                announce(f"{row.name}: failed: {failure}")
            clear_caches()  # free memory for the next model
            table = table_of(entries)
            write_dataset(table, folder.path / "atlas.zarr")
            with whole_file(folder.path / "atlas.csv") as file:
                file.write(to_csv(table).encode())
            if number < len(rows) and not folder.is_remote:  # the last page is written with the figure
                write_page(folder.path)
        write_figures(folder.path, {"atlas": lambda: draw_atlas(table)})
        write_page(folder.path)
        folder.push(*RESULTS)
    return table
