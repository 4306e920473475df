"""The exact posterior as a backward."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from uturn.core.protocols import Backward, Spec
from uturn.core.random import Streams


class ExactPosterior(Spec, Backward):
    """Draws from the exact posterior: by belief propagation for strings, by a formula for vectors of a Gaussian mixture.

    The formula holds for Gaussian diffusion, and for a linear operator with Gaussian noise.

    The draws are made by the method `posterior_draws(streams, clones)` of the noisy data, (items, draws, ...). User-defined noisy
    data with such a method can be drawn too, if their source declares no kind.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings", "vectors")
    undoes: ClassVar[tuple[str, ...]] = ("channel", "operator")
    asks: ClassVar[tuple[str, ...]] = ("log_evidence",)
    batch_invariant: ClassVar[bool] = True
    adds_trajectories: ClassVar[bool] = True
    type: Literal["exact"] = "exact"

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        return noisy.posterior_draws(streams, clones)

    def missing(self, experiment: Any) -> dict[str, str]:
        """No reconstruction is missing; ValueError if a measurement has no exact posterior."""
        source, corruption = experiment.parts.source, experiment.parts.corruption
        if corruption.process == "operator":
            block = next(iter(source.blocks(np.arange(1), experiment.seed, 1)))
            for noise in experiment.noise:
                corruption.observe(block, noise, Streams(experiment.seed, block.items, noise)).posterior(0)
        return {}
