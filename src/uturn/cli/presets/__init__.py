"""Presets: options that describe a run of images or texts, and atlases of many models.

options = ImageOptions(steps=50)                     # or image_experiment(steps=50), the experiment itself
readings = uturn.run(options.experiment(), "run.zarr")
study = uturn.study(readings)                        # or uturn.pages.write_study(readings, "results"), which writes files too
options = TextOptions(model="bert", data="texts.txt")
runs = InverseOptions(operator="blur").runs()                        # one experiment for each posterior sampler
atlas = measure_atlas(read_atlas("atlas.toml"), "results/atlas")     # many models, each a run of images
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.cli.presets.atlas import measure_atlas as measure_atlas
    from uturn.cli.presets.atlas import read_atlas as read_atlas
    from uturn.cli.presets.images import ImageOptions as ImageOptions
    from uturn.cli.presets.images import image_experiment as image_experiment
    from uturn.cli.presets.inverse import InverseOptions as InverseOptions
    from uturn.cli.presets.texts import TextOptions as TextOptions

_HOMES = {
    "ImageOptions": "cli.presets.images",
    "InverseOptions": "cli.presets.inverse",
    "TextOptions": "cli.presets.texts",
    "image_experiment": "cli.presets.images",
    "measure_atlas": "cli.presets.atlas",
    "read_atlas": "cli.presets.atlas",
}

__getattr__, __dir__ = lazy(__name__, _HOMES)
