"""Scales of continuous data: how similar each scale of a vector is to what it was, and whether the class is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from uturn.store import Variable

if TYPE_CHECKING:
    from uturn.backward import UTurns


class Scales(BaseModel):
    """Cosine similarity of original and reconstruction, scale by scale, and agreement of their exact classes.

    `scale_similarity`: cosine of the components of one scale (octaves of the wave number for a field; a mixture has one scale,
    all components), after the mean of the law is subtracted. `same_label`: whether the class, a function of the vector, is the
    same; no network is involved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["scales"] = "scales"

    @property
    def outputs(self) -> tuple[str, ...]:
        return ()

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        return {
            "scale_similarity": Variable((*dims, "scale"), "cosine similarity of the components of a scale"),
            "same_label": Variable(dims, "same class as the original"),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"scale": np.array(list(source.scales()), float)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals, rebuilt = u_turns.originals, u_turns.reconstructions
        law = originals.law
        before, after = (law.to_basis(values - law.mean) for values in (originals.values[:, None], rebuilt))
        similarity = []
        for chosen in source.scales().values():
            a, b = before[..., chosen], after[..., chosen]
            similarity.append((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))
        label = source.classify(rebuilt.reshape(-1, law.dimension), law).reshape(rebuilt.shape[:2])
        return {"scale_similarity": np.stack(similarity, axis=-1), "same_label": label == originals.labels[:, None]}

    def fingerprint(self) -> str:
        return ""
