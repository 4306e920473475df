"""What figures share: kept computations, whole or absent; rules of verdicts; the page."""

import shutil

import numpy as np
import pytest
import xarray as xr

from small import strings
from uturn.core.experiment import Experiment
from uturn.measures.statistics import Estimate
from uturn.pages.verdicts import Verdict, tally
from uturn.paper import FIGURES, ORDER, PAPER_FIGURES, Result, Workshop
from uturn.paper.registry import measured_seconds
from uturn.paper.verdicts import (
    above,
    apart,
    at_least,
    below,
    decreasing,
    equal,
    holds,
    increasing,
    meets,
    shows,
    verdict,
    within,
)
from uturn.store.outputs import write_dataset

SPEC = strings("epsilon", [0.0, 0.5], source={"vocab_size": 4, "depth": 2}, items=2)


@pytest.fixture
def workshop(tmp_path):
    return Workshop("smoke", tmp_path)


def numbered(values):
    return xr.Dataset(
        {"x": ("name", np.array(values))}, coords={"name": [f"n{i}" for i in range(len(values))]}
    )


@pytest.fixture
def calls(monkeypatch):
    """Labels of the datasets that are computed."""
    labels = []
    compute = Workshop._compute

    def recorded(self, label, *arguments):
        labels.append(label)
        compute(self, label, *arguments)

    monkeypatch.setattr(Workshop, "_compute", recorded)
    return labels


def test_kept_once_for_its_arguments(workshop, calls):
    first = workshop.keep("a", numbered, values=[1.0, 2.0])
    again = workshop.keep("a", numbered, values=[1.0, 2.0])
    assert len(calls) == 1
    xr.testing.assert_identical(first.x, again.x)
    assert [str(name) for name in again.name.values] == ["n0", "n1"]
    assert workshop.keep("a", numbered, values=[5.0]).x.values.tolist() == [5.0]
    assert workshop.keep("a", numbered, values=[5.0]).x.values.tolist() == [5.0]
    assert len(calls) == 2


