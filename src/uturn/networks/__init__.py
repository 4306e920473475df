"""Neural networks: those that are trained here, those of other libraries, their files and their training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uturn.networks.files import load_network as load_network
    from uturn.networks.files import save_network as save_network
    from uturn.networks.language import LanguageModel as LanguageModel
    from uturn.networks.language import TokenNetwork as TokenNetwork
    from uturn.networks.language_files import load_language_model as load_language_model
    from uturn.networks.own_denoisers import DenoiserModel as DenoiserModel
    from uturn.networks.own_denoisers import edm_schedule as edm_schedule
    from uturn.networks.tokenizers import PretrainedTokenizer as PretrainedTokenizer
    from uturn.networks.tokenizers import Vocabulary as Vocabulary


_HOME = {
    "load_network": "files",
    "save_network": "files",
    "LanguageModel": "language",
    "TokenNetwork": "language",
    "load_language_model": "language_files",
    "DenoiserModel": "own_denoisers",
    "edm_schedule": "own_denoisers",
    "PretrainedTokenizer": "tokenizers",
    "Vocabulary": "tokenizers",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:  # torch is imported when they are used
        return getattr(importlib.import_module(f"uturn.networks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'uturn.networks' has no attribute {name!r}")
