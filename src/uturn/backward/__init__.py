"""Backwards: models that draw reconstructions given noisy data."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from uturn.backward.denoiser import StringDenoiser
from uturn.backward.diffusion import DiffusionModel
from uturn.backward.exact import ExactPosterior
from uturn.backward.language import LanguageDenoiser
from uturn.backward.score import StringDiffusion
from uturn.protocols import Backward as Backward
from uturn.protocols import UTurns as UTurns

if TYPE_CHECKING:
    from uturn.networks.guided_diffusion import load_guided_diffusion as load_guided_diffusion
    from uturn.networks.pretrained import load_pretrained as load_pretrained

BACKWARDS: dict[str, type] = {
    "exact": ExactPosterior,
    "denoiser": StringDenoiser,
    "score": StringDiffusion,
    "diffusion": DiffusionModel,
    "language": LanguageDenoiser,
}


def __getattr__(name: str) -> Any:
    if name in ("load_guided_diffusion", "load_pretrained"):  # torch is imported when they are used
        module = name.removeprefix("load_")
        return getattr(importlib.import_module(f"uturn.networks.{module}"), name)
    raise AttributeError(f"module 'uturn.backward' has no attribute {name!r}")
