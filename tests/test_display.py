"""What a notebook shows of the objects that people print first: one to three lines of text, and
HTML that is escaped.
"""

import html
import math
import re

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import uturn as ut
from small import strings
from uturn.measures.statistics import Estimate

MARKUP = "</td><script>alert(1)</script>"
SPEC = strings("masking", [0.1, 0.5], source={"vocab_size": 4, "depth": 2}, items=4)


def grammar(**options):
    return ut.RandomHierarchyModel(
        **{"vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2, **options}
    )


NAMES = (
    "experiment",
    "grammar",
    "deep grammar",
    "beliefs",
    "tensors",
    "evidence alone",
    "estimate",
    "U-turns",
)


@pytest.fixture(scope="module")
def objects():
    rhm = grammar()
    originals = ut.sources.Strings(np.arange(3), rhm, rhm.sample(3))
    return {
        "experiment": ut.Experiment.from_dict(SPEC),
        "grammar": rhm,
        "deep grammar": grammar(
            depth=60, multiplicity={level: 1 + level % 2 for level in range(1, 61)}
        ),
        "beliefs": ut.infer(
            rhm, np.zeros((3, 4, 4), np.float32), outputs=("marginals", "upward", "log_evidence")
        ),
        "tensors": ut.infer(rhm, torch.zeros(3, 4, 4, requires_grad=True), outputs=("marginals",)),
        "evidence alone": ut.infer(rhm, np.zeros((3, 4, 4), np.float32), outputs=("log_evidence",)),
        "estimate": Estimate(0.7312, 0.7181, 0.7443),
        "U-turns": ut.u_turn(originals, ut.Masking(), ut.backward.ExactPosterior(), 0.5),
    }


def tags_and_text(page):
    """The names of the tags of a page, none of which runs code, and its text."""
    assert not re.search(r"<[^>]*\son\w+\s*=", page)
    return set(re.findall(r"<(\w+)", page)), html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("name", NAMES)
def test_objects_show_themselves_briefly(name, objects):
    one = objects[name]
    assert len(repr(one).splitlines()) <= 3
    assert len(repr(one)) < 200 or name == "deep grammar"
    page = one._repr_html_()
    assert len(page) < 60_000
    assert "script" not in tags_and_text(page)[0]


def test_what_is_shown_is_right(objects):
    shown = objects
    assert repr(shown["estimate"]) == f"{shown['estimate']}" == "0.731 [0.718, 0.744]"
    assert repr(Estimate(55.0, 50.0, 60.0)) == "55.0 [50.0, 60.0]"
    assert repr(Estimate(math.nan, math.nan, math.nan)) == "nan [nan, nan]"
    assert repr(Estimate(1e-9, 0.0, 2e-9)) == "1e-09 [0, 2e-09]"
    assert (
        repr(shown["beliefs"])
        == "Beliefs(marginals, upward, log_evidence; 3 strings, tree levels 0 .. 2)"
    )
    assert repr(shown["evidence alone"]) == "Beliefs(log_evidence; 3 strings)"
    sizes = "items 4, noise levels 2, trajectories 1, clones 1, seed 0"
    words = f"Experiment({sizes};\n  'rhm' -> 'masking' -> 'exact', read by 'tree_levels')"
    assert repr(shown["experiment"]) == f"{shown['experiment']}" == words
    assert "8 U-turns" in tags_and_text(shown["experiment"]._repr_html_())[1]
    # Without evidence the class of four is as uncertain as it can be: 2 bits.
    for name in ("beliefs", "tensors"):
        assert tags_and_text(shown[name]._repr_html_())[1].count("2.00 of 2.00") >= 1
    # One circle for each node of the tree: 1 + 2 + 4.
    assert shown["grammar"]._repr_html_().count("<circle") == 7
    assert shown["deep grammar"]._repr_html_().count("<circle") == 63


def test_words_of_others_are_escaped():
    real = ut.Experiment.from_dict(SPEC)
    source = ut.sources.ArraySource(path=MARKUP, labels=MARKUP)
    one = BaseModel.model_copy(real, update={"source": source})  # unchecked
    page = one._repr_html_()
    assert "script" not in tags_and_text(page)[0]
    assert tags_and_text(page)[1].count("<script>alert(1)") == 2

    class Named(ut.protocols.Noisy):
        def __repr__(self):
            return MARKUP

    found = ut.protocols.UTurns(MARKUP, Named(np.zeros(1), np.zeros(1)), {MARKUP: np.zeros(3)})
    assert "script" not in tags_and_text(found._repr_html_())[0]
    assert tags_and_text(found._repr_html_())[1].count("<script>alert(1)") == 3
