"""The text assets of the package: a small masked model of characters, and passages that it was not
trained on.

The model is a `MaskedTransformer`, whose tokens are the characters of
`load_network(model_file()).options["characters"]`. `assets/text/README.md` documents the origin of
the text and the quality of the model, `training/text/` trains it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "assets" / "text"


def model_file() -> Path:
    """File of the network, which `uturn.networks.load_network` reads."""
    return FOLDER / "model.safetensors"


def passages_file() -> Path:
    return FOLDER / "passages.txt"


def passages() -> list[str]:
    """400 passages of a novel that the network was not trained on, of 64 characters each.

    Each passage begins with a sentence and ends with a word. Passages do not overlap, and their
    order is random, so the first passages come from all parts of the novel.
    """
    return passages_file().read_text(encoding="ascii").splitlines()


def fingerprints() -> dict[str, str]:
    """SHA-256 of the files of model and passages, {name: hexadecimal digest}; recorded with
    results.
    """
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (model_file(), passages_file())
    }
