"""The probe of vectors: similarity scale by scale, and agreement of the class."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.measures.clones import between_clones


class Scales(Spec, Probe):
    """Cosine similarity of original and reconstruction, scale by scale, and agreement of their
    exact classes.

    `scale_similarity`: cosine, -1 .. 1, of the components of one scale after the mean of the law is
    subtracted. The scales of a field are octaves of the wave number; a mixture has one scale, all
    components. `same_label`: whether the classes (`VectorSource.classify`) are equal.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vectors",)
    type: Literal["scales"] = "scales"

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        return {
            "scale_similarity": Variable(
                (*dims, "scale"),
                "cosine similarity of the components of a scale",
                start=1,
                bounds=(-1, 1),
                group="scales",
                symmetric=True,
            ),
            "same_label": Variable(
                dims,
                "same class as the original",
                start=1,
                chance="same:label",
                bounds=(0, 1),
                group="class",
                symmetric=True,
            ),
        }

    def coordinates(self, source: Any) -> dict[str, Any]:
        return {"scale": np.array(list(source.scales()), float)}

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        originals, rebuilt, clones = u_turns.originals, u_turns.reconstructions, u_turns.clones
        law = originals.law
        before, after = (
            law.to_basis(values - law.mean) for values in (originals.values[:, None], rebuilt)
        )
        label = source.classify(rebuilt.reshape(-1, law.dimension), law).reshape(rebuilt.shape[:2])
        scales = list(source.scales().values())
        readings = {
            "scale_similarity": np.stack(
                [_cosine(before[..., chosen], after[..., chosen]) for chosen in scales], axis=-1
            ),
            "same_label": label == originals.labels[:, None],
        }
        if clones > 1:
            twins = [between_clones(after[..., chosen], clones, _cosine) for chosen in scales]
            readings["clone_scale_similarity"] = np.stack(twins, axis=-1)
            readings["clone_same_label"] = between_clones(label, clones, lambda a, b: a == b)
        return readings


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
