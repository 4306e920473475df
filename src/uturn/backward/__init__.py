"""Backwards: models that draw reconstructions given noisy data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.backward.denoiser import ExactPosterior, StringDenoiser
from uturn.backward.diffusion import DiffusionModel
from uturn.backward.language import LanguageDenoiser
from uturn.backward.recorded import RecordedImages
from uturn.backward.score_model import StringDiffusion
from uturn.core.lazy import lazy
from uturn.core.protocols import Backward as Backward
from uturn.core.protocols import UTurns as UTurns

if TYPE_CHECKING:
    from uturn.networks.images.guided_diffusion import load_guided_diffusion as load_guided_diffusion
    from uturn.networks.images.pretrained import load_pretrained as load_pretrained

__getattr__, __dir__, _HOMES = lazy(__name__)
