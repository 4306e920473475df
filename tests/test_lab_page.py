"""The page of the laboratory in headless Chromium, opened from a file."""

import base64
import io
import json
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import uturn as ut
from browser import next_frame, violations
from uturn.pages.laboratory import laboratory, write_laboratory

IMAGES = json.loads(
    (Path(ut.__file__).parent / "assets" / "lab" / "images.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return write_laboratory(tmp_path_factory.mktemp("lab") / "lab.html").as_uri()


@pytest.fixture
def visit(browser, address):
    """Opens the page with a fragment; at the end there must have been no message on the console
    and no request.
    """

    @contextmanager
    def visit(fragment="", width=1280, height=900, **settings):
        page = browser.new_page(viewport={"width": width, "height": height}, **settings)
        noticed = []
        page.on("console", lambda message: noticed.append(message.text))
        page.on("pageerror", lambda error: noticed.append(str(error)))
        page.on("request", lambda request: noticed.append(request.url))
        page.goto(f"{address}{fragment}")
        yield page
        assert [text for text in noticed if not text.startswith((address, "data:"))] == []
        page.close()

    return visit


def settled(page):
    """Wait until the curves are computed and the next frame is drawn."""
    page.locator("#strings-count", has_text="24").wait_for()
    next_frame(page)


def column(page, number):
    """A column of the table, from the class to the leaves."""
    return page.locator(f"#numbers tr td:nth-child({number + 1})").all_inner_texts()


def pixels(png):
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(png.removeprefix("data:image/png;base64,"))))
    )


def test_size():
    assert len(laboratory().encode()) < 1_000_000


def test_images_are_those_of_the_package():
    """One original at one noise level, computed again; 8 bits round by at most half a grey
    level.
    """
    stored, k = IMAGES["originals"][2], 3
    steps, back, seed, clones = IMAGES["steps"], IMAGES["back"][k], IMAGES["seed"], IMAGES["clones"]
    source, backward = ut.sources.FashionMNISTSource(), ut.backward.DiffusionModel(steps=steps)
    originals = next(source.blocks(np.array([stored["item"]]), seed, source.count()))
    corruption = backward.forward_process(source)
    turned = ut.u_turn(originals, corruption, backward, back / steps, seed, clones=clones)
    noisy = np.clip(turned.noisy.values[0], -1, 1)
    np.testing.assert_allclose(
        pixels(stored["levels"][k]["noisy"]), (noisy[0] + 1) * 127.5, atol=0.51
    )
    classifier = ut.fashion_mnist.load_classifier()
    images = [originals.images[0], *turned.reconstructions[0]]
    for image, read in zip(images, [stored, *stored["levels"][k]["reconstructions"]], strict=True):
        np.testing.assert_allclose(pixels(read["picture"]), (image[0] + 1) * 127.5, atol=0.51)
        shares = classifier(torch.tensor(image[None])).softmax(1)[0].detach()
        assert read["class"] == ut.fashion_mnist.CLASS_NAMES[shares.argmax()]
        assert read["probability"] == pytest.approx(float(shares.max()), abs=1e-3)


def test_tab_of_images(visit):
    """The page shows what is stored, and the Python code that makes it."""
    with visit("#image=1&imageLevel=1&tab=images") as page:
        assert page.locator("#tree").is_hidden()
        page.locator("#image-choice button").nth(3).click()
        page.locator("#image-level").focus()
        page.keyboard.press("ArrowLeft")
        next_frame(page)
        level = [original["levels"][0]["reconstructions"] for original in IMAGES["originals"]]
        original, turns = IMAGES["originals"][3], level[3]
        shown = page.locator("#image-turns img").evaluate_all("(all) => all.map((one) => one.src)")
        stored = [
            original["picture"],
            original["levels"][0]["noisy"],
            *(turn["picture"] for turn in turns),
        ]
        assert shown == [f"data:image/png;base64,{png}" for png in stored]
        classes = page.locator("#image-turns b").all_inner_texts()
        assert classes == [one["class"] for one in (original, *turns)]
        kept = [
            sum(turn["class"] == one["class"] for turn in drawn)
            for one, drawn in zip(IMAGES["originals"], level, strict=True)
        ]
        assert page.locator("#image-turns .lost").count() == len(turns) - kept[3]
        words = page.locator("#image-words").inner_text()
        assert list(map(int, re.findall(r"\d+", words))) == [
            kept[3],
            len(turns),
            len(level),
            sum(kept),
            len(turns) * len(level),
        ]
        made: dict = {}
        exec(page.locator("#image-python").text_content(), made)
        np.testing.assert_allclose(
            pixels(shown[3]), (made["turned"].reconstructions[0, 1, 0] + 1) * 127.5, atol=0.51
        )
        page.wait_for_timeout(250)
        assert "tab=images" in page.evaluate("location.hash")
        page.locator("#tabs button").first.click()
        # Drawn anew, in its width.
        assert page.evaluate("document.getElementById('tree').viewBox.baseVal.width") > 400
        assert page.locator("#image-level").is_hidden()


