"""The text assets of the package: a small masked language model of characters and held-out passages."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "assets" / "text"


def model_file() -> Path:
    """File of the masked language model (`uturn.networks.load_network`)."""
    return _FOLDER / "model.safetensors"


def passages_file() -> Path:
    """Text file of passages that the model was not trained with, one a line."""
    return _FOLDER / "passages.txt"
