"""The mean field beside the curves of a run: the same readings at the same noise levels."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.core.checks import expect
from uturn.exact.theory import MeanField
from uturn.studies.runs import stored_spec

_OF_NODES = {
    "belief": "marginals",
    "unchanged": "marginals",
    "parsed": "marginals",
    "upward_belief": "upward",
} | {
    "downward_belief": "downward"
}  # readings of tree levels, and the beliefs that are their expectation for exact posterior draws


def with_theory(study: xr.Dataset, run: xr.Dataset) -> Any:
    """A study with the mean field of the grammar of its run (`uturn.theory.MeanField`), for the
    ε-process.

    `theory` (reading, noise): the readings of tree levels in mean field, NaN for others;
    `chi_theory` (changes, noise): the susceptibility; attribute `critical_noise`, if there is a
    transition. ValueError for other grammars and corruptions.
    """
    spec = stored_spec(run)
    source, corruption = spec["source"], spec.get("corruption", {}).get("type")
    uniform = isinstance(source.get("multiplicity"), int) and source.get("zipf_exponent") is None
    is_known = source.get("type") == "rhm" and corruption == "epsilon" and uniform
    only = "rhm, with one multiplicity and uniform rules, and epsilon; leave out --theory"
    expect(is_known, "theory: source and corruption", (source.get("type"), corruption), only)
    mean_field = MeanField(
        *(source.get(name) for name in ("vocab_size", "multiplicity", "branching", "num_classes"))
    )
    curves = mean_field.curves(study.noise.values, source["depth"])
    of_readings = np.full((study.sizes["reading"], study.sizes["noise"]), np.nan)
    for k, (name, level) in enumerate(
        zip(study.variable.values.tolist(), study.level.values.tolist(), strict=True)
    ):
        if name in _OF_NODES:
            of_readings[k] = getattr(curves, _OF_NODES[name])[:, int(level)]
    whole = study.assign(theory=(("reading", "noise"), of_readings))
    if "chi" in study:
        chi = np.tile(
            mean_field.susceptibility(study.noise.values, source["depth"]),
            (study.sizes["changes"], 1),
        )
        whole = whole.assign(chi_theory=(("changes", "noise"), chi))
    critical = mean_field.critical_noise
    return whole if critical is None else whole.assign_attrs(critical_noise=critical)
