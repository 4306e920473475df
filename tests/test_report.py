"""The page of results: what is found, what is damaged, what is escaped, how large it is."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import uturn as ut
from small import strings
from uturn.pages import collect, report, write_page, write_study
from uturn.pages import pictures as pages_pictures
from uturn.pages.charts import charts_of
from uturn.store.outputs import write_dataset

HOSTILE = """</script><script>alert(1)</script>"'><img src=x onerror=alert(1)>&amp;{{data}}"""
NOISE = np.linspace(0.1, 1, 10)
STRINGS = strings(
    "masking", [0.0, 0.5, 1.0], source={"vocab_size": 4, "depth": 2}, items=12, trajectories=2
)


def figure(folder, name="fig7", passed=True, **change):
    """A figure with its data and picture; `change` replaces keys of its JSON file."""
    verdict = {
        "quantity": f"crossing of {name}",
        "measured": "0.7 [0.6, 0.8]",
        "expected": "0.71",
        "passed": passed,
        "rule": "within 0.1",
    }
    files = {"png": f"{name}.png", "pdf": f"{name}.pdf", "data": f"{name}.zarr"}
    result = {
        "figure": name,
        "title": "A title",
        "caption": "A caption",
        "scale": "smoke",
        "verdicts": [verdict],
        "files": files,
    }
    (folder / f"{name}.json").write_text(json.dumps(result | {"seconds": 1.0} | change))
    Image.fromarray(np.zeros((60, 100, 3), np.uint8)).save(folder / f"{name}.png")
    levels = np.arange(3)
    belief = np.exp(-np.outer(NOISE, levels + 1))
    data = xr.Dataset(
        {
            "belief": (
                ("noise", "tree_level", "estimate"),
                np.stack([belief, belief - 0.1, belief + 0.1], -1),
            ),
            "transition": ("estimate", [0.57, 0.53, 0.61]),
        },
        {
            "estimate": ["value", "low", "high"],
            "noise": ("noise", NOISE, {"long_name": "epsilon"}),
            "tree_level": levels,
            "log_snr": ("noise", -np.log(NOISE)),
        },
    )
    write_dataset(data, folder / f"{name}.zarr")


def data_of(page):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1]
    )


def test_curves_of_a_figure_are_its_numbers(tmp_path):
    figure(tmp_path)
    (chart,) = collect([tmp_path]).sections[0].charts
    assert chart.has_slider
    assert [axis.name for axis in chart.axes] == ["noise", "log_snr"]
    assert chart.axes[0].label == "ε"
    assert [line.name for line in chart.lines] == [
        "tree level 0",
        "tree level 1",
        "tree level 2",
    ]
    assert chart.lines[1].value == pytest.approx(np.exp(-2 * NOISE), rel=1e-5)
    assert chart.lines[1].low == pytest.approx(np.exp(-2 * NOISE) - 0.1, rel=1e-5)
    assert chart.marks[0].places["noise"] == [0.57, 0.53, 0.61]


def test_figures_of_the_paper_come_first_below_a_heading(tmp_path):
    for name, is_of_paper in (("chi", False), ("s9", True), ("fig7", True), ("fig10", True)):
        figure(tmp_path, name, is_of_paper=is_of_paper)
    ut.readings({"same": np.ones((3, 4))}, [0.1, 0.5, 0.9], store=tmp_path / "run")
    page = write_page(tmp_path).read_text()
    headings = re.findall(
        r"<h2[^>]*>(The paper|Beyond the paper|Other results|.*?A title|run)", page
    )
    sections = [section["name"] for section in data_of(page)["sections"]]
    assert sections == ["fig7", "fig10", "s9", "chi", "run"]
    assert [name for name in headings if "title" not in name] == [
        "The paper",
        "Beyond the paper",
        "Other results",
    ]
    assert headings.index("Beyond the paper") == 4


def test_a_figure_without_verdicts_is_shown(tmp_path):
    figure(tmp_path, verdicts=[])
    page = write_page(tmp_path).read_text()
    assert "No verdicts; scale smoke" in page
    assert "verdicts-title" not in page


