"""An atlas: U-turns of many models of images, with their transitions on one axis, log-SNR.

rows = read_atlas("examples/atlas/here.toml")       # a file describes the models, one row each (`AtlasRow`)
table = measure_atlas(rows, "results/atlas")        # each row is a run of `uturn images` in a store of its own
table.transition                                    # (entry, estimate), in nats
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from uturn.cli.presets.atlas_numbers import PATCHES, Entry, largest_eigenvalue_of, numbers_of, table_of, to_csv
from uturn.cli.presets.images import ImageOptions
from uturn.core.checks import checked_path, shown, validation_words
from uturn.core.files import clear_caches, named_errors, read_table, whole_file
from uturn.core.progress import duration
from uturn.pages import write_page
from uturn.pages.results import check_results, write_figures
from uturn.store.datasets import write_dataset
from uturn.store.outputs import OutputFolder, output_folder

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from uturn.core.experiment import Experiment

RESULTS = ("index.html", "atlas.zarr", "atlas.csv", "atlas.png", "atlas.pdf")
_PATHS = (  # options that may be paths
    *("model", "data", "labels", "classes", "classifiers", "weights"),
    *("perceptual", "perceptual_linear", "prompt", "class_prompts"),
)


class AtlasRow(BaseModel):
    """A row of an atlas: a model, how it is run, and facts about it.

    Attributes
    ----------
    name : str
        Name of its store, unique in the file.
    title : str
        Its label in the figure; the name by default.
    group : str
        Heading in the figure, shared by the rows of a group.
    like : str
        Name of an earlier row that supplies the options and facts missing from this row.
    patch : int
        Side of the patches of pixels whose changes give chi and xi.
    facts : table of texts or numbers
        For the table of results, such as licence, parameters, download, gpu_hours. In the figure, `data` sets the colour of a
        row and `kind` its marker.
    options : ImageOptions
        In the file, all other keys of the row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=80)
    title: str = ""
    group: str = ""
    like: str = ""
    patch: int = Field(4, ge=1)
    facts: dict[str, str | int | FiniteFloat] = {}
    options: ImageOptions

    @property
    def words(self) -> str:
        """The title, or the name."""
        return self.title or self.name

    def experiment(self, originals: str | None = None) -> Experiment:
        """The experiment of `uturn images` with these options, plus the probe `changes` if there are several trajectories."""
        from uturn.core.experiment import Experiment

        experiment = self.options.experiment(originals)
        if self.options.trajectories == 1:
            return experiment
        spec = experiment.to_dict()
        changes = {"type": "changes", "name": PATCHES, "patch": self.patch}
        return Experiment.from_dict({**spec, "probes": [*spec["probes"], changes]})


# --- the file --------------------------------------------------------------------------------------------------------


