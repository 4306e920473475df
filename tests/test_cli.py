"""The command line: exit codes, one-line errors, files."""

import json
import subprocess
import sys

import pytest

from uturn import paper
from uturn.paper import Result, Verdict

SPEC = """
items = 4
[source]
type = "rhm"
vocab_size = 8
multiplicity = 2
branching = 2
depth = 3
[corruption]
type = "epsilon"
noise = [0.0, 0.5]
[backward]
type = "exact"
[[probes]]
type = "tree_levels"
"""


def uturn(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "uturn.cli", *map(str, arguments)], capture_output=True, text=True, timeout=300, cwd=cwd
    )


def test_help_names_the_commands():
    done = uturn("--help")
    assert done.returncode == 0
    for command in ("reproduce", "run", "images", "convert", "theory", "schedule", "report", "explore"):
        assert command in done.stdout
        assert "Example" in uturn(command, "--help").stdout


def test_theory_prints_and_plots(tmp_path):
    done = uturn("theory", "-v", 32, "-m", 8, "-s", 2, "--plot", tmp_path / "map.png")
    assert done.returncode == 0
    for number in ("0.731183", "0.291667", "1.8928", "0.70629"):
        assert number in done.stdout
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert "always lost" in uturn("theory", "-v", 32, "-m", 20).stdout


def test_files_of_the_working_directory_replace_no_library(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "tomllib.py").write_text("raise SystemExit('not the library')")
    command = [sys.executable, "-P", "-c", "from uturn.cli import main; main()", "run", "spec.toml", "--store", "store"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def test_run_and_resume(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    for _ in range(2):
        done = uturn("run", "spec.toml", "--store", "store", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "unchanged (noise 2, item 4, trajectory 1, tree_level 4)" in done.stdout
    done = uturn("run", "spec.toml", "--store", "store", "--no-resume", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "exists already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "fig99"], "unknown figure 'fig99'; expected some of fig2, fig3"),
        (["run", "absent.toml", "--store", "x"], "cannot read the spec absent.toml"),
        (["run", "broken.toml", "--store", "x"], "multiplicity"),
        (["run", "spec.toml", "--store", "spec.toml"], "spec.toml"),
        (["theory", "-m", 99], "at most 32"),
        (["theory", "--plot", "no/such/folder/map.png"], "no/such/folder/map.png"),
        (["theory", "--plot", "map.nonsense"], "nonsense"),
        (["report", "absent"], "no such folder"),
        (["reproduce", "fig7", "--out", "spec.toml"], "spec.toml"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "broken.toml").write_text(SPEC.replace("multiplicity = 2", "multiplicity = 20"))
    done = uturn(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", [("--steps", 0), ("--batch-size", 0), ("--shard", "3/2"), ("--dtype", "int8"), ("--lvels", 3)])
def test_mistakes_of_images_are_one_line(tmp_path, option):
    done = uturn("images", "--out", tmp_path / "out", *option)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("uturn: error: ")
    assert not (tmp_path / "out").exists()


def test_unknown_options_are_named():
    done = uturn("reproduce", "--scale", "huge")
    assert done.returncode == 2
    assert "huge" in done.stderr
    assert "Traceback" not in done.stderr


def result(figure, passed):
    files = {"png": f"{figure}.png", "pdf": f"{figure}.pdf", "data": f"{figure}.zarr"}
    return Result(figure, "A title", "A caption <with> signs", "smoke", [Verdict("x", "1 < 2", "1", passed, "rule")], files)


def test_report_of_stored_results(tmp_path):
    from dataclasses import asdict

    for figure, passed in (("fig5", True), ("fig7", False)):
        (tmp_path / f"{figure}.json").write_text(json.dumps(asdict(result(figure, passed))))
    done = uturn("report", tmp_path)
    assert done.returncode == 0
    page = (tmp_path / "index.html").read_text()
    assert "1 failed" in page
    assert "FAIL" in page
    assert "&lt;with&gt;" in page
    (tmp_path / "fig5.json").write_text("{")
    assert "fig5.json: " in uturn("report", tmp_path).stdout
    assert "fig5.json" in (tmp_path / "index.html").read_text()
    assert uturn("report", tmp_path / "none").returncode == 2


def test_a_failed_verdict_is_a_failed_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from uturn.cli import app

    for passed, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(paper, "reproduce", lambda *args, passed=passed, **kwargs: [result("fig7", passed)])
        assert CliRunner().invoke(app, ["reproduce", "fig7", "--out", str(tmp_path)]).exit_code == code


def test_import_is_light():
    code = "import sys, uturn; print([m for m in ('torch', 'numba', 'diffusers', 'xarray', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
