"""Noise that another program has added: its levels and their unit, without the noisy data."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from uturn.core.protocols import Axes, Axis, Corruption, Noisy, Source, Spec
from uturn.core.random import Purpose


class Recorded(Spec, Corruption):
    """The noise of U-turns made elsewhere, whose reconstructions the backward `recorded` reads from
    files.

    `noise`: levels in the user's unit, 0 or more. `unit`: name of the noise axis, such as
    "strength" or "t/T". `coordinates`: further axes, {name: one value for each level, in the order
    of `noise`}, such as {"log_snr": [4.1, 1.3, -0.8]}. `schedule`: a model, as in `uturn schedule`,
    whose scheduler gives abar, log_snr and sigma of each level; the level is then t/T (or strength)
    in [0, 1], of the chain with all training timesteps.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images",)
    process: ClassVar[str] = "recorded"
    max_noise: ClassVar[float] = math.inf
    purpose: ClassVar[int] = Purpose.CORRUPTION  # type: ignore[misc]  # no option
    type: Literal["recorded"] = "recorded"
    unit: str = "noise"  # type: ignore[misc]  # a value of the class for other corruptions
    coordinates: dict[str, tuple[float, ...]] = Field(default={})
    schedule: str | None = None

    def corrupt(self, images: np.ndarray, noise: float, keys: np.ndarray) -> Noisy:
        """Raises ValueError, because the noise has been added elsewhere."""
        raise ValueError(
            "the corruption 'recorded' adds no noise: another program has; it goes with the"
            " backward 'recorded'"
        )

    def axes(self, noise: np.ndarray, source: Source) -> Axes:
        return {
            name: Axis(np.array(values), {"long_name": name})
            for name, values in self.coordinates.items()
        }
