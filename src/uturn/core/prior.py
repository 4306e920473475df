"""The law of a model of data without an observation, from which originals can be drawn.

The source `generated` draws its originals from the prior that `Backward.prior(steps)` gives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Prior(ABC):
    """Images that a model draws from pure noise, each by its own random stream.

    Two priors are equal if they are made by equal models with equal options.
    """

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of the model and the options of its sampler, which determine the law."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images; ValueError if the model does not say them."""

    @property
    @abstractmethod
    def num_labels(self) -> int | None:
        """Number of classes on which the images are conditioned; None without classes."""

    @property
    @abstractmethod
    def batch_size(self) -> int:
        """Number of images that are drawn at once without loss of time."""

    @abstractmethod
    def draw(self, keys: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Images float32 (batch, channels, height, width) of items (batch,), by one random stream
        for each, uint64 (batch,).

        With classes, item i has the class i % `num_labels`.
        """