def test_words_of_results_are_escaped(tmp_path):
    verdict = {
        "quantity": HOSTILE,
        "measured": HOSTILE,
        "expected": HOSTILE,
        "passed": True,
        "rule": HOSTILE,
    }
    figure(tmp_path, title=HOSTILE, caption=HOSTILE, verdicts=[verdict])
    data = xr.open_zarr(tmp_path / "fig7.zarr").load().assign_coords(tree_level=[HOSTILE, "b", "c"])
    data.belief.attrs["long_name"] = HOSTILE
    write_dataset(data, tmp_path / "fig7.zarr")
    page = write_page(tmp_path).read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    # Whole, as data.
    assert data_of(page)["sections"][0]["charts"][0]["lines"][0]["name"] == HOSTILE
    assert HOSTILE in unescape(page)
    assert page.count("</script>") == 3  # those of the page itself


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"png": "../secret.png"}},
        {"scale": "../.."},
        {"files": {"pdf": "javascript:alert(1)"}},
        {"verdicts": [{"quantity": "q"}]},
    ],
)
def test_damaged_figures_are_named_and_the_rest_is_shown(tmp_path, change):
    figure(tmp_path, **change)
    figure(tmp_path, "fig8")
    path, problems = report([tmp_path])
    assert len(problems) == 1
    assert "fig7.json" in problems[0]
    page = Path(path).read_text(encoding="utf-8")
    assert "fig7.json" in page
    assert 'id="fig8"' in page


def test_damaged_data_and_pictures_leave_the_verdicts(tmp_path):
    figure(tmp_path)
    (tmp_path / "fig7.png").write_bytes(b"no picture")
    (tmp_path / "fig7.zarr" / "zarr.json").write_text("{")
    _, problems = report([tmp_path])
    assert ["fig7.png" in problems[0], "fig7.zarr" in problems[1]] == [True, True]
    assert "crossing of fig7" in (tmp_path / "index.html").read_text()


def test_a_damaged_study_is_shown_as_far_as_it_can_be_read(tmp_path):
    ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "run")
    (tmp_path / "study.zarr").mkdir()
    found = collect([str(tmp_path)])
    assert [Path(one.file).name for one in found.problems] == ["study.zarr"]
    assert [one.title for one in found.sections] == ["Run run"]


def test_folders_without_results(tmp_path):
    with pytest.raises(ValueError, match=r"no results in .*run `uturn reproduce"):
        report([tmp_path])
    (tmp_path / "fig7.json").write_text("{")
    with pytest.raises(ValueError, match=r"no results in .* can be read; .*fig7.json: "):
        report([tmp_path])
    figure(tmp_path)
    with pytest.raises(ValueError, match=r"ends in \.html"):
        report([tmp_path], tmp_path / "page.pdf")


