"""Every error of `mutations.py` makes the verdict or test named there fail, which passes without
the error.

Errors in files that differ from the last commit are tried by default, all others with `-m slow`.

Verdicts are taken from the figure's own functions on a part of its smoke-scale measurement:
`benchmarks/mutations.py` runs the whole figures.
"""

import ast
import importlib
import inspect
import subprocess
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr

import uturn as ut
import uturn.core.random
import uturn.measures.calibration
import uturn.measures.ranks
from mutation import Assigned, Mutation, Replaced
from mutations import MUTATIONS
from uturn.engine.run import run
from uturn.exact.theory import MeanField
from uturn.measures.changes import chi_of, chi_parts
from uturn.measures.statistics import estimate
from uturn.paper import chi, fig6, sampler_laws, schedulers
from uturn.paper.correlated_runs import STEEP, exact_covariances

ROOT = Path(__file__).parents[1]


def changed_files():
    """Names of the files of the package that differ from the last commit; none where there is no
    git.
    """
    commands = (
        ["git", "diff", "--name-only", "HEAD", "--", "src"],
        ["git", "ls-files", "-o", "--exclude-standard", "--", "src"],
    )
    names = set()
    for command in commands:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return set()
        names.update(done.stdout.splitlines())
    return names


CHANGED = changed_files()


def tried(mutations):
    """Parameters of a test: errors in unchanged files are slow."""
    cases = []
    for mutation in mutations:
        module = mutation.target.partition(":")[0].replace(".", "/")
        is_changed = f"src/{module}.py" in CHANGED or f"src/{module}/__init__.py" in CHANGED
        cases.append(
            pytest.param(mutation, id=mutation.name, marks=() if is_changed else pytest.mark.slow)
        )
    return cases


NAMES = [mutation.name for mutation in MUTATIONS]
PASSED: set[str] = set()


def of_fig6():
    """Two of nine multiplicities."""
    runs = {label: run(fig6.experiments("smoke")[label]).load() for label in ("m4", "m10")}
    return [fig6._one_step(runs, np.array([4, 10]))]


def of_schedulers():
    """One scheduler, two numbers of steps, fewer strings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedulers, "SAMPLERS", {"DDPM": schedulers.SAMPLERS["DDPM"]})
        sampler = partial(sampler_laws.scheduler_sampler, schedulers.SAMPLERS["DDPM"])
        measured = sampler_laws.measured(sampler_laws.Size((2, 4), 1, 1, 256), sampler)
        return [schedulers._start({"DDPM": measured})]


def of_chi():
    """The smallest tree of the ε-process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chi, "DEPTHS", (5,))
        made = chi.experiments("smoke")["epsilon-depth5"]
        runs = {"epsilon-depth5": run(made).load(), "exact-epsilon-depth5": exact_covariances(made)}
        data = xr.Dataset()
        for label, ds in runs.items():
            data[f"chi_{label}"] = (f"noise_{label}", "estimate"), chi_of(chi_parts(ds))
            data = data.assign_coords({f"noise_{label}": ds.noise.values})
        return chi._epsilon(data, runs, MeanField(*STEEP))


QUICK = {"chi": of_chi, "fig6": of_fig6, "schedulers": of_schedulers}


@cache
def unharmed(figure):
    """The verdicts of a figure with the right package."""
    return QUICK[figure]()


def intervals_see_the_grammars():
    """Of eight very different grammars, the interval of the mean is at least 2.4 standard errors
    wide (without grammars: 1.2).
    """
    rng = np.random.default_rng(0)
    grammar = np.arange(80) // 10
    heights = rng.standard_normal(8)
    values = xr.DataArray(
        heights[grammar][None],
        dims=("noise", "item"),
        coords={"noise": [0.1], "grammar": ("item", grammar)},
    )
    found = estimate(values, lambda curve: float(curve[0]))
    assert found.high - found.low > 2.4 * heights.std(ddof=1) / np.sqrt(8)


def named_test(name, arguments):
    """A function without arguments that runs a test by its name, with fixtures of its own."""
    module_name, _, function = name.partition("::")
    module = importlib.import_module(module_name)

    def call():
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            temporary = SimpleNamespace(
                mktemp=lambda start: Path(tempfile.mkdtemp(prefix=start, dir=folder))
            )
            known = {
                "tmp_path": Path(folder),
                "tmp_path_factory": temporary,
                "monkeypatch": patch,
                **arguments,
            }

            def value(one):
                if one not in known:
                    # A fixture of the module.
                    known[one] = called(inspect.unwrap(getattr(module, one)))
                return known[one]

            def called(f):
                return f(**{one: value(one) for one in inspect.signature(f).parameters})

            called(getattr(module, function))

    return call


@pytest.mark.parametrize("mutation", tried(m for m in MUTATIONS if m.figures))
def test_the_figure_fails(mutation):
    figure, words = next(iter(mutation.figures.items()))  # the cheapest comes first

    def passed(verdicts):
        (found,) = [verdict.passed for verdict in verdicts if verdict.quantity.startswith(words)]
        return found

    assert passed(unharmed(figure))
    with mutation.applied():
        assert not passed(QUICK[figure]())


@pytest.mark.parametrize("mutation", tried(m for m in MUTATIONS if m.tests))
def test_the_test_fails(mutation):
    for test in mutation.tests:
        if repr(test) not in PASSED:  # several errors can have one test
            named_test(*test)()
            PASSED.add(repr(test))
        with mutation.applied(), pytest.raises(AssertionError):
            named_test(*test)()


def test_errors_in_changed_files_are_tried_by_default(monkeypatch):
    """And those in other files are slow."""
    module = MUTATIONS[0].target.partition(":")[0]
    monkeypatch.setitem(globals(), "CHANGED", {f"src/{module.replace('.', '/')}.py"})
    marked = {case.id for case in tried(MUTATIONS) if case.marks}
    assert marked == {
        mutation.name for mutation in MUTATIONS if not mutation.target.startswith(f"{module}:")
    }


def test_edits_of_a_syntax_tree_do_not_depend_on_the_layout():
    tree = ast.parse("def f(x):\n    y = (x  # a word\n         + 1)\n    return y * (x + 1)")
    assert (
        ast.unparse(Assigned("y", "0").edited(tree))
        == "def f(x):\n    y = 0\n    return y * (x + 1)"
    )
    assert (
        ast.unparse(Replaced("x+1", "x").edited(tree)) == "def f(x):\n    y = 0\n    return y * x"
    )
    for edit in (Replaced("x + 1", "x"), Assigned("z", "0")):
        with pytest.raises(AssertionError, match="expected"):  # what is not there
            edit.edited(tree)


def test_a_name_that_a_module_imports_is_wrong_there_alone():
    right = ut.random.keys
    with Mutation("no streams", "uturn.measures.ranks:keys", wrong=lambda keys: None).applied():
        assert uturn.measures.ranks.keys is None
        assert uturn.core.random.keys is uturn.measures.calibration.keys is right
    assert uturn.measures.ranks.keys is right


def test_everything_is_caught_and_nothing_is_left_behind():
    assert len(set(NAMES)) == len(NAMES)
    assert all(mutation.figures or mutation.tests for mutation in MUTATIONS)
    right = ut.theory.MeanField(8, 3, 2).susceptibility(0.5, 3), ut.inference.sample_posterior
    for mutation in MUTATIONS:
        with mutation.applied():
            pass
    assert (
        ut.theory.MeanField(8, 3, 2).susceptibility(0.5, 3),
        ut.inference.sample_posterior,
    ) == right
