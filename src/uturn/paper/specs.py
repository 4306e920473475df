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
    parts = [{"type": part} if isinstance(part, str) else dict(part) for part in (source, corruption, backward, *probes)]
    spec = dict(zip(("source", "corruption", "backward"), parts, strict=False), probes=parts[3:], **sizes)
    spec["corruption"]["noise"] = np.asarray(noise, float).tolist()
    return Experiment.from_dict(spec)
