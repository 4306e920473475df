"""What tables, figures, pages and files show of a study: its names, its rounding, its axes, and
text that is not its own.
"""

import csv
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import xarray as xr

import uturn as ut
from small import strings
from uturn.core.csv_text import csv_of
from uturn.pages import collect, report, write_study
from uturn.store.outputs import write_dataset
from uturn.studies import draw_study, tidy, with_theory
from uturn.studies.axes import is_geometric
from uturn.studies.records import items_of
from uturn.studies.tables import parts_of

SIGMA = np.array([0.004, 0.02, 0.1, 0.5, 3.0, 15.0])
RNG = np.random.default_rng(11)
pytestmark = pytest.mark.usefixtures("unsaved_figures")


def falls(noise, lost, **settings):
    """A run of one reading of 0 and 1: original k keeps it below the noise `lost[k]`."""
    kept = (np.asarray(noise)[:, None] < np.asarray(lost)[None]).astype(float)
    return ut.readings({"holds": kept}, noise, start=1, chance=0, **settings)


def two_readings(noise, group=None):
    """A run of two readings that change at different noises."""
    x = np.asarray(noise)[:, None]
    scale = 10 ** RNG.normal(0, 0.3, 40)[None]
    values = {"fold": np.exp(-x / scale), "path": 9 * (1 - np.exp(-x / scale / 4))}
    return ut.readings(
        values, noise, start={"fold": 1, "path": 0}, chance={"fold": 0, "path": 9}, group=group
    )


def texts_of(axis):
    return " ".join(text.get_text() for text in axis.texts)


def vertical(axis):
    """Places of the dotted vertical lines of a panel."""
    return [
        line.get_xdata()[0]
        for line in axis.lines
        if line.get_linestyle() == ":" and len(set(line.get_xdata())) == 1
    ]


# --- names of numbers -----------------------------------------------------------------------------


def test_t_star_is_of_a_class_alone():
    study = ut.study(two_readings(np.linspace(0.1, 2, 8)))
    figure = draw_study(study)
    fold, path = figure.axes
    assert texts_of(fold).startswith("half-life of fold = ")
    assert "t^*" not in texts_of(fold) + texts_of(path)
    assert vertical(fold) == [
        pytest.approx(float(study.half_life.sel(reading="fold", axis="noise", estimate="value")))
    ]
    assert not vertical(path)  # each in its own panel
    plt.close(figure)


# --- one rounding ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.614499997, 0.375499997])  # to six digits halves, and then up
def test_a_card_and_a_table_round_alike(place, tmp_path):
    run = falls([place - 0.1, place + 0.1, 0.95], [place] * 6)
    assert float(ut.study(run).half_life[0, 0, 0]) == pytest.approx(place, abs=1e-12)
    write_study(run, tmp_path)
    (section,) = collect([tmp_path]).sections
    of_table = section.tables[0].rows[0][1].split()[0]
    assert of_table == f"{place:.3g}"
    page = (tmp_path / "index.html").read_text()
    assert re.search('<p class="big">(.*?)</p>', page)[1] == of_table


def look(browser, path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
    return page


# --- logarithmic axes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "geometric"),
    [
        (SIGMA, True),
        (np.r_[SIGMA, np.inf], True),
        (np.linspace(0.02, 1, 12), False),
        ([0.01, 0.25, 0.5, 0.75, 1.0], False),
        ([0.1, 0.2, 0.4, 0.8], False),
    ],
)
def test_geometric_levels(levels, geometric):
    assert is_geometric(levels) == geometric


def test_charts_of_geometric_levels_are_logarithmic_and_have_noise_0(browser, tmp_path):
    write_study(two_readings(SIGMA), tmp_path)
    (section,) = collect([tmp_path]).sections
    assert all(one.axes[0].is_logarithmic for one in section.charts)
    page = look(browser, tmp_path / "index.html")
    page.locator(".plot").first.scroll_into_view_if_needed()
    page.wait_for_selector(".plot.js-plotly-plot")
    axis, traces = page.evaluate(
        "(() => { const { layout, data } = document.querySelector('.plot'); "
        "return [layout.xaxis, data.map((one) => [one.x, one.y, one.mode])]; })()"
    )
    assert axis["ticktext"] == ["0", "0.01", "0.1", "1", "10"]
    assert np.diff(axis["tickvals"])[1:] == pytest.approx(1)  # decades
    x, y, _ = next(trace for trace in traces if trace[2] != "lines")
    assert x[0] == 0
    assert x[-1] == pytest.approx(0.5 + np.log10(SIGMA[-1] / SIGMA[0]))
    shapes = page.evaluate("document.querySelector('.plot').layout.shapes")
    mark = [one["x0"] for one in shapes if one["type"] == "line"]
    assert mark[0] == pytest.approx(mark[1])  # the slider begins at the half-life
    assert np.interp(mark[0], x, y) == pytest.approx(0.5, abs=0.01)
    page.close()


