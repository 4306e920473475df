"""The file of an atlas: its rows, which are runs of `uturn images`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from uturn.core.checks import expect
from uturn.core.files import checked_path, read_table
from uturn.core.messages import one_line, shown
from uturn.presets.images import ImageOptions


class AtlasRow(ImageOptions):
    """A row of an atlas: the options of `uturn images`, and the following.

    `name`: of its store, unique in the file. `title`: its label in the figure, by default the name.
    """

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **ImageOptions.panels,
        "Row": ("name", "title"),
    }

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    title: str = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    defaults: dict[str, Any] = {}
    models: list[dict[str, Any]] = Field(min_length=1)


def read_atlas(path: str | Path) -> list[AtlasRow]:
    """The rows of an atlas file (TOML): `[[models]]`, one table a row, and `[defaults]`, options
    of all rows.
    """
    path = Path(checked_path("atlas", path))
    rows: list[AtlasRow] = []
    try:
        file = _File.model_validate(read_table(path))
        for number, table in enumerate(file.models, 1):
            try:
                row = AtlasRow.from_dict({**file.defaults, **table})
                # Some file systems ignore case.
                taken = ["atlas", *(other.name.casefold() for other in rows)]
                expect(
                    row.name.casefold() not in taken,
                    "name",
                    row.name,
                    "another name; it is taken",
                )
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"models, row {number} (name = {shown(table.get('name'))}): {error}"
                ) from None
            rows.append(row)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the atlas {path}: {one_line(error, 1000)}") from None
    return rows
