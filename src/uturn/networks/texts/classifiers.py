"""Classifiers of texts: logits of the classes of each text."""

from __future__ import annotations

from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.pieces import half_precision_words
from uturn.networks.texts.language import LanguageModel


def class_logits(model: LanguageModel, texts: np.ndarray, batch_size: int) -> np.ndarray:
    """Logits of the classes, float64 (count, classes), of texts as ids int64 (count, longest), `PAD` beyond their end."""
    rows: list[Any] = [None] * len(texts)
    for numbers, ids, real in model.batches(texts, batch_size):
        out: Any = model.read(ids, real)
        logits: Any = getattr(out, "logits", out[0] if isinstance(out, tuple) else out)
        shape = tuple(getattr(logits, "shape", ()))
        fits = len(shape) == 2 and shape[0] == len(ids) and shape[1] > 1
        expected = "logits (texts, classes) of two or more classes"
        expect(fits, f"{model.description}: shape of the output for {len(ids)} texts", shape, expected)
        way_out = half_precision_words(logits.dtype)
        bad = int((~logits.isfinite()).sum())
        expect(not bad, f"{model.description}: logits that are not finite", bad, f"none{way_out}")
        for number, row in zip(numbers, logits.detach().double().cpu().numpy(), strict=True):
            rows[number] = row
    return np.array(rows, float).reshape(len(texts), -1)
