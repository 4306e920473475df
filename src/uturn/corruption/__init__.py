"""Corruptions: how a datum is observed, and what an observation says about it.

A corruption of strings has two sides. `corrupt` draws an observation of a string; `log_evidence` is the log-likelihood of what
was observed as a function of the symbol at each leaf, up to a factor per leaf. `Gaussian`, `Masking` and `UniformReplacement`
are Bayesian channels: evidence is the likelihood of what was drawn. `EpsilonBelief`, the solvable stand-in of
arXiv:2402.16991, is not: it pins a belief on the true symbol.
"""

from __future__ import annotations

from uturn.corruption.diffusion import Diffusion
from uturn.corruption.epsilon import EpsilonBelief
from uturn.corruption.gaussian import Gaussian
from uturn.corruption.masking import Masking
from uturn.corruption.uniform import UniformReplacement
from uturn.protocols import Corruption as Corruption
from uturn.protocols import Noisy as Noisy

CORRUPTIONS: dict[str, type] = {
    "diffusion": Diffusion,
    "gaussian": Gaussian,
    "masking": Masking,
    "uniform": UniformReplacement,
    "epsilon": EpsilonBelief,
}
