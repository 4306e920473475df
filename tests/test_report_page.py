"""The page of results in a browser: it opens from disk without errors or requests, and its
controls do what they should.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import uturn as ut
from browser import next_frame, violations
from small import strings
from test_report import figure
from uturn.pages import report, write_page, write_study
from uturn.store.outputs import write_dataset

playwright = pytest.importorskip(
    "playwright.sync_api", reason="drives Chromium: playwright is not installed"
)
SIZES = (1280, 400, 360)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    figure(folder)
    figure(folder, "fig8", passed=False)
    data = xr.open_zarr(folder / "fig7.zarr").load()
    rng = np.random.default_rng(0)
    dims = ("item", "row", "column")
    data["original"] = dims, rng.uniform(-1, 1, (3, 8, 8)).astype("float32")
    data["image"] = ("noise", *dims), rng.uniform(-1, 1, (10, 3, 8, 8)).astype("float32")
    write_dataset(data, folder / "fig7.zarr")
    spec = strings(
        "masking", [0.0, 0.6, 1.0], ["tree_levels", "tree_nodes"], source={"vocab_size": 4}, items=6
    )
    ut.run(ut.Experiment.from_dict(spec), folder / "runs" / "tree")
    report([folder / "runs"], folder / "runs.html")
    return write_page(folder).as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page, or another `at` an address; at the end no error and no request may have
    been seen.
    """
    contexts, wrong = [], []

    def open_page(width=1280, fragment="", scheme="light", at=address):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("data:", "blob:", at)) or wrong.append(request.url)
            ),
        )
        page.goto(at + fragment)
        page.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def slide(page, noise):
    page.locator("#noise").evaluate(
        "(one, value) => { one.value = value; one.dispatchEvent(new Event('input', {bubbles:"
        " true})); }",
        str(noise),
    )
    next_frame(page)


def wait_for(page, condition):
    """Wait until a condition holds; the policy of the page forbids the waiting of playwright
    itself.
    """
    for _ in range(1200):  # up to a minute on a busy machine
        with suppress(playwright.Error):  # the page is just loading itself again
            if page.evaluate(condition):
                return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def unfold(page):
    """Open all readings, of which the charts are drawn then."""
    page.locator("details.readings").evaluate_all(
        "(all) => all.forEach((one) => { one.open = true; })"
    )
    next_frame(page)


