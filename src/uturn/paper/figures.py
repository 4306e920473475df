"""Make figures: measure, analyse, draw, and write the files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uturn.core.files import write_json
from uturn.core.progress import duration
from uturn.pages import fetch, write_page
from uturn.pages.verdicts import Result
from uturn.paper.registry import FIGURES, load_figure
from uturn.paper.workshop import Scale, Workshop
from uturn.store.outputs import output_folder, write_dataset
from uturn.studies.plotting.style import save_figure


def reproduce(
    figures: Sequence[str],
    out: str | Path,
    scale: Scale = "smoke",
    workers: int | None = None,
    progress: bool = False,
    announce: Callable[[str], None] = lambda text: None,
    cluster: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Measure, analyse and draw figures of the paper; results of earlier calls are reused.

    Writes for each figure `out/<figure>.png`, `.pdf`, `.json` (verdicts) and `.zarr` (the labelled
    data of the plot), the raw runs under `out/<scale>/`, and after each figure the page
    `out/index.html`. `out` is a folder or a URL of object storage. `cluster`: arguments of
    `uturn.run` for a cluster.
    """
    unknown = [name for name in figures if name not in FIGURES]
    if unknown:
        raise ValueError(f"unknown figure {unknown[0]!r}; expected some of {', '.join(FIGURES)}")
    if scale not in ("smoke", "paper"):
        raise ValueError(f"scale = {scale!r}: expected 'smoke' or 'paper'")
    for name in figures:
        if reason := FIGURES[name].lacks:
            raise ValueError(reason)
    cluster = cluster or {}
    # The runs of all figures use one connection.
    connection: AbstractContextManager[Any] = nullcontext()
    if cluster.get("cluster") is not None:
        from uturn.engine.cluster import connected

        connection = connected(cluster["cluster"])
    with output_folder("out", out, kept=True) as folder, connection:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot write to {folder.path}: {error.strerror}; choose another folder"
            ) from None
        fetch(folder)
        workshop = Workshop(scale, folder.inside(scale), workers, progress, cluster)
        results: list[Result] = []
        names = list(dict.fromkeys(figures))
        for number, name in enumerate(names):
            figure = load_figure(name)
            announce(f"{name}: {figure.TITLE}{_expectation(names[number:], scale)}")
            start = time.monotonic()
            files = {
                "png": f"{name}.png",
                "pdf": f"{name}.pdf",
                "data": f"{name}.zarr",
            }
            paths = {kind: folder.path / file for kind, file in files.items()}
            data, verdicts = figure.analyse(figure.measure(workshop))
            write_dataset(data, paths["data"])
            save_figure(figure.draw(data), paths["png"], paths["pdf"])
            seconds = time.monotonic() - start
            texts = {"title": figure.TITLE, "caption": figure.CAPTION, "claim": figure.CLAIM}
            is_of_paper = FIGURES[name].is_of_paper
            result = Result(
                name,
                **texts,
                scale=scale,
                verdicts=verdicts,
                files=files,
                seconds=seconds,
                is_of_paper=is_of_paper,
            )
            results.append(result)
            write_json(folder.path / f"{name}.json", asdict(result))
            write_page(folder.path)
            folder.push(*files.values(), f"{name}.json", "index.html")
    return results


def _expectation(names: Sequence[str], scale: Scale) -> str:
    """The time that the first of these figures and all of them take, in words; empty where no
    time was measured.

    >>> _expectation(["fig7"], "paper")
    ''
    """
    if scale != "smoke":
        return ""
    seconds = [max(FIGURES[name].seconds, 1) for name in names]
    first = seconds[0]
    if len(names) == 1:
        return f" (about {duration(first)}, the last figure)"
    return f" (about {duration(first)}; {len(names)} figures to come: {duration(sum(seconds))})"