# --- originals ------------------------------------------------------------------------------------

TABLE = {
    "protein": ["1abc", "=cmd|' /C calc'!A0", "7x\u202ey", "2.7"],
    "lost": [0.35, 0.05, 2.0, 0.85],
}
LEVELS = [0.1, 0.3, 0.5, 0.9]


def proteins():
    rows = [
        {
            "noise": x,
            "item": name,
            "trajectory": t,
            "same_fold": float(x + 0.01 * t < lost),
            "length": 10.0 + k,
        }
        for k, (name, lost) in enumerate(zip(TABLE["protein"], TABLE["lost"], strict=True))
        for x in LEVELS
        for t in range(3)
    ]
    return ut.readings(
        pandas.DataFrame(rows), start={"same_fold": 1}, chance={"same_fold": 0}, coords=["length"]
    )


def test_items_have_their_names_readings_and_half_lives():
    run = proteins()
    frame = items_of(run, ut.study(run)).set_index("name")
    assert set(frame.index) == set(TABLE["protein"])
    for name, lost in zip(TABLE["protein"], TABLE["lost"], strict=True):
        shares = [np.mean([x + 0.01 * t < lost for t in range(3)]) for x in LEVELS]
        assert [frame.loc[name, f"same_fold at {x:g}"] for x in LEVELS] == pytest.approx(shares)
        half = frame.loc[name, "half_life of same_fold"]
        if lost == 2.0:
            assert np.isnan(half)  # never lost
        else:
            k = int(np.searchsorted(LEVELS, lost))
            assert half == pytest.approx((([0, *LEVELS])[k] + LEVELS[k]) / 2, abs=0.05)
    assert frame.length.tolist() == [run.length.values[k] for k in frame["item"]]


def test_the_page_sorts_its_pictures(browser, tmp_path):
    names, lost = ["img10.png", "img9.png", "img1.png", "img2.png"], [0.4, 0.8, np.nan, 0.1]
    folder = tmp_path / "study"
    write_study(falls(LEVELS, [0.2] * 4), folder)
    study, dims = xr.open_zarr(folder / "study.zarr").load(), ("item", "channel", "row", "column")
    images = RNG.uniform(-1, 1, (2, 4, 1, 6, 6)).astype("float32")
    pictures = {"original": (dims, images[0]), "image": (("shown_noise", *dims), images)}
    same = {"image_same_class": (("shown_noise", "item"), np.ones((2, 4)), {"judge": ""})}
    labels = {
        "item_name": ("item", names),
        "item_half_life": ("item", lost, {"long_name": "half_life of same_class"}),
    }
    study = study.assign(pictures | same).assign_coords(
        shown_noise=[0.1, 0.5], item=range(4), **labels
    )
    write_dataset(study, folder / "study.zarr")
    report([folder])
    page = look(browser, folder / "index.html")

    def order(words):
        page.locator(".grid select").select_option(words)
        return [text.split(":")[0] for text in page.locator(".tile span").all_inner_texts()]

    # Never lost: last.
    assert order("by half-life of same_class") == ["img2.png", "img10.png", "img9.png", "img1.png"]
    assert order("by name") == ["img1.png", "img2.png", "img9.png", "img10.png"]
    assert order("as in the run") == names
    page.close()


# --- text that is not ours ------------------------------------------------------------------------

STRANGE = "a\x1b[2Jb\u202egnp.exe\u2066\x00c"
RAW = ("\x1b", "\u202e", "\u2066", "\x00")


