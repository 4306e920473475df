"""What models say of whole texts: log-likelihoods of causal models, pseudo-log-likelihoods of masked ones, logits of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from uturn.core.checks import expect
from uturn.core.pieces import Pieces
from uturn.corruption.unmasking import MASKED
from uturn.networks.texts.language import LanguageModel
from uturn.sources.tokens import PAD


def causal_log_likelihoods(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Log-likelihood of texts, ids int64 (count, length), under a causal model, in nats, float64 (count,).

    log p(x) = sum_i log p(x_i | x_1, .., x_{i-1}), in one call for each batch. The first token is conditioned on the tokenizer's
    prefix, or else on the model's begin token; without either, the first token is not counted.
    """
    prefix = beginning(model)
    first = max(1, len(prefix))
    log_likelihoods = np.zeros(len(texts))
    for numbers, ids, real in model.batches(texts, batch_size, (prefix, ())):
        logs = model.logits(ids, real)[:, first - 1 : -1].float().log_softmax(-1)
        of_tokens = logs.gather(2, ids[:, first:, None])[..., 0].double().masked_fill(~real[:, first:], 0)
        log_likelihoods[numbers] = of_tokens.sum(1).cpu().numpy()
    return log_likelihoods


def beginning(model: LanguageModel) -> tuple[int, ...]:
    """Ids before a text in a causal model."""
    if model.prefix:
        return model.prefix
    token = getattr(model.config, "bos_token_id", None)
    size = getattr(model.config, "vocab_size", None)
    return (token,) if isinstance(token, int) and size is not None and 0 <= token < size else ()


def pseudo_log_likelihoods(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Pseudo-log-likelihood of texts, ids int64 (count, length), under a masked model, in nats, float64 (count,).

    PLL(x) = sum_i log p(x_i | all other tokens) (Eq. 1 of arXiv:1910.14659), each token masked in turn: the network reads a text
    of n tokens n times. PLL is not a log-probability of the text. It is -inf if a token has probability 0.
    """
    log_likelihoods = np.zeros(len(texts))
    for k, text in enumerate(texts):
        tokens = text[text != PAD]
        n = len(tokens)
        for start in range(0, n, batch_size):
            places = np.arange(start, min(start + batch_size, n))
            rows = np.arange(len(places))
            masked = np.tile(tokens, (len(places), 1))
            masked[rows, places] = MASKED
            law = model.beliefs(masked, np.full(len(places), 1 / n), Pieces(model.device, batch_size)).at(rows, places)
            with np.errstate(divide="ignore"):
                log_likelihoods[k] += np.log(law[rows, tokens[places]]).sum()
    return log_likelihoods


def class_logits(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of the classes, float64 (count, classes), of texts as ids int64 (count, longest), `PAD` beyond their end."""

    def logits_of(output: Any, real: torch.Tensor) -> torch.Tensor:
        logits: Any = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
        shape = tuple(getattr(logits, "shape", ()))
        fits = len(shape) == 2 and shape[0] == len(real) and shape[1] > 1
        expected = "logits (texts, classes) of two or more classes"
        expect(fits, f"{model.description}: shape of the output for {len(real)} texts", shape, expected)
        return logits

    return model.rows(texts, batch_size, logits_of)
