"""What tables, figures, pages and files show of a study: its names, its rounding, its axes, and text that is not its own."""

import csv
import json
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from browser import next_frame
from uturn import paper
from uturn.cli import app
from uturn.pages import collect, report, write_study
from uturn.pages.charts import chart
from uturn.paper import Result, Verdict
from uturn.sources.images import FashionMNISTSource
from uturn.store.datasets import write_dataset
from uturn.studies import draw_studies, draw_study, tidy, with_theory
from uturn.studies.axes import is_geometric
from uturn.studies.items import items_of
from uturn.studies.runs import item_names
from uturn.studies.tables import csv_of, parts_of

SIGMA = np.array([0.004, 0.02, 0.1, 0.5, 3.0, 15.0])
RNG = np.random.default_rng(11)


def falls(noise, lost, **settings):
    """A run of one reading of 0 and 1: original k keeps it below the noise `lost[k]`."""
    kept = (np.asarray(noise)[:, None] < np.asarray(lost)[None]).astype(float)
    return ut.readings({"holds": kept}, noise, start=1, chance=0, **settings)


def two_readings(noise, group=None):
    """A run of two readings that change at different noises."""
    x = np.asarray(noise)[:, None]
    scale = 10 ** RNG.normal(0, 0.3, 40)[None]
    values = {"fold": np.exp(-x / scale), "path": 9 * (1 - np.exp(-x / scale / 4))}
    return ut.readings(values, noise, start={"fold": 1, "path": 0}, chance={"fold": 0, "path": 9}, group=group)


def texts_of(axis):
    return " ".join(text.get_text() for text in axis.texts)


def vertical(axis):
    """Places of the dotted vertical lines of a panel."""
    return [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":" and len(set(line.get_xdata())) == 1]


# --- names of numbers --------------------------------------------------------------------------------------------------


def test_t_star_is_of_a_class_alone():
    study = ut.study(two_readings(np.linspace(0.1, 2, 8)))
    figure = draw_study(study)
    fold, path = figure.axes
    assert texts_of(fold).startswith("half-life of fold = ")
    assert "t^*" not in texts_of(fold) + texts_of(path)
    assert vertical(fold) == [pytest.approx(float(study.half_life.sel(reading="fold", axis="noise", estimate="value")))]
    assert not vertical(path)  # each in its own panel
    plt.close(figure)


def test_t_star_of_a_class_stands_in_all_panels():
    study = ut.study(two_readings(np.linspace(0.1, 2, 8), group={"fold": "class"}))
    figure = draw_study(study)
    assert texts_of(figure.axes[0]).startswith("$t^*$ = ")
    star = float(study.half_life.sel(reading="fold", axis="noise", estimate="value"))
    assert [vertical(axis) for axis in figure.axes] == [[pytest.approx(star)]] * 2
    plt.close(figure)


def test_the_page_names_a_half_life_by_its_reading(tmp_path):
    write_study(two_readings(np.linspace(0.1, 2, 8)), tmp_path)
    (section,) = collect([tmp_path]).sections
    assert section["headlines"][0]["label"] == "half-life of fold"
    assert section["words"].startswith("half-life of fold = ")
    assert {mark["label"] for chart in section["charts"] for mark in chart["marks"]} == {"half-life of fold"}
    runs = {str(k): two_readings(np.linspace(0.1, 2, 8)) for k in range(2)}
    write_study(runs, tmp_path / "several")
    overlay = collect([tmp_path / "several"]).sections[0]
    assert overlay["words"].startswith("half-life of fold goes from ")
    assert overlay["tables"][0]["title"] == "half-life of fold of each run"


# --- one rounding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.614499997, 0.375499997, 0.742499996])  # to six digits halves, and then up
def test_a_card_and_a_table_round_alike(place, tmp_path):
    run = falls([place - 0.1, place + 0.1, 0.95], [place] * 6)
    assert float(ut.study(run).half_life[0, 0, 0]) == pytest.approx(place, abs=1e-12)
    write_study(run, tmp_path)
    (section,) = collect([tmp_path]).sections
    of_table = section["tables"][0]["rows"][0][1].split()[0]
    assert of_table == f"{place:.3g}"
    page = (tmp_path / "index.html").read_text()
    assert re.search('<p class="big">(.*?)</p>', page)[1] == of_table


def look(browser, path):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
    return page


