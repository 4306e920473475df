"""The mean field beside the curves of a run: the same readings at the same noise levels."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.core.registry import build, stored_class
from uturn.studies.runs import stored_spec

D = TypeVar("D", bound=xr.Dataset)

_BELIEFS = {
    "belief": "marginals",
    "unchanged": "marginals",
    "parsed": "marginals",
    "upward_belief": "upward",
    "downward_belief": "downward",
}
"""Readings of tree levels, and the beliefs that are their expectation for exact posterior draws."""


def with_theory(study: D, run: xr.Dataset) -> D:
    """A study with the mean field of the grammar of its run (`uturn.theory.MeanField`), for the
    ε-process.

    `theory` (reading, noise): the readings of tree levels in mean field, NaN for others;
    `chi_theory` (changes, noise): the susceptibility; attribute `critical_noise`, if there is a
    transition. ValueError for other grammars and corruptions.
    """
    spec = stored_spec(run)
    tables = spec["source"], spec.get("corruption", {})
    mean_field = None
    corruption = stored_class("corruption", tables[1])
    source = stored_class("source", tables[0])
    are_strings = getattr(source, "kind", "") == "strings"
    if are_strings and getattr(corruption, "has_mean_field", False):
        mean_field = build("source", tables[0], trusted=False).mean_field()
    types = tuple(table.get("type") for table in tables)
    only = "rhm, with one multiplicity and uniform rules, and epsilon; leave out --theory"
    expect(mean_field is not None, "theory: source and corruption", types, only)
    assert mean_field is not None
    noise = study.noise.values
    depth = tables[0]["depth"]
    curves = mean_field.curves(noise, depth)
    theory = np.full((study.sizes["reading"], len(noise)), np.nan)
    names = zip(study.variable.values.tolist(), study.level.values.tolist(), strict=True)
    for k, (name, level) in enumerate(names):
        if name in _BELIEFS:
            theory[k] = getattr(curves, _BELIEFS[name])[:, int(level)]
    whole = study.assign(theory=(("reading", "noise"), theory))
    if "chi" in study:
        chi = np.tile(mean_field.susceptibility(noise, depth), (study.sizes["changes"], 1))
        whole = whole.assign(chi_theory=(("changes", "noise"), chi))
    critical = mean_field.critical_noise
    return whole if critical is None else whole.assign_attrs(critical_noise=critical)
