"""Statistics of curves under their public names, `uturn.statistics.NAME`.

A *curve* is a mean over items against the noise level. A number with its interval is (value, low,
high), along the last axis of arrays, the dim `estimate` of datasets. `Estimate` holds one such
number.
"""

from __future__ import annotations

from uturn.measures.curves import (
    Transition,
    crossing,
    inversion,
    levels_around,
    nonincreasing,
    rescaled,
    shift,
    transition,
)
from uturn.measures.estimates import ESTIMATE, Estimate, checked_share, with_ends, with_interval
from uturn.measures.hierarchy import hierarchy_index
from uturn.measures.intervals import (
    mean_bounds,
    mean_curves,
    mean_interval,
    proportion,
    rests_on_few,
)
from uturn.measures.readings import (
    FEW,
    WITHIN,
    check_dims,
    complete_items,
    grammar_means,
    independent_groups,
)
from uturn.measures.replicates import Replicates, estimate, located, replicates

__all__ = [
    "ESTIMATE",
    "FEW",
    "WITHIN",
    "Estimate",
    "Replicates",
    "Transition",
    "check_dims",
    "checked_share",
    "complete_items",
    "crossing",
    "estimate",
    "grammar_means",
    "hierarchy_index",
    "independent_groups",
    "inversion",
    "levels_around",
    "located",
    "mean_bounds",
    "mean_curves",
    "mean_interval",
    "nonincreasing",
    "proportion",
    "replicates",
    "rescaled",
    "rests_on_few",
    "shift",
    "transition",
    "with_ends",
    "with_interval",
]
