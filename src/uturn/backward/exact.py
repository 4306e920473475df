"""The exact posterior as a backward."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from uturn.protocols import Backward, Spec
from uturn.random import Streams


class ExactPosterior(Spec, Backward):
    """Draws from the exact posterior: by belief propagation for strings, by a formula for vectors of a Gaussian mixture.

    The noisy data know their posterior (`posterior_draws`), so that it also draws for user-defined data with such a method.
    """

    kinds: ClassVar[tuple[str, ...]] = ("strings", "vectors")
    undoes: ClassVar[tuple[str, ...]] = ("channel",)
    asks: ClassVar[tuple[str, ...]] = ("log_evidence",)
    type: Literal["exact"] = "exact"

    def reconstruct(self, noisy: Any, streams: Streams, clones: int = 1) -> Any:
        return noisy.posterior_draws(streams, clones)
