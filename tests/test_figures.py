"""The figure modules: specs of both scales are valid, and verdicts fail when the data are wrong."""

import re

import numpy as np
import pytest
import xarray as xr

from forging import outcomes
from uturn.engine.run import run
from uturn.paper import FIGURES, fig6, fig7, load_figure, reproduce


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_specs_are_valid(name, scale):
    module = load_figure(name)
    assert module.TITLE
    assert module.CAPTION
    assert re.fullmatch(r"[A-Z].{20,}[.]", module.CLAIM)  # a sentence
    if not hasattr(module, "experiments"):
        return  # it measures in its own way, which its own tests show
    experiments = module.experiments(scale)
    assert experiments
    for experiment in experiments.values():
        assert "noise" in experiment.coordinates()
        assert experiment.variables()


@pytest.fixture(scope="module")
def fig7_run():
    return run(fig7.experiments("smoke")["epsilon"]).load()


def test_fig7_verdicts_can_fail(fig7_run):
    assert all(outcomes(fig7.analyse({"epsilon": fig7_run})[1]))
    shifted = fig7_run.copy(deep=True)
    moved = fig7_run.belief.interp(noise=np.clip(fig7_run.noise.values - 0.02, 0, 1)).values
    shifted["belief"] = (fig7_run.belief.dims, moved)
    assert not any(outcomes(fig7.analyse({"epsilon": shifted})[1]))


def test_fig6_verdicts_can_fail():
    runs = {
        label: run(experiment).load()
        for label, experiment in fig6.experiments("smoke").items()
        if label in ("m6", "m8", "m18")
    }
    assert all(outcomes(fig6.analyse(runs)[1]))
    lost = runs["m8"].copy(deep=True)
    lost["upward_belief"] = xr.where(lost.tree_level == 10, 0.0, lost.upward_belief).transpose(
        *lost.upward_belief.dims
    )
    assert not all(outcomes(fig6.analyse({**runs, "m8": lost})[1]))  # never recovered: no crossing
    found = runs["m8"].copy(deep=True)
    found["noise"] = found.noise * 0.9  # a threshold at the wrong place
    assert not all(outcomes(fig6.analyse({**runs, "m8": found})[1]))
    alive = runs["m18"].copy(deep=True)
    alive["upward_belief"] = alive.upward_belief + 0.2 * (alive.tree_level == 10)
    assert not all(outcomes(fig6.analyse({**runs, "m18": alive})[1]))


def test_reproduce_refuses_before_computing(tmp_path):
    for arguments, message in [((["fig99"],), "unknown figure"), ((["fig7"], "huge"), "scale")]:
        figures, *scale = arguments
        with pytest.raises(ValueError, match=message):
            reproduce(figures, tmp_path / "out", *scale)
    assert not (tmp_path / "out").exists()
