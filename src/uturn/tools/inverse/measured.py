"""The noisy data of an inverse problem: measurements, with their operators and what else is
known of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from uturn.core.checks import expect
from uturn.core.memory import check_memory
from uturn.core.protocols import Noisy
from uturn.core.random import Purpose, Streams
from uturn.tools.inverse.linear import LinearPosterior
from uturn.tools.inverse.operators import GaussianNoise, Operator


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Noisy):
    """Measurements y, float32 (batch, ...), and what is known of them."""

    # One for each measurement, the same object where operators are equal.
    operators: tuple[Operator, ...] = ()
    shape: tuple[int, ...] = ()  # (channels, height, width) of a datum as the operator reads it
    # What the operator reads as 0 and 1: (-1, 1) for images, (0, 1) for vectors.
    values_of_data: tuple[float, float] = (0.0, 1.0)
    law: Any = None  # law of the originals, None if it is not known
    labels: Any = None  # classes of the originals, -1 where unknown, or None

    def read_by_operator(self, data: Any) -> np.ndarray:
        """Data of the source, (batch, ...), as operators read them: float32 (batch, channels,
        height, width).
        """
        low, high = self.values_of_data
        return ((np.asarray(data, np.float32) - low) / (high - low)).reshape(len(data), *self.shape)

    def as_data(self, values: Any) -> np.ndarray:
        """The inverse of `read_by_operator`: float32 (batch, ...) in the form of the source's
        data.
        """
        low, high = self.values_of_data
        data = low + (high - low) * np.asarray(values, np.float32)
        return data if self.law is None else data.reshape(len(data), -1)

    def log_likelihood(self, row: int, data: np.ndarray) -> np.ndarray:
        """log p(y | x) in nats, float64 (batch,), of measurement `row` for data (batch, ...) of
        the source.
        """
        return self.operators[row].log_likelihood(self.values[row], self.read_by_operator(data))

    def reference(self, row: int) -> np.ndarray | None:
        """A guess of the original from measurement `row` alone: `Operator.back_projection` for a
        linear operator, else y.

        None if y has not the shape of a datum.
        """
        return self._references[row]

    @cached_property
    def _references(self) -> dict[int, np.ndarray | None]:
        references: dict[int, np.ndarray | None] = {}
        for operator, rows in self._rows_by_operator():
            values = self.values[rows]
            guesses = operator.back_projection(values, self.shape) if operator.is_linear else values
            is_datum = guesses.shape[1:] == tuple(self.shape)
            references |= dict(
                zip(
                    rows.tolist(),
                    self.as_data(guesses) if is_datum else [None] * len(rows),
                    strict=True,
                )
            )
        return references

    def _rows_by_operator(self) -> Iterator[tuple[Operator, np.ndarray]]:
        """Each operator with the numbers of its measurements."""
        rows: dict[Operator, list[int]] = {}
        for row, operator in enumerate(self.operators):
            rows.setdefault(operator, []).append(row)
        for operator, numbers in rows.items():
            yield operator, np.array(numbers)

    def hidden(self, row: int) -> np.ndarray | None:
        """The values that the operator of measurement `row` hides, bool in the form of a datum.

        None if it hides none, or changes others, as a blur does.
        """
        hidden = self.operators[row].hidden
        if hidden is None or not hidden.any():
            return None
        hidden = np.broadcast_to(hidden, self.shape)
        return hidden if self.law is None else hidden.reshape(-1)

    def posterior(self, row: int) -> LinearPosterior:
        """The exact posterior given measurement `row`; it takes measurements in the form of
        `Operator.vectors`.
        """
        return _posterior(self.law, self.operators[row], self.shape)

    def posterior_draws(self, streams: Streams, clones: int) -> np.ndarray:
        """Draws from the exact posterior, float32 (items, draws, dimension); errors as in
        `posterior`.
        """
        of_rows = streams.keys(Purpose.RECONSTRUCTION, clones).reshape(len(self.values), clones)
        draws = np.empty((*of_rows.shape, int(np.prod(self.shape))), np.float32)
        for operator, rows in self._rows_by_operator():
            observed = np.repeat(operator.vectors(self.values[rows]), clones, axis=0)
            drawn = self.posterior(rows[0]).sample(observed, of_rows[rows].reshape(-1))
            draws[rows] = drawn.reshape(len(rows), clones, -1)
        return draws.reshape(len(streams.items), -1, draws.shape[-1])


@lru_cache(maxsize=8)
def _posterior(law: Any, operator: Operator, shape: tuple[int, ...]) -> LinearPosterior:
    known = (
        hasattr(law, "covariance")
        and operator.is_linear
        and isinstance(operator.noise, GaussianNoise)
    )
    found = (
        f"originals {type(law).__name__}, {'' if operator.is_linear else 'non-'}linear,"
        f" {type(operator.noise).__name__}"
    )
    expected = (
        "a Gaussian mixture, a linear operator and Gaussian noise, with a formula; take the"
        " backward 'sampler'"
    )
    expect(known, "backward 'exact'", found, expected)
    check_memory(
        "the matrices of the exact posterior", 40 * law.dimension**2, "lower the dimension"
    )
    matrix = operator.matrix(shape, law.sample(2).values)
    return LinearPosterior(law.means, law.covariance, law.weights, matrix, operator.noise.sigma**2)