@pytest.mark.parametrize("width", SIZES)
def test_the_slider_moves_every_view(opened, width):
    page = opened(width)
    unfold(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#reading").inner_text() == "0.57"  # t*
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    page.wait_for_selector(".chart .js-plotly-plot, .chart .plot.js-plotly-plot")
    for noise in (0.2, 0.8):
        slide(page, noise)
        assert page.locator("#reading").inner_text() == str(noise)
        value = chart.locator(".legend span").nth(1).inner_text()
        assert float(value.split()[0]) == pytest.approx(np.exp(-2 * noise), rel=0.01)
        marked = page.evaluate("document.querySelector('.plot').layout.shapes.map((one) => one.x0)")
        assert pytest.approx(noise, abs=1e-3) in marked
        assert f"noise {noise}" in page.locator(".grid .at").inner_text()
    before = page.locator(".tile img").nth(1).get_attribute("src")
    slide(page, 0.1)
    assert page.locator(".tile img").nth(1).get_attribute("src") != before


def test_the_tree_follows_the_slider(opened, address):
    page = opened(at=address.replace("index.html", "runs.html"))
    shares = (
        "[...document.querySelectorAll('.tree circle')].map((one) =>"
        " one.style.getPropertyValue('--share'))"
    )
    slide(page, 0)
    assert page.evaluate(shares) == ["100%"] * 15
    slide(page, 1)
    assert len(set(page.evaluate(shares))) > 1  # each node has a colour of its own
    assert "class 0.25" in page.locator(".tree svg").get_attribute("aria-label")  # of 4 symbols
    page.locator(".tree select").nth(1).select_option("mean")
    assert len(set(page.evaluate(shares)[-8:])) == 1
    assert "All nodes of a level have the colour of its mean." in page.locator(".tree").inner_text()
    for width in SIZES:
        page.set_viewport_size({"width": width, "height": 900})
        # Curves are drawn anew a moment later.
        wait_for(page, "document.documentElement.scrollWidth <= innerWidth")


def test_texts_of_marks_that_lie_close_do_not_overlap(opened, tmp_path):
    """t* and the threshold of theory at almost one place."""
    figure(tmp_path)
    data = xr.open_zarr(tmp_path / "fig7.zarr").load().assign_attrs(critical_noise=0.575)
    write_dataset(data, tmp_path / "fig7.zarr")
    page = opened(at=write_page(tmp_path).as_uri())
    unfold(page)
    page.locator(".chart").first.scroll_into_view_if_needed()
    texts = (
        "[...document.querySelectorAll('.plot text')].filter((one) =>"
        " /^(t\\*|ε\\* \\(mean field\\))/.test(one.textContent))"
    )
    for width in SIZES:
        page.set_viewport_size({"width": width, "height": 900})
        wait_for(page, f"{texts}.length === 2")
        page.wait_for_timeout(300)
        first, second = page.evaluate(f"{texts}.map((one) => one.getBoundingClientRect().toJSON())")
        assert (
            first["right"] <= second["left"]
            or second["right"] <= first["left"]
            or first["bottom"] <= second["top"]
            or second["bottom"] <= first["top"]
        )


def test_no_interval_is_drawn_over_a_noise_level_without_one(opened, tmp_path):
    figure(tmp_path)
    data = xr.open_zarr(tmp_path / "fig7.zarr").load()
    data.belief[4, 0, 1:] = np.nan
    write_dataset(data, tmp_path / "fig7.zarr")
    page = opened(at=write_page(tmp_path).as_uri())
    unfold(page)
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.wait_for_selector(".chart .plot.js-plotly-plot")
    bands = page.evaluate(
        "document.querySelector('.plot').data.filter((one) => one.fill).map((one) => one.x)"
    )
    noise = data.noise.values.tolist()
    before, after = noise[:4], noise[5:]
    assert bands[0] == [*before, *before[::-1], None, *after, *after[::-1], None]
    assert bands[1] == [*noise, *noise[::-1], None]


def test_names_of_numbers_do_not_cover_them_on_a_phone(opened, tmp_path):
    """The name of a noise axis is longer than the column of the names of verdicts."""
    spec = strings("gaussian", [0.0, 0.1, 1.0], items=6)
    run = ut.run(ut.Experiment.from_dict(spec))
    write_study(run, tmp_path)
    page = opened(width=400, at=(tmp_path / "index.html").as_uri())
    page.locator("details.numbers").evaluate("(one) => { one.open = true; }")
    positions = page.locator("table.numbers td").evaluate_all(
        "(cells) => cells.map((cell) => getComputedStyle(cell, '::before').position)"
    )
    assert set(positions) == {"static"}  # in the line of the number, which begins after it
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_filter_of_the_verdicts(opened):
    page = opened()
    heights = page.evaluate(
        "[...document.querySelectorAll('#verdicts th')].map((one) => one.clientHeight)"
    )
    assert max(heights) < 50  # no heading is cut into two lines
    for width in SIZES:
        page.set_viewport_size({"width": width, "height": 900})
        rows = page.locator("#verdicts tbody tr:visible")
        page.select_option("#figure", "")
        assert rows.count() == 2
        page.select_option("#show", "failed")
        assert rows.count() == 1
        assert "FAIL" in rows.inner_text()
        assert page.locator("#count").inner_text() == "1 of 2 shown"
        page.select_option("#show", "all")
        page.fill("#search", "CROSSING fig7")
        assert "fig7" in rows.inner_text()
        page.fill("#search", "")
        page.select_option("#figure", "fig8")
        assert rows.count() == 1


def test_one_choice_of_axis_moves_all_panels(opened):
    page = opened()
    unfold(page)
    for chart in page.locator(".chart").all():  # they are drawn when they are seen
        chart.scroll_into_view_if_needed()
        page.wait_for_timeout(100)
    wait_for(page, "[...document.querySelectorAll('.plot')].every((one) => one.layout)")
    page.select_option("#axis", "log_snr")
    titles = page.evaluate(
        "[...document.querySelectorAll('.plot')].map((one) => one.layout.xaxis.title.text)"
    )
    assert titles == ["log-SNR (nats)"] * 2
    count = "document.querySelector('.plot').data.length"
    assert page.evaluate(count) == 6
    page.uncheck("#intervals")
    assert page.evaluate(count) == 3


def test_a_view_can_be_sent(opened):
    page = opened()
    slide(page, 0.25)
    page.select_option("#axis", "log_snr")
    page.select_option("#show", "failed")
    wait_for(page, "location.hash.includes('show=failed')")
    other = opened(fragment=page.evaluate("location.hash"))
    assert other.locator("#reading").inner_text() == "0.25"
    assert other.locator("#axis").input_value() == "log_snr"
    assert other.locator("#verdicts tbody tr:visible").count() == 1
    hostile = opened(fragment="#noise=x&axis=<b>&figure=none&show=<script>")
    assert hostile.locator("#axis").input_value() == "noise"


def test_the_keyboard_reaches_everything(opened):
    page = opened()
    unfold(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#noise").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#noise").get_attribute("aria-valuetext") == "0.571"
    page.locator(".tile").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog[open] img").count() == 11  # the original and ten levels
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    button = page.locator(".legend button").first
    button.focus()
    page.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"


def test_downloads(opened):
    page = opened()
    unfold(page)
    with page.expect_download() as saved:
        page.locator(".tools button", has_text="CSV").first.click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith('"noise","log_snr","tree level 0","tree level 0 low"')
    assert len(lines) == 11
    page.wait_for_selector(".plot.js-plotly-plot")
    with page.expect_download() as saved:
        page.locator(".tools button", has_text="SVG").first.click()
    assert "<svg" in Path(saved.value.path()).read_text()


@pytest.mark.parametrize(
    ("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 26)")]
)
def test_accessibility_and_colours(opened, address, scheme, ground):
    page = opened(scheme=scheme, at=address.replace("index.html", "runs.html"))
    assert violations(page) == []
    page = opened(scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        next_frame(page)
        assert violations(page) == []
    unfold(page)
    assert violations(page) == []
