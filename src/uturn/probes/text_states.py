"""Similarity of texts in the hidden states of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from uturn.core import progress
from uturn.core.checks import expect
from uturn.measures.clones import between_clones
from uturn.networks.layers import EVERY_BLOCK, hooks, select_layers
from uturn.networks.texts.language import LanguageModel
from uturn.probes.hidden_layers import (
    Moments,
    Receiver,
    batch_slices,
    channel_factors,
    float64_copy,
    standardised,
)
from uturn.probes.second_model import TextsOf, distinct
from uturn.sources.tokens import PAD

_Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
        texts: TextsOf,
        reference: np.ndarray,
        layers: Sequence[str] | None,
        batch_size: int,
    ) -> None:
        self.model, self.texts, self.batch_size = model, texts, batch_size
        wanted = layers or getattr(model.network, "probed", EVERY_BLOCK)
        self._gives_states = model.config is not None and wanted in (EVERY_BLOCK, (EVERY_BLOCK,))
        self.layers = () if self._gives_states else select_layers(model.network, wanted)
        rows = texts.rows(reference)
        self.layers = tuple(next(self._states(rows[:1]))[2])
        self._fit(rows)

    def _fit(self, rows: np.ndarray) -> None:
        moments = {layer: Moments(layer) for layer in self.layers}
        for _, present, states in self._states(rows, self.batch_size):
            for layer, values in states.items():
                moments[layer].add(float64_copy(values[present]))
        count = moments[self.layers[0]].count
        expect(
            count > 1,
            "tokens of the reference texts",
            count,
            "at least 2 for a variance, and many to be any good",
        )
        statistics = {layer: of_layer.by_channel(1) for layer, of_layer in moments.items()}
        self.mean, self.variance = (
            {layer: table[k] for layer, table in statistics.items()} for k in range(2)
        )

    def read(
        self, original: np.ndarray, reconstructed: np.ndarray, clones: int = 1
    ) -> list[dict[str, np.ndarray]]:
        """`text_similarity` and, if the tokens of both models correspond, `token_similarity`,
        float64 (items, draws, layers).

        They compare originals, int64 (items, length), with their reconstructions (items, draws,
        length), and are NaN where the model cannot read a text. With several clones, a second table
        has the similarities of a clone with the other clones.
        """
        items, draws, _ = reconstructed.shape
        names = ("text_similarity", "token_similarity")[: 1 + self.texts.shares_tokens]
        shape = items, draws, len(self.layers)
        tables = [{name: np.empty(shape) for name in names} for _ in range(1 if clones == 1 else 2)]
        for rows, columns in progress.steps(
            list(batch_slices(items, draws, clones, self.batch_size))
        ):
            texts, before, after = distinct(original[rows], reconstructed[rows, columns])
            for k, similarities in enumerate(self._similarities(texts)):
                for name, similarity in zip(names, similarities, strict=False):
                    tables[0][name][rows, columns, k] = similarity(before[:, None], after)
                    if clones > 1:
                        tables[1][name][rows, columns, k] = between_clones(
                            after, clones, similarity
                        )
        return tables

    def _similarities(self, ids: np.ndarray) -> Iterator[tuple[_Similarity, _Similarity]]:
        """For each layer, functions of two row numbers of `ids` that give the similarities of
        the texts and of their tokens.
        """
        rows = self.texts.rows(ids)
        lengths, readable = (rows != PAD).sum(1), self.texts.readable(rows)
        wanted = np.flatnonzero(readable)
        calls = list(self._states(rows[wanted])) if len(wanted) else []
        for layer in self.layers:
            z = torch.zeros(
                len(rows),
                int(lengths[wanted].max(initial=1)),
                len(self.mean[layer]),
                dtype=torch.float64,
            )
            factor = channel_factors(self.mean[layer], self.variance[layer], self.variance[layer])
            for numbers, present, states in calls:
                of_call = standardised(states[layer], self.mean[layer], factor) * present[..., None]
                z[torch.from_numpy(wanted[numbers]), : of_call.shape[1]] = of_call.cpu()
            mean = z.sum(1, keepdim=True) / torch.from_numpy(np.maximum(lengths, 1))[:, None, None]
            yield _cosine(mean, np.ones(len(rows)), readable), _cosine(z, lengths, readable)

    def _states(
        self, rows: np.ndarray, batch_size: int | None = None
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, dict[str, torch.Tensor]]]:
        """Hidden states call by call: row numbers, a mask of tokens (rows, tokens), {layer:
        (rows, tokens, channels)}.
        """
        lengths = (rows != PAD).sum(1)
        start = len(self.model.prefix)
        for numbers, ids, real in self.model.batches(rows, batch_size):
            present = torch.from_numpy(
                np.arange(lengths[numbers].max()) < lengths[numbers, None]
            ).to(real.device)
            states = self._framed_states(ids, real)
            yield (
                numbers,
                present,
                {
                    layer: values[:, start : start + present.shape[1]]
                    for layer, values in states.items()
                },
            )

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
            every = (
                getattr(
                    self.model.read(ids, real, output_hidden_states=True), "hidden_states", None
                )
                or ()
            )
            expect(
                every,
                f"{self.model.description}: hidden states",
                every,
                "those of its layers; name them (layers)",
            )
            for k, values in enumerate(every):
                receive("embeddings" if k == 0 else f"block {k}", values)
        else:
            with hooks(self.model.network, self.layers, receive):
                self.model.read(ids, real)
        receive.check(self.layers)
        return {layer: states[layer] for layer in self.layers or states}


def _cosine(z: torch.Tensor, lengths: np.ndarray, readable: np.ndarray) -> _Similarity:
    """A function of two row numbers: the mean cosine of vectors (rows, positions, channels) over
    the `lengths` of a row.
    """
    norms = z.norm(dim=2, keepdim=True)
    units = z / torch.where(norms > 0, norms, 1)

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        products = (units[torch.from_numpy(a)] * units[torch.from_numpy(b)]).sum((-2, -1)).numpy()
        cosine = np.where(a == b, 1.0, (products / np.maximum(lengths[a], 1)).clip(-1, 1))
        return np.where(readable[a] & readable[b], cosine, np.nan)

    return similarity