def read_atlas(path: str | Path) -> list[AtlasRow]:
    """The rows of an atlas file (TOML): `[[models]]`, one table a row, and `[defaults]`, options of all rows.

    Paths are relative to the folder of the file. Values that name nothing in this folder (hub ids) are passed through unchanged.

    Raises
    ------
    ValueError
        If the file cannot be read, a row has an unknown option or one out of range, or two rows have one name.
    """
    path = Path(checked_path("atlas", path))
    try:
        return _rows(read_table(path), path.parent)
    except OSError as error:
        raise ValueError(f"cannot read the atlas {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _rows(tables: dict[str, Any], folder: Path) -> list[AtlasRow]:
    models, defaults = tables.get("models"), tables.get("defaults", {})
    if unknown := sorted(tables.keys() - {"defaults", "models"}):
        raise ValueError(f"{unknown[0]}: expected the tables [defaults] and [[models]]; options of all rows go into [defaults]")
    if not isinstance(models, list) or not models or not all(isinstance(table, dict) for table in models):
        raise ValueError(f"models = {shown(models)}: expected one or more tables [[models]]")
    if not isinstance(defaults, dict) or {"name", "like"} & defaults.keys():
        raise ValueError(f"defaults = {shown(defaults)}: expected a table of options, without name and like")
    rows: list[AtlasRow] = []
    merged: dict[str, dict[str, Any]] = {}
    stores = {"atlas": "the table of the results"}  # compared in lower case: some file systems ignore case
    for number, table in enumerate(models, 1):
        name, like = table.get("name"), table.get("like", "")
        try:
            if isinstance(name, str) and name in merged:
                raise ValueError("there is a row of this name before; names are those of the stores, so give another one")
            if like and not (isinstance(like, str) and like in merged):
                raise ValueError(f"like = {shown(like)}: expected the name of a row before it: {', '.join(merged) or 'none'}")
            full = _merged(merged[like] if like else defaults, table)
            row = _row(full, folder)
            if other := stores.get(row.name.casefold()):
                raise ValueError(f"name = {row.name!r}: NAME.zarr is that of {other}; give another name")
        except ValueError as error:
            raise ValueError(f"models, row {number} (name = {shown(name)}): {error}") from None
        rows.append(row)
        merged[row.name], stores[row.name.casefold()] = full, f"the row {row.name!r}"
    return rows


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A table completed by the entries of `base`, except name and title; facts are merged one by one."""
    facts: dict[str, Any] = {}
    for some in (base.get("facts", {}), table.get("facts", {})):
        if not isinstance(some, dict):
            raise ValueError(f"facts = {shown(some)}: expected a table of texts and numbers")
        facts |= some
    return {**{key: value for key, value in base.items() if key not in ("name", "title")}, **table, "facts": facts}


def _row(table: dict[str, Any], folder: Path) -> AtlasRow:
    fields = {key: table[key] for key in table if key in AtlasRow.model_fields and key != "options"}
    options = {key: value for key, value in table.items() if key not in fields}
    for key in options.keys() & set(_PATHS):
        value = options[key]
        if key != "prompt" or str(value).endswith(".txt"):  # a prompt without this ending is text
            options[key] = [_placed(path, folder) for path in value] if isinstance(value, list) else _placed(value, folder)
    checked = ImageOptions.from_dict(options)
    try:
        return AtlasRow.model_validate({**fields, "options": checked})
    except ValidationError as error:
        raise ValueError(validation_words(error)) from None


def _placed(value: Any, folder: Path) -> Any:
    """The absolute path of a value that names a file or folder in this folder; other values are returned unchanged."""
    if not isinstance(value, str) or value in ("", "fashion_mnist", "generated") or "\0" in value:
        return value
    kind = "clip:" if value.startswith("clip:") else ""
    place = os.path.abspath(folder / value.removeprefix(kind))
    return f"{kind}{place}" if os.path.exists(place) else value


def chosen(rows: Sequence[AtlasRow], only: Sequence[str]) -> list[AtlasRow]:
    """The rows with these names, or all if none are given; ValueError for an unknown name."""
    names = [row.name for row in rows]
    for name in only:
        if name not in names:
            raise ValueError(f"only = {shown(name)}: the atlas has no such row; expected some of {', '.join(names)}")
    return [row for row in rows if not only or row.name in only]


def listed(rows: Sequence[AtlasRow]) -> Table:
    """The rows and the facts about them as a table for a terminal."""
    from rich.table import Table

    facts = list(dict.fromkeys(name for row in rows for name in row.facts))
    table = Table("name", "model", "scheduler, steps", "U-turns", *(name.replace("_", " ") for name in facts))
    for row in rows:
        options = row.options
        levels = options.levels if isinstance(options.levels, int) else len(options.levels)
        u_turns = options.items * options.trajectories * options.clones * levels
        cells = (row.name, Path(options.model).name, f"{options.scheduler}, {options.steps}", f"{u_turns:,}")
        table.add_row(*cells, *(str(row.facts.get(name, "")) for name in facts))
    return table


# --- the runs --------------------------------------------------------------------------------------------------------


def measure_atlas(
    rows: Sequence[AtlasRow], out: str | Path, *, announce: Callable[[str], object] = lambda text: None, **options: Any
) -> xr.Dataset:
    """Run the rows of an atlas, one after the other, each into its own store, and write the table and the figure.

    Row NAME is run into `OUT/NAME.zarr`. Stored readings are not measured again. A row that fails is reported, and the
    others go on. Writes `atlas.zarr`, the returned dataset, `atlas.csv`, and `atlas.png`, `.pdf`.

    Parameters
    ----------
    rows
        The rows that `read_atlas` returns.
    out
        Folder or URL of object storage.
    announce
        Called with a line of text when a row begins, ends or fails.
    options
        Options of `uturn.run`: workers, progress, cluster, ..

    Returns
    -------
    Dataset
        As in `uturn.cli.presets.atlas_numbers.table_of`. Rows that failed have numbers that are NaN, and the error in `failure`.

    Raises
    ------
    ValueError
        If nothing can be written to `out`.
    """
    entries: list[Entry] = []
    with output_folder("out", out) as folder:
        check_results(folder)
        if not folder.is_remote and (path := folder.path / "atlas.zarr").exists() and not (path / "transition").is_dir():
            raise ValueError(f"{path} is no table of an atlas, and would be replaced; choose another folder")
        for number, row in enumerate(rows, 1):
            announce(f"{row.name} ({number} of {len(rows)})")
            began = time.monotonic()
            try:
                entries += _measured(row, folder, options)
                announce(f"{row.name}: done, {duration(time.monotonic() - began)}")
            except Exception as error:  # a user's model can raise any exception
                kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                message = kind + " ".join(str(error).split()) or type(error).__name__
                entries.append(Entry(row, failure=message))
                announce(f"{row.name}: failed: {message}")
            clear_caches()  # free memory for the next model
            table = table_of(entries)
            _write_table(table, folder)
            if number < len(rows) and not folder.is_remote:  # the last page is written with the figure
                write_page(folder.path)
        from uturn.studies.plotting.atlas import draw_atlas

        write_figures(folder.path, {"atlas": lambda: draw_atlas(table)})
        write_page(folder.path)
        folder.push(*RESULTS)
    return table


def _measured(row: AtlasRow, folder: OutputFolder, options: dict[str, Any]) -> list[Entry]:
    """Run a row, except for its stored readings, and return its numbers."""
    from uturn.engine.run import run

    experiment = row.experiment(None if folder.is_remote else os.path.abspath(folder.place("originals")))
    ds = run(experiment, folder.place(f"{row.name}.zarr"), **options)
    return numbers_of(row, ds, largest_eigenvalue_of(experiment))


def _write_table(table: xr.Dataset, folder: OutputFolder) -> None:
    with named_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    write_dataset(table, folder.path / "atlas.zarr")
    with whole_file(folder.path / "atlas.csv") as file:
        file.write(to_csv(table).encode())
