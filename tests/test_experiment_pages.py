"""The pages structure, precision and experiments: their commands run, and their code gives the
numbers that they quote.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import uturn as ut
from command_line import SPEC, uturn
from uturn.cli.options import Place
from uturn.studies.locate import forecast

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("structure", "precision", "experiments")
}


def blocks(page, language):
    """The blocks of code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page):
    """The commands of a page, without comments, as their arguments."""
    lines = [
        shlex.split(line, comments=True)
        for block in blocks(page, "bash")
        for line in block.splitlines()
    ]
    assert lines
    assert {line[0] for line in lines} == {"uturn"}
    return [line[1:] for line in lines]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def short(value, digits):
    """A number as the pages write it, without the zero before the point."""
    return f"{value:.{digits}f}".lstrip("0")


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved_figures")
def test_structure(here, capsys):
    """The command, then the blocks of code up to the collapse that need nothing of the user;
    every number that they print.
    """
    for command in commands("structure"):
        assert uturn(*command, cwd=here).returncode == 0
    names = {}
    code = [
        block
        for block in blocks("structure", "python")
        if "reconstructions" not in block and "collapse" not in block
    ]
    assert len(code) == 3
    for block in code:
        exec(block, names)
    printed = capsys.readouterr().out
    quotations = re.findall(r"print\((?:ut\.|nesting_index).*# (.*)", "\n".join(code))
    assert len(quotations) == 3
    for quoted in quotations:
        value, low, high = map(float, re.findall(r"[\d.]+", quoted))
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in printed
    page, run = PAGES["structure"], names["run"]
    chi = ut.susceptibility(run)
    k = np.nanargmax(chi.chi.values)
    assert f"{chi.chi.values[k]:.2f} [{chi.low.values[k]:.2f}, {chi.high.values[k]:.2f}]" in page
    peak = ut.study(run).peak_at.sel(axis="noise").squeeze().values
    assert "at noise {} [{}, {}]".format(*(short(x, 3) for x in peak)) in page
    near = ut.correlations(run).correlation.sel(noise=0.08).values[1:]
    assert (
        f"at noise .08: {', '.join(short(x, 2) for x in near)} at the distances 2, 4, 8, 16" in page
    )
    nested = names["nested_correlations"](names["changed"], branching=2).nested.values[:, 0]
    assert f"# {', '.join(short(x, 2) for x in nested)} at the levels 1 to 4" in page
    leaves = ut.hierarchy_index(run.belief.isel(tree_level=-1), run.belief.isel(tree_level=0))
    assert "0 [0, .0003] against those of the same U-turns" in page
    assert leaves.value < 5e-5
    assert round(leaves.high, 4) == 0.0003


def test_from_runs_to_a_collapse():
    """The block gives the numbers that the page quotes, with ν of the mean field in the
    interval.
    """
    names = {}
    exec(
        re.search(
            r"<!-- from runs to collapse -->\n```python\n(.*?)```", PAGES["structure"], re.DOTALL
        )[1],
        names,
    )
    exponent = names["fit"].exponent
    assert f"The exponent is {exponent}" in PAGES["structure"]
    assert exponent.low < 1.893 < exponent.high


def test_precision_asks_for_places_that_exist(here, monkeypatch):
    """The commands of the page ask for the widths and readings that they show; the search itself
    is tested elsewhere.
    """
    sought = []
    for module in ("studies", "experiments"):
        monkeypatch.setattr(
            f"uturn.cli.{module}.locate_into", lambda *arguments: sought.append(arguments)
        )
    asked = commands("precision")
    for command in asked:
        done = uturn(*command, cwd=here)
        assert done.returncode == 0, done.stderr
    places = [place for *_, place, _ in sought]
    assert places[0] == Place(until=0.1, reading="same_class")
    assert [place.until for place in places] == [
        float(command[command.index("--until") + 1]) for command in asked
    ]


def test_precision_quotes_the_plan():
    page = PAGES["precision"]
    expected = forecast(
        ut.Experiment.from_file(ROOT / "examples" / "images.toml"), "same_class", 0.05
    )
    assert expected.assumptions in page
    for name, stage in expected.parts.items():
        levels = ", ".join(f"{level:.3g}" for level in stage.noise)
        assert f"{name}: about {stage.items} originals at noise {levels}" in page


def test_precision_on_own_arrays():
    names = {}
    exec(
        re.search(r"### On your own arrays.*?```python\n(.*?)```", PAGES["precision"], re.DOTALL)[
            1
        ],
        names,
    )
    value, low, high = names["place"]
    assert f"its interval: {value:.3f} [{low:.2g}, {high:.2g}]" in PAGES["precision"]
    assert low < 0.53 < high
    assert names["width"].low < 2 * np.log(3) * 0.08 < names["width"].high


@pytest.fixture
def stores(here):
    """The stores and the table that commands of the page name beside those that they make, as
    small as can be.
    """
    (here / "small.toml").write_text(SPEC)
    (here / "runs").mkdir()
    changed = {
        "m4": "source.multiplicity=4",
        "m6": "source.multiplicity=6",
        "m8": "source.multiplicity=8",
    }
    for name, setting in {**changed, "ddpm": "trajectories=1", "ddim": "trajectories=2"}.items():
        done = uturn("run", "small.toml", "--set", setting, "--store", f"made/{name}", cwd=here)
        assert done.returncode == 0, done.stderr
        (store,) = (here / "made" / name).iterdir()
        store.rename(here / "runs" / name)
    rows = [
        f"{noise},{item},{noise * (1 + item)}" for noise in (0.1, 0.5, 0.9) for item in range(6)
    ]
    (here / "rmsd.csv").write_text("\n".join(["noise,item,rmsd", *rows]))
    return here


@pytest.mark.slow
@pytest.mark.usefixtures("unsaved_figures")
def test_experiments(stores):
    """Every command of the page, and then its code; sweeps are made of fewer originals, in this
    process.
    """
    spec = stores / "spec.toml"
    spec.write_text(blocks("experiments", "toml")[0])
    experiment = ut.Experiment.from_file(spec)
    assert experiment.hash == ut.Experiment.from_file(ROOT / "examples" / "epsilon.toml").hash
    for command in commands("experiments"):
        if "runs/sweep/*" in command:
            command[1:2] = sorted(path for path in (stores / "runs" / "sweep").iterdir())
        small = (
            ("--set", "items=6", "--set", "trajectories=1", "--workers", "1")
            if "--workers" in command
            else ()
        )
        done = uturn(*command, *small, cwd=stores)
        assert done.returncode == 0, done.stderr
    names = {}
    for block in blocks("experiments", "python"):
        exec(block, names)
    assert names["experiment"].hash == experiment.hash
    half_lives = names["found"].half_life.sel(axis="noise")
    for reading, words in ((7, "half lost at t\\* ="), (0, "the leaves at ε =")):
        value, *ends = half_lives.sel(reading=f"unchanged, tree_level = {reading}").values
        assert (
            f"{words} {short(value, 3)} [{', '.join(short(end, 2) for end in ends)}]"
            in PAGES["experiments"]
        )
