"""Studies of images and texts: options that describe a run, the analysis of its results, and the files written from it.

options = uturn.workflows.ImageOptions(steps=50)     # or image_experiment(steps=50), the experiment itself
run = uturn.run(options.experiment(), "run.zarr")
analysis = uturn.workflows.analyse(run)              # or write_results(run, "results"), which writes files too
options = uturn.workflows.TextOptions(model="bert", data="texts.txt")   # texts: analyse_texts(run), write_text_results(run, ..)
atlas = measure_atlas(read_atlas("atlas.toml"), "results/atlas")        # many models, each a run of images
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uturn.workflows.analysis import analyse as analyse
    from uturn.workflows.atlas import measure_atlas as measure_atlas
    from uturn.workflows.atlas import read_atlas as read_atlas
    from uturn.workflows.image_options import ImageOptions as ImageOptions
    from uturn.workflows.image_options import image_experiment as image_experiment
    from uturn.workflows.results import numbers as numbers
    from uturn.workflows.results import summary as summary
    from uturn.workflows.results import write_results as write_results
    from uturn.workflows.text_analysis import analyse_texts as analyse_texts
    from uturn.workflows.text_options import TextOptions as TextOptions
    from uturn.workflows.text_results import text_numbers as text_numbers
    from uturn.workflows.text_results import text_summary as text_summary
    from uturn.workflows.text_results import write_text_results as write_text_results

# Public name -> module. Modules are imported on first use, so that commands start fast.
_HOME = {
    "ImageOptions": "image_options",
    "TextOptions": "text_options",
    "analyse_texts": "text_analysis",
    "text_numbers": "text_results",
    "text_summary": "text_results",
    "write_text_results": "text_results",
    "image_experiment": "image_options",
    "analyse": "analysis",
    "measure_atlas": "atlas",
    "read_atlas": "atlas",
    "numbers": "results",
    "summary": "results",
    "write_results": "results",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'uturn.workflows' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uturn.workflows.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
