"""Tools are folders: each can be imported first and deleted, and an installed package can bring
one.
"""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import uturn as ut
from command_line import SPEC
from forging import forge
from small import defaults_of
from uturn.core.tools import own_tools
from uturn.paper import registry

ROOT = Path(ut.__file__).parent
MODULES = sorted(
    ".".join(("uturn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in (ROOT / "tools").rglob("*.py")
)
FORKS = """
import os, sys
import jinja2, matplotlib.figure, numba, pydantic, rich.table, scipy.stats, torch, typer, xarray, zarr  # slow, so once
for argument in sys.argv[2:]:
    child = os.fork()
    if not child:
        exec(sys.argv[1])
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, argument
"""
"""Code, for each of several arguments in a process of its own."""
ANEW = """
import sys
for argument in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "uturn"]:
        del sys.modules[name]
    try:
        __import__(argument)
    except ImportError as error:
        sys.exit(f"{argument}: {error}")
"""
"""Import each of several modules as the first of the package."""
LOOK = """
sys.path.insert(0, argument + "/src")
sys.stdout = open(argument + "/shown", "w")
import uturn, uturn.presets
from pathlib import Path
from typer.testing import CliRunner
from uturn.cli import app
from uturn.core.tools import own_tools
from uturn.pages.page import collect
assert Path(uturn.__file__).is_relative_to(argument), uturn.__file__
done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
assert done.exit_code == 0, done.output
figures = CliRunner().invoke(app, ["reproduce", "none"])
collected = collect([argument + "/results"])
kinds = [section.kind for section in collected.sections]
print([*own_tools()], uturn.__all__, figures.exception, kinds, collected.problems, sep="\\n")
print(done.output)
"""
MAIN = "from uturn.cli import main; main()"


def run(code, *arguments, path):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=environment
    )


@pytest.mark.slow
def test_each_module_can_be_imported_first():
    done = run(ANEW, *MODULES, path=ROOT.parent)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_package_brings_a_part_a_command_and_a_section(tmp_path):
    """The package of docs/own-tools.md, examples/tool."""
    if find_spec("pip") is None:
        pytest.skip("environments made by uv have no pip")
    site, example = tmp_path / "site", ROOT.parents[1] / "examples"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    subprocess.run(
        [*install, "--target", str(site), str(example / "tool")], check=True, timeout=300
    )
    path = os.pathsep.join((str(site), str(ROOT.parent)))
    (tmp_path / "spec.toml").write_text(SPEC)
    done = run(MAIN, "changed-runs", tmp_path / "spec.toml", "--out", tmp_path / "out", path=path)
    assert done.returncode == 0, done.stderr
    assert "runs at noise 0.5" in done.stdout
    found = json.loads((tmp_path / "out/changed-runs.json").read_text())
    assert [test["test"] for test in found["tests"]] == ["runs at noise 0", "runs at noise 0.5"]
    assert "Do leaves change together?" in (tmp_path / "out/index.html").read_text()
    assert "changed-runs" in run(MAIN, "--help", path=path).stdout


def installed(place, text):
    """The import path with a package that brings a tool."""
    (place / "own_tool.py").write_text(text)
    about = place / "own_tool-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: own-tool\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[uturn.tools]\nown = own_tool:TOOL\n")
    return os.pathsep.join((str(place), str(ROOT.parent)))


