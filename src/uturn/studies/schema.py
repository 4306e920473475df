"""The names in the dataset of a study, by the dims that they have. All others are noise axes."""

from __future__ import annotations

DIMS = ("reading", "series", "changes", "noise", "share", "axis", "estimate", "distance")
"""`share`: of the way from start to chance. `axis`: a coordinate of the noise. `estimate`: a value
and the ends of its interval.
"""

TEXTS = ("variable", "level", "probe", "model", "group", "family", "unit", "words")
"""Coordinates of readings that tables and frames show."""

OF_READINGS = ("level_dim", "order", "remark", "originals", "guess")
"""Further coordinates of readings. `level_dim`: the dim of the level, "" if the variable has
several dims of its own, or none. `order`: the dim along which levels are ordered, or "". `guess`:
the start if it is guessed, NaN otherwise.
"""

NUMBERS = ("curve", "place", "half_life", "width", "start", "chance")
OF_SERIES = ("inversion", "series_variable", "first", "last", "series_remark")
OF_CHANGES = ("chi", "n_eff", "xi", "correlation", "of_peak", "peak", "peak_at", "largest")
ABOUT_CHANGES = ("peak_cross_fitted", "plateau", "unit_of_distance", "changes_remark")
OF_GAPS = ("gap", "gap_p", "gap_visible", "gap_level")
OF_THEORY = ("theory", "chi_theory")
OF_TABLES = ("line", "value", "low", "high", "gap_low", "gap_high")
"""Columns of frames and dims of charts."""

NAMES = frozenset(
    DIMS + TEXTS + OF_READINGS + NUMBERS + OF_SERIES + OF_CHANGES + ABOUT_CHANGES
    + OF_GAPS + OF_THEORY + OF_TABLES
)  # fmt: skip
"""Names that a noise axis cannot have."""