def test_kept_data_survive_a_killed_write(workshop, monkeypatch, calls):
    real = xr.Dataset.to_zarr

    def killed(self, path, **options):
        real(self.drop_vars("x"), path, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_zarr", killed)
        with pytest.raises(KeyboardInterrupt):
            workshop.keep("a", numbered, values=[1.0])
    assert workshop.keep("a", numbered, values=[1.0]).x.values.tolist() == [1.0]
    assert len(calls) == 2
    shutil.rmtree(workshop.folder / "a.zarr" / "x")
    (workshop.folder / "a.zarr" / "zarr.json").write_text("{")
    assert workshop.keep("a", numbered, values=[1.0]).x.values.tolist() == [1.0]
    assert len(calls) == 3
    for chunk in (workshop.folder / "a.zarr" / "x" / "c").rglob("*"):
        if chunk.is_file():
            chunk.unlink()  # zarr fills in NaN
    assert workshop.keep("a", numbered, values=[1.0]).x.values.tolist() == [1.0]
    assert len(calls) == 4


def test_writing_replaces(tmp_path):
    write_dataset(xr.Dataset({"x": ("a", [1.0, 2.0])}), tmp_path / "d.zarr")
    write_dataset(xr.Dataset({"y": ("a", [3.0])}), tmp_path / "d.zarr")
    assert list(xr.open_zarr(tmp_path / "d.zarr")) == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["d.zarr"]


def test_figures_share_runs(workshop):
    experiment = Experiment.from_dict(SPEC)
    runs = workshop.runs("one", {"run": experiment})
    assert runs["run"].unchanged.sizes["item"] == 2
    again = workshop.runs("one", {"run": experiment})
    xr.testing.assert_identical(runs["run"].load(), again["run"].load())
    assert [p.name for p in workshop.folder.iterdir()] == ["one-run"]


def test_runs_apart_are_made_side_by_side_unless_there_is_a_cluster(tmp_path, monkeypatch):
    """The command line gives the options of a cluster even where it has none."""
    alone = []
    monkeypatch.setattr(
        Workshop,
        "each",
        lambda self, figure, work, tasks: alone.extend(label for label, _ in tasks),
    )
    monkeypatch.setattr(Workshop, "run", lambda self, label, experiment: label)
    experiments = {"run": Experiment.from_dict(SPEC)}
    Workshop("smoke", tmp_path, 1, cluster={"cluster": None}).runs("one", experiments, apart=True)
    assert alone == ["one-run"]
    Workshop("smoke", tmp_path, 1, cluster={"cluster": "local"}).runs(
        "two", experiments, apart=True
    )
    assert alone == ["one-run"]


def test_a_run_of_another_experiment_is_replaced(workshop):
    """The constants of a figure have changed: neither an error, nor further noise levels beside
    those of before.
    """
    workshop.run("run", Experiment.from_dict(SPEC))
    changed = strings("epsilon", [0.25], source={"vocab_size": 4, "depth": 2}, items=2)
    assert workshop.run("run", Experiment.from_dict(changed)).noise.values.tolist() == [0.25]


def test_all_figures_are_made_once():
    assert sorted(ORDER) == sorted(FIGURES)
    for entry in FIGURES.values():
        if entry.uses:
            assert ORDER.index(entry.uses) < ORDER.index(entry.name)
    assert ORDER.index("fig2") > ORDER.index("fig6")


def test_by_default_the_figures_of_the_paper_are_made():
    numbered = {f"fig{number}" for number in range(2, 16)}
    assert set(PAPER_FIGURES) == {*numbered, "s9"}


def test_every_figure_has_a_measured_time():
    own = [name for name, entry in FIGURES.items() if entry.path.startswith("uturn.")]
    assert set(own) <= set(measured_seconds())


def interval(value, half):
    return Estimate(value, value - half, value + half)


@pytest.mark.parametrize(
    ("passes", "fails"),
    [
        (below([1, 2], 3), below([1, 3], 3)),
        (below([1, 2], [2, 3], ""), below([1, 2], [2, 2], "")),
        (above([4, 5], 3), above([3, 5], 3)),
        (within([-0.1, 0.1], 0.2), within([-0.3, 0.1], 0.2)),
        (at_least(1.0, 1.0), at_least(0.9, 1.0)),
        (equal([2, 2], 2), equal([2, 3], 2)),
        (equal([1, 2], [1, 2]), equal([2, 1], [1, 2])),
        (meets(interval(0.5, 0.1), 0.55, 0.8, ""), meets(interval(0.5, 0.1), 0.65, 0.9, "")),
        # Wider than the range.
        (meets(interval(0.5, 0.1), 0.3, 0.8, ""), meets(interval(0.5, 0.4), 0.3, 0.8, "")),
        (holds(interval(0.1, 0.2), 0, 0.5, ""), holds(interval(0.3, 0.2), 0, 0.5, "")),
        # Wider than allowed.
        (holds(interval(0.1, 0.2), 0, 0.5, ""), holds(interval(0.1, 0.3), 0, 0.5, "")),
        (
            holds([interval(0, 1), interval(2, 1)], [0, 2], 3, ""),
            holds([interval(0, 1), interval(2, 1)], 0, 3, ""),
        ),
        (
            apart(interval(1, 0.1), interval(2, 0.1), ""),
            apart(interval(1, 0.6), interval(2, 0.6), ""),
        ),
        (
            apart(interval(1, 0.1), interval(2, 0.1), ""),
            apart(interval(2, 0.1), interval(1, 0.1), ""),
        ),
        (
            increasing([interval(1, 0.1), interval(1.1, 0.9), interval(2, 0.1)]),
            increasing([interval(1, 0.1), interval(0.9, 0.1), interval(2, 0.1)]),
        ),
        (
            decreasing([interval(2, 0.1), interval(1, 0.1)]),
            decreasing([interval(2, 0.6), interval(1, 0.6)]),
        ),
    ],
)
def test_rules(passes, fails):
    assert verdict("q", 1, "1", passes).passed is True
    assert verdict("q", 1, "1", fails).passed is False
    assert verdict("q", 1, "1", passes, fails).passed is False


def test_nothing_passes_without_a_number():
    nan, missing = float("nan"), Estimate(np.nan, np.nan, np.nan)
    for rule in (
        below(nan, 1),
        above(nan, 1),
        within([0, nan], 1),
        at_least(nan, 1),
        below([], 1),
        above([], 1),
        within([], 1),
    ):
        assert not rule.passed
    for rule in (
        holds(missing, 0, np.inf, ""),
        holds([interval(0, 1), missing], 0, 3, ""),
        holds([], 0, 1, ""),
        meets(missing, 0, 1, ""),
        apart(missing, interval(1, 0), ""),
        equal([], 1),
    ):
        assert not rule.passed
    assert not verdict("q", 1, "1").passed


def test_what_is_shown_neither_passes_nor_fails():
    number = shows("q", interval(0.5, 0.1), "0.4, about")
    assert (number.passed, number.measured) == (None, "0.50 [0.40, 0.60]")
    passes, fails = verdict("q", 1, "1", below(0, 1)), verdict("q", 1, "1")
    assert Result("fig7", "", "", "smoke", [number, passes], {}).passed
    assert not Result("fig7", "", "", "smoke", [number, fails], {}).passed


def test_verdicts_are_counted():
    verdicts = [Verdict("", "", "", passed) for passed in (True, None, True, False)]
    counted = tally(verdicts)
    assert (counted.judged, counted.failed, counted.shown) == (3, 1, 1)
    assert counted.words == "2 of 3 verdicts passed; shown and not judged: 1"
    assert tally(verdicts[:1]).words == "1 of 1 verdicts passed"
    assert tally([]).words == "no verdicts"


def test_verdicts_say_their_rules():
    one = verdict(
        "q", interval(0.5, 0.1), "1", below(0.4, 0.5), above(0.6, 0.5, ""), within(0, 1, "close")
    )
    assert (one.measured, one.rule) == ("0.50 [0.40, 0.60]", "below 0.5; close")
