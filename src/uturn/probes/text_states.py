"""Similarity of texts in the hidden states of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from uturn.core import progress
from uturn.core.checks import expect
from uturn.measures.clones import between_clones
from uturn.networks.layers import EVERY_BLOCK, hooks, select_layers
from uturn.networks.texts.language import LanguageModel
from uturn.probes.activations import (
    LayerStatistics,
    Moments,
    Receiver,
    batches,
    checked_count,
    float64_copy,
)
from uturn.probes.second_model import TranslatedTexts, distinct
from uturn.sources.tokens import PAD


@dataclass(frozen=True)
class TextReadings:
    """Similarities by name, float64 (items, draws, layers)."""

    with_original: dict[str, np.ndarray]
    with_clones: dict[str, np.ndarray] = field(default_factory=dict)
    """Mean over the other clones of a noisy text; empty for a single clone."""


class TextStates:
    """Hidden states of a network that reads texts, standardised per channel.

    Let h_t be the state of a layer at token t of a text, a vector over channels, and z_t = (h_t -
    E[h]) / sqrt(E[h²] - E[h]²) for each channel, with means over all tokens of the reference texts,
    int64 (count, length). Two texts x, x' of n and n' tokens are compared by

        text similarity   = cos(sum_t z_t / n, sum_t z'_t / n'),
        token similarity  = sum_t cos(z_t, z'_t) / n,   where n = n' and both texts have the same positions.

    Tokens around a text ([CLS], [SEP], ..), padding and constant channels are left out. `layers`:
    "every block", names or patterns of modules, by default the choice of the model; for models of
    transformers, "every block" means the hidden states they return: "embeddings", "block 1", .. .
    The clones of a noisy text and their original are always in one call.
    """

    def __init__(
        self,
        model: LanguageModel,
        texts: TranslatedTexts,
        reference: np.ndarray,
        layers: Sequence[str] | None,
        batch_size: int,
    ) -> None:
        self.model = model
        self.texts = texts
        self.batch_size = batch_size
        chosen = layers or getattr(model.network, "probed", EVERY_BLOCK)
        is_every_block = chosen in (EVERY_BLOCK, (EVERY_BLOCK,))
        self._gives_states = model.config is not None and is_every_block
        self.layers: tuple[str, ...] = ()
        if not self._gives_states:
            self.layers = select_layers(model.network, chosen)
        rows = texts.rows(reference)
        first_call = next(self._calls(rows[:1]))
        self.layers = tuple(first_call.states)
        self.statistics = self._fit(rows)

    def _fit(self, rows: np.ndarray) -> dict[str, LayerStatistics]:
        moments = {layer: Moments(layer) for layer in self.layers}
        for call in self._calls(rows, self.batch_size):
            for layer, values in call.states.items():
                moments[layer].add(float64_copy(values[call.is_token]))
        checked_count(moments[self.layers[0]].count, "tokens of the reference texts")
        return {layer: entry.statistics(1) for layer, entry in moments.items()}

    def read(
        self, original: np.ndarray, reconstructed: np.ndarray, clones: int = 1
    ) -> TextReadings:
        """`text_similarity` and, if the tokens of both models correspond, `token_similarity`.

        They compare originals, int64 (items, length), with their reconstructions (items, draws,
        length), and are NaN where the model cannot read a text. With several clones, each is also
        compared with the other clones.
        """
        items, draws, _ = reconstructed.shape
        names = ["text_similarity"]
        if self.texts.shares_tokens:
            names.append("token_similarity")
        shape = (items, draws, len(self.layers))
        readings = TextReadings({name: np.empty(shape) for name in names})
        if clones > 1:
            readings.with_clones.update({name: np.empty(shape) for name in names})
        for batch in progress.steps(batches(items, draws, clones, self.batch_size)):
            rebuilt = reconstructed[batch.items, batch.draws]
            texts = distinct(original[batch.items], rebuilt)
            before = texts.originals[:, None]
            after = texts.reconstructions
            for k, similarities in enumerate(self._similarities(texts.ids)):
                place = (batch.items, batch.draws, k)
                for name in names:
                    similarity = similarities[name]
                    readings.with_original[name][place] = similarity(before, after)
                    if clones > 1:
                        twins = between_clones(after, clones, similarity)
                        readings.with_clones[name][place] = twins
        return readings

    def _similarities(self, ids: np.ndarray) -> Iterator[dict[str, _Cosine]]:
        """For each layer, the similarities of the texts of two rows of `ids`, and of their
        tokens.
        """
        rows = self.texts.rows(ids)
        lengths = (rows != PAD).sum(1)
        is_readable = self.texts.is_readable(rows)
        readable = np.flatnonzero(is_readable)
        longest = int(lengths[readable].max(initial=1))
        divisors = torch.from_numpy(np.maximum(lengths, 1))[:, None, None]
        calls: list[_Call] = []
        if len(readable):
            calls = list(self._calls(rows[readable]))
        for layer in self.layers:
            statistics = self.statistics[layer]
            factors = statistics.factors()
            z = torch.zeros(len(rows), longest, len(factors), dtype=torch.float64)
            for call in calls:
                states = statistics.standardised(call.states[layer], factors)
                states = states * call.is_token[..., None]
                numbers = torch.from_numpy(readable[call.rows])
                z[numbers, : states.shape[1]] = states.cpu()
            mean = z.sum(1, keepdim=True) / divisors
            yield {
                "text_similarity": _Cosine.between(mean, np.ones(len(rows)), is_readable),
                "token_similarity": _Cosine.between(z, lengths, is_readable),
            }

    def _calls(self, rows: np.ndarray, batch_size: int | None = None) -> Iterator[_Call]:
        """Hidden states of texts (count, length), call by call."""
        lengths = (rows != PAD).sum(1)
        start = len(self.model.prefix)
        for numbers, ids, real in self.model.batches(rows, batch_size):
            places = np.arange(lengths[numbers].max())
            is_token = torch.from_numpy(places < lengths[numbers, None]).to(real.device)
            inside = slice(start, start + len(places))
            framed = self._framed_states(ids, real)
            states = {layer: values[:, inside] for layer, values in framed.items()}
            yield _Call(numbers, is_token, states)

    def _framed_states(self, ids: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hidden states of a batch, including the tokens around a text, {layer: (rows, tokens,
        channels)}.
        """
        states: dict[str, torch.Tensor] = {}

        def keep(layer: str, values: torch.Tensor) -> None:
            fits = values.shape[:2] == ids.shape and values.ndim == 3
            expected = (
                f"(batch, tokens, channels) of {tuple(ids.shape)} tokens; name the layers"
                " without it"
            )
            expect(fits, f"shape of layer {layer!r}", tuple(values.shape), expected)
            states[layer] = values.clone()  # a copy, because the next module may work in place

        receive = Receiver(len(ids), keep)
        if self._gives_states:
            for k, values in enumerate(self._given_states(ids, real)):
                receive("embeddings" if k == 0 else f"block {k}", values)
        else:
            with hooks(self.model.network, self.layers, receive):
                self.model.read(ids, real)
        receive.check(self.layers)
        return {layer: states[layer] for layer in self.layers or states}

    def _given_states(self, ids: torch.Tensor, real: torch.Tensor) -> Sequence[torch.Tensor]:
        """The hidden states that a model of transformers returns."""
        output = self.model.read(ids, real, output_hidden_states=True)
        states: Sequence[torch.Tensor] = getattr(output, "hidden_states", None) or ()
        expect(
            states,
            f"{self.model.description}: hidden states",
            states,
            "those of its layers; name them (layers)",
        )
        return states


@dataclass(frozen=True)
class _Call:
    """Hidden states of the texts of one call of the model."""

    rows: np.ndarray
    """Row numbers of the texts."""
    is_token: torch.Tensor
    """bool (rows, tokens); False for padding."""
    states: Mapping[str, torch.Tensor]
    """{layer: (rows, tokens, channels)}"""


@dataclass(frozen=True)
class _Cosine:
    """The mean cosine of the vectors of two texts, by row numbers; NaN where one is unreadable."""

    units: torch.Tensor
    """(rows, positions, channels), vectors divided by their norms."""
    lengths: np.ndarray
    """(rows,), positions over which a cosine is averaged."""
    is_readable: np.ndarray
    """bool (rows,)"""

    @classmethod
    def between(
        cls, vectors: torch.Tensor, lengths: np.ndarray, is_readable: np.ndarray
    ) -> _Cosine:
        norms = vectors.norm(dim=2, keepdim=True)
        return cls(vectors / torch.where(norms > 0, norms, 1), lengths, is_readable)

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        first = self.units[torch.from_numpy(a)]
        second = self.units[torch.from_numpy(b)]
        products = (first * second).sum((-2, -1)).numpy()
        means = (products / np.maximum(self.lengths[a], 1)).clip(-1, 1)
        cosine = np.where(a == b, 1.0, means)
        return np.where(self.is_readable[a] & self.is_readable[b], cosine, np.nan)
