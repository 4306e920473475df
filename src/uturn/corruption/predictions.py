"""What a network predicts at x_t = a x_0 + s n: the mean of c x_0 + d n given x_t.

Every kind of prediction is such a combination of the clean data x_0 and the noise n. Two linear
equations, the prediction and x_t itself, therefore give both:

    ========  ==========  ===========================================================
    kind      c, d        prediction
    ========  ==========  ===========================================================
    "noise"   0, 1        n
    "x0"      1, 0        x_0
    "v"       -s/r, a/r   (a n - s x_0) / r, r^2 = a^2 + s^2 (arXiv:2202.00512)
    "flow"    -1, 1       n - x_0 (arXiv:2210.02747)
    "score"   0, -1/s     the score of x_t, -n / s
    ========  ==========  ===========================================================

Each kind is solved in its own form, since the general solution would lose digits by cancellation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

Prediction = Literal["noise", "x0", "v", "flow", "score"]
"""A kind of prediction."""
OF_DIFFUSERS: Mapping[str, Prediction] = {
    "epsilon": "noise",
    "sample": "x0",
    "original_sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}
"""Kinds of prediction by the option `prediction_type` of diffusers' schedulers."""

A = TypeVar("A", np.ndarray, "torch.Tensor")


def solved(kind: Prediction, prediction: A, noisy: A, a: A | float, s: A | float) -> tuple[A, A]:
    """x_0 and n of noisy = a x_0 + s n, from a prediction of the given kind."""
    match kind:
        case "noise":
            return (noisy - s * prediction) / a, prediction
        case "x0":
            return prediction, (noisy - a * prediction) / s
        case "v":
            r = (a**2 + s**2) ** 0.5
            clean = (a * noisy - s * r * prediction) / r**2
            return clean, (s * noisy + a * r * prediction) / r**2
        case "flow":
            clean = (noisy - s * prediction) / (a + s)
            return clean, prediction + clean
        case "score":
            noise = -s * prediction
            return (noisy - s * noise) / a, noise


def predicted(kind: Prediction, clean: A, noise: A, a: A | float, s: A | float) -> A:
    """The prediction of x_0 and n, the inverse of `solved`; for "v" in schedules with a^2 + s^2 =
    1.
    """
    match kind:
        case "noise":
            return noise
        case "x0":
            return clean
        case "v":
            return a * noise - s * clean
        case "flow":
            flow: A = noise - clean
            return flow
        case "score":
            return -noise / s
