"""Log-likelihood of texts under causal models, and pseudo-log-likelihood under masked ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from uturn.core.pieces import Pieces
from uturn.networks.texts.language import LanguageModel
from uturn.networks.texts.models import TextModel


def causal_log_likelihoods(model: TextModel, rows: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
    """Log-likelihood of texts under a causal model, in nats, float64 (count,).

    log p(x) = sum_i log p(x_i | x_1, .., x_{i-1}), in one call for each batch. Before the first token stands what the tokenizer
    puts there, or else the model's token for the beginning of a text; without either, the first token is not counted.
    """
    prefix = beginning(model)
    order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
    found = np.zeros(len(rows))
    for start in range(0, len(rows), batch_size):
        part = order[start : start + batch_size]
        for numbers, ids, real in model.batches([[*prefix, *rows[k]] for k in part]):
            logits = _logits(model, ids, real)
            first = max(1, len(prefix))
            logs = logits[:, first - 1 : -1].float().log_softmax(-1)
            own = logs.gather(2, ids[:, first:, None])[..., 0].double().masked_fill(~real[:, first:], 0)
            found[np.array(part)[numbers]] = own.sum(1).cpu().numpy()
    return found


def beginning(model: TextModel) -> tuple[int, ...]:
    """Ids before a text in a causal model."""
    if model.prefix:
        return model.prefix
    token = getattr(model.config, "bos_token_id", None)
    size = getattr(model.config, "vocab_size", None)
    return (token,) if isinstance(token, int) and size is not None and 0 <= token < size else ()


def _logits(model: TextModel, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    out: Any = model.output(ids, real)
    logits = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model = {model.name!r} gives {what}; expected logits {(*ids.shape, 'tokens')}")
    return logits


def pseudo_log_likelihoods(model: LanguageModel, rows: Sequence[Sequence[int]], batch_size: int) -> np.ndarray:
    """Pseudo-log-likelihood of texts under a masked model, in nats, float64 (count,) (Eq. 1 of arXiv:1910.14659).

    PLL(x) = sum_i log p(x_i | all other tokens), each token masked in turn: the network reads a text of n tokens n times. It is
    no log-probability of the text. -inf if the model gives a token no probability.
    """
    from uturn.corruption.unmasking import MASKED

    found = np.zeros(len(rows))
    for k, row in enumerate(rows):
        n = len(row)
        for start in range(0, n, batch_size):
            places = np.arange(start, min(start + batch_size, n))
            masked = np.tile(np.array(row, np.int64), (len(places), 1))
            masked[np.arange(len(places)), places] = MASKED
            beliefs = model.beliefs(masked, np.full(len(places), 1 / n), Pieces(model.device, batch_size))
            law = beliefs.at(np.arange(len(places)), places)
            with np.errstate(divide="ignore"):
                found[k] += np.log(law[np.arange(len(places)), np.array(row)[places]]).sum()
    return found
