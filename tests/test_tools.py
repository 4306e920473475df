"""Tools are folders: each can be imported first and deleted, and an installed package can bring one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import uturn
from uturn.core.tools import own_tools

ROOT = Path(uturn.__file__).parent
MODULES = sorted(
    ".".join(("uturn", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for path in (ROOT / "tools").rglob("*.py")
)
FIRST = """
import os, sys
import numpy, scipy.stats, xarray, pydantic, typer, rich.table  # what takes time, once for all modules
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        __import__(module)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, module
"""
LOOK = """
import sys, uturn, uturn.presets
from pathlib import Path
from typer.testing import CliRunner
from uturn.cli import app
from uturn.core.tools import own_tools
from uturn.pages.collecting import collect
assert Path(uturn.__file__).is_relative_to(sys.argv[1]), uturn.__file__
done = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "80"})
assert done.exit_code == 0, done.output
collected = collect([sys.argv[2]])
print([*own_tools()], [section["kind"] for section in collected.sections], collected.problems, sep="\\n")
print(done.output)
"""
TOOL = """
from uturn.core.tools import Tool
TOOL = Tool(
    parts={"corruption": {"quarter": "own_tool.parts:Quarter"}},
    commands=("own_tool.command",),
    sections={"own.json": "own_tool.command:section"},
)
"""
COMMAND = """
import json
import typer
from uturn.cli.app import PAGES, command
from uturn.cli.options import Out

@command(PAGES)
def own(out: Out) -> None:
    \"\"\"Write a file.\"\"\"
    typer.echo(f"into {out}")

def section(path, read):
    from uturn.pages.sections import new_section
    return new_section("own", "own", "own", "A section of a tool") | {"words": json.loads(path.read_text())["words"]}
"""
PARTS = """
from uturn.corruption import Masking

class Quarter(Masking):
    pass
"""


def run(code, *arguments, path):
    environment = {**os.environ, "PYTHONPATH": str(path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks one process for each module")
def test_each_module_can_be_imported_first():
    done = run(FIRST, *MODULES, path=ROOT.parent)
    assert done.returncode == 0, done.stderr


def package(place, text=TOOL, name="own"):
    """An installed package that brings a tool, in a folder of the import path."""
    folder, about = place / "own_tool", place / f"{name}_tool-1.dist-info"
    folder.mkdir(parents=True)
    about.mkdir()
    for module, content in (("__init__", text), ("command", COMMAND), ("parts", PARTS)):
        (folder / f"{module}.py").write_text(content)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-tool\nVersion: 1\n")
    (about / "entry_points.txt").write_text(f"[uturn.tools]\n{name} = own_tool:TOOL\n")
    return os.pathsep.join((str(place), str(ROOT.parent)))


def test_an_installed_package_brings_a_part_a_command_and_a_section(tmp_path):
    path = package(tmp_path / "packages")
    (tmp_path / "own.json").write_text(json.dumps({"words": "found by the tool"}))
    code = (
        "import sys; from uturn.cli import app; from uturn.core.spec import build; from uturn.pages.collecting import collect\n"
        "from typer.testing import CliRunner\n"
        "print(type(build('corruption', {'type': 'quarter'})).__name__, collect([sys.argv[1]]).sections[0]['words'])\n"
        "print(CliRunner().invoke(app, ['own', '--out', 'x']).output, CliRunner().invoke(app, ['--help']).output)"
    )
    done = run(code, tmp_path, path=path)
    assert done.returncode == 0, done.stderr
    assert "Quarter found by the tool" in done.stdout
    assert "into x" in done.stdout
    assert "Write a file." in done.stdout


@pytest.mark.parametrize(("text", "reason"), [("1 / 0", "ZeroDivisionError"), ("TOOL = 3", "TypeError: own_tool:TOOL is a int")])
def test_a_broken_tool_is_left_out_with_a_warning(tmp_path, text, reason):
    done = run("from uturn.cli import main; main()", "--help", path=package(tmp_path, text))
    assert done.returncode == 2 or "Usage" in done.stdout
    done = run(
        "import sys; sys.argv = ['uturn', '--help']\nfrom uturn.cli import main; main()", path=package(tmp_path / "b", text)
    )
    assert done.returncode == 0
    assert "the tool 'own' is left out" in done.stderr
    assert reason in done.stderr


@pytest.mark.parametrize("name", own_tools())
def test_the_package_works_without_the_folder_of_a_tool(tmp_path, name):
    tool = own_tools()[name]
    results = tmp_path / "results"
    results.mkdir()
    for file in tool.sections:  # results of this tool, of which only the files that others know are shown
        if file.endswith(".json"):
            (results / file).write_text('{"format": "of a tool"}')
            Image.new("RGB", (3, 3)).save((results / file).with_suffix(".png"))
    (results / "chi.json").write_text("{")  # a damaged figure is still told
    Image.new("RGB", (3, 3)).save(results / "chi.png")
    shutil.copytree(ROOT, tmp_path / "src" / "uturn", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.rmtree(tmp_path / "src" / "uturn" / "tools" / name)
    done = run(LOOK, tmp_path, results, path=tmp_path / "src")
    assert done.returncode == 0, done.stderr
    names, kinds, problems, shown = done.stdout.split("\n", 3)
    assert name not in names
    assert kinds == "[]"
    assert problems.count("'file'") == 1
    assert "chi.json" in problems
    assert f"│ {name.replace('_', '-')} " not in shown
    assert "│ images " in shown