def test_several_folders_make_one_page_here(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        figure(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    path, _ = report(["a", "b"])
    assert path == "report.html"
    page = (tmp_path / path).read_text()
    assert 'id="fig7"' in page
    assert 'id="fig7-2"' in page  # ids are unique
    assert [one["name"] for one in data_of(page)["sections"]] == ["fig7 (a)", "fig7 (b)"]
    assert 'href="a/fig7.zarr/zarr.json"' in page


def test_a_store_shows_means_with_intervals(tmp_path):
    run = ut.run(ut.Experiment.from_dict(STRINGS), tmp_path / "run")
    (section,) = collect([tmp_path]).sections
    chart = section.charts[0]
    assert chart.title == "Share of unchanged nodes"
    assert [line.name for line in chart.lines] == [
        "tree level 0",
        "tree level 1",
        "tree level 2",
    ]
    assert chart.lines[0].value == pytest.approx(
        run.unchanged.mean(["item", "trajectory"])[:, 0].values, abs=1e-6
    )
    assert chart.lines[0].low[1] < chart.lines[0].value[1] < chart.lines[0].high[1]
    assert section.details[0].facts["spec hash"] == run.attrs["spec_hash"]


def test_the_tree_of_a_store_has_the_readings_of_its_nodes(tmp_path):
    # 81 leaves, which are left out.
    source = {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 3, "depth": 4}
    spec = {
        "items": 3,
        "trajectories": 5,
        "source": source,
        "corruption": {"type": "masking", "noise": [0.0, 0.6, 1.0]},
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}, {"type": "tree_nodes", "first": 2}],
    }
    run = ut.run(ut.Experiment.from_dict(spec), tmp_path / "nodes")
    starts = np.cumsum([0, 1, 3, 9, 27])
    # Nodes are numbered from the root, and their means are those of the levels.
    for k, level in enumerate((4, 3, 2, 1)):
        nodes = run.isel(node=slice(starts[k], starts[k + 1]), item=slice(2))
        of_level = run.isel(tree_level=level, item=slice(2))
        np.testing.assert_allclose(nodes.node_belief.mean("node"), of_level.belief, atol=1e-6)
        np.testing.assert_allclose(nodes.node_unchanged.mean("node"), of_level.unchanged, atol=1e-6)
    assert run.sizes["node"] == 40
    assert np.isnan(run.node_belief.isel(item=2)).all()
    tree = collect([tmp_path]).sections[0].tree
    reading = tree.readings[0]
    assert [one.name for one in reading.originals] == ["item 0", "item 1"]  # as in items.csv
    np.testing.assert_allclose(
        reading.originals[1].nodes, 100 * run.node_belief.isel(item=1), atol=0.51
    )
    assert reading.means[4].value == pytest.approx(run.belief.mean("item")[:, 4].values, abs=1e-5)
    ut.run(
        ut.Experiment.from_dict({**spec, "probes": [{"type": "tree_levels"}]}),
        tmp_path / "levels",
    )
    # Means of levels alone.
    assert collect([tmp_path]).sections[0].tree.readings[0].originals == []


def test_many_images_are_sampled_and_counted(tmp_path):
    figure(tmp_path)
    rng = np.random.default_rng(0)
    dims = ("item", "row", "column")
    images = {
        "original": (dims, rng.uniform(-1, 1, (10_000, 4, 4)).astype("float32")),
        "image": (("noise", *dims), rng.uniform(-1, 1, (2, 10_000, 4, 4)).astype("float32")),
    }
    write_dataset(xr.Dataset(images, {"noise": [0.5, 1.0]}), tmp_path / "fig7.zarr")
    grid = collect([tmp_path]).sections[0].grid
    assert len(grid.items) == 200
    assert grid.total == 10_000
    assert [item.name for item in grid.items] == [
        f"item {k}" for k in pages_pictures.sample(10_000)
    ]
    assert len(set(pages_pictures.sample(10_000))) == 200
    assert (pages_pictures.sample(7) == np.arange(7)).all()


def test_points_of_a_thinned_curve_stand_at_their_noise():
    noise = np.linspace(0.001, 1, 1000)
    ds = xr.Dataset(
        {"x": ("noise", noise**2)}, {"noise": noise, "log_snr": ("noise", -np.log(noise))}
    )
    (chart,) = charts_of(ds)
    (line,), axes = (
        chart.lines,
        {axis.name: np.array(axis.values) for axis in chart.axes},
    )
    assert len(line.value) < 1000
    np.testing.assert_allclose(line.value, axes["noise"] ** 2, rtol=1e-4)
    np.testing.assert_allclose(line.value, np.exp(-2 * axes["log_snr"]), rtol=1e-4)


# --- studies --------------------------------------------------------------------------------------


def own_readings(run):
    """A run with readings of one's own beside those of its probe: one that is called like
    classes, and one of 40 levels.
    """
    rng, (noise, items) = np.random.default_rng(0), (run.sizes["noise"], run.sizes["item"])
    reading = {"probe": "mine", "group": "mine", "start": 1}
    kept = rng.random((noise, items)) > np.linspace(0, 0.8, noise)[:, None]
    run["kept_class"] = (
        ("noise", "item"),
        kept.astype(float),
        {"long_name": "class is kept", "reading": json.dumps(reading)},
    )
    deep = np.linspace(1, 0, noise)[:, None, None] * rng.uniform(0.5, 1, (1, items, 40))
    words = {
        "long_name": "energy of a band",
        "reading": json.dumps(reading | {"start": None, "unit": "nats"}),
    }
    run["deep"] = ("noise", "item", "band"), deep, words
    run["never"] = (
        ("noise", "item"),
        np.full((noise, items), np.nan),
        words | {"long_name": "energy of none"},
    )
    return run


