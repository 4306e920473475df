"""Every file in `examples/` is tried: a spec is read and checked, a script runs at a small size
or prints its help.
"""

import json
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

import uturn as ut
from uturn.core.findings import CHECKS
from uturn.engine.trial import check
from uturn.tools.atlas.file import read_atlas

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
# Folders that runs of the examples leave.
MADE = {"__pycache__", ".ipynb_checkpoints", "runs", "results"}
FILES = sorted(
    path.relative_to(EXAMPLES).as_posix()
    for path in EXAMPLES.rglob("*")
    if path.is_file() and not MADE & {*path.relative_to(EXAMPLES).parts}
)
TABLES = {
    name: tomllib.loads((EXAMPLES / name).read_text(encoding="utf-8"))
    for name in FILES
    if name.endswith(".toml")
}
SPECS = [name for name, table in TABLES.items() if "source" in table]
ATLASES = [name for name, table in TABLES.items() if "models" in table]
HAS_HELP = [
    name
    for name in FILES
    if name.endswith(".py") and "argparse" in (EXAMPLES / name).read_text(encoding="utf-8")
]
SHORTENED = ("quickstart.py", "laboratory_images.py", "moving_picture.py")
TRIED_BY = {  # files by their beginnings, and a file that is tried and names them
    "atlas/README.md": "tests/test_docs.py",
    "atlas/mnist": "examples/atlas/here.toml",
    "own/denoiser": "tests/test_own_denoisers.py",
    "own/network": "tests/test_parts.py",
    "own/rules.json": "examples/own/rules.toml",
    "own/sampler": "tests/tools/check_sampler/test_samplers.py",
    "own/series": "examples/own/series.toml",
    "own_image_model": "tests/test_notebooks.py",
    "slurm/array": "tests/test_slurm.py",
    "slurm/ray": "tests/test_slurm.py",
    "solvable_world": "tests/test_notebooks.py",
    "text.": "tests/test_notebooks.py",
    "tool/": "tests/test_tools.py",
}
SLOW = {"changes.toml", "clones.toml", "images.toml", "score.toml"}


def named(names):
    """Parameters of a test: names of files, of which some take seconds."""
    return [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in names]


def test_every_example_is_tried():
    tried = {*SPECS, *ATLASES, *HAS_HELP, *SHORTENED}
    left = [name for name in FILES if name not in tried and not name.startswith(tuple(TRIED_BY))]
    assert not left, f"no test tries {left}"
    assert {*SHORTENED} <= {*FILES}
    for start, file in TRIED_BY.items():
        assert any(name.startswith(start) for name in FILES), start
        word = "README" if start.endswith("README.md") else start.rstrip("./").rpartition("/")[2]
        assert word in (ROOT / file).read_text(encoding="utf-8"), (start, file)


@pytest.fixture
def beside(monkeypatch):
    """The working directory of a spec, from which the modules that it names are imported."""

    def go(name):
        folder = (EXAMPLES / name).parent
        if folder.name == "own":
            monkeypatch.chdir(folder)
            monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
        return EXAMPLES / name

    return go


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_describes_what_can_be_measured(name, beside):
    experiment = ut.Experiment.from_file(beside(name))
    assert ut.Experiment.from_dict(experiment.to_dict()).hash == experiment.hash
    assert experiment.variables()
    assert experiment.coordinates()["noise"][1].tolist() == experiment.noise


@pytest.mark.parametrize("name", named(SPECS))
def test_a_spec_is_checked_without_a_doubt(name, beside, unchecked_models):
    """As `uturn check`, apart from the models, which test_model_check.py checks."""
    lines = list(map(str, check(ut.Experiment.from_file(beside(name)))))
    assert not [line for line in lines if line.startswith((*CHECKS, "warning:"))]
    assert sum("means over items" in line for line in lines) == 2


@pytest.mark.parametrize("name", ATLASES)
def test_rows_of_an_atlas_are_experiments(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    rows = read_atlas(EXAMPLES / name)
    hashes = {row.experiment().hash for row in rows}
    assert len(hashes) == len(rows)


@pytest.mark.parametrize("name", HAS_HELP)
def test_a_script_prints_its_help(name, monkeypatch, capsys):
    if name.startswith("structures"):
        pytest.importorskip("biotite")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    # As Python does for a script.
    monkeypatch.setattr(sys, "path", [str((EXAMPLES / name).parent), *sys.path])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ")
    assert " ".join(runpy.run_path(str(EXAMPLES / name))["__doc__"].split()[:8]) in " ".join(
        text.split()
    )


def test_the_quick_start(monkeypatch, capsys):
    code = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert code.count("256") == 2
    exec(compile(code.replace("256", "32"), "quickstart.py", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    kept = [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]
    assert [row[0] for row in kept] == [0.03, 0.06, 0.07, 0.1, 0.3]
    assert kept[0][1] > 0.9 > 0.2 > kept[-1][3]  # leaves at little noise, the class at much


@pytest.mark.slow
def test_images_of_the_laboratory(monkeypatch, tmp_path, capsys):
    """Two images in four steps; what is written has the form of what the page includes."""
    main = runpy.run_path(str(EXAMPLES / "laboratory_images.py"))["main"]
    small = {
        "OUT": tmp_path / "images.json",
        "ITEMS": (1, 2),
        "STEPS": 4,
        "BACK": (2, 4),
        "CLONES": 2,
    }
    for name, value in small.items():
        monkeypatch.setitem(main.__globals__, name, value)
    main()
    made, packed = (
        json.loads(small["OUT"].read_text()),
        json.loads((ROOT / "src/uturn/assets/lab/images.json").read_text()),
    )
    assert made.keys() == packed.keys()
    first, of_package = made["originals"][0], packed["originals"][0]
    assert first.keys() == of_package.keys()
    assert (first["item"], first["picture"], first["class"]) == (
        1,
        of_package["picture"],
        of_package["class"],
    )
    assert [len(level["reconstructions"]) for level in first["levels"]] == [2, 2]


@pytest.mark.slow
def test_the_moving_picture(monkeypatch, tmp_path, capsys, unchecked_models):
    """Four images in five steps, and a few frames."""
    from PIL import Image

    main = runpy.run_path(str(EXAMPLES / "moving_picture.py"))["main"]
    names = main.__globals__
    small = {
        "OUT": tmp_path / "u-turn.webp",
        "STORE": tmp_path / "run",
        "STEPS": 5,
        "TURNS": (0.2, 0.8),
    }
    few = names["ImageOptions"]
    small["ImageOptions"] = lambda **options: few(**{**options, "items": 4, "levels": 5})
    small["frames"] = lambda *shown, of=names["frames"]: list(of(*shown))[::20]
    for name, value in small.items():
        monkeypatch.setitem(names, name, value)
    main()
    with Image.open(small["OUT"]) as picture:
        assert picture.size == (names["WIDTH"], names["HEIGHT"])
        assert picture.n_frames > 2
    assert capsys.readouterr().out.startswith("a 5; after the turns ")
