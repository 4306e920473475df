"""The corruption of an inverse problem: a measurement of the original by an operator, y = A(x)
with noise.
"""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from uturn.core.caches import cached_while_unchanged
from uturn.core.checks import expect
from uturn.core.errors import noted
from uturn.core.files import read_array
from uturn.core.imports import import_function, is_import_path
from uturn.core.protocols import Axes, Axis, Corruption, Spec
from uturn.core.random import Purpose, Streams, streams
from uturn.tools.inverse.deepinv_physics import deepinv, of_physics, with_noise
from uturn.tools.inverse.measured import Measured
from uturn.tools.inverse.named_operators import NAMED
from uturn.tools.inverse.operators import GaussianNoise, Operator, generator_of

_OPERATOR = 2**63 + 20  # sub-stream of a measurement from which its operator is drawn
_SIGMA = 0.05  # standard deviation of the noise of operators by name, in their units
_LARGEST = 4096  # dimension of a field up to which the information is computed


class Measurement(Spec, Corruption):
    """Measurements y = A(x) + noise of the originals; the noise level is the strength of the
    operator, or of its noise.

    Images are measured in [0, 1], vectors in their own units, as images of one channel (fields) or
    one row.

    `operator`: a name ("boxes", "inpainting", "blur", "downsampling", "fourier", "denoising", see
    `named_operators`), or a function of one's own ("module:function"), called as
    `function(strength, shape, **options)` with `shape` = (channels, height, width), which returns
    an `Operator` or a physics of deepinv. If it has a parameter `generator`, a
    `numpy.random.Generator`, the operator is drawn, for each trajectory of each item. `options`:
    those of the operator. The noise level sets the share `hidden` ("boxes", "inpainting",
    "fourier"), `width` ("blur"), `factor` ("downsampling"), `sigma` ("denoising", and "inpainting"
    with a mask) or `strength` (functions). `swept` = "sigma": it sets sigma for any operator.
    `sigma`: standard deviation of Gaussian noise, by default .05 for operators by name; functions
    bring a noise of their own, which it replaces. If the law of the noise is neither Gaussian nor
    Poisson, calibration works, and what needs a likelihood is refused.
    """

    kinds: ClassVar[tuple[str, ...]] = ("images", "vectors")
    process: ClassVar[str] = "operator"
    purpose: ClassVar[int] = Purpose.CORRUPTION  # type: ignore[misc]  # no option
    type: Literal["operator"] = "operator"
    operator: str
    options: dict[str, Any] = Field(default={})
    swept: Literal["sigma"] | None = None
    sigma: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _fits(self) -> Measurement:
        named = NAMED.get(self.operator)
        is_known = named is not None or is_import_path(self.operator)
        expect(is_known, "operator", self.operator, f"one of {[*NAMED]}, or 'module:function'")
        given = self.options | ({} if self.sigma is None else {"sigma": self.sigma})
        expect(
            self._swept not in given,
            self._swept,
            given.get(self._swept),
            "none, as the noise level sets it",
        )
        if named is not None:
            taken = [
                name
                for name in inspect.signature(named.make).parameters
                if name not in ("shape", "generator")
            ]
            expect(
                set(self.options) <= set(taken),
                f"options of the operator {self.operator!r}",
                [*self.options],
                f"some of {taken}",
            )
        return self

    @property
    def _swept(self) -> str:
        if self.swept is not None:
            return self.swept
        if self.operator == "inpainting" and "mask" in self.options:
            return "sigma"
        return NAMED[self.operator].swept if self.operator in NAMED else "strength"

    @property
    def unit(self) -> str:  # type: ignore[override]
        if self._swept == "sigma":
            return "sigma of the measurement"
        return NAMED[self.operator].unit if self.operator in NAMED else "strength of the operator"

    @property
    def max_noise(self) -> float:  # type: ignore[override]
        named = NAMED.get(self.operator)
        return named.most if named and self._swept == named.swept else np.inf

    @property
    def is_drawn(self) -> bool:
        """Whether each trajectory of each item has an operator of its own."""
        if self.operator in NAMED:
            return NAMED[self.operator].is_random(self.options)
        return "generator" in inspect.signature(self._function).parameters

    @property
    def _function(self) -> Any:
        return import_function(
            self.operator,
            f"corruption.operator = {self.operator!r}",
            f"{[*NAMED]}, or 'module:function'",
        )

    def own_code(self) -> Any:
        return None if self.operator in NAMED else self._function

    def fingerprint(self) -> str:
        """SHA-256 of the mask, if it is a file."""
        if self.operator in NAMED:
            deepinv(f"corruption.operator = {self.operator!r}")  # fails before a store is made
        return "".join(
            hashlib.sha256(read_array(mask).tobytes()).hexdigest() for mask in self.files()
        )

    def files(self) -> list[str]:
        mask = self.options.get("mask") if self.operator == "inpainting" else None
        return [mask] if isinstance(mask, str) else []

    def observe(self, originals: Any, noise: float, streams: Streams) -> Measured:
        data = np.repeat(originals.data, streams.count, axis=0)
        law = getattr(originals, "law", None)
        labels = getattr(originals, "labels", None)
        unmeasured = Measured(
            np.empty(0),
            np.full(len(data), float(noise)),
            shape=data.shape[1:] if law is None else _shape_of(law),
            values_of_data=(-1.0, 1.0) if data.ndim == 4 else (0.0, 1.0),
            law=law,
            labels=None if labels is None else np.repeat(labels, streams.count),
        )
        read = unmeasured.read_by_operator(data)
        values, operators = self._measured(read, noise, streams.keys(self.purpose))
        return replace(unmeasured, values=values, operators=operators)

    def corrupt(self, data: np.ndarray, noise: float, keys: np.ndarray) -> np.ndarray:
        """Measurements float32 (batch, ...) of data (batch, channels, height, width), with an
        operator drawn for each.
        """
        return self._measured(data, noise, keys)[0]

    def _measured(
        self, data: np.ndarray, noise: float, row_keys: np.ndarray
    ) -> tuple[np.ndarray, tuple[Operator, ...]]:
        with noted(f"corruption.operator = {self.operator!r}"):
            operators = self._operators(noise, data.shape[1:], row_keys)
            values = [
                operator.measure(datum, key[None])
                for operator, datum, key in zip(operators, data, row_keys, strict=True)
            ]
            shapes = sorted({value.shape for value in values})
            expect(len(shapes) == 1, "shapes of measurements", shapes, "the same for all data")
        return np.stack(values), operators

    def axes(self, noise: np.ndarray, source: Any) -> Axes:
        """The information `bits` of measurements about a Gaussian field, 1/2 log2 det(I + H C H^T /
        sigma^2), where it is known.

        An operator is made here for each level, and applied, so that errors come before a run
        starts.
        """
        law = source.law(0) if hasattr(source, "law") else None
        shape = source.image_shape() if law is None else _shape_of(law)
        if shape is None:
            return {}
        with noted(f"corruption.operator = {self.operator!r}"):
            key = 0 if self.is_drawn else None
            operators = [
                _shared(self, self.own_code(), float(level), shape, key) for level in noise
            ]
            draws = (
                np.random.default_rng(0).random((2, *shape))
                if law is None
                else law.sample(2).values
            )
            data = draws.reshape(2, *shape).astype(np.float32)
            for operator, level in zip(operators, noise, strict=True):
                operator.check(data, self._made(self.own_code(), float(level), shape, key))
            known = [
                o.is_linear and isinstance(o.noise, GaussianNoise) and o.noise.is_known
                for o in operators
            ]
            if (
                key is not None
                or law is None
                or law.num_modes > 1
                or law.dimension > _LARGEST
                or not all(known)
            ):
                return {}
            bits = [
                _bits(operator.matrix(shape, data), law.covariance, operator.noise.sigma)
                for operator in operators
            ]
        return {
            "bits": Axis(
                np.array(bits), {"long_name": "information about the original", "units": "bits"}
            )
        }

    def _operators(
        self, noise: float, shape: tuple[int, ...], row_keys: np.ndarray
    ) -> tuple[Operator, ...]:
        function = self.own_code()
        if self.is_drawn:
            drawn = streams(row_keys, len(row_keys), _OPERATOR)
            return tuple(self._made(function, noise, shape, int(key)) for key in drawn)
        return (_shared(self, function, noise, shape, None),) * len(row_keys)

    def _made(
        self, function: Any, noise: float, shape: tuple[int, ...], key: int | None
    ) -> Operator:
        """The operator at a noise level for data of a shape, with its noise."""
        options = dict(self.options)
        if self._swept != "sigma":
            options[self._swept] = noise
        generator = None if key is None else generator_of(np.array([key], np.uint64))
        if self.operator in NAMED:
            operator = NAMED[self.operator].make(shape, generator, **options)
        else:
            drawn = {"generator": generator} if generator is not None else {}
            operator = function(options.pop("strength", noise), shape, **options, **drawn)
            if hasattr(operator, "A") and hasattr(operator, "noise_model"):
                operator = of_physics(operator.clone(), shape)
        is_operator = isinstance(operator, Operator)
        expect(
            is_operator,
            "what it gives",
            operator,
            "a uturn.corruption.Operator or a physics of deepinv",
        )
        law = self._noise(noise)
        return operator if law is None else with_noise(operator, law)

    def _noise(self, noise: float) -> Any:
        """The law of the noise at a noise level; None for that of the operator."""
        sigma = noise if self._swept == "sigma" else self.sigma
        if sigma is None and self.own_code() is None:
            sigma = _SIGMA
        return None if sigma is None else GaussianNoise(sigma)


def _shape_of(law: Any) -> tuple[int, ...]:
    """Vectors of a law as images of one channel: (1, height, width)."""
    return (1, *(law.grid or (1, law.dimension)))


def _bits(H: np.ndarray, C: np.ndarray, sigma: float) -> float:
    return float(0.5 * np.linalg.slogdet(np.eye(len(H)) + H @ C @ H.T / sigma**2)[1] / np.log(2))


@cached_while_unchanged(maxsize=16)
def _shared(
    measurement: Measurement, function: Any, noise: float, shape: tuple[int, ...], key: int | None
) -> Operator:
    """The operator of a noise level, the same object for all data, so that its exact posterior
    is computed once.
    """
    return measurement._made(function, noise, shape, key)