def test_the_script_of_the_page_rounds_as_its_tables(browser, tmp_path):
    write_study(falls([0.1, 0.3, 0.6], [0.2] * 6), tmp_path)
    page = look(browser, tmp_path / "index.html")
    halves = [0.3125, 0.4375, 2.125, -0.0625, 5.375, 12.25, 0.10546875, 1.125]  # a whole number of 2^-n: halves without error
    values = [*halves, *(RNG.integers(1, 2**16, 300) / 2.0 ** RNG.integers(4, 18, 300)).tolist(), *RNG.normal(0, 3, 200).tolist()]
    said = page.evaluate("(values) => values.map(short)", values)
    assert [float(text) for text in said] == [float(f"{value:.3g}") for value in values]
    assert page.evaluate("span(1e-9, -0.2, 0.3)") == "0 [-0.2, 0.3]"
    page.close()


# --- the slider and its unit ----------------------------------------------------------------------------------------------


def test_with_one_run_the_slider_has_its_unit_and_begins_at_the_headline(browser, tmp_path):
    run = two_readings([0.4, 1.1, 2.3, 3.2, 4.7], group={"fold": "class"})
    write_study(run.assign_coords(noise=("noise", run.noise.values, {"long_name": "dose (mg)"})), tmp_path)
    page = look(browser, tmp_path / "index.html")
    assert page.locator("#word").inner_text() == "dose (mg)"
    star = re.search('<p class="big">(.*?)</p>', (tmp_path / "index.html").read_text())[1]
    assert page.locator("#reading").inner_text() == star
    assert page.locator(".chart .at").first.inner_text().startswith(f"At dose (mg): {star}")
    assert page.locator("#axis option").first.inner_text() == "dose (mg)"
    page.locator("#noise").evaluate("(one) => { one.value = 0.5; one.dispatchEvent(new Event('input')); }")
    next_frame(page)
    assert page.locator("#reading").inner_text() == "2.35"
    page.close()


def test_with_runs_of_two_units_the_slider_is_a_share(browser, tmp_path):
    for name, noise in (("a", [0.4, 1.1, 2.3, 4.7]), ("b", [1.0, 4.0, 7.0, 9.0])):
        run = two_readings(noise)
        write_study(run.assign_coords(noise=("noise", run.noise.values, {"long_name": name})), tmp_path / name)
    report([tmp_path / "a", tmp_path / "b"], tmp_path / "both.html")
    page = look(browser, tmp_path / "both.html")
    assert page.locator("#word").inner_text() == "Noise"
    assert page.locator("#reading").inner_text().endswith("% of each range")
    page.close()


def test_axes_of_information_are_in_bits(tmp_path):
    spec = {
        "items": 6,
        "source": {"type": "rhm", "vocab_size": 5, "multiplicity": 2, "branching": 2, "depth": 2},
        "corruption": {"type": "masking", "noise": [0.3, 0.6, 1.0]},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    run = ut.run(ut.Experiment.from_dict(spec))
    study = ut.study(run)
    assert study.bits_per_leaf.attrs["long_name"] == "information per leaf (bits)"
    one = study.sel(axis=[name for name in study.axis.values if name != "effective_epsilon"])
    other = one.assign_coords(noise=("noise", one.noise.values, {"long_name": "another noise"}))
    figure = draw_studies({"a": one, "b": other})  # the only common axis is that of information
    assert figure.axes[0].get_xlabel() == "information per leaf (bits)"
    plt.close(figure)
    write_study(run.assign_coords(bits=("noise", [0.9, 0.5, 0.0])), tmp_path)
    for axis in collect([tmp_path]).sections[0]["charts"][0]["axes"]:
        assert axis["words"].endswith("(bits)") == axis["name"].startswith("bits")


# --- logarithmic axes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "geometric"),
    [
        (SIGMA, True),
        (np.r_[0, SIGMA], True),
        (np.r_[SIGMA, np.inf], True),
        (np.geomspace(0.05, 0.8, 6), True),
        (np.linspace(0.02, 1, 12), False),
        ([0.01, 0.25, 0.5, 0.75, 1.0], False),
        ([0.1, 0.2, 0.4, 0.8], False),  # less than a decade
        ([0.01, 1.0], False),
        ([0.0], False),
    ],
)
def test_geometric_levels(levels, geometric):
    assert is_geometric(levels) == geometric


