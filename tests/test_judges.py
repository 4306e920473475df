"""Reports of judges: what they say, print, write and read again."""

import json

import numpy as np
import pandas
import pytest

import uturn as ut
from uturn.measures.estimates import Estimate
from uturn.measures.report import Line, Report, Verdict, verdict_of
from uturn.pages.reports import section_of

GAP = Line(
    "gap",
    Verdict.FAILS,
    measured=Estimate(0.2, 0.1, 0.3),
    expected=0.0,
    unit="nats",
    p=1e-4,
    sees="wrong variances",
    numbers={"noise": [0.25, 0.5]},
)
SIZE = Line("size", Verdict.PASSES, "1.02 of the right size", p=0.4)
STEP = Line("step", Verdict.UNTESTED, "give --step")
CALLS = Line("calls", Verdict.REPORTED, "12 a text")


def report(*lines, **fields):
    return Report("check-own", "mine against uturn's", lines, 0.001, **fields)


@pytest.mark.parametrize(
    ("lines", "passed", "conclusion"),
    [
        ((SIZE, STEP, CALLS), True, "no test fails"),
        ((SIZE, GAP), False, "fails: gap"),
        ((STEP, CALLS), True, "nothing was judged"),
        ((), True, "nothing was judged"),
    ],
)
def test_a_report_passes_if_no_test_fails(lines, passed, conclusion):
    found = report(*lines)
    assert found.passed is passed
    assert found.exit_code == (0 if passed else 1)
    assert found.conclusion == conclusion


def test_a_p_value_at_the_level_fails():
    assert verdict_of(0.001, 0.001) is Verdict.FAILS
    assert verdict_of(0.0011, 0.001) is Verdict.PASSES


def test_a_line_is_found_by_its_test():
    assert report(SIZE, GAP)["gap"] is GAP
    with pytest.raises(KeyError, match="size"):
        report(SIZE)["gap"]


def test_the_text_leaves_out_empty_columns():
    heads, rows = report(SIZE, STEP).cells()
    assert heads == ("test", "verdict", "result", "p")
    assert rows == [
        ("size", "passes", "1.02 of the right size", "0.4"),
        ("step", "not tested", "give --step", ""),
    ]
    text = repr(report(GAP, remarks=("32 originals",)))
    for words in ("0.2 [0.1, 0.3] nats", "FAILS", "32 originals", "fails: gap"):
        assert words in " ".join(text.split())


def test_the_notebook_view_is_escaped():
    page = report(Line("<script>", Verdict.PASSES, "a & b"))._repr_html_()
    assert "<script>" not in page
    assert "a &amp; b" in page


def test_the_table_is_numbers():
    table = report(GAP, SIZE).table
    assert isinstance(table, pandas.DataFrame)
    assert table.loc[0, ["measured", "low", "high", "expected", "p"]].tolist() == [
        0.2,
        0.1,
        0.3,
        0.0,
        1e-4,
    ]
    assert np.isnan(table.measured[1])


def test_a_stored_report_is_read_again(tmp_path):
    found = report(GAP, STEP, remarks=("32 originals",))
    found.to_json(tmp_path / "check.json")
    data = json.loads((tmp_path / "check.json").read_text())
    assert data["passed"] is False
    again = Report.from_dict(data)
    assert again.to_dict() == found.to_dict()
    assert again.lines[0].measured == GAP.measured
    without_interval = Estimate(0.2, np.nan, np.nan)
    stored = report(Line("gap", Verdict.REPORTED, measured=without_interval, p=np.nan)).to_dict()
    assert stored["tests"][0]["measured"] == [0.2, None, None]
    assert Report.from_dict(stored).lines[0].words == "0.2"
    found.to_csv(tmp_path / "check.csv")
    assert pandas.read_csv(tmp_path / "check.csv").test.tolist() == ["gap", "step"]


@pytest.mark.parametrize(
    "damage", [{"format": "other"}, {"version": 2}, {"tests": [{"test": 1}]}, {"tests": None}]
)
def test_other_files_are_refused(damage):
    with pytest.raises(ValueError, match=next(iter(damage)) if "tests" not in damage else "lines"):
        Report.from_dict({**report(GAP).to_dict(), **damage})


def test_a_page_shows_the_table_and_the_conclusion():
    section = section_of(report(GAP, remarks=("32 originals",)), "mine")
    assert section.overview.rows[0][0] == "gap"
    assert section.words.startswith("Fails: gap.")
    assert "0.001" in section.words
    assert section.notes == ["32 originals"]


def test_a_calibration_is_a_report():
    """Clones that are too narrow fail; draws of one law pass."""
    normals = ut.random.normals(ut.random.keys(0, range(300)), 5 * 8).reshape(300, 5, 8)

    def tested(scale):
        clones = scale * normals[None, :, None, 1:]
        readings = ut.readings_of(normals[:, 0], clones, lambda a, b: abs(a - b).mean(-1), "far")
        return ut.calibration(ut.readings(readings, [1.0], start=0), "far")

    found = tested(0.5)
    report = found.report
    assert report.failed == ("far, noise = 1.0",)
    assert report.lines[0].measured.value == found.gap.item()
    assert "FAILS" in repr(found)
    assert tested(1.0).report.passed
    assert "xarray" not in repr(found)
    assert "gap" not in repr(found[["p"]])
    assert "xarray" in repr(found.drop_attrs())  # without its level, it is no longer a report


def test_a_test_that_cannot_fail_has_not_passed():
    """Two originals can give no p-value below the level."""
    values = np.arange(8.0).reshape(2, 4)
    readings = ut.readings_of(values[:, 0], values[None, :, None, 1:], lambda a, b: abs(a - b), "f")
    (line,) = ut.calibration(ut.readings(readings, [1.0], start=0), "f").report.lines
    assert line.verdict is Verdict.UNTESTED
    assert "too few originals" in line.remark
