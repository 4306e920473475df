"""The headline of a study: t*, the noise at which half of the class is lost, or else the peak of
chi, or a half-life.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import xarray as xr

from uturn.studies.remarks import about_guess

PEAK = "peak of chi"
"""Label of the headline that is the noise of the largest chi."""
STAR = "t*"
"""Label of the headline that is the half-life of a class."""


class Headline(NamedTuple):
    """A place on the noise axes of a study, and its meaning."""

    label: str
    """"t*" for a class, "peak of chi", otherwise "half-life of NAME"."""
    reading: str
    """The reading on whose curve the place lies, or ""."""
    place: np.ndarray
    """(axis, estimate)."""
    claim: str
    """The meaning in words."""
    series: str = ""
    """The series whose levels swap at the place; "" for other places."""

    @property
    def name(self) -> str:
        """The label, with its series."""
        return f"{self.series}: {self.label}" if self.series else self.label


def headline_of(study: xr.Dataset) -> Headline | None:
    """The headline of a study; None if no candidate has a place.

    Candidates in order: the half-life of the first reading of the group "class" or of the root of a
    tree; the noise of the largest chi; the half-life of the highest level of the first ordered
    series, or of the first reading that has one.
    """
    if "guess" not in study.coords:
        raise ValueError("the study is of an older version; make it again (uturn study RUN --out)")
    return _of_class(study) or _of_root(study) or _of_peak(study) or _of_half_life(study)


def _of_class(study: xr.Dataset) -> Headline | None:
    has_start = np.isfinite(study.start.values)
    classes = np.flatnonzero(has_start & (study.group.values == "class"))
    if not len(classes):
        return None
    claim = (
        "Half of the class is lost at this noise: below, U-turns mostly keep it; above, they"
        " mostly lose it"
    )
    return _headline(study, int(classes[0]), STAR, claim)


def _of_root(study: xr.Dataset) -> Headline | None:
    has_start = np.isfinite(study.start.values)
    nodes = np.flatnonzero(has_start & (study.order.values == "tree_level"))
    if not len(nodes):
        return None
    variables = study.variable.values[nodes]
    root = nodes[variables == variables[0]][-1]
    claim = "Half of the class, the root of the tree, is lost at this noise"
    return _headline(study, int(root), STAR, claim)


def _of_peak(study: xr.Dataset) -> Headline | None:
    if not study.sizes.get("changes", 0):
        return None
    with_peak = np.flatnonzero(np.isfinite(study.peak_at.values[:, 0, 0]))
    if not len(with_peak):
        return None
    k = int(with_peak[0])
    unit = str(study.unit_of_distance.values[k])
    claim = (
        f"The number of {unit} that change together is largest at this noise: the susceptibility"
        " peaks"
    )
    return Headline(PEAK, "", study.peak_at.values[k], claim)


def _of_half_life(study: xr.Dataset) -> Headline | None:
    places = np.flatnonzero(np.isfinite(study.half_life.values[:, 0, 0]))
    if not len(places):
        return None
    k = int(places[0])
    if study.order.values[k]:  # the last level of a series is the highest
        variables = study.variable.values[places]
        k = int(places[variables == variables[0]][-1])
    label = str(study.reading.values[k])
    claim = f"At this noise, {label} is halfway from its start to chance"
    return _headline(study, k, f"half-life of {label}", claim)


def _headline(study: xr.Dataset, k: int, label: str, claim: str) -> Headline:
    """The half-life of reading k; the claim also says how wide the fall is, and whether its start
    is a guess.
    """
    phrases = [claim]
    quarter, three_quarters = study.place.values[k, [0, -1], 0, 0]
    if np.isfinite(quarter) and np.isfinite(three_quarters):
        phrases.append(
            f"a quarter of the change is done at {quarter:.3g}, three quarters at"
            f" {three_quarters:.3g}"
        )
    guess = study.guess.values[k]
    if np.isfinite(guess):
        phrases.append(about_guess(guess))
    reading = str(study.reading.values[k])
    return Headline(label, reading, study.half_life.values[k], f"{'; '.join(phrases)}.")
