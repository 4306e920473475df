"""Sentence encoders: a vector for each text, from models of sentence-transformers and plain encoders."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uturn.core.checks import checked_integer, expect
from uturn.core.files import cached_while_unchanged, read_table
from uturn.core.imports import is_import_path
from uturn.networks.libraries import reading
from uturn.networks.texts.language import LanguageModel
from uturn.networks.texts.language_files import TextModel, check_name, is_packaged

_POOLINGS = ("mean", "cls", "max", "lasttoken")
_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True, eq=False)
class SentenceEncoder:
    """An encoder with a pooling of its last hidden states (arXiv:1908.10084)."""

    model: LanguageModel
    pooling: str = "mean"  # over all tokens, including prefix and suffix; "cls", the first token; "max" over tokens; "lasttoken"
    prompt: str = ""  # text before each text
    lower: bool = False  # whether texts are converted to lower case first

    def embed(self, texts: np.ndarray, batch_size: int) -> np.ndarray:
        """Embeddings divided by their norm, float64 (count, width), of texts as ids int64 (count, length)."""
        table = self.model.rows(texts, batch_size, self._pooled)
        return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.finfo(float).tiny)

    def _pooled(self, output: Any, real: torch.Tensor) -> torch.Tensor:
        states: Any = getattr(output, "last_hidden_state", output[0] if isinstance(output, tuple | list) else output)
        shape = tuple(getattr(states, "shape", ()))
        fits = len(shape) == 3 and shape[:2] == tuple(real.shape)
        expected = f"hidden states (batch, tokens, width) of {tuple(real.shape)} tokens"
        expect(fits, f"{self.model.description}: shape of the output", shape, expected)
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "lasttoken":
            return states[torch.arange(len(states), device=real.device), real.sum(1) - 1]
        if self.pooling == "max":
            return states.masked_fill(~real[..., None], -torch.inf).amax(1)
        weights = real[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class SentenceModel(TextModel):
    """A sentence encoder by name: a folder or hub id of a model of sentence-transformers, whose modules.json lists an encoder, a
    pooling and optionally a normalisation; or any other `TextModel`, whose hidden states are averaged over tokens."""

    @cached_while_unchanged(maxsize=4)
    def load(self) -> SentenceEncoder:
        """The encoder; ValueError if the model cannot be read, or has parts of another kind."""
        model, where = self.model, self.where
        options = {option.name: getattr(self, option.name) for option in fields(TextModel) if option.name != "model"}
        modules = None if is_packaged(model) or is_import_path(model) else _json(model, "modules.json", where)
        if modules is None:
            return SentenceEncoder(TextModel(model, **options).load())
        with reading(where, "download the model again, give its folder"):
            kinds = {part["type"].rsplit(".", 1)[-1]: part["path"] for part in modules}
            fits = {"Transformer"} <= kinds.keys() <= set(_MODULES)
            expect(fits, "parts of its modules.json", ", ".join(kinds), ", ".join(_MODULES))
            inner = kinds["Transformer"]
            expect(not inner or Path(model).is_dir(), "path of its encoder", inner, "none in a model on a hub")
            folder = str(Path(model) / inner) if inner else model
            pooling = _pooling(_json(model, f"{kinds['Pooling']}/config.json", where) if "Pooling" in kinds else None)
            sizes = _json(folder, "sentence_bert_config.json", where) or {}
            prompts = _json(model, "config_sentence_transformers.json", where) or {}
            prompt = str((prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"), ""))
            longest = sizes.get("max_seq_length")
            lengths = [None if longest is None else checked_integer("max_seq_length", longest, 1)]
        encoder: LanguageModel = TextModel(folder, **options).load()
        length = min((most for most in (*lengths, encoder.length) if most is not None), default=None)
        return SentenceEncoder(replace(encoder, length=length), pooling, prompt, bool(sizes.get("do_lower_case")))


def _pooling(config: Any) -> str:
    """The name of a pooling in the config.json of sentence-transformers."""
    if config is None:
        return "mean"
    named = config.get("pooling_mode")
    chosen = [named] if isinstance(named, str) else []
    chosen += [name.removeprefix("pooling_mode_") for name, value in config.items() if value is True and "pooling_mode_" in name]
    names = [{"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}.get(name, name) for name in chosen]
    expect(len(names) == 1 and names[0] in _POOLINGS, "its pooling", names, f"one of {', '.join(_POOLINGS)}")
    return names[0]


def _json(model: str, name: str, where: str) -> Any:
    """The content of a file of a model in a folder or on a hub; None if there is none."""
    check_name(model, where)
    with reading(f"{where}: {name}", "download the model again, give its folder", "text"):
        from transformers.utils import cached_file

        path = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        return None if path is None else read_table(path)
