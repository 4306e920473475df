"""The identity of a kept computation changes with all that its result depends on, and with
nothing else.
"""

import re
import subprocess
import sys
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
from scipy.special import erf

import uturn
from small import strings
from uturn.core.experiment import Experiment
from uturn.exact.rhm import RandomHierarchyModel
from uturn.paper import (
    clones,
    correlated_runs,
    fig2,
    fig8,
    fig10,
    fig11,
    identity,
    sampler_laws,
    schedulers,
    thresholds,
)
from uturn.paper.identity import identity_of
from uturn.probes import NetworkLayers
from uturn.sources import RHMSource

FACTOR = 2.0
TABLE = {"low": (1, [2.0, 3.0])}


def doubled(value):
    """A documented function."""
    return FACTOR * value


@lru_cache
def from_table(value):
    return TABLE["low"], value


class Scaled:
    FACTOR = 3

    def __call__(self, value):
        return self.FACTOR * doubled(value)


def computed(value):
    def inner():
        return from_table(value), Scaled()(value)

    return inner()


def test_arguments_are_told_apart():
    values = [
        1,
        1.0,
        "1",
        True,
        None,
        [1],
        (1,),
        {"a": 1},
        np.ones(1),
        np.ones(1, int),
        np.ones((1, 1)),
        Path("/1"),
        range(1),
    ]
    assert len({identity_of(computed, {"value": value}) for value in values}) == len(values)
    assert identity_of(computed, {"value": {"a": np.ones(2)}}) == identity_of(
        computed, {"value": {"a": np.ones(2)}}
    )


def test_experiments_are_told_apart():
    first, second = (
        Experiment.from_dict(strings("epsilon", [noise], items=2)) for noise in (0.1, 0.2)
    )
    assert identity_of(computed, {"value": first}) != identity_of(computed, {"value": second})


def test_what_an_object_remembers_does_not_count():
    source = RHMSource(vocab_size=4, multiplicity=2, branching=2, depth=2)
    before = identity_of(computed, {"value": source})
    source.grammar(0, 0)
    assert identity_of(computed, {"value": source}) == before
    grammar = RandomHierarchyModel(4, 2, 2, 2, seed=0)
    unused = identity_of(computed, {"value": grammar})
    grammar.parse(grammar.sample(3, seed=1).leaves)
    grammar.log_likelihood(grammar.sample(3, seed=1).leaves)
    assert vars(grammar).keys() - vars(RandomHierarchyModel(4, 2, 2, 2, seed=0)).keys(), (
        "it has cached something"
    )
    assert identity_of(computed, {"value": grammar}) == unused
    assert identity_of(computed, {"value": RandomHierarchyModel(4, 2, 2, 2, seed=1)}) != unused
    assert (
        identity_of(
            computed, {"value": RHMSource(vocab_size=4, multiplicity=2, branching=2, depth=3)}
        )
        != before
    )


def test_files_are_identified_by_their_content(tmp_path):
    file = tmp_path / "a"
    file.write_text("1")
    before = identity_of(computed, {"value": file})
    file.write_text("22")
    assert identity_of(computed, {"value": file}) != before


@pytest.mark.parametrize(
    ("where", "name", "value"),
    [
        (sys.modules[__name__], "FACTOR", 2.5),
        (sys.modules[__name__], "TABLE", {"low": (1, [2.0, 4.0])}),
        (sys.modules[__name__], "doubled", lambda value: FACTOR * value + 1),
        (Scaled, "FACTOR", 4),
        (Scaled, "__call__", lambda self, value: 0),
        (uturn, "__version__", "9.9"),
        (identity.random, "VERSION", -1),
    ],
)
def test_constants_and_code_that_are_reached_count(monkeypatch, where, name, value):
    """Through a nested function, a cached function, a class and its method."""
    before = identity_of(computed, {"value": 1})
    monkeypatch.setattr(where, name, value)
    assert identity_of(computed, {"value": 1}) != before


