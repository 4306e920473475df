"""First examples of the pages on models, noise and U-turns made elsewhere run as written."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from command_line import uturn

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_a_model_is_read_in_python():
    """The first block of Python: U-turns of half of the chain change the images, and stay images."""
    names = {}
    exec(compile(blocks("models.md", "python")[0], "models.md", "exec"), names)
    images, rebuilt = names["images"], names["rebuilt"]
    assert rebuilt.shape == images.shape
    assert 0.05 < np.abs(rebuilt - images).mean() < 0.5
    assert np.abs(rebuilt).max() <= 1


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
