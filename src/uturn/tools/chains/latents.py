"""Chains of a latent model: the state is the latent, which passes through the autoencoder at the start and for readings alone."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from uturn.backward.queue import Queued
from uturn.core.protocols import Noisy
from uturn.core.random import Streams
from uturn.corruption.diffusion import Diffusion


class _NoisyLatents(Diffusion):
    """The forward process of a latent model, of latents."""

    def __init__(self, forward: Diffusion) -> None:
        self.__dict__.update(forward.__dict__ | {"codec": None})

    def corrupt(self, latents: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        return Noisy(self.noised(latents, self.step_of(noise), keys), np.full(len(latents), float(noise)))


class _DenoisedLatents(Queued):
    """The backward of a latent model, without its decoder."""

    undoes: ClassVar[tuple[str, ...]] = (Diffusion.process,)

    def __init__(self, model: Any) -> None:
        self.model, self.reverse = model, copy.copy(model.reverse())
        self.reverse.codec, self.reverse.clips = None, False

    def works(self, noisy: Any, streams: Streams, clones: int) -> Iterable[Any]:
        return self.model.works(noisy, streams, clones)

    def queue(self, works: Iterator[Any]) -> Iterator[tuple[Any, np.ndarray]]:
        return self.reverse.queue(works)


def in_latents(corruption: Any, backward: Any) -> tuple[Any, Any, Any, Any]:
    """Corruption and backward of one U-turn of latents, and functions from a block of images to latents and back.

    Those given, and functions that change nothing, if the model has no autoencoder.
    """
    forward = getattr(corruption, "forward", corruption)
    if getattr(forward, "codec", None) is None:
        return corruption, backward, _same, _same
    parts = _NoisyLatents(forward), _DenoisedLatents(backward)
    return *parts, partial(_encoded, forward), partial(_decoded, backward.reverse())


def _same(block: Any) -> Any:
    return block


def _encoded(forward: Diffusion, block: Any) -> Any:
    return replace(block, images=forward.clean(block.images))


def _decoded(reverse: Any, block: Any) -> Any:
    return replace(block, images=reverse.decoded(block.images))
