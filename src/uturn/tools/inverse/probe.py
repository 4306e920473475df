"""The probe of posterior samplers: original and clones of a measurement, compared with each
other and with what was measured.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from uturn.core.checks import expect
from uturn.core.protocols import Probe, Spec, UTurns, Variable
from uturn.measures.clones import between_clones

_IMPOSSIBLE = -1e6  # nats that stand for log 0


class Posterior(Spec, Probe):
    """Readings of a posterior sampler from an original x_0, its measurement y and the clones x̂_k;
    each sees other errors.

    Values are those that the operator hides, where it hides some and leaves the others as they are;
    else all of a datum. They are in the units in which operators and samplers read a datum: images
    in [0, 1], vectors in their own units.

    - `distance`: root mean square difference of the values of two data.
    - `same_component` (vectors): whether two data are of one class.
    - `log_likelihood`: log p(y | x) in nats, where the law of the noise is known. `log_prior`
      (vectors): log p(x) in nats.
    - `reference_distance`: root mean square difference of a datum and r(y), the reference of the
      measurement (pseudo-inverse or adjoint), whose rank is the test of coverage TARP
      (arXiv:2302.03026). `mean_value`: mean of the values.
    - `coverage`: share of the values of x_0 between the smallest and the largest of the K clones,
      (K - 1) / (K + 1) for draws from the posterior; equal values count by the probability of this
      if ties are broken at random.
    - `z_squared`: mean over values of (x_0 - m)^2 / v, with mean m and variance v of the K + 1
      values of x_0 and its clones; 1 for draws from the posterior, K if all clones are equal.
    """

    reads_noisy: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("images", "vectors")
    type: Literal["posterior"] = "posterior"

    def variables(self, source: Any) -> dict[str, Variable]:
        dims = ("noise", "item", "trajectory")
        units = "" if source.image_shape() is None else "of the range [0, 1]"
        one: dict[str, Any] = {"family": "posterior"}
        two = {"symmetric": True, **one}
        ranked = {"ranked": True, **one}
        share: dict[str, Any] = {"bounds": (0, 1)}
        distance: dict[str, Any] = {"unit": units, "bounds": (0, None), "group": "distance"}
        density: dict[str, Any] = {"unit": "nats", "group": "log-density", **ranked}
        same = Variable(
            dims,
            "same class as the original",
            start=1,
            chance="same:label",
            group="class",
            **share,
            **two,
        )
        law = {
            "same_component": same,
            "log_prior": Variable(dims, "log-density log p(x)", **density),
        }
        return {
            "distance": Variable(dims, "RMS difference of the values", **distance, **two),
            "log_likelihood": Variable(dims, "log-likelihood log p(y | x)", **density),
            **(law if hasattr(source, "law") else {}),
            "reference_distance": Variable(
                dims, "RMS difference from the reference", **distance, **ranked
            ),
            "mean_value": Variable(dims, "mean of the values", unit=units, group="mean", **ranked),
            "coverage": Variable(
                dims[:2],
                "share of values in the range of the clones",
                group="coverage",
                **share,
                **one,
            ),
            "z_squared": Variable(
                dims[:2],
                "squared standardised error",
                bounds=(0, None),
                group="squared error",
                **one,
            ),
        }

    def read(self, u_turns: UTurns, source: Any) -> dict[str, np.ndarray]:
        noisy = u_turns.noisy
        clones = u_turns.clones
        before = u_turns.originals.data
        expect(
            hasattr(noisy, "operators"),
            "noisy data",
            type(noisy).__name__,
            "measurements, of the corruption 'operator'",
        )
        after = np.asarray(u_turns.reconstructions).reshape(
            len(before), -1, clones, *before.shape[1:]
        )
        originals = np.broadcast_to(before[:, None, None], (*after.shape[:2], 1, *before.shape[1:]))
        # A row for each measurement.
        data = np.concatenate([originals, after], axis=2).reshape(-1, 1 + clones, *before.shape[1:])
        of_data: dict[str, np.ndarray] = {}
        if hasattr(source, "law"):
            vectors = data.reshape(-1, data.shape[-1]).astype(float)
            of_data = {
                "same_component": source.classify(vectors, noisy.law),
                "log_prior": noisy.law.log_density(vectors),
            }
            of_data = {name: values.reshape(data.shape[:2]) for name, values in of_data.items()}
        rows: dict[str, list[Any]] = {}
        for row, some in enumerate(data):
            known = {name: values[row] for name, values in of_data.items()}
            for name, reading in _of_measurement(noisy, row, some, known).items():
                rows.setdefault(name, []).append(reading)
        readings = {
            name: np.array(of_rows, float).reshape(len(before), -1)
            for name, of_rows in rows.items()
        }
        return readings | {name: readings[name].mean(axis=1) for name in ("coverage", "z_squared")}


def _of_measurement(
    noisy: Any, row: int, data: np.ndarray, known: dict[str, np.ndarray]
) -> dict[str, Any]:
    """The readings of a measurement; `data` (K + 1, ...): the original, then its clones;
    `known`: class and log p(x) of each.
    """
    K = len(data) - 1
    flat = noisy.read_by_operator(data).reshape(len(data), -1).astype(float)
    hidden = noisy.hidden(row)
    values = flat if hidden is None else flat[:, hidden.ravel()]
    reference = noisy.reference(row)
    to_reference = (
        np.full(K + 1, np.nan)
        if reference is None
        else _rms(flat, noisy.read_by_operator(reference[None]).ravel())
    )
    likelihood = np.full(K + 1, np.nan)
    if noisy.operators[row].noise.is_known:
        likelihood = np.maximum(noisy.log_likelihood(row, data), _IMPOSSIBLE)
    compared: dict[str, tuple[np.ndarray, Any]] = {"distance": (values, _rms)}
    ranked = {
        "log_likelihood": likelihood,
        "reference_distance": to_reference,
        "mean_value": values.mean(axis=1),
    }
    if known:
        compared["same_component"] = (known["same_component"], np.equal)
        ranked["log_prior"] = known["log_prior"]
    readings: dict[str, Any] = {}
    for name, (of, f) in compared.items():
        readings[name] = f(of[:1], of[1:])
        if K > 1:
            readings[f"clone_{name}"] = between_clones(of[None, 1:], K, f)[0]
    for name, of in ranked.items():
        readings[f"original_{name}"] = of[0]
        readings[name] = of[1:]
    variance = values.var(axis=0)
    squares = (values[0] - values.mean(axis=0)) ** 2
    # With ties broken at random, the rank of x_0 is uniform on below, .., below + equal; 1, .., K -
    # 1 are inside.
    below = (values[1:] < values[0]).sum(axis=0)
    equal = (values[1:] == values[0]).sum(axis=0)
    inside = np.minimum(below + equal, K - 1) - np.maximum(below, 1) + 1
    readings["coverage"] = (np.maximum(inside, 0) / (equal + 1)).mean()
    readings["z_squared"] = np.divide(
        squares, variance, out=np.ones_like(squares), where=variance > 0
    ).mean()
    return readings


def _rms(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).mean(axis=-1))
