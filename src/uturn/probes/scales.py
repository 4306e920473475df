"""The probe of vectors: similarity scale by scale, and agreement of the class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from uturn.core.protocols import Spec, UTurns, Variable
from uturn.probes.comparison import Comparison, Features
from uturn.sources.vectors import NoisyVectors, Vectors, VectorSource

_LABEL = "label"


class Scales(Spec, Comparison[Vectors, NoisyVectors, VectorSource]):
    """Cosine similarity of original and reconstruction, scale by scale, and agreement of their
    exact classes.

    `scale_similarity`: cosine, -1 .. 1, of the components of one scale after the mean of the law is
    subtracted. The scales of a field are octaves of the wave number; a mixture has one scale, all
    components. `same_label`: whether the classes (`VectorSource.classify`) are equal.
    """

    kinds: ClassVar[tuple[str, ...]] = ("vectors",)
    type: Literal["scales"] = "scales"

    def variables(self, source: VectorSource) -> dict[str, Variable]:
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

    def coordinates(self, source: VectorSource) -> dict[str, np.ndarray]:
        return {"scale": np.array(list(source.scales()), float)}

    def features(
        self, u_turns: UTurns[Vectors, NoisyVectors], source: VectorSource
    ) -> tuple[Features, Features]:
        """The components of each scale, and the class "label"."""
        originals = u_turns.originals
        rebuilt = np.asarray(u_turns.reconstructions)
        law = originals.law
        labels = source.classify(rebuilt.reshape(-1, law.dimension), law)
        before = law.to_basis(originals.values - law.mean)
        after = law.to_basis(rebuilt - law.mean)
        scales = source.scales()
        return (
            {_LABEL: originals.labels, **_by_scale(before, scales)},
            {_LABEL: labels.reshape(rebuilt.shape[:2]), **_by_scale(after, scales)},
        )

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        cosines = [_cosine(first[scale], second[scale]) for scale in first if scale != _LABEL]
        return {
            "scale_similarity": np.stack(cosines, axis=-1),
            "same_label": first[_LABEL] == second[_LABEL],
        }


def _by_scale(
    components: np.ndarray, scales: Mapping[float, np.ndarray]
) -> dict[float, np.ndarray]:
    return {scale: components[..., is_part] for scale, is_part in scales.items()}


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine: np.ndarray = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return cosine
