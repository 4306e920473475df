"""Presets: options that describe a run of images or texts.

options = ImageOptions(steps=50)                     # or image_experiment(steps=50), the experiment itself
readings = uturn.run(options.experiment(), "run")
study = uturn.study(readings)                        # or uturn.pages.write_study(readings, "results"), which writes files too
options = TextOptions(model="bert", data="texts.txt")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.presets.images import ImageOptions as ImageOptions
    from uturn.presets.images import image_experiment as image_experiment
    from uturn.presets.texts import TextOptions as TextOptions

_NAMES = {
    "uturn.presets.images": ["ImageOptions", "image_experiment"],
    "uturn.presets.texts": ["TextOptions"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
