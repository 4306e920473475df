"""Folders of `uturn inverse` that a stranger has made: the page shows nothing outside of them,
and is soon written.
"""

import json
import os
import shutil
import time

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from uturn.pages.page import collect, report
from uturn.store.outputs import write_dataset


def samplers(folder, tests=1, **run):
    """A folder of `uturn inverse` whose `inverse.json` a stranger has written."""
    (folder / "errors").mkdir(parents=True)
    Image.new("RGB", (2000, 2000)).save(folder / "errors" / "s-1.png")
    write_dataset(
        xr.Dataset({"y": ("noise", np.arange(2.0))}, {"noise": [1.0, 2.0]}),
        folder / "samplers.zarr",
    )
    of_run = {
        "name": "n",
        "judges": "j",
        "kinds": "k",
        "store": "s",
        "tests": [{"kind": "x", "strength": 1.0}] * tests,
    }
    table = {"title": "", "heads": [], "rows": []}
    content = {
        "format": "uturn.inverse",
        "words": "w",
        "caption": "",
        "notes": [],
        "tables": [],
        "table": table,
    }
    (folder / "inverse.json").write_text(json.dumps(content | {"runs": [of_run | run]}))
    return folder


def test_a_report_shows_no_picture_outside(tmp_path):
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "passport-1.png")
    assert (
        collect([samplers(tmp_path / "sound")]).sections[0].slides.rows[0].pictures[0].width == 1600
    )
    for k, name in enumerate((str(tmp_path / "mine" / "passport"), "../../mine/passport")):
        found = collect([samplers(tmp_path / f"results{k}", store=name)])
        assert (found.sections, "the name of a store" in found.problems[0].words) == ([], True)
    linked = samplers(tmp_path / "linked", store="passport")
    shutil.rmtree(linked / "errors")
    (linked / "errors").symlink_to(tmp_path / "mine")
    assert "is a link" in collect([linked]).problems[0].words


def test_a_report_of_small_files_ends_soon(tmp_path):
    """A pipe in the place of a file, and a picture that is shown often."""
    piped, begin = samplers(tmp_path / "piped"), time.process_time()
    (piped / "inverse.json").unlink()
    os.mkfifo(piped / "inverse.json")
    assert "inverse.json is a link, a pipe" in collect([piped]).problems[0].words
    assert (
        len(collect([samplers(tmp_path / "often", tests=500)]).sections[0].slides.rows[0].pictures)
        == 500
    )
    assert time.process_time() - begin < 15


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "x"}, "TextTable"),
        (
            {"table": {"title": "", "heads": ["a"], "rows": [["1", "2"]]}},
            "cells of a row = 2: expected at most 1",
        ),
        ({"tables": ["x"]}, "TextTable"),
        ({"tables": [{"title": "", "heads": 1, "rows": []}]}, "heads"),
        ({"notes": 5}, "int"),
    ],
)
def test_a_damaged_table_costs_its_section(change, message, tmp_path):
    folder = samplers(tmp_path / "results")
    content = json.loads((folder / "inverse.json").read_text())
    (folder / "inverse.json").write_text(json.dumps(content | change))
    found = collect([folder])
    assert (found.sections, message in found.problems[0].words) == ([], True), found.problems


def test_words_that_are_no_texts_are_shown(tmp_path):
    folder = samplers(tmp_path / "results", kinds=[1, 2])
    content = json.loads((folder / "inverse.json").read_text())
    (folder / "inverse.json").write_text(json.dumps(content | {"notes": [5], "words": 5}))
    assert report([folder])[1] == []
