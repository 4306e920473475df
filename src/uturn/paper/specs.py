"""The experiments of figures in one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uturn.core.experiment import Experiment

Part = str | Mapping[str, Any]
"""A part of a spec; one without options is named by its type alone."""


def experiment_of(
    source: Part, corruption: Part, noise: Any, *probes: Part, backward: Part = "exact", **sizes: int
) -> Experiment:
    """U-turns of a source at noise levels, by default with the exact posterior.

    `sizes`: `items` and, where they differ from the defaults of a spec, `trajectories`, `clones`, `chunk` and `seed`.
    """
    channel = {**_table(corruption), "noise": np.asarray(noise, float).tolist()}
    parts = {"source": _table(source), "corruption": channel, "backward": _table(backward)}
    return Experiment.from_dict({**parts, "probes": [_table(probe) for probe in probes], **sizes})


def _table(part: Part) -> Mapping[str, Any]:
    return {"type": part} if isinstance(part, str) else part