def test_what_is_bound_counts():
    assert identity_of(partial(computed, 1), {}) != identity_of(partial(computed, 2), {})
    closures = [lambda value=value: value for value in (1, 2)]
    assert identity_of(closures[0], {}) != identity_of(closures[1], {})


def rounded(value):
    return erf(np.sqrt(value))


def test_compiled_functions_of_libraries_are_named():
    assert identity_of(rounded, {"value": 1.0}) != identity_of(rounded, {"value": 2.0})


def test_documentation_does_not_count(monkeypatch):
    before = identity_of(doubled, {"value": 1})
    source = "def doubled(value):\n    '''Other words.'''\n\n    return FACTOR * value\n"
    namespace = {**globals()}
    exec(source, namespace)
    other = namespace["doubled"]
    other.__module__ = __name__
    assert identity_of(other, {"value": 1}) == before


def test_it_is_the_same_in_every_process():
    code = (
        "from uturn.paper import thresholds\nfrom uturn.paper.identity import"
        " identity_of\nprint(identity_of(thresholds.population, {'name': 'masking', 'size':"
        " thresholds.SIZES['smoke']}))"
    )
    printed = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    here = identity_of(
        thresholds.population, {"name": "masking", "size": thresholds.SIZES["smoke"]}
    )
    assert printed == [f"{here}\n"] * 2


def test_a_changed_constant_gives_fresh_numbers(monkeypatch, tmp_path):
    """A whole figure, measured twice into one folder."""
    from uturn.paper import Workshop

    monkeypatch.setattr(fig10, "PAPER", {"vocab_size": 4, "multiplicity": 2, "branching": 2})
    workshop = Workshop("smoke", tmp_path)
    before = fig10.measure(workshop)["factor"]
    monkeypatch.setattr(fig10, "NOISE", 0.3)
    after = fig10.measure(workshop)["factor"]
    assert after.attrs["noise"] == 0.3
    assert not np.allclose(before.mean_belief, after.mean_belief)


# A function of a figure, arguments, and a constant that it uses: module, name, another value.
KEPT = [
    (
        fig2.classification,
        {"models": {}, "count": 3},
        fig2,
        "LAYERS",
        NetworkLayers(classifier="fashion_mnist", reference=9),
    ),
    (
        fig8.examined,
        {"classifier": Path("a"), "statistics": Path("b"), "source": None},
        fig8,
        "_TEST",
        99,
    ),
    (fig10.factor, {"grammars": 2}, fig10, "NOISE", 0.1),
    (fig11.upward_messages, {"grammars": 2, "strings": 1}, fig11, "DEPTH", 6),
    (thresholds.population, {"name": "masking", "size": None}, thresholds, "TOLERANCE", 0.1),
    (
        correlated_runs.exact_covariances,
        {"experiment": None, "draws": 1},
        correlated_runs,
        "_FIRST",
        7,
    ),
    (clones.recall, {"scale": "smoke"}, clones, "CODES", ((2, 2),)),
    (schedulers.measured_law, {"size": None, "scheduler": None}, sampler_laws, "NOISE", 0.1),
]


@pytest.mark.parametrize(
    ("function", "arguments", "module", "name", "value"),
    KEPT,
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_constants_of_figures_count(monkeypatch, function, arguments, module, name, value):
    before = identity_of(function, arguments)
    monkeypatch.setattr(module, name, value)
    assert identity_of(function, arguments) != before


def test_every_kept_function_of_the_figures_is_listed():
    """`run` measures an experiment, which is its argument."""
    text = "".join(path.read_text() for path in Path(identity.__file__).parent.glob("*.py"))
    named = re.findall(r"workshop\.keep(?:_all)?\(\s*f?\"[^\"]*\",\s*(\w+)", text)
    assert {*named} == {function.__name__ for function, *_ in KEPT} | {"run"}