def test_a_figure_of_geometric_levels_is_logarithmic_and_has_noise_0():
    study = ut.study(two_readings(SIGMA))
    figure = draw_study(study)
    for axis in figure.axes:
        assert axis.get_xscale() == "symlog"
        assert axis.get_xlim()[0] == 0
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "0.01", "0.1", "1", "10"]
        places = axis.transData.transform([(x, 0) for x in (0, *SIGMA)])[:, 0]
        assert np.diff(places).min() > 0.05 * np.ptp(places)  # none lie on each other
    curve, half_life = figure.axes[0].lines[0], float(study.half_life.sel(reading="fold", axis="noise", estimate="value"))
    assert np.interp(half_life, *curve.get_data()) == pytest.approx(0.5)
    drawn = figure.axes[0].transData.transform(np.transpose(curve.get_data()))
    at = figure.axes[0].transData.transform((half_life, 0.5))
    assert np.interp(at[0], *drawn.T) == pytest.approx(at[1], abs=2)  # pixels: the line goes through the half-life
    even = draw_study(ut.study(two_readings(np.linspace(0.2, 2, 6))))
    assert {axis.get_xscale() for axis in even.axes} == {"linear"}
    plt.close(figure)
    plt.close(even)


def test_charts_of_geometric_levels_are_logarithmic_and_have_noise_0(browser, tmp_path):
    write_study(two_readings(SIGMA), tmp_path)
    (section,) = collect([tmp_path]).sections
    assert all(one["axes"][0]["log"] for one in section["charts"])
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


# --- originals ------------------------------------------------------------------------------------------------------------

TABLE = {"protein": ["1abc", "=cmd|' /C calc'!A0", "7x\u202ey", "2.7"], "lost": [0.35, 0.05, 2.0, 0.85]}
LEVELS = [0.1, 0.3, 0.5, 0.9]


def proteins():
    rows = [
        {"noise": x, "item": name, "trajectory": t, "same_fold": float(x + 0.01 * t < lost), "length": 10.0 + k}
        for k, (name, lost) in enumerate(zip(TABLE["protein"], TABLE["lost"], strict=True))
        for x in LEVELS
        for t in range(3)
    ]
    return ut.readings(pandas.DataFrame(rows), start={"same_fold": 1}, chance={"same_fold": 0}, coords=["length"])


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


def test_a_rising_reading_has_half_lives_of_items_too():
    noise, scale = np.linspace(0.25, 6, 24), np.array([0.7, 1.4, 2.8])
    run = ut.readings({"rmsd": noise[:, None] / (noise[:, None] + scale)}, noise, start=0, chance=1)
    frame = items_of(run, ut.study(run))
    assert frame["half_life of rmsd"].to_numpy() == pytest.approx(scale, rel=0.05)  # x / (x + s) is .5 at s


