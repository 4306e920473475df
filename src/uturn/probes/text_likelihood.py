"""The probe of the likelihood of texts under a second model."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import UTurns, Variable
from uturn.probes.second_model import SecondModel, TextsOf, distinct

if TYPE_CHECKING:
    from uturn.networks.texts.language import LanguageModel


class TextLikelihood(SecondModel):
    """Log-likelihood of reconstructions under a second model, in nats per character (`uturn.networks.texts.likelihoods`).

    Options. `model`: a causal or a masked model of transformers; "same", the masked model of the backward; "embedded"; or
    "module:function" (for `likelihood` "masked" a `uturn.networks.TokenNetwork`, for "causal" a torch module that returns
    logits). `likelihood`: "causal", log p(x) = sum_i log p(x_i | tokens before), one pass for each text; "masked", the
    pseudo-log-likelihood sum_i log p(x_i | all other tokens) of arXiv:1910.14659, one pass for each token of a text; "auto",
    determined by config.json. All other options: `SecondModel`.

    Variables. `log_likelihood`: log-likelihood of the reconstruction divided by its number of characters; NaN for texts without
    tokens, with too many for the model, or with a token of probability 0. `original_log_likelihood`: the same for the original.
    If originals follow the law of the backward and it draws from the posterior, both have the same mean at every noise level.
    """

    type: Literal["text_likelihood"] = "text_likelihood"
    likelihood: Literal["auto", "causal", "masked"] = "auto"

    @cached_property
    def head(self) -> Literal["causal", "masked"]:
        """The kind of likelihood, "causal" or "masked", with "auto" resolved."""
        from uturn.core.imports import is_import_path
        from uturn.networks.texts.language_files import is_packaged, kind_of

        where = f"model = {self.model!r}"
        stated: str | None = None
        if self.model == "same" or is_packaged(self.model):
            stated = "masked"
        elif is_import_path(self.model):
            if self.likelihood == "auto":
                raise ValueError(f"{where}: say likelihood = 'causal' or 'masked' for a model of one's own")
        elif self.likelihood == "auto" or not self.trust_remote_code:
            stated = kind_of(self.model, where, self.trust_remote_code, self.model_type)
        if stated is not None and self.likelihood not in ("auto", stated):
            raise ValueError(f"likelihood = {self.likelihood!r}: {where} is a {stated} model; leave likelihood out")
        return stated or self.likelihood  # type: ignore[return-value]

    def variables(self, source: Any) -> dict[str, Variable]:
        law = likelihoods_of(self, source).law
        long_name = {"causal": "log-likelihood", "masked": "pseudo-log-likelihood"}[law]
        reconstruction = Variable(
            ("noise", "item", "trajectory"),
            f"{long_name} of the reconstruction, nats per character",
            start=f"{self.prefix}original_log_likelihood",
            group="likelihood",
            unit="nats per character",
        )
        original = Variable(("noise", "item"), f"{long_name} of the original, nats per character", role="record", pooled=False)
        return self.prefixed({"log_likelihood": reconstruction, "original_log_likelihood": original})

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        texts, original, reconstructed = distinct(u_turns.originals.data, u_turns.reconstructions)
        likelihoods = likelihoods_of(self, source).read(texts)
        return self.prefixed({"log_likelihood": likelihoods[reconstructed], "original_log_likelihood": likelihoods[original]})


class Likelihoods(NamedTuple):
    """A causal or masked model, and the texts of the source in its tokens."""

    law: Literal["causal", "masked"]
    model: LanguageModel
    texts: TextsOf
    batch_size: int

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Log-likelihood in nats per character, float64 (count,), of ids of the first model; NaN where it does not exist."""
        from uturn.networks.texts.likelihoods import causal_log_likelihoods, pseudo_log_likelihoods

        log_likelihoods = causal_log_likelihoods if self.law == "causal" else pseudo_log_likelihoods
        nats = self.texts.measured(ids, lambda rows: log_likelihoods(self.model, rows, self.batch_size))
        characters = np.array([len(text) for text in self.texts.texts(ids)])
        return np.where(np.isfinite(nats) & (characters > 0), nats / np.maximum(characters, 1), np.nan)


@cached_while_unchanged()
def likelihoods_of(spec: TextLikelihood, source: Any) -> Likelihoods:
    """The model of a spec with the kind of likelihood that it computes.

    Raises
    ------
    ValueError
        If there is no such model, if its tokens do not match the texts, or if it denoises replaced tokens.
    """
    from uturn.networks.texts.likelihoods import beginning

    where, law = f"model = {spec.model!r}", spec.head
    model = source.language() if spec.model == "same" else spec.text_model.load()
    if law == "masked" and model.corruption != "masking":
        raise ValueError(f"{where} denoises replaced tokens; a pseudo-log-likelihood needs a masked model")
    if source.tokenizer is None:
        raise ValueError(f"{where}: the model of the backward has no tokenizer, so that its ids have no characters to count")
    if law == "causal" and not model.prefix and model.length is not None:  # the begin token counts towards the model's maximum
        model = replace(model, length=model.length - len(beginning(model)))
    return Likelihoods(law, model, TextsOf(source, model, where), spec.batch_size)