@pytest.mark.parametrize("tab", ["strings", "images"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (3840, "dark")])
def test_no_width_needs_sideways_scrolling(visit, width, scheme, tab):
    with visit(f"#tab={tab}&view=changes&noise=0.5", width=width, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        dark = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every((x) => x < 60)"
        )
        assert dark == (scheme == "dark")


@pytest.mark.parametrize("name", ["gaussian", "epsilon"])
def test_slider_moves_every_view(visit, name):
    with visit(f"#v=16&m=4&L=4&channel={name}&noise=0.1") as page:
        settled(page)
        looks = """() => [document.querySelector("#levels .marker").getAttribute("x1"),
          document.querySelector("#phase g:last-child circle").getAttribute("cy"),
          document.querySelector("#map g:last-child path").getAttribute("d"),
          [...document.querySelectorAll("#tree circle")].map((node) => node.style.getPropertyValue("--share")).join(),
          document.getElementById("noise-value").textContent, document.getElementById("numbers").textContent]"""
        before = page.evaluate(looks)
        page.locator("#noise").focus()
        for _ in range(3):
            page.keyboard.press("PageUp")
        next_frame(page)
        after = page.evaluate(looks)
        assert [old != new for old, new in zip(before, after, strict=True)] == [True] * 6
        page.wait_for_timeout(250)
        fragment = page.evaluate("location.hash")
        assert "noise=0.1&" not in fragment
        page.reload()  # the address holds the state
        settled(page)
        assert page.evaluate(looks) == after


def test_numbers_are_those_of_its_python(visit):
    """The code that the page shows gives the beliefs and changes that it shows."""
    with visit(
        "#v=16&m=4&s=2&L=5&seed=3&string=8&channel=gaussian&noise=0.11&draw=6&clones=5"
    ) as page:
        settled(page)
        shown: dict = {}
        exec(page.locator("#python").inner_text(), shown)
        truth, marginals = shown["tree"].latents, shown["beliefs"].marginals
        beliefs = [
            np.take_along_axis(marginals[k], truth[k][..., None], 2).mean()
            for k in range(5, -1, -1)
        ]
        np.testing.assert_allclose([float(x) for x in column(page, 2)], beliefs, atol=5.1e-4)
        changed = [(shown["clones"][k] != truth[k]).mean() for k in range(5, -1, -1)]
        np.testing.assert_allclose(
            [float(x.removesuffix(" %")) / 100 for x in column(page, 5)], changed, atol=5.1e-3
        )


def test_mean_field_column_and_averages(visit):
    with visit("#v=16&m=4&s=2&L=5&channel=epsilon&noise=0.75") as page:
        settled(page)
        theory = ut.theory.MeanField(16, 4, 2).curves(0.75, 5).marginals[::-1]
        np.testing.assert_allclose([float(x) for x in column(page, 4)], theory, atol=5.1e-4)
        rhm, channel = ut.RandomHierarchyModel(16, 4, 2, 5, seed=0), ut.EpsilonBelief()
        means = np.zeros(6)
        for string in range(24):
            truth = rhm.sample(1, seed=string).latents
            noisy = channel.corrupt(truth[0], 0.75, vocab_size=16)
            found = ut.infer(rhm, channel.log_evidence(noisy)).marginals
            means += [
                np.take_along_axis(found[k], truth[k][..., None], 2).mean() / 24
                for k in range(5, -1, -1)
            ]
        np.testing.assert_allclose([float(x) for x in column(page, 3)], means, atol=5.1e-4)


