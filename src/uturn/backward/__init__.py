"""Backwards: models that draw reconstructions given noisy data.

In a spec, `type` names the class, and the other keys are its arguments, which
`help(ut.backward.DiffusionModel)` lists:

    exact      ExactPosterior    draws from the exact posterior, for strings and vectors
    denoiser   StringDenoiser    the reverse process of a channel, with a denoiser of single leaves
    score      StringDiffusion   reverse diffusion of strings with the exact score
    diffusion  DiffusionModel    a diffusion model of images
    language   LanguageDenoiser  a masked language model, or a discrete diffusion model
    recorded   RecordedImages    reconstructions in image files

A backward of one's own inherits from `ut.Backward` and defines `reconstruct`. What it declares to
the scheduler of tasks are the values of `uturn.core.protocols.Hints`: whether several blocks share
the batches of its network, how many it reads ahead, which tasks are best measured together, and
whether several processes are faster. A network whose batches a queue keeps full inherits from
`uturn.backward.queue.Queued`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.backward.denoiser import ExactPosterior as ExactPosterior
from uturn.backward.denoiser import StringDenoiser as StringDenoiser
from uturn.backward.diffusion import DiffusionModel as DiffusionModel
from uturn.backward.language import LanguageDenoiser as LanguageDenoiser
from uturn.backward.recorded import RecordedImages as RecordedImages
from uturn.backward.score_model import StringDiffusion as StringDiffusion
from uturn.core.lazy import lazy
from uturn.core.protocols import Backward as Backward
from uturn.core.protocols import UTurns as UTurns

if TYPE_CHECKING:
    from uturn.networks.images.guided_diffusion import (
        load_guided_diffusion as load_guided_diffusion,
    )
    from uturn.networks.images.pretrained import load_pretrained as load_pretrained

_NAMES = {
    "uturn.networks.images.guided_diffusion": ["load_guided_diffusion"],
    "uturn.networks.images.pretrained": ["load_pretrained"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
