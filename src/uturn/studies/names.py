"""Names of several runs: by what differs in their specs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uturn.studies.runs import stored_spec

if TYPE_CHECKING:
    import xarray as xr

_LONGEST = 60  # characters of a value in a name


def named_runs(runs: Mapping[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Runs named by the fields of their specs that differ, such as "multiplicity = 4", and by their places if these are equal.

    Parameters
    ----------
    runs : {place of the store: Dataset of `uturn.run`}
    """
    specs = [dict(_fields(stored_spec(run))) for run in runs.values()]
    differing = [
        key for key in dict.fromkeys(key for spec in specs for key in spec) if len({spec.get(key) for spec in specs}) > 1
    ]
    ends = Counter(key.rpartition(".")[2] for key in differing)
    words = {key: key if ends[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in differing}
    names = [", ".join(f"{words[key]} = {spec[key][:_LONGEST]}" for key in differing if key in spec) for spec in specs]
    if len(set(names)) < len(names) or not all(names):
        names = [f"{name} ({place})" if name else place for name, place in zip(names, runs, strict=True)]
    return dict(zip(names, runs.values(), strict=True))


def _fields(value: Any, key: str = "") -> Sequence[tuple[str, str]]:
    """The leaves of nested tables and lists, {dotted name: value as text}; noise levels are one value."""
    if isinstance(value, Mapping):
        return [leaf for name, inner in value.items() for leaf in _fields(inner, f"{key}.{name}" if key else str(name))]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        return [leaf for k, inner in enumerate(value) for leaf in _fields(inner, f"{key}[{k}]")]
    return [(key, value if isinstance(value, str) else json.dumps(value))]
