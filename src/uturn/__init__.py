"""uturn: forward-backward ("U-turn") experiments on diffusion models.

Corrupt a datum up to a noise level, denoise it back, measure what changed, level by level: theory, exact solution and real
models under the same few ideas (arXiv:2402.16991). `Experiment` and `run` are the place to start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uturn.core.lazy import lazy, names_of_tools

__version__ = "0.4.0"

if TYPE_CHECKING:
    from uturn import backward, corruption, measures, networks, probes, sources, studies
    from uturn.core import protocols, random
    from uturn.core.experiment import Experiment
    from uturn.core.protocols import (
        Backward,
        Channel,
        Corruption,
        Noisy,
        Originals,
        Probe,
        Source,
        UTurns,
        Variable,
    )
    from uturn.core.u_turns import u_turn, u_turns
    from uturn.corruption import EpsilonBelief, Gaussian, Masking, UniformReplacement
    from uturn.engine.run import run
    from uturn.engine.sweep import sweep
    from uturn.exact import inference, laws, population, rhm, theory
    from uturn.exact.hmm import HiddenMarkovModel
    from uturn.exact.inference import Beliefs, infer, mutual_information, posterior_entropy, prior_entropy, sample_posterior
    from uturn.exact.rhm import RandomHierarchyModel
    from uturn.measures import statistics
    from uturn.measures.calibration import calibrate, calibration
    from uturn.measures.changes import correlations, susceptibility
    from uturn.measures.clones import readings_of
    from uturn.measures.hierarchy import nesting_index
    from uturn.measures.ranks import ranks
    from uturn.measures.statistics import hierarchy_index
    from uturn.sources import fashion_mnist
    from uturn.studies import choose, plotting, study
    from uturn.studies.locate import locate
    from uturn.studies.readings import readings
    from uturn.tools.audit.orders import order_discrepancy
    from uturn.tools.check_sampler.two_samplers import two_samplers
    from uturn.tools.inverse.posteriors import posterior_tests

_NAMES = {
    "uturn": ["backward", "corruption", "measures", "networks", "probes", "sources", "studies"],
    "uturn.core": ["protocols", "random"],
    "uturn.core.experiment": ["Experiment"],
    "uturn.core.protocols": ["Backward", "Channel", "Corruption", "Noisy", "Originals", "Probe", "Source", "UTurns", "Variable"],
    "uturn.core.u_turns": ["u_turn", "u_turns"],
    "uturn.corruption": ["EpsilonBelief", "Gaussian", "Masking", "UniformReplacement"],
    "uturn.engine.run": ["run"],
    "uturn.engine.sweep": ["sweep"],
    "uturn.exact": ["inference", "laws", "population", "rhm", "theory"],
    "uturn.exact.hmm": ["HiddenMarkovModel"],
    "uturn.exact.inference": ["Beliefs", "infer", "mutual_information", "posterior_entropy", "prior_entropy", "sample_posterior"],
    "uturn.exact.rhm": ["RandomHierarchyModel"],
    "uturn.measures": ["statistics"],
    "uturn.measures.calibration": ["calibrate", "calibration"],
    "uturn.measures.changes": ["correlations", "susceptibility"],
    "uturn.measures.clones": ["readings_of"],
    "uturn.measures.hierarchy": ["nesting_index"],
    "uturn.measures.ranks": ["ranks"],
    "uturn.measures.statistics": ["hierarchy_index"],
    "uturn.sources": ["fashion_mnist"],
    "uturn.studies": ["choose", "plotting", "study"],
    "uturn.studies.locate": ["locate"],
    "uturn.studies.readings": ["readings"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
_get, __dir__, _HOMES = lazy(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    return [*_HOMES, *names_of_tools(__name__)] if name == "__all__" else _get(name)
