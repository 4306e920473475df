"""The headline of a study: t*, the noise at which half of the class is lost, or else the peak of
chi, or a half-life.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from uturn.core.variables import GUESSED

PEAK = "peak of chi"


class Headline(NamedTuple):
    """A place (axis, estimate) on the noise axes of a study, and its meaning in words, `claim`.

    `label`: "t*" for a class, "peak of chi", otherwise "half-life of NAME". `reading`: that on
    whose curve the place lies, or "".
    """

    label: str
    reading: str
    place: np.ndarray
    claim: str


def headline_of(study: xr.Dataset) -> Headline | None:
    """The headline of a study; None if no candidate has a place.

    Candidates in order: the half-life of the first reading of the group "class" or of the root of a
    tree; the noise of the largest chi; the half-life of the highest level of the first ordered
    series, or of the first reading that has one.
    """
    started = np.flatnonzero(np.isfinite(study.start.values))
    classes = [k for k in started if study.group.values[k] == "class"]
    if classes:
        claim = (
            "Half of the class is lost at this noise: below, U-turns mostly keep it; above, they"
            " mostly lose it"
        )
        return _of_reading(study, int(classes[0]), "t*", claim)
    nodes = [k for k in started if study.order.values[k] == "tree_level"]
    if nodes:
        root = [k for k in nodes if study.variable.values[k] == study.variable.values[nodes[0]]][-1]
        return _of_reading(
            study, int(root), "t*", "Half of the class, the root of the tree, is lost at this noise"
        )
    if study.sizes.get("changes", 0) and np.isfinite(study.peak_at.values[:, 0, 0]).any():
        k = int(np.flatnonzero(np.isfinite(study.peak_at.values[:, 0, 0]))[0])
        unit = str(study.unit_of_distance.values[k])
        claim = (
            f"The number of {unit} that change together is largest at this noise: the"
            " susceptibility peaks"
        )
        return Headline(PEAK, "", study.peak_at.values[k], claim)
    places = np.flatnonzero(np.isfinite(study.half_life.values[:, 0, 0]))
    if not len(places):
        return None
    first = study.variable.values[places[0]]
    ordered = bool(study.order.values[places[0]])
    k = int(places[study.variable.values[places] == first][-1] if ordered else places[0])
    label = str(study.reading.values[k])
    return _of_reading(
        study,
        k,
        f"half-life of {label}",
        f"At this noise, {label} is halfway from its start to chance",
    )


def _of_reading(study: xr.Dataset, k: int, label: str, claim: str) -> Headline:
    fall = study.place.values[k, [0, -1], 0, 0]
    between = (
        f"; a quarter of the change is done at {fall[0]:.3g}, three quarters at {fall[1]:.3g}"
        if np.isfinite(fall).all()
        else ""
    )
    guesses = [part for part in str(study.remark.values[k]).split("; ") if GUESSED in part]
    return Headline(
        label,
        str(study.reading.values[k]),
        study.half_life.values[k],
        f"{'; '.join([claim + between, *guesses])}.",
    )
