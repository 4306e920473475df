"""The probe of the class that a classifier predicts for texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import model_validator

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.second_model import SecondModel, TextsOf, distinct

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel
    from uturn.networks.texts.language_files import Head


class TextClass(SecondModel):
    """Agreement of the classes that a classifier predicts for the original and for the reconstruction.

    Options. `model`: a folder or hub id of a classifier that `AutoModelForSequenceClassification` of transformers reads; or
    "module:function", which returns a torch module that takes ids (texts, tokens) and gives logits (texts, classes). `labels`:
    also compare with the true labels, if the source has them. All other options: `SecondModel`.

    Variables. `same_class`: whether the class predicted for the reconstruction equals the class predicted for the original; NaN
    where a reconstruction has no tokens, or too many for the model. Its value by chance is the probability that two originals
    have the same predicted class. `predicted_class`, `original_class`: class predicted for the reconstruction (NaN as above), and
    for the original. With labels `label_top1`: whether the predicted class of the reconstruction is the label of the original
    (NaN if unknown).
    """

    type: Literal["text_class"] = "text_class"
    labels: bool = True

    @model_validator(mode="after")
    def _is_no_masked_model(self) -> TextClass:
        if self.model == "same":
            raise ValueError(
                "classifier = 'same' is the masked model of the backward, which has no classes; expected a classifier"
            )
        return self

    @property
    def head(self) -> Head:
        return "classifier"

    def variables(self, source: Any) -> dict[str, Variable]:
        classes_of(self, source)  # exposes errors before the run
        dims = ("noise", "item", "trajectory")
        share: dict[str, Any] = {"bounds": (0, 1), "group": "class", "family": "text"}
        original = f"{self.prefix}original_class"
        variables = {
            "same_class": Variable(
                dims, "same predicted class as the original", start=1, chance=f"same:{original}", symmetric=True, **share
            ),
            "predicted_class": Variable(dims, "class predicted for the reconstruction", role="record"),
            "original_class": Variable(dims[:2], "class predicted for the original", role="record", pooled=False),
        }
        if self._has_labels(source):
            long_name = "label of the original is the predicted class"
            variables["label_top1"] = Variable(dims, long_name, start=f"same:{original}=label", **share)
        return self.prefixed(variables)

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        texts, original, reconstructed = distinct(u_turns.originals.data, u_turns.reconstructions)
        classes = classes_of(self, source).predicted(texts)
        before, after = classes[original], classes[reconstructed]
        readings = {"same_class": _agree(after, before[:, None]), "predicted_class": after, "original_class": before}
        if self._has_labels(source):
            labels = u_turns.originals.labels[:, None]
            readings["label_top1"] = _agree(after, np.where(labels >= 0, labels, np.nan))
        twins = {"same_class": between_clones(after, u_turns.clones, _agree)} if u_turns.clones > 1 else {}
        return self.prefixed(readings, twins)

    def _has_labels(self, source: Any) -> bool:
        """Whether labels are compared; ValueError if there are labels that are no classes of the classifier."""
        num_labels, num_classes = source.num_labels() if self.labels else None, classes_of(self, source).num_classes
        if num_labels is not None and num_labels > num_classes:
            raise ValueError(
                f"classifier = {self.model!r} knows the classes 0 .. {num_classes - 1}, but the largest label of the texts is "
                f"{num_labels - 1}; number the labels as the classifier does, or leave them out (labels = false)"
            )
        return num_labels is not None


class Classes(NamedTuple):
    """A classifier, the texts of a source in its tokens, and the number of its classes."""

    model: LanguageModel
    texts: TextsOf
    batch_size: int
    num_classes: int

    def predicted(self, ids: np.ndarray) -> np.ndarray:
        """Predicted classes, float64 (count,), of ids of the first model; NaN for texts that the classifier cannot read."""
        from uturn.networks.texts.classifiers import class_logits

        return self.texts.measured(ids, lambda rows: class_logits(self.model, rows, self.batch_size).argmax(1).astype(float))


@cached_while_unchanged()
def classes_of(spec: TextClass, source: Any) -> Classes:
    """The classifier of a spec for the texts of a source.

    Raises
    ------
    ValueError
        If there is no such classifier, or if its tokens do not match the texts.
    """
    from uturn.networks.texts.classifiers import class_logits

    model = spec.text_model.load()
    texts = TextsOf(source, model, f"classifier = {spec.model!r}")
    num_classes = class_logits(model, texts.rows(source.ids([0, 0])), 2).shape[1]
    return Classes(model, texts, spec.batch_size, num_classes)


def _agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether classes agree, NaN where one is NaN."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, a == b)
