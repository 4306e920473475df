"""The reading instructions of a stored run, which are stored with its arrays."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from uturn.core.checks import one_line
from uturn.core.protocols import Variable

if TYPE_CHECKING:
    import xarray as xr

ATTRIBUTE = "reading"


def instructions_of(run: xr.Dataset) -> dict[str, Variable]:
    """The instructions of all variables of a run, in the order in which its probes declare them, followed by added variables.

    Raises
    ------
    ValueError
        If the attribute `reading` of a variable is damaged.
    """
    order = [str(name) for name in run.attrs.get("variables", ()) if name in run.data_vars]
    added = [str(name) for name in run.data_vars if name not in order and (not order or ATTRIBUTE in run[name].attrs)]
    instructions = {}
    for name in order + added:
        values = run[name]
        if "noise" not in values.dims:
            continue
        try:
            table = json.loads(values.attrs.get(ATTRIBUTE, "{}"))
            instructions[name] = Variable(tuple(map(str, values.dims)), str(values.attrs.get("long_name", "")), **table)
            instructions[name].check()
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{name}: the attribute {ATTRIBUTE!r} is damaged ({one_line(error)}); copy the store again"
            ) from None
    return instructions


def is_kept_if_large(name: str) -> bool:
    """Whether the name of a reading says that large values are those without changes."""
    return any(word in name.lower() for word in ("kept", "same", "accuracy", "unchanged"))
