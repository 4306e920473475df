"""Short forms for the experiments of the figures, and the grammar of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField

Part = str | Mapping[str, Any]
"""A part of a spec; the name of its type is enough if it has no options."""
PAPER = {"vocab_size": 32, "multiplicity": 8, "branching": 2}
"""The grammar of the paper, of any depth."""


def rhm(
    vocab_size: int, multiplicity: int, branching: int, depth: int, **options: Any
) -> dict[str, Any]:
    """A source of strings of a grammar."""
    sizes = {
        "vocab_size": vocab_size,
        "multiplicity": multiplicity,
        "branching": branching,
        "depth": depth,
    }
    return {"type": "rhm", **sizes, **options}


def mean_field(sizes: Mapping[str, Any]) -> MeanField:
    """Mean-field theory of a grammar with these sizes; other keys are ignored."""
    return MeanField(*(sizes[name] for name in PAPER))


def experiment_of(
    source: Part,
    corruption: Part,
    noise: Any,
    *probes: Part,
    backward: Part = "exact",
    **sizes: int,
) -> Experiment:
    """U-turns of a source at noise levels, by default with the exact posterior.

    `sizes`: `items` and, where they differ from the defaults of a spec, `trajectories`, `clones`,
    `chunk` and `seed`.
    """
    channel = {**_table(corruption), "noise": np.asarray(noise, float).tolist()}
    parts = {"source": _table(source), "corruption": channel, "backward": _table(backward)}
    return Experiment.from_dict({**parts, "probes": [_table(probe) for probe in probes], **sizes})


def _table(part: Part) -> Mapping[str, Any]:
    return {"type": part} if isinstance(part, str) else part
