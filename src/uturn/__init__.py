"""uturn: forward-backward ("U-turn") experiments on diffusion models.

Corrupt a datum up to a noise level, denoise it back, measure what changed, level by level: theory, exact solution and real
models under the same few ideas (arXiv:2402.16991). `Experiment` and `run` are the place to start.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> module. Imported on first use, so that `import uturn` costs nothing.
_HOME = {
    "RandomHierarchyModel": "rhm",
    "Gaussian": "corruption",
    "Masking": "corruption",
    "UniformReplacement": "corruption",
    "EpsilonBelief": "corruption",
    "Noisy": "protocols",
    "Beliefs": "inference",
    "infer": "inference",
    "sample_posterior": "inference",
    "mutual_information": "inference",
    "posterior_entropy": "inference",
    "prior_entropy": "inference",
    "Experiment": "experiment",
    "run": "running",
    "u_turn": "experiment",
    "hierarchy_index": "statistics",
    "nesting_index": "measures.hierarchy",
    "susceptibility": "measures.changes",
    "correlations": "measures.changes",
    "calibration": "measures.calibration",
    "study": "studies",
}
_MODULES = (
    *(
        "backward",
        "corruption",
        "experiment",
        "fashion_mnist",
        "inference",
        "laws",
        "measures",
        "networks",
        "plotting",
        "population",
    ),
    *("probes", "protocols", "random", "rhm", "sources", "statistics", "store", "studies", "theory", "workflows"),
)

if TYPE_CHECKING:
    from uturn import (
        backward,
        experiment,
        fashion_mnist,
        inference,
        laws,
        measures,
        networks,
        plotting,
        population,
        probes,
        protocols,
        random,
        rhm,
        sources,
        statistics,
        store,
        studies,
        theory,
        workflows,
    )
    from uturn.corruption import EpsilonBelief, Gaussian, Masking, Noisy, UniformReplacement
    from uturn.experiment import Experiment, u_turn
    from uturn.inference import (
        Beliefs,
        infer,
        mutual_information,
        posterior_entropy,
        prior_entropy,
        sample_posterior,
    )
    from uturn.measures.calibration import calibration
    from uturn.measures.changes import correlations, susceptibility
    from uturn.measures.hierarchy import nesting_index
    from uturn.rhm import RandomHierarchyModel
    from uturn.running import run
    from uturn.statistics import hierarchy_index
    from uturn.studies import study

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"uturn.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"uturn.{name}")
    else:
        raise AttributeError(f"module 'uturn' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME, *_MODULES])
