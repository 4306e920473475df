"""Classifiers of texts: logits of the classes of each text."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from uturn.core.pieces import half_precision_words
from uturn.networks.texts.language import LanguageModel


def class_logits(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of the classes, float64 (count, classes), of texts as ids int64 (count, longest), `PAD` beyond their end.

    Raises
    ------
    ValueError
        If the network gives no finite logits of two or more classes for each text.
    """
    rows: list[Any] = [None] * len(texts)
    for numbers, ids, real in model.batches(texts, batch_size):
        out: Any = model.read(ids, real)
        logits = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(ids) or logits.shape[1] < 2:
            what = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
            raise ValueError(
                f"{model.description} gives {what} for {len(ids)} texts; expected logits (texts, classes) of two or more classes"
            )
        if not logits.isfinite().all():
            raise ValueError(f"{model.description} gives logits that are not finite{half_precision_words(logits.dtype)}")
        for number, row in zip(numbers, logits.detach().double().cpu().numpy(), strict=True):
            rows[number] = row
    return np.array(rows, float).reshape(len(texts), -1)