def test_items_csv_and_remarks_of_a_run_have_names(tmp_path):
    write_study(proteins(), tmp_path)
    with (tmp_path / "items.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"1abc", "'=cmd|' /C calc'!A0", "7x\u202ey", "2.7"}
    write_study({"a": proteins(), "b": proteins()}, tmp_path)
    assert pandas.read_csv(tmp_path / "items.csv").run.tolist() == ["a"] * 4 + ["b"] * 4


def test_items_are_listed_up_to_a_number(tmp_path, monkeypatch):
    run = falls([0.1, 0.3, 0.6], [0.2] * 6)
    write_study(run, tmp_path)
    assert (tmp_path / "items.csv").exists()
    monkeypatch.setattr("uturn.pages.results.MOST_ITEMS", 5)
    write_study(run, tmp_path)
    assert not (tmp_path / "items.csv").exists()


def test_names_of_originals():
    run = xr.Dataset(coords={"item": [3, 4, 5], "label": ("item", [1, -1, 7])})
    items = np.arange(3)
    assert item_names(run, items) == ["item 3, class 1", "item 4", "item 5, class 7"]
    assert item_names(run, items[:1], {0: "cat", 1: "dog"}) == ["item 3, dog"]
    assert item_names(run.assign_coords(file=("item", ["a/1.png", "a/2.png", "b/1.png"])), items[1:]) == ["a/2.png", "b/1.png"]
    text_labels = xr.Dataset(coords={"item": [0, 1], "label": ("item", ["x", "y"])})
    assert item_names(text_labels, np.arange(2)) == ["item 0", "item 1"]


def test_the_list_of_originals_has_the_classes_of_the_source():
    """Those of the page; none if the source has changed."""
    fingerprint = FashionMNISTSource().fingerprint()
    run = falls([0.1, 0.3], [0.2, 0.2, 0.4]).assign_coords(label=("item", [9, 0, 2]))
    run.attrs |= {"spec": json.dumps({"source": {"type": "fashion_mnist"}, "backward": {}, "probes": []})}
    of_source, changed = (run.assign_attrs(models=json.dumps({"source": text})) for text in (fingerprint, "other"))
    assert items_of(of_source, ut.study(run))["name"].tolist()[:2] == ["item 0, Ankle boot", "item 1, T-shirt/top"]
    assert items_of(changed, ut.study(run))["name"].tolist()[:2] == ["item 0, class 9", "item 1, class 0"]


def test_the_page_sorts_its_pictures(browser, tmp_path):
    names, lost = ["img10.png", "img9.png", "img1.png", "img2.png"], [0.4, 0.8, np.nan, 0.1]
    folder = tmp_path / "study"
    write_study(falls(LEVELS, [0.2] * 4), folder)
    study, dims = xr.open_zarr(folder / "study.zarr").load(), ("item", "channel", "row", "column")
    images = RNG.uniform(-1, 1, (2, 4, 1, 6, 6)).astype("float32")
    pictures = {"original": (dims, images[0]), "image": (("shown_noise", *dims), images)}
    same = {"image_same_class": (("shown_noise", "item"), np.ones((2, 4)), {"judge": ""})}
    labels = {"item_name": ("item", names), "item_half_life": ("item", lost, {"long_name": "half_life of same_class"})}
    study = study.assign(pictures | same).assign_coords(shown_noise=[0.1, 0.5], item=range(4), **labels)
    write_dataset(study, folder / "study.zarr")
    report([folder])
    page = look(browser, folder / "index.html")

    def order(words):
        page.locator(".grid select").select_option(words)
        return [text.split(":")[0] for text in page.locator(".tile span").all_inner_texts()]

    assert order("by half-life of same_class") == ["img2.png", "img10.png", "img9.png", "img1.png"]  # never lost: last
    assert order("by name") == ["img1.png", "img2.png", "img9.png", "img10.png"]
    assert order("as in the run") == names
    page.close()


# --- text that is not ours --------------------------------------------------------------------------------------------------

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
    assert not re.search(r"(?<!\\)\\u(001b|202e|2066|0000)", shown[: shown.index("</script>")])  # the script would decode these


def test_cells_that_a_spreadsheet_would_run_are_quoted(tmp_path):
    frame = pandas.DataFrame({"=a": ["=1+1", "@x", "+y", "-z", "-0.5", "plain"], "number": [-1.5, 2, -3, 4, 5, 6]})
    text = csv_of(frame)
    assert text.splitlines()[0] == "'=a,number"
    assert [line.split(",")[0] for line in text.splitlines()[1:]] == ["'=1+1", "'@x", "'+y", "'-z", "-0.5", "plain"]
    assert pandas.read_csv(pandas.io.common.StringIO(text)).number.tolist() == frame.number.tolist()
    write_study(falls(LEVELS, [0.2] * 3).rename(holds="=holds").assign_attrs(variables=["=holds"]), tmp_path)
    for name in ("curves.csv", "numbers.csv", "items.csv"):
        with (tmp_path / name).open() as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert "=holds" in " ".join(cells)
        assert not [cell for cell in cells if cell.startswith("=")]


def test_figures_with_texts_among_their_data_are_stored_without_warnings(tmp_path):
    kinds = np.array([["too sure", "shifted"], ["none", "deaf to the data"]])
    data = xr.Dataset({"kind": (("cell", "sampler"), kinds), "p": ("cell", [0.1, 0.2])}, {"sampler": ["a", "bb"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_dataset(data, tmp_path / "data.zarr")
    read = xr.open_zarr(tmp_path / "data.zarr").load()
    assert read.kind.values.tolist() == kinds.tolist()
    assert set(read.coords) == {"sampler"}


def test_verdicts_in_a_file_can_be_read(tmp_path, monkeypatch):
    verdicts = [Verdict("a quantity of some length " * 9, "1 [0, 2]", "about 1", True, "within the larger of two errors " * 30)]
    made = Result("fig7", "A title", "A caption", "smoke", verdicts, {})
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(paper, "reproduce", lambda *args, **kwargs: [made])
    done = CliRunner().invoke(app, ["reproduce", "fig7", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert max(map(len, lines)) <= 160
    words = " ".join(done.output.split())
    assert words.count("errors") == 30  # nothing is left out
    assert words.count("pass") == 2


# --- the mean field -----------------------------------------------------------------------------------------------------------

GRAMMAR = {
    "items": 240,
    "trajectories": 3,
    "seed": 4,
    "source": {"type": "rhm", "vocab_size": 9, "multiplicity": 3, "branching": 2, "depth": 3, "grammars": 6},
    "corruption": {"type": "epsilon", "noise": [0.3, 0.6, 0.8, 1.0]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}, {"type": "messages"}, {"type": "changes"}],
}


@pytest.fixture(scope="module")
def grammar():
    return ut.run(ut.Experiment.from_dict(GRAMMAR))


def test_the_mean_field_lies_over_a_run_of_a_grammar(grammar, tmp_path):
    study = with_theory(ut.study(grammar), grammar)
    mean_field = ut.theory.MeanField(vocab_size=9, multiplicity=3, branching=2)
    expected = mean_field.curves(study.noise.values, 3)
    for level in range(4):
        for name, of in (("belief", expected.marginals), ("unchanged", expected.marginals), ("upward_belief", expected.upward)):
            reading = study.sel(reading=f"{name}, tree_level = {level}")
            np.testing.assert_allclose(reading.theory, of[:, level])
            measured = reading.curve.sel(estimate="value")[1:]  # without the level that is added
            np.testing.assert_allclose(measured, reading.theory[1:], atol=0.07)  # six grammars
    np.testing.assert_allclose(study.chi_theory[0], mean_field.susceptibility(study.noise.values, 3))
    assert study.theory.sel(reading="change").isnull().all()
    table = next(part for part in parts_of(study) if part.title.startswith("mean field, ε* = "))
    assert len(table.rows) == int(study.theory.notnull().any("noise").sum())  # at most eight of each variable
    assert tidy(study).curves.theory.notnull().sum() == int(study.theory.notnull().sum())
    figure = draw_study(study)
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--" and len(line.get_xdata()) == 5]
    assert len(dashed) == 4
    plt.close(figure)
    write_study(grammar, tmp_path, theory=True)
    (section,) = collect([tmp_path]).sections
    lines = {line["name"]: line for line in section["charts"][0]["lines"]}
    assert lines["tree level 2, mean field"]["value"] == pytest.approx(expected.marginals[:, 2].tolist())
    assert lines["tree level 2, mean field"]["of"] == 2
    assert any(mark["label"] == "ε* (mean field)" for mark in section["charts"][0]["marks"])


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"corruption": {"type": "masking", "noise": [0.5, 1.0]}}, "corruption = masking"),
        ({"source": GRAMMAR["source"] | {"zipf_exponent": 1.0}}, "uniform rules"),
        ({"source": GRAMMAR["source"] | {"multiplicity": [2, 3, 2]}}, "one multiplicity"),
        ({"source": GRAMMAR["source"] | {"type": "filtered_rhm", "filtered_above": 1}}, "source = filtered_rhm"),
    ],
)
def test_runs_without_a_mean_field_are_refused_in_one_line(changed, why):
    run = ut.run(ut.Experiment.from_dict(GRAMMAR | {"items": 12} | changed | {"probes": [{"type": "tree_levels"}]}))
    with pytest.raises(ValueError, match=why) as error:
        with_theory(ut.study(run), run)
    assert "\n" not in str(error.value)


def test_readings_made_elsewhere_have_no_mean_field():
    run = falls([0.1, 0.3, 0.6], [0.2] * 6)
    with pytest.raises(ValueError, match="source = readings"):
        with_theory(ut.study(run), run)


def test_a_chart_pairs_curves_of_the_theory_by_name():
    values = xr.DataArray(RNG.random((5, 3)), dims=("noise", "reading"), coords={"noise": range(5), "reading": ["a", "b", "c"]})
    lines = chart("n", "t", values, "noise", theory=values.isel(reading=[2, 0]) + 1)["lines"]
    assert [(line["name"], line.get("of")) for line in lines[3:]] == [("c, mean field", 2), ("a, mean field", 0)]
