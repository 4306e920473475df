"""The probe of the similarity of texts in a sentence encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import UTurns, Variable
from uturn.measures.clones import between_clones
from uturn.probes.second_model import SecondModel, TextsOf, distinct

if TYPE_CHECKING:
    from uturn.networks.texts.sentence_encoders import SentenceEncoder, SentenceModel


class TextEncoder(SecondModel):
    """Similarity of texts in a sentence encoder: the cosine of the embeddings of original and reconstruction.

    Options. `model`: a model of sentence-transformers, whose pooling is used, or any other encoder, whose hidden states are
    averaged over tokens (`networks/texts/sentence_encoders.py`). `reference`: number of originals for the chance level. All
    other options: `SecondModel`.

    Variables. `sentence_similarity`: -1 .. 1, 1 for equal texts; NaN where a reconstruction has no tokens, or too many for the
    model. `sentence_chance`: mean similarity of an original with the others among the first `reference` originals, NaN if there
    are none. (similarity - chance) / (1 - chance) is 1 for equal texts and 0 on average for unrelated texts.
    """

    type: Literal["text_encoder"] = "text_encoder"
    reference: int = Field(default=256, ge=2)

    def variables(self, source: Any) -> dict[str, Variable]:
        sentences_of(self, source)  # exposes errors before the run
        similarity = Variable(
            ("noise", "item", "trajectory"),
            "cosine similarity of sentence embeddings",
            start=1,
            chance=f"{self.prefix}sentence_chance",
            bounds=(-1, 1),
            group="sentence",
            family="text",
            symmetric=True,
        )
        long_name = "mean cosine similarity of sentence embeddings with other originals"
        chance = Variable(("noise", "item"), long_name, role="record", pooled=False)
        return self.prefixed({"sentence_similarity": similarity, "sentence_chance": chance})

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        sentences, clones = sentences_of(self, source), u_turns.clones
        texts, original, reconstructed = distinct(u_turns.originals.data, u_turns.reconstructions)
        embeddings = sentences.embed(texts)

        def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            cosine = (embeddings[a] * embeddings[b]).sum(-1).clip(-1, 1)
            return np.where((a == b) & ~np.isnan(cosine), 1.0, cosine)

        readings = {
            "sentence_similarity": similarity(original[:, None], reconstructed),
            "sentence_chance": sentences.chance(embeddings[original], u_turns.originals.items),
        }
        twins = {"sentence_similarity": between_clones(reconstructed, clones, similarity)} if clones > 1 else {}
        return self.prefixed(readings, twins)

    @property
    def text_model(self) -> SentenceModel:
        from uturn.networks.texts.sentence_encoders import SentenceModel

        return SentenceModel(**self._loading())


class Sentences(NamedTuple):
    """An encoder, the texts of a source in its tokens, and the embeddings of the reference texts."""

    encoder: SentenceEncoder
    texts: TextsOf
    batch_size: int
    reference: np.ndarray

    def embed(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings of norm 1, float64 (count, width), of ids of the first model; NaN for texts that the encoder cannot read."""
        return self.texts.measured(ids, lambda rows: self.encoder.embed(rows, self.batch_size))

    def chance(self, embeddings: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Mean cosine with the reference texts other than the item itself, (items,)."""
        count, inside = len(self.reference), items < len(self.reference)
        others = count - inside
        total = embeddings @ self.reference.sum(0) - inside
        return np.where(others > 0, total / np.maximum(others, 1), np.nan)


@cached_while_unchanged()
def sentences_of(spec: TextEncoder, source: Any) -> Sentences:
    """The encoder of a spec and the embeddings of originals of the source.

    Raises
    ------
    ValueError
        If there is no such model, or if its tokens do not match the texts.
    """
    encoder: SentenceEncoder = spec.text_model.load()
    texts = TextsOf(source, encoder.model, f"model = {spec.model!r}", encoder.prompt, encoder.lower)
    sentences = Sentences(encoder, texts, spec.batch_size, np.zeros((0, 0)))
    return sentences._replace(reference=sentences.embed(source.ids(np.arange(min(spec.reference, source.count())))))
