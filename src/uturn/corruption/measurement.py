"""The corruption of an inverse problem: a measurement of the original by an operator, y = A(x) with noise."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np

from uturn.core.checks import check_memory, errors_named, shown
from uturn.core.imports import import_function
from uturn.core.protocols import Corruption, Noisy, Spec
from uturn.core.random import Purpose, Streams, keys, streams
from uturn.corruption.operators import GaussianNoise, Operator, generator_of
from uturn.exact.linear import LinearPosterior

_OPERATOR = 2**63 + 20  # sub-stream of a measurement, for the operator that is drawn
_FORMS = "'module:function'"


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

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    def observe(self, originals: Any, noise: float, streams: Streams) -> Measured:
        data = np.repeat(originals.data, streams.count, axis=0)
        law, labels = getattr(originals, "law", None), getattr(originals, "labels", None)
        measured = Measured(
            np.empty(0),
            np.full(len(data), float(noise)),
            shape=data.shape[1:] if law is None else (1, *(law.grid or (1, law.dimension))),
            values_of_data=(-1.0, 1.0) if data.ndim == 4 else (0.0, 1.0),
            law=law,
            labels=None if labels is None else np.repeat(labels, streams.count),
        )
        read, row_keys = measured.read_by_operator(data), streams.keys(self.purpose)
        function = import_function(self.operator, f"corruption.operator = {self.operator!r}", _FORMS)
        with errors_named(f"corruption.operator ({self.operator!r})", function):
            operators = self._operators(function, noise, measured.shape, row_keys)
            values = [operator.measure(datum, key[None]) for operator, datum, key in zip(operators, read, row_keys, strict=True)]
        object.__setattr__(measured, "values", np.stack(values))
        object.__setattr__(measured, "operators", operators)
        return measured

    def corrupt(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("an operator measures blocks of originals: call `observe`")

    def own_code(self) -> Any:
        return import_function(self.operator, f"corruption.operator = {self.operator!r}", _FORMS)

    def _operators(self, function: Any, noise: float, shape: tuple[int, ...], row_keys: np.ndarray) -> tuple[Operator, ...]:
        if "generator" not in inspect.signature(function).parameters:
            return (_shared(self, function, noise, shape),) * len(row_keys)
        drawn = streams(row_keys, len(row_keys), _OPERATOR)
        return tuple(_checked(function(noise, shape, generator=generator_of(key[None]), **self.options)) for key in drawn)


@lru_cache(maxsize=16)
def _shared(measurement: Measurement, function: Any, noise: float, shape: tuple[int, ...]) -> Operator:
    """The operator of a noise level, the same object for all data, so that its exact posterior is computed once."""
    return _checked(function(noise, shape, **measurement.options))


def _checked(operator: Any) -> Operator:
    if not isinstance(operator, Operator):
        raise ValueError(f"gives {shown(operator)}; expected a uturn.corruption.Operator")
    return operator


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

    def reference(self, row: int) -> np.ndarray | None:
        """A guess of the original from measurement `row` alone, in the form of a datum.

        For a linear operator alpha A^T y, with the alpha that brings A(alpha A^T y) nearest to y. For others y itself, if it has the
        shape of a datum, else None.
        """
        values, operator = self.values[row], self.operators[row]
        guess = operator.back_projection(values, self.shape) if operator.is_linear else values
        return self.as_data(guess[None])[0] if guess.shape == self.shape else None

    def hidden(self, row: int) -> np.ndarray | None:
        """The values that the operator of measurement `row` hides, bool in the form of a datum; None if it hides no values alone."""
        hidden = self.operators[row].hidden
        if hidden is None:
            return None
        hidden = np.broadcast_to(hidden, self.shape)
        return hidden if self.law is None else hidden.reshape(-1)

    def posterior(self, row: int) -> LinearPosterior:
        """The exact posterior given measurement `row`, whose values it takes raveled.

        Raises
        ------
        ValueError
            If the law of the originals is not known, the operator is not linear, or its noise not Gaussian.
        """
        return _posterior(self.law, self.operators[row], self.shape)

    def posterior_draws(self, streams: Streams, clones: int) -> np.ndarray:
        """Draws from the exact posterior, float32 (items, draws, dimension)."""
        of_rows = streams.keys(Purpose.RECONSTRUCTION, clones).reshape(len(self.values), clones)
        draws = np.empty((*of_rows.shape, int(np.prod(self.shape))), np.float32)
        for operator in dict.fromkeys(self.operators):
            rows = np.flatnonzero([other is operator for other in self.operators])
            observed = np.repeat(self.values[rows].reshape(len(rows), -1), clones, axis=0)
            drawn = self.posterior(rows[0]).sample(observed, of_rows[rows].reshape(-1))
            draws[rows] = drawn.reshape(len(rows), clones, -1)
        return draws.reshape(len(streams.items), -1, draws.shape[-1])


@lru_cache(maxsize=8)
def _posterior(law: Any, operator: Operator, shape: tuple[int, ...]) -> LinearPosterior:
    reason = None
    if not hasattr(law, "covariance"):
        reason = "the law of the originals is not known"
    elif not operator.is_linear:
        reason = "the operator is not linear"
    elif not isinstance(operator.noise, GaussianNoise):
        reason = f"the noise is not Gaussian ({type(operator.noise).__name__})"
    if reason:
        raise ValueError(f"backward 'exact': {reason}, so the posterior has no formula; take the backward 'sampler'")
    check_memory("the matrices of the exact posterior", 40 * law.dimension**2, "lower the dimension")
    H = operator.matrix(shape)
    return LinearPosterior(law.means, law.covariance, law.weights, H, operator.noise.sigma**2)
