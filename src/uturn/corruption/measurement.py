"""The corruption of an inverse problem: a measurement of the original by an operator, y = A(x) with noise."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from uturn.core.imports import import_function
from uturn.core.protocols import Corruption, Noisy, Spec
from uturn.core.random import Purpose, Streams, streams
from uturn.corruption.operators import Operator, generator_of

if TYPE_CHECKING:
    import torch

_OPERATOR = 2**63 + 20  # sub-stream of a measurement, for the operator that is drawn


class Measurement(Spec, Corruption):
    """Measurements of the originals by an operator whose strength is the noise level."""

    kinds: ClassVar[tuple[str, ...]] = ("images", "vectors")
    process: ClassVar[str] = "operator"
    unit: ClassVar[str] = "strength of the operator"
    max_noise: ClassVar[float] = np.inf
    purpose: ClassVar[int] = Purpose.CORRUPTION  # type: ignore[misc]  # no option
    type: Literal["operator"] = "operator"
    operator: str
    options: dict[str, Any] = {}

    def observe(self, originals: Any, noise: float, streams: Streams) -> Measured:
        data = np.repeat(originals.data, streams.count, axis=0)
        law, labels = getattr(originals, "law", None), getattr(originals, "labels", None)
        shape = data.shape[1:] if law is None else (1, *(law.grid or (1, law.dimension)))
        measured = Measured(
            np.empty(0),
            np.full(len(data), float(noise)),
            shape=shape,
            values_of_data=(-1.0, 1.0) if law is None else (0.0, 1.0),
            law=law,
            labels=None if labels is None else np.repeat(labels, streams.count),
        )
        raise NotImplementedError(measured, self, _OPERATOR, generator_of, inspect, import_function)

    def corrupt(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Noisy):
    """Measurements y, float32 (batch, ...), and what is known of them.

    Attributes
    ----------
    operators : tuple of Operator, one for each measurement
        The same object where operators are equal.
    shape : (channels, height, width) of a datum as the operator reads it
    values_of_data : (low, high)
        Values of the data that the operator reads as 0 and 1: (-1, 1) for images, (0, 1) for vectors.
    law : law of the originals, None if it is not known
    labels : classes of the originals, -1 where unknown, or None
    """

    operators: tuple[Operator, ...] = ()
    shape: tuple[int, ...] = ()
    values_of_data: tuple[float, float] = (0.0, 1.0)
    law: Any = None
    labels: Any = None

    def read_by_operator(self, data: Any) -> np.ndarray:
        """Data of the source, (batch, ...), as operators read them: float32 (batch, channels, height, width)."""
        low, high = self.values_of_data
        return ((np.asarray(data, np.float32) - low) / (high - low)).reshape(len(data), *self.shape)

    def as_data(self, values: Any) -> np.ndarray:
        """The inverse of `read_by_operator`: float32 (batch, ...) in the form of the source's data."""
        low, high = self.values_of_data
        data = low + (high - low) * np.asarray(values, np.float32)
        return data if self.law is None else data.reshape(len(data), -1)

    def log_likelihood(self, row: int, data: np.ndarray) -> np.ndarray:
        """log p(y | x) in nats, float64 (batch,), of measurement `row` for data (batch, ...) of the source."""
        return self.operators[row].log_likelihood(self.values[row], self.read_by_operator(data))
