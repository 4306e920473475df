"""The rows of an atlas: a file that describes many models of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from uturn.cli.presets.images import ImageOptions
from uturn.core.checks import checked_path, shown, validation_words
from uturn.core.files import read_table

if TYPE_CHECKING:
    from uturn.core.experiment import Experiment

PATCHES = "patches"
"""Name of the probe `changes` in the run of a row."""
_PATHS = (  # options that may be paths
    *("model", "data", "labels", "classes", "classifiers", "weights"),
    *("perceptual", "perceptual_linear", "prompt", "class_prompts"),
)
_NO_PATHS = ("", "fashion_mnist", "generated")


class AtlasRow(BaseModel):
    """A row of an atlas: a model, how it is run, and facts about it.

    Attributes
    ----------
    name : str
        Name of its store, unique in the file.
    title : str
        Its words in the figure; the name by default.
    group : str
        Heading of the rows in the figure that it belongs to.
    like : str
        Name of an earlier row whose options and facts it takes, except those that it gives itself.
    patch : int
        Side of the patches of pixels whose changes give chi and xi.
    facts : table of texts or numbers
        For the table of results, such as licence, parameters, download, gpu_hours. In the figure, `data` gives the colour of a
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
        """The experiment of `uturn images` with these options; with several trajectories also the probe `changes`."""
        from uturn.core.experiment import Experiment

        found = self.options.experiment(originals)
        if self.options.trajectories == 1:
            return found
        spec = found.to_dict()
        changes = {"type": "changes", "name": PATCHES, "patch": self.patch}
        return Experiment.from_dict({**spec, "probes": [*spec["probes"], changes]})


def read_atlas(path: str | Path) -> list[AtlasRow]:
    """The rows of an atlas file (TOML): `[[models]]`, one table a row, and `[defaults]`, options of all rows.

    Paths are relative to the folder of the file. Options of which there is nothing in this folder are taken as they are, such as
    names of models on a hub.

    Raises
    ------
    ValueError
        If the file cannot be read, a row has an unknown option or one out of range, or two rows have one name.
    """
    path = Path(checked_path("atlas", path))
    try:
        return rows_of(read_table(path), path.parent)
    except OSError as error:
        raise ValueError(f"cannot read the atlas {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def rows_of(tables: dict[str, Any], folder: Path) -> list[AtlasRow]:
    """The rows of the tables of an atlas file in this folder."""
    unknown = sorted(tables.keys() - {"defaults", "models"})
    models, defaults = tables.get("models"), tables.get("defaults", {})
    if unknown:
        raise ValueError(f"{unknown[0]}: expected the tables [defaults] and [[models]]; options of all rows go into [defaults]")
    if not isinstance(models, list) or not models or not all(isinstance(table, dict) for table in models):
        raise ValueError(f"models = {shown(models)}: expected one or more tables [[models]]")
    if not isinstance(defaults, dict) or {"name", "like"} & defaults.keys():
        raise ValueError(f"defaults = {shown(defaults)}: expected a table of options, without name and like")
    full: dict[str, dict[str, Any]] = {}
    rows = []
    for number, table in enumerate(models, 1):
        name, like = table.get("name"), table.get("like", "")
        where = f"models, row {number} (name = {shown(name)})"
        if isinstance(name, str) and name in full:
            raise ValueError(f"{where}: there is a row of this name before; names are those of the stores, so give another one")
        if like and not (isinstance(like, str) and like in full):
            raise ValueError(f"{where}: like = {shown(like)}: expected the name of a row before it: {', '.join(full) or 'none'}")
        try:
            merged = _merged(full[like] if like else defaults, table)
            rows.append(_row(merged, folder))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        full[rows[-1].name] = merged
    _check_names([row.name for row in rows])
    return rows


def _merged(base: dict[str, Any], table: dict[str, Any]) -> dict[str, Any]:
    """A table with what it lacks from another one, except its name and title; facts are merged one by one."""
    facts = [one.get("facts", {}) for one in (base, table)]
    if not all(isinstance(some, dict) for some in facts):
        wrong = next(some for some in facts if not isinstance(some, dict))
        raise ValueError(f"facts = {shown(wrong)}: expected a table of texts and numbers")
    taken = {key: value for key, value in base.items() if key not in ("name", "title")}
    return {**taken, **table, "facts": {**facts[0], **facts[1]}}


def _row(table: dict[str, Any], folder: Path) -> AtlasRow:
    own = {key: table[key] for key in table if key in AtlasRow.model_fields and key != "options"}
    options = {key: value for key, value in table.items() if key not in own}
    for key in options.keys() & set(_PATHS):
        value = options[key]
        if key == "prompt" and not str(value).endswith(".txt"):
            continue  # a text
        options[key] = [_placed(one, folder) for one in value] if isinstance(value, list) else _placed(value, folder)
    checked = ImageOptions.from_dict(options)
    try:
        return AtlasRow.model_validate({**own, "options": checked})
    except ValidationError as error:
        raise ValueError(validation_words(error)) from None


def _placed(value: Any, folder: Path) -> Any:
    """The path of what is at a relative path in a folder; other values as they are."""
    if not isinstance(value, str) or value in _NO_PATHS or "\0" in value:
        return value
    kind = "clip:" if value.startswith("clip:") else ""
    place = os.path.abspath(folder / value.removeprefix(kind))
    return f"{kind}{place}" if os.path.exists(place) else value


def _check_names(names: Sequence[str]) -> None:
    """ValueError if stores would be in one another's place."""
    taken = {"atlas": "the table of the results"}  # on some file systems, large and small letters are equal
    for name in names:
        if name.casefold() in taken:
            raise ValueError(f"name = {name!r}: NAME.zarr is that of {taken[name.casefold()]}; give another name")
        taken[name.casefold()] = f"the row {name!r}"


def chosen(rows: Sequence[AtlasRow], only: Sequence[str]) -> list[AtlasRow]:
    """The rows with these names, or all if none are given; ValueError for an unknown name."""
    names = [row.name for row in rows]
    for name in only:
        if name not in names:
            raise ValueError(f"only = {shown(name)}: the atlas has no such row; expected some of {', '.join(names)}")
    return [row for row in rows if not only or row.name in only]
