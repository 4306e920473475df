"""The probe of the likelihood of texts under a second model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from uturn.core.files import cached_while_unchanged
from uturn.core.protocols import UTurns, Variable
from uturn.probes.second_model import SecondModel, TextsOf


class TextLikelihood(SecondModel):
    """Log-likelihood of reconstructions under a second model, in nats per character (`uturn.networks.texts.likelihoods`).

    Options. `model`: a causal or a masked model of transformers; "same", the masked model of the backward; "embedded"; or
    "module:function" (for `likelihood` "masked" a `uturn.networks.TokenNetwork`, for "causal" a torch module that gives logits).
    `likelihood`: "causal", log p(x) = sum_i log p(x_i | tokens before), for which the model reads a text once; "masked", the
    pseudo-log-likelihood sum_i log p(x_i | all other tokens) of arXiv:1910.14659, for which it reads a text once for each of its
    tokens; "auto", what config.json says. All others: `SecondModel`.

    Variables. `log_likelihood`: of the reconstruction, over the number of its characters; NaN for texts without tokens, with more
    than the model takes, or with a token that has no probability. `original_log_likelihood`: that of the original. If originals
    follow the law of the backward and it draws from the posterior, both have the same mean at every noise level.
    """

    type: Literal["text_likelihood"] = "text_likelihood"
    likelihood: Literal["auto", "causal", "masked"] = "auto"

    @property
    def law(self) -> Literal["causal", "masked"]:
        """What `likelihood` stands for."""
        from uturn.core.imports import is_import_path
        from uturn.networks.texts.language_files import read_config
        from uturn.networks.texts.models import FORMS, kind_of

        where, embedded = f"model = {self.model!r}", self.model in ("same", "embedded") or self.model.endswith(".safetensors")
        if is_import_path(self.model):
            if self.likelihood == "auto":
                raise ValueError(f"{where}: say likelihood = 'causal' or 'masked' for a model of one's own")
            return self.likelihood
        said = "masked" if embedded else None
        if said is None and (self.likelihood == "auto" or not self.trust_remote_code):
            said = kind_of(read_config(self.model, where, self.trust_remote_code, FORMS), where)
        if said is not None and self.likelihood not in ("auto", said):
            raise ValueError(f"likelihood = {self.likelihood!r}: {where} is a {said} model; leave likelihood out")
        return said or self.likelihood  # type: ignore[return-value]

    def variables(self, source: Any) -> dict[str, Variable]:
        law = likelihoods_of(self, source).law
        words = {"causal": "log-likelihood", "masked": "pseudo-log-likelihood"}[law]
        return {
            f"{self.prefix}log_likelihood": Variable(
                ("noise", "item", "trajectory"),
                f"{words} of the reconstruction, nats per character",
                start=f"{self.prefix}original_log_likelihood",
                group="likelihood",
                unit="nats per character",
            ),
            f"{self.prefix}original_log_likelihood": Variable(
                ("noise", "item"), f"{words} of the original, nats per character", role="record", pooled=False
            ),
        }

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        before, after = u_turns.originals.data, u_turns.reconstructions
        items, draws, length = after.shape
        texts, place = np.unique(np.concatenate([before, after.reshape(-1, length)]), axis=0, return_inverse=True)
        found = likelihoods_of(self, source).read(texts)[place.reshape(-1)]
        return {
            f"{self.prefix}log_likelihood": found[items:].reshape(items, draws),
            f"{self.prefix}original_log_likelihood": found[:items],
        }

    def network_calls(self, items: int, draws: int, clones: int, source: Any) -> int:
        """At most so many calls: texts that occur several times in a block are read once."""
        texts = items * (1 + draws)
        if likelihoods_of(self, source).law == "causal":
            return -(-texts // self.batch_size)
        return texts * -(-source.max_length // self.batch_size)

    def loaded(self) -> Any:
        if self.law == "causal":
            from uturn.networks.texts.models import load_text_model

            return load_text_model(self.model, "causal", **self.loading())
        return _masked(self)


class Likelihoods(NamedTuple):
    """The log-likelihood of texts as ids of the second model, and texts of the source as such ids."""

    law: Literal["causal", "masked"]
    log_likelihoods: Callable[[Any, Sequence[Sequence[int]], int], np.ndarray]
    model: Any
    texts: TextsOf
    batch_size: int

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Nats per character, float64 (count,), of ids of the first model; NaN where there is none."""
        rows = self.texts.rows(ids)
        characters = np.array([len(text) for text in self.texts.texts(ids)])
        readable = self.texts.readable(rows) & (characters > 0)
        out = np.full(len(rows), np.nan)
        found = self.log_likelihoods(self.model, [row for row, good in zip(rows, readable, strict=True) if good], self.batch_size)
        out[readable] = np.where(np.isfinite(found), found, np.nan)
        return out / np.maximum(characters, 1)


@cached_while_unchanged(files=lambda spec: spec.files(), maxsize=4)
def _masked(spec: TextLikelihood) -> Any:
    from uturn.networks.texts.language_files import load_language_model

    return load_language_model(spec.model, **spec.loading())


def _files(spec: TextLikelihood, source: Any) -> list[Path]:
    return [*spec.files(), *source.files()]


@cached_while_unchanged(files=_files)
def likelihoods_of(spec: TextLikelihood, source: Any) -> Likelihoods:
    """The model of a spec and what it computes.

    Raises
    ------
    ValueError
        If there is no such model, if its tokens do not fit the texts, or if it denoises replaced tokens.
    """
    from dataclasses import replace

    from uturn.networks.texts.likelihoods import beginning, causal_log_likelihoods, pseudo_log_likelihoods

    where, law = f"model = {spec.model!r}", spec.law
    model = source.language() if spec.model == "same" else spec.loaded()
    if law == "masked" and model.corruption != "masking":
        raise ValueError(f"{where} denoises replaced tokens; a pseudo-log-likelihood needs a masked model")
    if source.tokenizer is None:
        raise ValueError(f"{where}: the model of the backward has no tokenizer, so that its ids have no characters to count")
    if law == "causal" and not model.prefix and model.length is not None:  # the token for the beginning is one of those it reads
        model = replace(model, length=model.length - len(beginning(model)))
    function: Any = causal_log_likelihoods if law == "causal" else pseudo_log_likelihoods
    return Likelihoods(law, function, model, TextsOf(source, model, where), spec.batch_size)
