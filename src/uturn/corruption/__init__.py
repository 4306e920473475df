"""Corruptions: the making of noisy data, and their evidence about the original.

A channel of strings has two methods. `corrupt` draws a noisy datum; `log_evidence` is the
log-likelihood of each noisy leaf as a function of its true symbol, up to a constant at each leaf.
`Gaussian`, `Masking` and `UniformReplacement` are Bayesian: their evidence is the likelihood of the
drawn noisy datum. `EpsilonBelief`, the simplified process of arXiv:2402.16991, is not Bayesian: it
assigns a fixed belief to the true symbol. `Diffusion` is the forward process of a diffusion model;
`Recorded` names the noise that another program has added.

In a spec, `type` names the class, and the other keys are its arguments, which
`help(ut.corruption.Masking)` lists:

    diffusion  Diffusion           the forward process of a diffusion model
    gaussian   Gaussian            Gaussian diffusion of one-hot leaves, or of vectors
    masking    Masking             masks leaves or tokens
    uniform    UniformReplacement  draws leaves or tokens again, uniformly
    epsilon    EpsilonBelief       the simplified process of arXiv:2402.16991
    recorded   Recorded            the noise of U-turns made elsewhere

A corruption of one's own inherits from `ut.Corruption`, and one of symbols with a known likelihood
from `ut.Channel`. Reverse processes of channels are samplers: `uturn.corruption.sampling`, which
says how to add a decoder.
"""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.core.protocols import Corruption as Corruption
from uturn.core.protocols import Noisy as Noisy
from uturn.corruption.diffusion import Diffusion as Diffusion
from uturn.corruption.gaussian import Gaussian as Gaussian
from uturn.corruption.masking import Masking as Masking
from uturn.corruption.recorded import Recorded as Recorded
from uturn.corruption.strings import EpsilonBelief as EpsilonBelief
from uturn.corruption.uniform import UniformReplacement as UniformReplacement

__getattr__, __dir__, _HOMES = lazy(__name__, {})
