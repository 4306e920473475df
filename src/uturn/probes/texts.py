"""Probes that read texts with a second model: classes, sentence embeddings, likelihoods and
hidden states.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PrivateAttr, model_validator

from uturn.core.checks import expect
from uturn.core.inputs import Input
from uturn.core.protocols import Variable
from uturn.probes.comparison import Comparison, Features
from uturn.probes.second_model import SecondModel, TextUTurns, TranslatedTexts, distinct
from uturn.sources.tokens import NoisyTokens, TextSource, Tokens

if TYPE_CHECKING:
    from uturn.networks.texts.language_files import Head, SentenceEncoder, SentenceModel
    from uturn.probes.text_states import TextStates

_DIMS = ("noise", "item", "trajectory")


class TextClass(SecondModel, Comparison[Tokens, NoisyTokens, TextSource]):
    """Agreement of the classes that a classifier predicts for the original and for the
    reconstruction.

    Options. `model`: a folder or hub id of a classifier that `AutoModelForSequenceClassification`
    of transformers reads; or "module:function", which returns a torch module that takes ids (texts,
    tokens) and gives logits (texts, classes). `labels`: also compare with the true labels, if the
    source has them. All other options: `SecondModel`.

    Variables. `same_class`: whether the class predicted for the reconstruction equals the class
    predicted for the original; NaN where a reconstruction has no tokens, or too many for the model.
    `predicted_class`, `original_class`: class predicted for the reconstruction (NaN as above), and
    for the original. With labels `label_top1`: whether the predicted class of the reconstruction is
    the label of the original (NaN if unknown).
    """

    role: ClassVar[str] = "classifier"
    type: Literal["text_class"] = "text_class"
    labels: bool = True
    _has_labels: bool = PrivateAttr()

    @model_validator(mode="after")
    def _is_no_masked_model(self) -> TextClass:
        expected = "a classifier, which has classes; 'same' is the masked model of the backward"
        expect(self.model != "same", "classifier", self.model, expected)
        return self

    @property
    def head(self) -> Head:
        return "classifier"

    def prepare(self, source: TextSource) -> None:
        super().prepare(source)
        num_labels = source.num_labels() if self.labels else None
        num_classes = self._logits(self._texts.rows(source.ids([0, 0]))).shape[1]
        self._has_labels = num_labels is not None
        if num_labels is not None:
            way_out = "number the labels as the classifier does, or leave them out (labels = false)"
            expect(
                num_labels <= num_classes,
                "largest label of the texts",
                num_labels - 1,
                f"at most {num_classes - 1}, as {self.where} knows; {way_out}",
            )

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        classes: np.ndarray = self._logits(rows).argmax(1).astype(float)
        return classes

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        from uturn.networks.texts.language import class_logits

        return class_logits(self._texts.model, rows, self.batch_size)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        share: dict[str, Any] = {"bounds": (0, 1), "group": "class", "family": "text"}
        of_original = f"{self.prefix}original_class"
        every = {
            "same_class": Variable(
                _DIMS,
                "same predicted class as the original",
                start=1,
                chance=f"same:{of_original}",
                symmetric=True,
                **share,
            ),
            "predicted_class": Variable(
                _DIMS, "class predicted for the reconstruction", role="record"
            ),
            "original_class": Variable(
                _DIMS[:2], "class predicted for the original", role="record", pooled=False
            ),
        }
        if self._has_labels:
            every["label_top1"] = Variable(
                _DIMS,
                "label of the original is the predicted class",
                start=f"same:{of_original}=label",
                **share,
            )
        return self.prefixed(every)

    def features(self, u_turns: TextUTurns, source: TextSource) -> tuple[Features, Features]:
        texts = distinct(u_turns.originals.data, u_turns.reconstructions)
        classes = self.of_texts(texts.ids)
        return {"class": classes[texts.originals]}, {"class": classes[texts.reconstructions]}

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        return self.prefixed({"same_class": _agree(first["class"], second["class"])})

    def read(self, u_turns: TextUTurns, source: TextSource) -> dict[str, np.ndarray]:
        before, after = self.features(u_turns, source)
        readings = self.compared(before, after, u_turns.clones, source)
        classes = {"predicted_class": after["class"], "original_class": before["class"]}
        labels = u_turns.originals.labels
        if self._has_labels and labels is not None:
            right = np.where(labels >= 0, labels, np.nan)
            classes["label_top1"] = _agree(after["class"], right[:, None])
        return readings | self.prefixed(classes)


def _agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether classes agree, NaN where one is NaN."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, a == b)


class TextEncoder(SecondModel, Comparison[Tokens, NoisyTokens, TextSource]):
    """Similarity of texts in a sentence encoder: the cosine of the embeddings of original and
    reconstruction.

    Options. `model`: a model of sentence-transformers, whose pooling is used, or any other encoder,
    whose hidden states are averaged over tokens (`networks/texts/language_files.py`). `reference`:
    number of originals for the chance level. All other options: `SecondModel`.

    Variables. `sentence_similarity`: -1 .. 1, 1 for equal texts; NaN where a reconstruction has no
    tokens, or too many for the model. `sentence_chance`: mean similarity of an original with the
    others among the first `reference` originals, NaN if there are none. (similarity - chance) / (1 -
    chance) is 1 for equal texts and 0 on average for unrelated texts.
    """

    type: Literal["text_encoder"] = "text_encoder"
    reference: int = Field(default=256, ge=2)
    _encoder: SentenceEncoder = PrivateAttr()
    _reference: np.ndarray = PrivateAttr()

    @property
    def sentence_model(self) -> SentenceModel:
        """The encoder of sentences by name."""
        from uturn.networks.texts.language_files import SentenceModel

        return SentenceModel(self.text_model)

    def reads(self) -> list[Input]:
        return [] if self.model == "same" else [self.sentence_model]

    def texts(self, source: TextSource) -> TranslatedTexts:
        encoder = self.sentence_model.load()
        return TranslatedTexts(source, encoder.model, self.where, encoder.prompt, encoder.lower)

    def prepare(self, source: TextSource) -> None:
        super().prepare(source)
        self._encoder = self.sentence_model.load()
        count = min(self.reference, source.count())
        self._reference = self.of_texts(source.ids(np.arange(count)))

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        return self._encoder.embed(rows, self.batch_size)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        chance = "mean cosine similarity of sentence embeddings with other originals"
        every = {
            "sentence_similarity": Variable(
                _DIMS,
                "cosine similarity of sentence embeddings",
                start=1,
                chance=f"{self.prefix}sentence_chance",
                bounds=(-1, 1),
                group="sentence",
                family="text",
                symmetric=True,
            ),
            "sentence_chance": Variable(_DIMS[:2], chance, role="record", pooled=False),
        }
        return self.prefixed(every)

    def features(self, u_turns: TextUTurns, source: TextSource) -> tuple[Features, Features]:
        texts = distinct(u_turns.originals.data, u_turns.reconstructions)
        embeddings = self.of_texts(texts.ids)
        before = texts.originals
        after = texts.reconstructions
        return (
            {"text": before, "embedding": embeddings[before]},
            {"text": after, "embedding": embeddings[after]},
        )

    def compare(self, first: Features, second: Features) -> dict[str, np.ndarray]:
        cosine = (first["embedding"] * second["embedding"]).sum(-1).clip(-1, 1)
        is_equal = (first["text"] == second["text"]) & ~np.isnan(cosine)
        return self.prefixed({"sentence_similarity": np.where(is_equal, 1.0, cosine)})

    def read(self, u_turns: TextUTurns, source: TextSource) -> dict[str, np.ndarray]:
        before, after = self.features(u_turns, source)
        readings = self.compared(before, after, u_turns.clones, source)
        # An original among the reference texts is not compared with itself, whose cosine is 1.
        is_inside = u_turns.originals.items < len(self._reference)
        others = len(self._reference) - is_inside
        total = before["embedding"] @ self._reference.sum(0) - is_inside
        chance = np.where(others > 0, total / np.maximum(others, 1), np.nan)
        return readings | self.prefixed({"sentence_chance": chance})


class TextLikelihood(SecondModel):
    """Log-likelihood of reconstructions under a second model, in nats per character
    (`uturn.networks.texts.language`).

    Options. `model`: a causal or a masked model of transformers; "same", the masked model of the
    backward; "embedded"; or "module:function" (for `likelihood` "masked" a
    `uturn.networks.TokenNetwork`, for "causal" a torch module that returns logits). `likelihood`:
    "causal", log p(x) = sum_i log p(x_i | tokens before), one pass for each text; "masked", the
    pseudo-log-likelihood sum_i log p(x_i | all other tokens) of arXiv:1910.14659, one pass for each
    token of a text; "auto", determined by config.json. All other options: `SecondModel`.

    Variables. `log_likelihood`: log-likelihood of the reconstruction divided by its number of
    characters; NaN for texts without tokens, with too many for the model, or with a token of
    probability 0. `original_log_likelihood`: the same for the original.
    """

    type: Literal["text_likelihood"] = "text_likelihood"
    likelihood: Literal["auto", "causal", "masked"] = "auto"

    @cached_property
    def head(self) -> Head:
        """The kind of likelihood, "causal" or "masked", with "auto" resolved."""
        stated = self._stated_kind()
        if stated is None:
            assert self.likelihood != "auto"  # else the kind is stated
            return self.likelihood
        fits = self.likelihood in ("auto", stated)
        expect(fits, f"likelihood for {self.where}", self.likelihood, f"{stated!r}, or none")
        return stated

    def _stated_kind(self) -> Literal["causal", "masked"] | None:
        """The kind that the model has; None if only the option `likelihood` says so."""
        from uturn.core.imports import is_import_path
        from uturn.networks.texts.language_files import is_packaged, kind_of

        if self.model == "same" or is_packaged(self.model):
            return "masked"
        if is_import_path(self.model):
            expect(
                self.likelihood != "auto",
                f"likelihood for {self.where}",
                "auto",
                "'causal' or 'masked', as it is your own",
            )
            return None
        if self.likelihood == "auto" or not self.trust_remote_code:
            return kind_of(self.model, self.where, self.trust_remote_code, self.model_type)
        return None

    def texts(self, source: TextSource) -> TranslatedTexts:
        from uturn.networks.texts.language import beginning, language_of

        where = self.where
        model = language_of(source) if self.model == "same" else self.text_model.load()
        expect(
            self.head != "masked" or model.corruption == "masking",
            f"{where}: corruption",
            model.corruption,
            "'masking', as a pseudo-log-likelihood needs",
        )
        expect(
            source.tokenizer is not None,
            f"{where}: tokenizer of the backward",
            None,
            "one, so that ids have characters to count",
        )
        # The begin token counts, too.
        if self.head == "causal" and not model.prefix and model.length is not None:
            model = replace(model, length=model.length - len(beginning(model)))
        return TranslatedTexts(source, model, where)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        from uturn.networks.texts.language import causal_log_likelihoods, pseudo_log_likelihoods

        model = self._texts.model
        if self.head == "causal":
            return causal_log_likelihoods(model, rows, self.batch_size)
        return pseudo_log_likelihoods(model, rows, self.batch_size)

    def variables(self, source: TextSource) -> dict[str, Variable]:
        law = "log-likelihood" if self.head == "causal" else "pseudo-log-likelihood"
        unit = "nats per character"
        start = f"{self.prefix}original_log_likelihood"
        every = {
            "log_likelihood": Variable(
                _DIMS,
                f"{law} of the reconstruction, {unit}",
                start=start,
                group="likelihood",
                unit=unit,
            ),
            "original_log_likelihood": Variable(
                _DIMS[:2], f"{law} of the original, {unit}", role="record", pooled=False
            ),
        }
        return self.prefixed(every)

    def read(self, u_turns: TextUTurns, source: TextSource) -> dict[str, np.ndarray]:
        texts = distinct(u_turns.originals.data, u_turns.reconstructions)
        nats = self.of_texts(texts.ids)
        characters = np.array([len(text) for text in self._texts.texts(texts.ids)])
        has_likelihood = np.isfinite(nats) & (characters > 0)
        likelihood = np.where(has_likelihood, nats / np.maximum(characters, 1), np.nan)
        readings = {
            "log_likelihood": likelihood[texts.reconstructions],
            "original_log_likelihood": likelihood[texts.originals],
        }
        return self.prefixed(readings)


class TextLayers(SecondModel):
    """Similarity of the hidden states of texts in a network, layer by layer
    (`uturn.probes.text_states.TextStates`).

    Options. `model`: "same", the model of the backward; a folder or hub id of any encoder or causal
    model that transformers' `AutoModel` reads; "embedded"; or "module:function", which returns a
    torch module that takes ids. `layers`: names or patterns of modules, by default "every block".
    `reference`: number of originals over which channels are standardised. All other options:
    `SecondModel`; `name` is also a prefix of the dim `text_layer`.

    Variables. `text_similarity`: cosine of the standardised states averaged over tokens.
    `token_similarity`: cosine of the states of a token, averaged over tokens; only if both models
    have the same tokens, since otherwise positions do not correspond. Both are 1 for equal texts,
    and NaN where a reconstruction has no tokens, or too many for the model.
    """

    type: Literal["text_layers"] = "text_layers"
    model: str = "same"
    layers: tuple[str, ...] | None = None
    reference: int = Field(default=256, ge=1)
    _states: TextStates = PrivateAttr()

    def texts(self, source: TextSource) -> TranslatedTexts:
        from uturn.networks.texts.language import language_of

        is_same = self.model == "same"
        model = language_of(source).encoder() if is_same else self.text_model.load()
        return TranslatedTexts(source, model, self.where)

    def prepare(self, source: TextSource) -> None:
        from uturn.probes.text_states import TextStates

        super().prepare(source)
        reference = source.ids(np.arange(min(self.reference, source.count())))
        self._states = TextStates(
            self._texts.model, self._texts, reference, self.layers, self.batch_size
        )

    def variables(self, source: TextSource) -> dict[str, Variable]:
        dims = (*_DIMS, f"{self.prefix}text_layer")
        states = "cosine similarity of standardised hidden states"
        text_similarity = Variable(
            dims,
            f"{states}, averaged over tokens",
            start=1,
            bounds=(-1, 1),
            group="layers",
            order=dims[-1],
            symmetric=True,
        )
        if not self._texts.shares_tokens:
            note = "no token_similarity: the tokens of the models differ"
            noted = replace(text_similarity, long_name=f"{text_similarity.long_name} ({note})")
            return self.prefixed({"text_similarity": noted})
        token_similarity = replace(
            text_similarity,
            long_name=f"{states} of a token, mean over tokens",
            group="tokens in layers",
        )
        return self.prefixed(
            {"text_similarity": text_similarity, "token_similarity": token_similarity}
        )

    def coordinates(self, source: TextSource) -> dict[str, np.ndarray]:
        return {f"{self.prefix}text_layer": np.array(self._states.layers)}

    def read(self, u_turns: TextUTurns, source: TextSource) -> dict[str, np.ndarray]:
        originals = u_turns.originals.data
        readings = self._states.read(originals, u_turns.reconstructions, u_turns.clones)
        return self.prefixed(readings.with_original, readings.with_clones)
