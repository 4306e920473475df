"""Presets: options that describe a run of images or texts, and atlases of many models.

options = uturn.workflows.ImageOptions(steps=50)     # or image_experiment(steps=50), the experiment itself
run = uturn.run(options.experiment(), "run.zarr")
found = uturn.study(run)                             # or uturn.pages.write_study(run, "results"), which writes files too
options = uturn.workflows.TextOptions(model="bert", data="texts.txt")
atlas = measure_atlas(read_atlas("atlas.toml"), "results/atlas")     # many models, each a run of images
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uturn.workflows.atlas import measure_atlas as measure_atlas
    from uturn.workflows.atlas import read_atlas as read_atlas
    from uturn.workflows.image_options import ImageOptions as ImageOptions
    from uturn.workflows.image_options import image_experiment as image_experiment
    from uturn.workflows.text_options import TextOptions as TextOptions

# Public name -> module. Modules are imported on first use, so that commands start fast.
_HOME = {
    "ImageOptions": "image_options",
    "TextOptions": "text_options",
    "image_experiment": "image_options",
    "measure_atlas": "atlas",
    "read_atlas": "atlas",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'uturn.workflows' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uturn.workflows.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
