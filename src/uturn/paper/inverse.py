"""Which posterior samplers of inverse problems draw from the posterior, which test sees their errors, and their cost.

Beyond the paper. The samplers get the exact denoiser of a law whose posterior is known, so that the sampler alone is judged. Tests
use originals and clones only; the distance to exact draws is computed beside, to judge the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from uturn.measures.calibration import holm
from uturn.measures.posteriors import posterior_tests
from uturn.paper.inverse_runs import CLONES, ERRORS, EXACT, LABELS, NOISE, OTHERS, REPAIRED
from uturn.paper.inverse_runs import measure as measure  # of the figure
from uturn.paper.inverse_verdicts import BESIDE, DDRM, FAMILY, FAR, FULL, LEVEL, p_of_family, verdicts
from uturn.paper.verdicts import BOUNDS, Verdict, mean_estimate
from uturn.studies.plotting.style import ACCENT, CLASS, DISTINCT, MUTED, THEORY, style, ticks

TITLE = "Does a posterior sampler tell the truth? Eight samplers of inverse problems"
CLAIM = "Clones of one measurement show which samplers do not draw from the posterior; no single reading sees all errors."
CAPTION = "TODO"
_TESTS = {"distance": "distance", "same_component": "same class", "log_likelihood": "log p(y|x)", "log_prior": "log p(x)"}
_RANKED = ["log_likelihood", "log_prior", "mean_value"]


def analyse(runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
    pairs = list(dict.fromkeys(label.rpartition("-")[0] for label in runs if label != "calls"))
    cells = [f"{pair.replace('-', ', ')}, σ = {noise:g}" for pair in pairs for noise in NOISE]
    rows = [[_of_run(runs[f"{pair}-{name}"]) for pair in pairs] for name in LABELS]
    together = {name: np.array([np.concatenate([row[name] for row in of_pairs]) for of_pairs in rows]) for name in rows[0][0]}
    energy, null = together.pop("energy"), together.pop("null_energy")  # (sampler, cell, item)
    dims: dict[str, tuple[str, ...]] = {"p": ("test",), "gap": ("estimate",), "kind": ()}
    by_label = dict(zip(LABELS.values(), energy, strict=True))
    data = xr.Dataset(
        {name: (("sampler", "cell", *dims[name]), values) for name, values in together.items()},
        {"sampler": list(LABELS.values()), "cell": cells, "test": [*FAMILY, *BESIDE], "estimate": BOUNDS},
        {"items": energy.shape[2], "clones": CLONES},
    )
    data["energy"] = (("sampler", "cell", "estimate"), np.apply_along_axis(mean_estimate, 2, energy))
    data["mean_energy"] = (("sampler", "estimate"), np.apply_along_axis(mean_estimate, 1, energy.mean(axis=1)))
    data["null_energy"] = (("cell", "estimate"), np.apply_along_axis(mean_estimate, 1, null[0]))
    data["less_energy"] = "estimate", list(mean_estimate((by_label[DDRM] - by_label[FULL]).mean(axis=0)))
    data["calls"] = "sampler", runs["calls"].calls.sel(sampler=list(LABELS)).values
    return data, verdicts(data)


def _of_run(run: xr.Dataset) -> dict[str, np.ndarray]:
    """p-values, gaps and kinds of errors of a run by noise level, and energy distances, (noise, item)."""
    tests = posterior_tests(run, LEVEL)
    ranks = tests.rank_p.sel(reading=_RANKED)
    p = [tests.p.sel(reading=list(_TESTS)).values, (ranks.min("reading") * len(_RANKED)).clip(max=1).values[:, None]]
    p.append(tests.rank_p.sel(reading=["reference_distance"]).values)
    distances = {name: run[name].mean(("trajectory", "clone")).transpose("noise", "item").values for name in _DISTANCES}
    return {"p": np.concatenate(p, axis=1), "gap": tests.effect.sel(reading="distance").values, "kind": tests.kind.values, **distances}


_DISTANCES = ("energy", "null_energy")


def draw(data: xr.Dataset) -> Any:
    raise NotImplementedError
