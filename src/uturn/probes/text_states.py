"""Similarity of texts in the hidden states of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from uturn.core import progress
from uturn.measures.clones import between_clones
from uturn.networks.layers import EVERY_BLOCK, hooks, select_layers
from uturn.networks.texts.models import TextModel
from uturn.probes.hidden_layers import Receiver, batch_slices, channel_factors, float64_copy
from uturn.probes.layer_statistics import Moments
from uturn.probes.second_model import TextsOf


class TextReadings(NamedTuple):
    """Similarity of originals and reconstructions, float64 (items, draws, layers), and of clones of one noisy text (or None).

    `text`: cosine of the means over tokens; `token`: mean of the cosines of tokens, None if the tokens do not correspond.
    """

    text: np.ndarray
    token: np.ndarray | None
    clone_text: np.ndarray | None = None
    clone_token: np.ndarray | None = None


class TextStates:
    """Hidden states of a network that reads texts, standardised per channel.

    Let h_t be the state of a layer at token t of a text, a vector over channels, and z_t = (h_t - E[h]) / sqrt(E[h²] - E[h]²) for
    each channel, with means over all tokens of the reference texts. Two texts x, x' of n and n' tokens are compared by

        text similarity   = cos(sum_t z_t / n, sum_t z'_t / n'),
        token similarity  = sum_t cos(z_t, z'_t) / n,   where n = n' and both texts have the same positions.

    Tokens around a text ([CLS], [SEP], ..) and padding are left out. Constant channels are left out too. Equal texts have the
    similarity 1.

    Parameters
    ----------
    model : TextModel
    texts : TextsOf
    reference : int64 (count, length)
        Ids of the reference texts.
    layers : str or sequence of str, optional
        "every block", names or patterns of modules (`uturn.networks.layers.select_layers`). By default that of the model. For
        models of transformers "every block" are the hidden states that they give themselves: "embeddings", "block 1", .. .
    batch_size : int
        Texts in a call; the clones of a noisy text and their original always go together.

    Attributes
    ----------
    layers : tuple of str
    mean, variance : {layer: float64 (channels,)}

    Raises
    ------
    ValueError
        For layers that do not exist, or whose outputs are not (batch, tokens, channels), finite, and one for each call.
    """

    def __init__(
        self,
        model: TextModel,
        texts: TextsOf,
        reference: np.ndarray,
        layers: str | Sequence[str] | None = None,
        batch_size: int = 32,
    ) -> None:
        self.model, self.texts, self.batch_size = model, texts, batch_size
        wanted = model.layers if layers is None else layers
        self._gives_states = model.config is not None and wanted in (EVERY_BLOCK, (EVERY_BLOCK,), [EVERY_BLOCK])
        self.layers = () if self._gives_states else select_layers(model.module, wanted)
        rows = texts.rows(reference)
        self.layers = tuple(next(self._states(rows[:1]))[2])
        self.mean: dict[str, np.ndarray] = {}
        self.variance: dict[str, np.ndarray] = {}
        self._fit(sorted(rows, key=len))

    def _fit(self, rows: Sequence[Sequence[int]]) -> None:
        moments = {layer: Moments(layer) for layer in self.layers}
        for start in range(0, len(rows), self.batch_size):
            for _, here, states in self._states(rows[start : start + self.batch_size]):
                for layer, values in states.items():
                    moments[layer].add(float64_copy(values[here]))
        if moments[self.layers[0]].count < 2:
            raise ValueError("reference texts: a single token; a variance needs at least 2, and many to be any good")
        for layer, found in moments.items():
            self.mean[layer], self.variance[layer], _ = found.by_channel(1)

    def calls(self, items: int, draws: int, clones: int = 1) -> int:
        """Calls of the network for so many items with so many reconstructions each, if texts of all lengths go together."""
        return sum(1 for _ in batch_slices(items, draws, clones, self.batch_size))

    def read(self, original: np.ndarray, reconstructed: np.ndarray, clones: int = 1) -> TextReadings:
        """Similarity of originals int64 (items, length) with their reconstructions (items, draws, length).

        An original goes through the network once with its reconstructions, as far as they fit into a batch, and so does every
        text that occurs several times in it. NaN where a text has no token of the model, or more than it takes.
        """
        items, draws, length = reconstructed.shape
        shares, several = self.texts.shares_tokens, clones > 1
        found = [np.empty((items, draws, len(self.layers))) for _ in range(4)]
        for rows, columns in progress.steps(list(batch_slices(items, draws, clones, self.batch_size))):
            given = np.concatenate([original[rows], reconstructed[rows, columns].reshape(-1, length)])
            texts, place = np.unique(given, axis=0, return_inverse=True)
            before, after = np.split(place.reshape(-1), [rows.stop - rows.start])
            after = after.reshape(len(before), -1)
            pair = np.repeat(before, after.shape[1]), after.ravel()
            for k, (of_texts, of_tokens) in enumerate(self._similarities(texts)):
                for j, f in enumerate((of_texts, of_tokens if shares else None)):
                    if f is None:
                        continue
                    found[j][rows, columns, k] = f(*pair).reshape(after.shape)
                    if several:
                        found[2 + j][rows, columns, k] = between_clones(after, clones, f)
        text, token, clone_text, clone_token = found
        return TextReadings(
            text, token if shares else None, clone_text if several else None, clone_token if several and shares else None
        )

    def _similarities(self, ids: np.ndarray) -> Iterator[tuple[Callable[..., np.ndarray], Callable[..., np.ndarray]]]:
        """For each layer, the similarities of two texts and of their tokens, functions of numbers of rows of `ids`."""
        rows = self.texts.rows(ids)
        lengths = np.array([len(row) for row in rows])
        readable = self.texts.readable(rows)
        wanted = np.flatnonzero(readable)
        calls = list(self._states([rows[k] for k in wanted])) if len(wanted) else []
        for layer in self.layers:
            z = torch.zeros(len(rows), int(lengths[wanted].max(initial=1)), len(self.mean[layer]), dtype=torch.float64)
            for numbers, here, states in calls:
                part = self._standardised(layer, states[layer]) * here[..., None]
                z[torch.from_numpy(wanted[numbers]), : part.shape[1]] = part.cpu()
            mean = z.sum(1, keepdim=True) / torch.from_numpy(np.maximum(lengths, 1))[:, None, None]
            yield _cosine(mean, np.ones(len(rows)), readable), _cosine(z, lengths, readable)

    def _standardised(self, layer: str, values: torch.Tensor) -> torch.Tensor:
        mean, variance = self.mean[layer], self.variance[layer]
        z = float64_copy(values)
        centre, factor = (torch.from_numpy(table).to(z.device) for table in (mean, channel_factors(mean, variance, variance)))
        return z.sub_(centre).mul_(factor)

    def _states(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, torch.Tensor, dict[str, torch.Tensor]]]:
        """Hidden states of texts, call by call.

        Numbers of the rows of a call; whether there is a token, bool (rows, tokens); states {layer: (rows, tokens, channels)},
        without the tokens around a text.
        """
        start = len(self.model.prefix)
        for numbers, ids, real in self.model.batches(self.model.framed(rows)):
            lengths = torch.tensor([len(rows[number]) for number in numbers], device=real.device)
            here = torch.arange(int(lengths.max()), device=real.device) < lengths[:, None]
            states = self._framed_states(ids, real)
            yield numbers, here, {layer: values[:, start : start + here.shape[1]] for layer, values in states.items()}

    def _framed_states(self, ids: torch.Tensor, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """Hidden states of a batch, {layer: (rows, tokens, channels)}."""
        model, found = self.model, dict[str, torch.Tensor]()

        def keep(layer: str, values: torch.Tensor) -> None:
            if values.shape[:2] != ids.shape or values.ndim != 3:
                raise ValueError(
                    f"layer {layer!r} gives shape {tuple(values.shape)} for {ids.shape[0]} texts of {ids.shape[1]} tokens; "
                    f"expected (batch, tokens, channels): name the layers without it"
                )
            found[layer] = values.clone()  # a copy, because the next module may work in place

        receive = Receiver(len(ids), keep, lambda row: f"text {row} of a batch")
        if self._gives_states:
            for layer, values in _given_states(model.output(ids, real, output_hidden_states=True), model.name):
                receive(layer, values)
        else:
            with hooks(model.module, self.layers, receive):
                model.output(ids, real)
        missing = [layer for layer in self.layers if layer not in found]
        if missing:
            raise ValueError(f"layers {', '.join(missing)} did not run in the forward pass; name the layers without them")
        return {layer: found[layer] for layer in self.layers or found}


def _given_states(output: Any, name: str) -> list[tuple[str, Any]]:
    """The hidden states that a model of transformers gives, with their names."""
    states = getattr(output, "hidden_states", None)
    if not states:
        raise ValueError(f"model = {name!r} does not give its hidden states; name its layers (layers)")
    return [("embeddings" if k == 0 else f"block {k}", values) for k, values in enumerate(states)]


def _cosine(z: torch.Tensor, lengths: np.ndarray, readable: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Mean cosine over positions of vectors (rows, positions, channels), as a function of the numbers of two rows.

    `lengths`: number of positions of each row; beyond them vectors are 0.
    """
    norms = z.norm(dim=2, keepdim=True)
    units = z / torch.where(norms > 0, norms, 1)

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        products = (units[torch.from_numpy(a)] * units[torch.from_numpy(b)]).sum((1, 2)).numpy()
        cosine = np.where(a == b, 1.0, (products / np.maximum(lengths[a], 1)).clip(-1, 1))
        return np.where(readable[a] & readable[b], cosine, np.nan)

    return similarity