def test_control_and_direction_characters_are_escaped_in_pages(tmp_path):
    run = two_readings(np.linspace(0.1, 1, 6)).rename({"fold": "fo\u202eld"})
    run = run.assign_attrs(description=STRANGE, variables=["fo\u202eld", "path"])
    run = run.assign_coords(noise=("noise", run.noise.values, {"long_name": STRANGE}))
    write_study(run, tmp_path, title=STRANGE)
    page = (tmp_path / "index.html").read_text()
    assert not [mark for mark in RAW if mark in page]
    assert "a\\x1b[2Jb\\u202egnp.exe\\u2066\\x00c" in page
    assert "fo\\u202eld" in page
    shown = page[page.index('id="data"') :]
    # The script would decode these.
    assert not re.search(r"(?<!\\)\\u(001b|202e|2066|0000)", shown[: shown.index("</script>")])


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path):
    frame = pandas.DataFrame(
        {"=a": ["=1+1", "@x", "+y", "-z", "-0.5", "plain"], "number": [-1.5, 2, -3, 4, 5, 6]}
    )
    text = csv_of(frame)
    assert text.splitlines()[0] == "'=a,number"
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == [
        "'=1+1",
        "'@x",
        "'+y",
        "'-z",
        "-0.5",
        "plain",
    ]
    assert pandas.read_csv(pandas.io.common.StringIO(text)).number.tolist() == frame.number.tolist()
    write_study(
        falls(LEVELS, [0.2] * 3).rename(holds="=holds").assign_attrs(variables=["=holds"]), tmp_path
    )
    for name in ("curves.csv", "numbers.csv", "items.csv"):
        with (tmp_path / name).open() as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert "=holds" in " ".join(cells)
        assert not [cell for cell in cells if cell.startswith("=")]


# --- the mean field -------------------------------------------------------------------------------

GRAMMAR = strings(
    "epsilon",
    [0.3, 0.6, 0.8, 1.0],
    ["tree_levels", "messages", "changes"],
    source={"vocab_size": 9, "multiplicity": 3, "grammars": 6},
    items=240,
    trajectories=3,
    seed=4,
)


@pytest.fixture(scope="module")
def grammar():
    return ut.run(ut.Experiment.from_dict(GRAMMAR))


@pytest.mark.slow
def test_the_mean_field_lies_over_a_run_of_a_grammar(grammar, tmp_path):
    study = with_theory(ut.study(grammar), grammar)
    mean_field = ut.theory.MeanField(vocab_size=9, multiplicity=3, branching=2)
    expected = mean_field.curves(study.noise.values, 3)
    for level in range(4):
        for name, of in (
            ("belief", expected.marginals),
            ("unchanged", expected.marginals),
            ("upward_belief", expected.upward),
        ):
            reading = study.sel(reading=f"{name}, tree_level = {level}")
            np.testing.assert_allclose(reading.theory, of[:, level])
            measured = reading.curve.sel(estimate="value")[1:]  # without the level that is added
            np.testing.assert_allclose(measured, reading.theory[1:], atol=0.07)  # six grammars
    np.testing.assert_allclose(
        study.chi_theory[0], mean_field.susceptibility(study.noise.values, 3)
    )
    assert study.theory.sel(reading="change").isnull().all()
    table = next(part for part in parts_of(study) if part.title.startswith("mean field, ε* = "))
    # At most eight of each variable.
    assert len(table.rows) == int(study.theory.notnull().any("noise").sum())
    assert tidy(study).curves.theory.notnull().sum() == int(study.theory.notnull().sum())
    write_study(grammar, tmp_path, theory=True)
    (section,) = collect([tmp_path]).sections
    lines = {line.name: line for line in section.charts[0].lines}
    assert lines["tree level 2, mean field"].value == pytest.approx(
        expected.marginals[:, 2].tolist()
    )
    assert lines["tree level 2, mean field"].theory_of == 2
    assert any(mark.label == "ε* (mean field)" for mark in section.charts[0].marks)
    write_study(
        {"a": grammar, "b": grammar.drop_vars("change_covariance")}, tmp_path / "both", theory=True
    )
    overlay = collect([tmp_path / "both"]).sections[0]
    assert [line.name for line in overlay.charts[0].lines] == [
        "a",
        "b",
    ], "the theory is that of one run"


def test_readings_made_elsewhere_have_no_mean_field():
    run = falls([0.1, 0.3, 0.6], [0.2] * 6)
    with pytest.raises(ValueError, match=r"source and corruption = .'readings'"):
        with_theory(ut.study(run), run)
