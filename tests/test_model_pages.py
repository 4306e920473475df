"""Examples of the pages on noise, U-turns made elsewhere, own parts and samplers run as written,
and what the pages say holds.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

import uturn as ut
from command_line import uturn

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$",
        (DOCS / page).read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )


def test_the_levels_of_the_embedded_model():
    """The lines of the page are those that the first command prints."""
    command = shlex.split(blocks("noise.md", "sh")[0].splitlines()[0], comments=True)
    done = uturn(*command[1:])
    assert done.returncode == 0, done.stderr
    printed = [line.split() for line in done.stdout.splitlines()]
    quoted = [line.split() for line in blocks("noise.md", "text")[0].split("..\n")[0].splitlines()]
    assert len(quoted) == 4
    assert all(line in printed for line in quoted)


@pytest.mark.usefixtures("unsaved_figures")
def test_a_table_made_elsewhere(tmp_path):
    (tmp_path / "rmsd.csv").write_text(blocks("made-elsewhere.md", "csv")[0])
    done = uturn(*shlex.split(blocks("made-elsewhere.md", "sh")[0])[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 original of rmsd.csv" in done.stdout
    assert (tmp_path / "results/rmsd/numbers.csv").exists()


def test_a_short_probe_of_images(tmp_path, monkeypatch):
    (tmp_path / "brightness.py").write_text(blocks("own-parts.md", "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    spec = {
        "items": 4,
        "source": {"type": "fashion_mnist"},
        "corruption": {"type": "diffusion", "noise": [0.0, 0.8]},
        "backward": {"type": "diffusion", "steps": 5},
        "probes": [{"type": "brightness:Brightness"}],
    }
    change = ut.run(ut.Experiment.from_dict(spec)).grey_change
    assert (change[0] == 0).all()
    assert (change[1] > 0).all()


@pytest.fixture(scope="module")
def calibration(tmp_path_factory):
    """The names that the blocks of the section on calibration define; a block that begins with
    `# NAME.py` is a file.
    """
    page = (DOCS / "sampler.md").read_text()
    section = re.search(r"^## Calibration.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)[0]
    names, folder = {"__name__": "sampler"}, tmp_path_factory.mktemp("sampler")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for found in re.finditer(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            file = re.match(r"# (\w+\.py)\n", found[1])
            if file:
                (folder / file[1]).write_text(found[1])
            else:
                exec(compile(found[1], "sampler.md", "exec"), names)
        yield names
        sys.modules.pop("blind", None)


def test_exact_draws_pass(calibration):
    assert calibration["exact"].attrs["passed"]
    assert (calibration["exact"].visible > 0).all()


def test_a_sampler_of_marginals_is_seen_by_joint_readings_alone(calibration):
    found = calibration["marginals"]
    assert (found.p_holm.sel(tree_level=0) > 1e-3).all()
    assert (found.p_holm.sel(tree_level=[1, 2, 3]).min("tree_level") <= 1e-3).all()


def test_a_sampler_that_ignores_the_noisy_datum_passes(calibration):
    assert calibration["blind"].attrs["passed"]
