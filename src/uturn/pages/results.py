"""Results of studies in a folder or at a URL: numbers, tables, figures, what was kept to be looked at, and the page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uturn.core.checks import shown
from uturn.core.files import named_errors, whole_file, whole_folder
from uturn.pages.page import write_page
from uturn.pages.writing import check_results, named_in, write_figures
from uturn.store.datasets import write_dataset
from uturn.store.objects import Objects
from uturn.store.outputs import OutputFolder, output_folder
from uturn.studies import as_data, records_of, study, tidy
from uturn.studies.axes import common_axis
from uturn.studies.runs import kept_images, kept_texts, originals
from uturn.studies.token_page import token_page

if TYPE_CHECKING:
    import xarray as xr

    from uturn.studies import Study

PICTURES = "reconstructions"  # folder of the PNG files of `save_images`
_FIGURES = ("study", "grid", "tokens")
_STUDIES = r"study(-\d+)?\.zarr"  # names of datasets
RESULTS = (
    *("index.html", "study.json", "curves.csv", "numbers.csv", "tokens.html"),
    *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)


def write_study(
    runs: xr.Dataset | Mapping[str, xr.Dataset],
    out: str | Path,
    *,
    source: Any = None,
    title: str = "",
    groups: Sequence[str] = (),
    save_images: bool = False,
) -> Any:
    """Study a finished run, or several, and write the results into a folder or to a URL, replacing those of an earlier call.

    Writes `study.zarr` (the dataset of `uturn.study`), `study.json` (its numbers), `curves.csv` and `numbers.csv` (`tidy`),
    `study.png`, `.pdf`, and the page `index.html`. If the run kept images, also `grid.png`, `.pdf` (like Fig. 1 of
    arXiv:2402.16991), and if it kept tokens, `tokens.html`, `tokens.png`, `.pdf`: originals and reconstructions side by side.
    Several runs are drawn in one chart for each reading, and their studies are `study-1.zarr`, `study-2.zarr`, ..

    Parameters
    ----------
    runs
        Dataset of `uturn.run`, or several by name (`uturn.studies.named_runs` names them by what differs in their specs).
    out
        Folder or URL of object storage.
    source
        Source of the run, for the originals of texts; by default it is built from the spec of the run.
    title
        Title of the page, by default the description of the run.
    groups
        Groups of readings that are drawn first.
    save_images
        Write the kept reconstructions as PNG files into the folder `reconstructions`.

    Returns
    -------
    The study (`uturn.studies.Study`), or a dict of the studies by name.

    Raises
    ------
    ValueError
        If a run is not finished, or if the folder cannot be written to.
    """
    if not isinstance(runs, Mapping) or not runs:
        raise ValueError(f"runs = {shown(runs)}: expected the dataset that uturn.run gives, or several by name")
    named: Mapping[str, Any] = runs if not hasattr(runs, "data_vars") else {"": runs}  # a dataset is a mapping, too
    run = next(iter(named.values()))
    with output_folder("out", out) as results:
        check_folder(results, save_images, kept_images(run) if len(named) == 1 else 0)
        studies = {name: study(one) for name, one in named.items()}
        single = None
        if len(named) == 1:
            records = records_of(run, source)
            single = _with_remark(next(iter(studies.values())), bool(kept_texts(run)) and "original_piece" not in records.coords)
        with named_errors(results.path):
            results.path.mkdir(parents=True, exist_ok=True)
        earlier = [name for name in results.names("") if re.fullmatch(_STUDIES, name)]
        stores = _write_numbers(results.path, studies, single)
        figures: dict[str, Callable[[], Any]] = dict.fromkeys(_FIGURES, lambda: None)
        tokens = results.path / "tokens.html"
        if single is None:
            from uturn.studies.figure import draw_studies

            figures["study"] = lambda: draw_studies(studies)
            tokens.unlink(missing_ok=True)
        else:
            from uturn.studies.figure import draw_study
            from uturn.studies.grid import draw_grid
            from uturn.studies.plotting.tokens import draw_tokens

            whole = single.merge(records, combine_attrs="override").assign_attrs(title=title)
            write_dataset(whole, results.path / "study.zarr")
            figures |= {"study": lambda: draw_study(single, groups), "tokens": lambda: draw_tokens(whole)}
            figures["grid"] = lambda: draw_grid(whole)
            if "original_piece" in whole.coords:
                with whole_file(tokens) as file:
                    file.write(token_page(whole).encode())
            else:
                tokens.unlink(missing_ok=True)  # of an earlier run, which kept tokens
        write_figures(results.path, figures)
        if save_images:
            with whole_folder(results.path / PICTURES) as pictures:
                _save_images(run, pictures)
        earlier = [name for name in earlier if name not in stores]
        for name in earlier:  # of an earlier call with another number of runs, which the page would show too
            shutil.rmtree(results.path / name, ignore_errors=results.is_remote)
        write_page(results.path)
        results.push(*RESULTS, *stores, *earlier, *([PICTURES] if save_images else []))
    return studies if single is None else single


def written(out: str | Path, save_images: bool = False) -> list[str]:
    """Names of the results in a folder or at a URL."""
    return named_in(out, [*RESULTS, *([PICTURES] if save_images else [])])


def check_folder(out: OutputFolder, save_images: bool = False, kept: int = 0) -> None:
    """ValueError if results cannot be written to a folder; also called before a long run, so that it does not fail at its end."""
    check_results(out)
    for name in filter(re.compile(_STUDIES).fullmatch, out.names("")):
        if not _is_study(out, name):
            raise ValueError(f"{out.place(name)} is none of the studies written there; choose another folder")
    if save_images:
        if not kept:
            raise ValueError("save_images: no images are kept; set keep to 1 or more")
        foreign = [name for name in out.names(PICTURES) if not re.fullmatch(r"item\d+-.*\.png", name)]
        if foreign:
            raise ValueError(
                f"{out.place(PICTURES)} holds {foreign[0]!r}, which is none of the pictures written there; choose another folder"
            )


def _is_study(out: OutputFolder, name: str) -> bool:
    """Whether a folder was written by `write_study`; a store of a run, or what a link points to, is not replaced."""
    if out.is_remote:
        content = Objects.at(out.where).read(f"{name}/zarr.json")
    else:
        path = out.path / name
        if path.is_symlink() or not (path / "zarr.json").is_file():
            return False
        content = (path / "zarr.json").read_bytes()
    try:
        attributes = json.loads(content or b"")["attributes"]
        return {"description", "remark", "trajectories"} <= set(attributes)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _with_remark(one: Study, hidden: bool) -> Study:
    """The study, with a remark if its run kept texts that cannot be shown."""
    words = "the texts are not shown: the source has changed, cannot be read, or needs code that the store names"
    return one.assign_attrs(remark="; ".join(filter(None, [one.attrs["remark"], words]))) if hidden else one


def _write_numbers(folder: Path, studies: Mapping[str, Study], single: Study | None) -> list[str]:
    """Write the numbers of studies as JSON and CSV, and the datasets of several; returns the names of all datasets."""
    names = ["study.zarr"]
    if single is None:
        common_axis(list(studies.values()))  # without one there is no chart of all, and nothing is written
        names = [f"study-{k}.zarr" for k in range(1, len(studies) + 1)]
        for name, (label, one) in zip(names, studies.items(), strict=True):
            write_dataset(one.assign_attrs(title=label), folder / name)
        data: dict[str, Any] = {"runs": {label: as_data(one) for label, one in studies.items()}}
    else:
        data = as_data(single)
    with whole_file(folder / "study.json") as file:
        file.write(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace"))
    for name, frame in tidy(studies if single is None else single)._asdict().items():
        with whole_file(folder / f"{name}.csv") as file:
            file.write(frame.to_csv(index=False).encode(errors="backslashreplace"))
    return names


def _save_images(run: xr.Dataset, folder: Path) -> None:
    """Originals and kept reconstructions as PNG; names give item, noise, trajectory and, if there are several, clone."""
    from PIL import Image

    count = kept_images(run)
    width = len(str(count - 1))

    def save(name: str, image: np.ndarray) -> None:
        if np.isfinite(image).all():
            pixels = np.round((image.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
            Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(folder / name)

    for item, image in enumerate(originals(run, np.arange(count))[0]):
        save(f"item{item:0{width}d}-original.png", image)
    for level, noise in enumerate(run.noise.values):
        images = run.image.isel(noise=level, item=slice(count)).values
        for item, trajectory, *clone in np.ndindex(images.shape[:-3]):
            draw = f"trajectory{trajectory}" + "".join(f"-clone{k}" for k in clone)
            save(f"item{item:0{width}d}-noise{noise:.4f}-{draw}.png", images[(item, trajectory, *clone)])
