"""uturn: forward-backward ("U-turn") experiments on diffusion models.

Corrupt a datum up to a noise level, denoise it back, measure what changed, level by level: theory,
exact solution and real models under the same few ideas (arXiv:2402.16991). `Experiment` and `run`
are the place to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uturn.core.lazy import lazy, names_of_tools

__version__ = "0.5.0.dev0"

if TYPE_CHECKING:
    from uturn import backward as backward
    from uturn import corruption as corruption
    from uturn import measures as measures
    from uturn import networks as networks
    from uturn import probes as probes
    from uturn import sources as sources
    from uturn import studies as studies
    from uturn._tool_names import *  # noqa: F403
    from uturn.core import protocols as protocols
    from uturn.core import random as random
    from uturn.core.experiment import Experiment as Experiment
    from uturn.core.protocols import Backward as Backward
    from uturn.core.protocols import Channel as Channel
    from uturn.core.protocols import Corruption as Corruption
    from uturn.core.protocols import Noisy as Noisy
    from uturn.core.protocols import Originals as Originals
    from uturn.core.protocols import Probe as Probe
    from uturn.core.protocols import Source as Source
    from uturn.core.protocols import UTurns as UTurns
    from uturn.core.protocols import Variable as Variable
    from uturn.core.u_turns import u_turn as u_turn
    from uturn.core.u_turns import u_turns as u_turns
    from uturn.corruption import EpsilonBelief as EpsilonBelief
    from uturn.corruption import Gaussian as Gaussian
    from uturn.corruption import Masking as Masking
    from uturn.corruption import UniformReplacement as UniformReplacement
    from uturn.engine.run import run as run
    from uturn.engine.sweep import sweep as sweep
    from uturn.exact import inference as inference
    from uturn.exact import laws as laws
    from uturn.exact import population as population
    from uturn.exact import rhm as rhm
    from uturn.exact import theory as theory
    from uturn.exact.hmm import HiddenMarkovModel as HiddenMarkovModel
    from uturn.exact.inference import Beliefs as Beliefs
    from uturn.exact.inference import infer as infer
    from uturn.exact.inference import mutual_information as mutual_information
    from uturn.exact.inference import posterior_entropy as posterior_entropy
    from uturn.exact.inference import prior_entropy as prior_entropy
    from uturn.exact.inference import sample_posterior as sample_posterior
    from uturn.exact.rhm import RandomHierarchyModel as RandomHierarchyModel
    from uturn.measures import statistics as statistics
    from uturn.measures.calibration import calibrate as calibrate
    from uturn.measures.calibration import calibration as calibration
    from uturn.measures.changes import correlations as correlations
    from uturn.measures.changes import susceptibility as susceptibility
    from uturn.measures.clones import readings_of as readings_of
    from uturn.measures.hierarchy import hierarchy_index as hierarchy_index
    from uturn.measures.hierarchy import nesting_index as nesting_index
    from uturn.measures.ranks import ranks as ranks
    from uturn.sources import fashion_mnist as fashion_mnist
    from uturn.studies import choose as choose
    from uturn.studies import plotting as plotting
    from uturn.studies import study as study
    from uturn.studies.locate import locate as locate
    from uturn.studies.readings import readings as readings

_NAMES = {
    "uturn": ["backward", "corruption", "measures", "networks", "probes", "sources", "studies"],
    "uturn.core": ["protocols", "random"],
    "uturn.core.experiment": ["Experiment"],
    "uturn.core.protocols": [
        "Backward",
        "Channel",
        "Corruption",
        "Noisy",
        "Originals",
        "Probe",
        "Source",
        "UTurns",
        "Variable",
    ],
    "uturn.core.u_turns": ["u_turn", "u_turns"],
    "uturn.corruption": ["EpsilonBelief", "Gaussian", "Masking", "UniformReplacement"],
    "uturn.engine.run": ["run"],
    "uturn.engine.sweep": ["sweep"],
    "uturn.exact": ["inference", "laws", "population", "rhm", "theory"],
    "uturn.exact.hmm": ["HiddenMarkovModel"],
    "uturn.exact.inference": [
        "Beliefs",
        "infer",
        "mutual_information",
        "posterior_entropy",
        "prior_entropy",
        "sample_posterior",
    ],
    "uturn.exact.rhm": ["RandomHierarchyModel"],
    "uturn.measures": ["statistics"],
    "uturn.measures.calibration": ["calibrate", "calibration"],
    "uturn.measures.changes": ["correlations", "susceptibility"],
    "uturn.measures.clones": ["readings_of"],
    "uturn.measures.hierarchy": ["hierarchy_index", "nesting_index"],
    "uturn.measures.ranks": ["ranks"],
    "uturn.sources": ["fashion_mnist"],
    "uturn.studies": ["choose", "plotting", "study"],
    "uturn.studies.locate": ["locate"],
    "uturn.studies.readings": ["readings"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
_get, __dir__, _HOMES = lazy(__name__, _NAMES)


def __getattr__(name: str) -> object:
    return [*_HOMES, *names_of_tools(__name__)] if name == "__all__" else _get(name)