def test_a_tool_brings_figures_and_names(tmp_path):
    text = """
from uturn.core.tools import Tool, ToolFigure
TOOL = Tool(
    figures={"own": "own_tool", "fig7": "own_tool", "second": ToolFigure("own_tool", "thresholds", 0, ("none_such", "text"))},
    names={"seven": "own_tool:SEVEN", "probes.Seven": "own_tool:SEVEN"},
)
SEVEN = 7
"""
    code = (
        "import uturn\nfrom uturn.paper.registry import FIGURES, ORDER, PAPER_FIGURES,"
        " load_figure\nprint(uturn.seven, uturn.probes.Seven, hasattr(uturn, 'eight'), 'seven' in"
        " uturn.__all__)\nprint('Seven' in dir(uturn.probes), load_figure('own').SEVEN, ORDER[0],"
        " 'own' in FIGURES, 'own' in"
        " PAPER_FIGURES)\nprint([*FIGURES][[*FIGURES].index('thresholds') + 1],"
        " load_figure('fig7').__name__, FIGURES['second'].lacks)"
    )
    done = run(code, path=installed(tmp_path, text))
    names, figures, replaced = done.stdout.splitlines()
    assert names == "7 7 False True", done.stderr
    assert figures == "True 7 second True False"
    assert (
        replaced
        == "second uturn.paper.fig7 figure 'second' needs the library none_such; pip install"
        " 'uturn[text]'"
    )


@pytest.mark.parametrize("name", [name for name, tool in own_tools().items() if tool.parts])
def test_the_defaults_of_the_parts_of_a_tool_stay(name):
    """As those of other parts (`test_own_parts.py`)."""
    file = Path(__file__).parent / "tools" / name / "defaults.json"
    assert defaults_of(own_tools()[name].parts) == json.loads(file.read_text())


def test_the_library_of_a_figure_is_in_an_extra_of_the_package():
    extras = tomllib.loads((ROOT.parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    needs = [
        figure.needs
        for tool in own_tools().values()
        for figure in tool.figures.values()
        if figure.needs
    ]
    assert needs
    for library, extra in needs:
        assert any(requirement.startswith(library) for requirement in extras[extra])


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1 / 0", "ZeroDivisionError"), ("TOOL = 3", "TypeError: own_tool:TOOL is a int")],
)
def test_a_broken_tool_is_left_out_with_a_warning(tmp_path, text, reason):
    path = installed(tmp_path, text)
    done = run(MAIN, "--help", path=path)
    assert done.returncode == 0
    assert "the tool 'own' is left out" in done.stderr
    assert reason in done.stderr


def without_folder(place, name):
    """A copy of the package without the folder of a tool, and results that the tool has left."""
    tool, results = own_tools()[name], place / "results"
    results.mkdir(parents=True)
    for file in tool.sections:  # of which only the files that others know are shown
        if file.endswith(".json"):
            (results / file).write_text('{"format": "of a tool"}')
            Image.new("RGB", (3, 3)).save((results / file).with_suffix(".png"))
    ut.readings({"same": np.ones((3, 4))}, [0.1, 0.5, 0.9], store=results / "run")
    part = {
        idea: {"type": kind}
        for idea, kinds in tool.parts.items()
        for kind in kinds
        if idea != "probes"
    }

    def change(root):  # the store of a run with parts of this tool
        root["attributes"]["spec"] |= part

    forge(results / "run", change)
    (results / "chi.json").write_text("{")  # a damaged figure is still told
    Image.new("RGB", (3, 3)).save(results / "chi.png")
    shutil.copytree(ROOT, place / "src" / "uturn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(place / "src" / "uturn" / "tools" / name)
    return place


@pytest.mark.slow
def test_the_package_works_without_the_folder_of_a_tool(tmp_path):
    folders = [without_folder(tmp_path / name, name) for name in own_tools()]
    done = run(FORKS, LOOK, *folders, path="")
    assert done.returncode == 0, done.stderr
    for name, tool in own_tools().items():
        tools, names, figures, kinds, problems, shown = (
            (tmp_path / name / "shown").read_text().split("\n", 5)
        )
        assert name not in tools
        assert names == str([public for public in ut.__all__ if public not in tool.names])
        listed = [figure for figure in registry.FIGURES if figure not in tool.figures]
        assert figures == f"unknown figure 'none'; expected some of {', '.join(listed)}"
        assert kinds == "['store']"
        assert problems.count("Problem(file=") == 1
        assert "chi.json" in problems
        assert f"│ {name.replace('_', '-')} " not in shown
        assert "│ images " in shown