def test_a_page_of_a_study_shows_every_reading(tmp_path, blank_figures):
    """What is read first, what is folded, and that no reading is dropped without a word."""
    run = own_readings(ut.run(ut.Experiment.from_dict(STRINGS)))
    run.attrs["warnings"] = json.dumps([HOSTILE])
    found = write_study(run, tmp_path)
    (section,) = collect([tmp_path]).sections
    titles = {chart.title: chart for chart in section.charts}
    assert list(titles) == [
        "Share of unchanged nodes",
        "Mean marginal of the true symbol",
        "Energy of a band",
        "Mine",
    ]
    assert [title for title, chart in titles.items() if chart.is_shown] == [
        "Share of unchanged nodes"
    ]
    (kept,) = titles["Mine"].lines
    assert kept.name == "kept class"
    assert kept.value == pytest.approx(
        found.curve.sel(reading="kept_class", estimate="value").values, rel=1e-5
    )
    deep = titles["Energy of a band"]
    assert (len(deep.lines), deep.left_out, deep.unit) == (24, 16, "nats")
    assert "never: no curve, since fewer than two noise levels have a value" in section.remarks[-1]
    assert len(section.tables[0].rows) == found.sizes["reading"] == 3 + 3 + 1 + 40 + 1
    page = (tmp_path / "index.html").read_text()
    header, body = (
        page[: page.index("</header>")],
        page[page.index("<main") : page.index("</main>")],
    )
    value, low, high = found.half_life.sel(reading="unchanged, tree_level = 2").values[0]
    assert f"{value:.3g}</p>" in header
    assert f"95 % interval {low:.3g} to {high:.3g}" in header
    assert 'class="card wide warning"' in header
    assert "<script>alert" not in page
    parts = [
        'class="warning"',
        'class="caption"',
        'data-part="shown"',
        'class="picture"',
        '<details class="numbers">',
    ]
    parts += ["<h3>Remarks</h3>", '<details class="readings">']
    places = [body.index(part) for part in parts]
    assert places == sorted(places)


@pytest.mark.slow
def test_several_runs_are_one_chart_for_each_reading(tmp_path, monkeypatch):
    """Three runs of a sweep, one with other noise levels: a line for each, in the page and in
    the figure, chi included.
    """
    runs = {}
    for multiplicity in (2, 4, 7):
        spec = STRINGS | {
            "source": {**STRINGS["source"], "vocab_size": 8, "multiplicity": multiplicity}
        }
        spec |= {"items": 30, "probes": [{"type": "tree_levels"}, {"type": "changes"}]}
        if multiplicity == 7:
            spec["corruption"] = {"type": "masking", "noise": [0.0, 0.4, 0.7, 1.0]}
        runs[f"m{multiplicity}"] = ut.run(ut.Experiment.from_dict(spec))
    figures = []
    monkeypatch.setattr(
        "uturn.pages.results.save_figure", lambda figure, *paths: figures.append(figure)
    )
    write_study(runs, tmp_path)
    overlay, *each = collect([tmp_path]).sections
    assert [one.title for one in each] == list(runs)
    for title in (
        "Share of unchanged nodes, tree level 2",
        "Mean change of a site",
        "Susceptibility: number of leaves that change together",
    ):
        (chart,) = [chart for chart in overlay.charts if chart.title == title]
        assert [line.name for line in chart.lines] == list(runs)
        assert chart.is_joined
    noise, last = (
        chart.axes[0].values,
        next(c for c in overlay.charts if c.is_shown).lines[-1],
    )
    assert noise == [0, 0.4, 0.5, 0.7, 1]
    assert [value is not None for value in last.value] == [True, True, False, True, True]
    assert not any(chart.is_shown for one in each for chart in one.charts)
    (drawn,) = figures
    panels = [axis for axis in drawn.axes if axis.axison]
    assert all(
        len([line for line in axis.lines if line.get_label() in runs]) == 3 for axis in panels
    )
    assert panels[0].get_title("left") == "share of unchanged nodes, tree level 2"
    assert panels[-1].get_title("left") == "leaves that change together"
