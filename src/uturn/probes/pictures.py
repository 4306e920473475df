"""The probe that stores the reconstructed images."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.protocols import Probe, Spec, UTurns, Variable


class KeepImages(Spec, Probe):
    """The reconstructed images, float32 (.., channel, row, column) in [-1, 1]; with `first`, NaN for all later items."""

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    type: Literal["images"] = "images"
    first: int | None = Field(default=None, ge=1)

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory", "channel", "row", "column")
        return {"image": Variable(dims, "reconstructed image, in [-1, 1]", role="record")}

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {dim: np.arange(size) for dim, size in zip(("channel", "row", "column"), source.image_shape(), strict=True)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        images = u_turns.reconstructions
        if self.first is not None and (u_turns.originals.items >= self.first).any():
            images = np.array(images, np.float32)
            images[u_turns.originals.items >= self.first] = np.nan
        return {"image": images}
