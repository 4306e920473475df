"""What folders of results hold, as sections of plain data. What is damaged is named, and the rest is shown."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

import uturn
from uturn.core.checks import one_line, validation_words
from uturn.core.files import check_plain
from uturn.pages import figures, studies

if TYPE_CHECKING:
    import xarray as xr

_MOST_SPEC = 20_000  # characters


@dataclass
class Collected:
    """Sections of a page, and what could not be read: {"file", "words"}, which follow each other."""

    sections: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Reader:
    """Reading of files of which some may be damaged or come from another version."""

    found: Collected
    detail: float
    alone: bool = True  # whether the results of one folder are read

    @contextmanager
    def part(self, path: Path) -> Iterator[None]:
        """Context in which an error is noted with the name of the file, and what follows goes on."""
        try:
            yield
        except Exception as error:  # a damaged file can fail in any way
            words = validation_words(error) if isinstance(error, ValidationError) else one_line(error)
            self.problems(path, f"not valid JSON: {words}" if isinstance(error, json.JSONDecodeError) else words)

    def problems(self, path: Path, words: str) -> None:
        words = " ".join(words.split())
        rest = re.sub(f"^{re.escape(str(path))}(?=:? )", "", words)
        self.found.problems.append({"file": str(path), "words": f": {words}" if rest == words else rest})

    def dataset(self, path: Path) -> xr.Dataset:
        """A zarr folder."""
        import xarray as xr

        check_plain(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return xr.open_zarr(path, zarr_format=3).load() if path.name != "run.zarr" else xr.open_zarr(path)

    def about(self, attributes: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """Spec, its hash, versions and fingerprints from the attributes of a run; a note if another version made it."""
        versions = _table(attributes.get("versions"))
        if versions.get("uturn", uturn.__version__) != uturn.__version__:
            made = f"made with uturn {versions['uturn']}; this page was written by {uturn.__version__}, which may not know all"
            self.problems(path, made)
        spec = json.dumps(_table(attributes.get("spec")), indent=1, ensure_ascii=False)
        return {
            "hash": str(attributes.get("spec_hash", "")),
            "versions": {str(k): str(v) for k, v in versions.items()},
            "fingerprints": {str(k): str(v) for k, v in _table(attributes.get("models")).items() if v},
            "spec": spec if len(spec) <= _MOST_SPEC else f"{spec[:_MOST_SPEC]} ..",
        }


def collect(folders: Sequence[str | Path], detail: float = 1.0) -> Collected:
    """Sections for all results in some folders.

    Parameters
    ----------
    folders
        Folders of `reproduce`, `images`, `text` or `atlas`, stores of `run`, or folders that hold such stores.
    detail
        Below 1, pictures are smaller.
    """
    found, homes = Collected(), list[Path]()
    for folder in map(Path, folders):
        _collect(folder, Reader(found, detail, len(folders) == 1))
        homes += [folder] * (len(found.sections) - len(homes))
    names = Counter(one["short"] for one in found.sections)
    for one, home in zip(found.sections, homes, strict=True):
        if names[one["short"]] > 1:  # figures of the same name are told apart by their folders
            one["short"], one["title"] = f"{one['short']} ({home})", f"{one['title']} ({home})"
    taken: dict[str, int] = {}
    for one in found.sections:  # ids are unique in a page
        taken[one["id"]] = taken.get(one["id"], 0) + 1
        one["id"] += f"-{taken[one['id']]}" if taken[one["id"]] > 1 else ""
    return found


def _collect(folder: Path, read: Reader) -> None:
    if _is_zarr(folder):
        _add(folder.resolve() if folder.is_symlink() else folder, studies.store_section, read)
        return
    made = sorted(
        (path for path in folder.glob("*.json") if path.name != "study.json" and figures.is_figure(path)), key=figures.order
    )
    for path in made:
        _add(path, figures.figure_section, read)
    stores = {path for path in folder.glob("*.zarr") if _has_spec(path)} - {path.with_suffix(".zarr") for path in made}
    several = sorted(folder.glob("study-*.zarr"), key=lambda path: (len(path.name), path.name))
    if (folder / "study.zarr").exists():
        with read.part(folder / "study.json"):  # the page links to it, and takes the same numbers from the data
            check_plain(folder / "study.json")
            json.loads((folder / "study.json").read_bytes())
        if _add(folder / "study.zarr", studies.study_section, read):
            stores -= {folder / "run.zarr"}
    elif len(several) > 1:
        _add(folder, lambda _, read: studies.overlay_section(several, read), read)
        for path in several:
            _add(path, studies.study_section, read)
    if (folder / "atlas.zarr").exists() and _add(
        folder / "atlas.zarr", lambda path, read: studies.atlas_section(path.parent, read), read
    ):
        stores = set()  # one for each row of the atlas
    for path in sorted(stores - {folder / "study.zarr", *several}):
        _add(path, studies.store_section, read)


def _add(path: Path, make: Any, read: Reader) -> bool:
    """Add the section that is made from a file; whether it could be made."""
    before = len(read.found.sections)
    with read.part(path):
        check_plain(path)
        read.found.sections.append(make(path, read))
    return len(read.found.sections) > before


def _is_zarr(path: Path) -> bool:
    return (path / "zarr.json").exists()


def _has_spec(path: Path) -> bool:
    try:
        check_plain(path / "zarr.json")
        return "spec" in json.loads((path / "zarr.json").read_bytes())["attributes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _table(text: Any) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
