"""Short forms for the experiments of the figures, and the grammar of the paper."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from uturn.core.experiment import Experiment
from uturn.exact.theory import MeanField

Part = str | Mapping[str, Any]
"""A part of a spec; the name of its type is enough if it has no options."""
PAPER = {"vocab_size": 32, "multiplicity": 8, "branching": 2}
"""The grammar of the paper, of any depth."""
_MOST_LEVELS = 32
"""Depths of grammars of figures are below."""


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


def at_depth(depth: int, name: str = "") -> str:
    """Label of the run of a grammar of this depth.

    >>> at_depth(5), at_depth(7, "masking")
    ('depth5', 'masking-depth7')
    """
    return f"{name}-depth{depth}" if name else f"depth{depth}"


def depths_of(labels: Container[object], name: str = "") -> list[int]:
    """The depths of which there is a run.

    >>> depths_of(["masking-depth5", "masking-depth7", "uniform-depth9"], "masking")
    [5, 7]
    """
    return [depth for depth in range(1, _MOST_LEVELS) if at_depth(depth, name) in labels]


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