def test_keyboard_moves_in_the_tree(visit):
    with visit("#L=3") as page:
        page.locator("#tree").focus()
        for keys, place in (
            ("Home", "Class"),
            ("ArrowDown", "Level 2, node 1"),
            ("ArrowRight", "Level 2, node 2"),
            ("ArrowUp", "Class"),
        ):
            page.keyboard.press(keys)
            assert page.locator("#node").inner_text().startswith(place)
        for _ in range(5):  # there is nothing below the leaves
            page.keyboard.press("ArrowDown")
        assert page.locator("#node").inner_text().startswith("Leaf 1:")


def test_steps_of_the_story(visit):
    with visit() as page:
        texts = set()
        for step in range(5):
            page.locator("#steps button").nth(step).click()
            next_frame(page)
            assert page.locator("#steps button[aria-current=step]").count() == 1
            texts.add(page.locator("#story-text").inner_text())
        assert len(texts) == 5
        assert page.locator("#channel").input_value() == "epsilon"


def test_reconstructions_and_new_noise(visit):
    with visit("#noise=0.6&L=5&view=changes") as page:
        circles = (
            "[...document.querySelectorAll('#tree circle')].map((node) =>"
            " node.style.getPropertyValue('--share')).join()"
        )
        shares = page.evaluate(circles)
        page.locator("#tree rect[data-clone='2']").first.click()
        next_frame(page)
        one = page.evaluate(circles)
        assert one != shares
        assert set(one.split(",")) == {"0%", "100%"}
        assert "reconstruction 2" in page.locator("#tree-words").inner_text()
        page.locator("#draw").click()
        next_frame(page)
        assert page.evaluate(circles) != one


def test_chain_runs_and_pauses(visit):
    with visit("#noise=0.5&L=4") as page:
        play, words = page.locator("#play"), page.locator("#chain-words")
        play.click()
        words.filter(has_text=re.compile(r"After \d+ U-turns")).wait_for()
        play.click()
        paused = words.inner_text()
        page.wait_for_timeout(600)
        assert words.inner_text() == paused
        steps, *shares = map(int, re.findall(r"(\d+) (?:U-turns|%)", paused))
        rhm, channel = ut.RandomHierarchyModel(32, 6, 2, 4, seed=0), ut.Masking()
        start = rhm.sample(1, seed=0).latents
        tree = {level: nodes.copy() for level, nodes in start.items()}
        for seed in range(1, steps + 1):
            noisy = channel.corrupt(tree[0], 0.5, vocab_size=32, seed=seed)
            tree = ut.sample_posterior(rhm, channel.log_evidence(noisy), seed=seed)
        np.testing.assert_allclose(
            shares, [100 * (tree[k] == start[k]).mean() for k in range(4, -1, -1)], atol=0.51
        )
        page.locator("#reset").click()
        assert "After" not in words.inner_text()


@pytest.mark.parametrize(
    ("fragment", "named"),
    [
        ("#v=99", 'v = "99"'),
        ("#v=4&m=20", "at most 4"),
        ("#tab=x", 'tab = "x"'),
        ("#<img src=x onerror=alert(1)>=1", "no setting"),
        ("#seed=-1&seed=1e400&draw=1.5", "draw"),
    ],
)
def test_damaged_addresses(visit, fragment, named):
    with visit(fragment) as page:
        assert named in page.locator("#problem").inner_text()
        assert page.locator("img:not([src^='data:'])").count() == 0
        assert len(column(page, 2)) >= 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(visit, scheme):
    with visit("#L=4&view=changes&noise=0.5", color_scheme=scheme) as page:
        page.locator("#tree").focus()
        page.keyboard.press("Home")
        assert violations(page) == []
    with visit("#tab=images&imageLevel=6", color_scheme=scheme) as page:
        assert page.locator(".lost").count() > 0
        assert violations(page) == []
    with visit("#v=99&L=4&step=5&channel=epsilon&noise=.5", width=360, color_scheme=scheme) as page:
        assert violations(page) == []
