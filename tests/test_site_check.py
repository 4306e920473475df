"""The check of the built docs finds what it is for, and nothing else."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs/check_site.py"
GOOD = """<link href="a.css" rel="stylesheet"><h1 id="top">U</h1><p>See <a href="https://arxiv.org/abs/2402.16991">it</a>,
<a href="#top">top</a>, <a href="sub/">sub</a>, <a href="sub/index.html#ε">ε</a> and <code>a\n- b</code>.</p>
<img src="data:image/png;base64,AA==">"""


@pytest.fixture
def problems(tmp_path):
    """What is wrong with a site of two good pages, with something added to the first one."""
    spec = importlib.util.spec_from_file_location("check_site", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def problems(added="", css=""):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "index.html").write_text(GOOD + added)
        (tmp_path / "sub/index.html").write_text(
            '<p id="ε"><a href="../index.html#top">back</a></p>'
        )
        (tmp_path / "a.css").write_text("a {background: url('data:image/svg+xml,<svg/>')}" + css)
        return script.problems(tmp_path)

    return problems


def test_good_site(problems):
    assert problems() == []


@pytest.mark.parametrize(
    ("added", "words"),
    [
        ('<script src="https://cdn.example/a.js"></script>', "loads https://cdn.example/a.js"),
        ('<script src="//cdn.example/a.js"></script>', "loads //cdn.example/a.js"),
        ('<link rel="preconnect" href="https://fonts.example">', "loads https://fonts.example"),
        ('<img srcset="a.css 1x, https://b.example/b.png 2x">', "loads https://b.example/b.png"),
        ("<style>@import 'https://c.example/c.css';</style>", "loads https://c.example/c.css"),
        ('<p style="background: url(https://d.example/d.png)">', "loads https://d.example/d.png"),
        ('<a href="nowhere.html">', "nowhere.html leads nowhere"),
        ('<img src="nowhere.png">', "nowhere.png leads nowhere"),
        ('<a href="sub/index.html#nothing">', "names no part"),
        ("<p>Two parts:\n- one\n- two</p>", "a list without an empty line"),
    ],
)
def test_faults(problems, added, words):
    found = problems(added)
    assert len(found) == 1
    assert words in found[0]


def test_style_sheets(problems):
    assert problems(css="@font-face {src: url(https://fonts.example/a.woff2)}") == [
        "a.css: loads https://fonts.example/a.woff2"
    ]
