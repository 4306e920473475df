"""The notebooks in `examples/`: their cells are those of the scripts, and they run.

`python tests/test_notebooks.py [NAME ..]` makes them from the scripts, with the outputs of a run.
"""

import base64
import io
import os
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("solvable_world", "own_image_model", "text")
MOST_BYTES = 500_000


def from_script(name):
    """The notebook of a script, without outputs."""
    notebook = jupytext.read(EXAMPLES / f"{name}.py", fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{name.replace('_', '-')}-{number}", {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
    }
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def executed(*names):
    """{name: notebook} of scripts with the outputs of a run in one process, which forgets its
    names between two of them.
    """
    notebooks = {name: from_script(name) for name in names}
    whole = from_script(names[0])
    whole.cells = [
        cell
        for one in notebooks.values()
        for cell in (*one.cells, nbformat.v4.new_code_cell("%reset -f"))
    ]
    client = nbclient.NotebookClient(
        whole, timeout=1800, resources={"metadata": {"path": str(EXAMPLES)}}, record_timing=False
    )
    # The bars of other libraries would ask for widgets, and their warning names a folder of this
    # machine.
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})
    return notebooks


def smaller(picture):
    """A picture (base64) with 128 colours."""
    found = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB").quantize(
        128, dither=Image.Dither.NONE
    ).save(found, "png", optimize=True)
    return base64.b64encode(found.getvalue()).decode()


def write(name):
    """Write the notebook of a script, with its outputs."""
    notebook = executed(name)[name]
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                output.data["image/png"] = smaller(output.data["image/png"])
    nbformat.validate(notebook)
    nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")


def shown(notebook):
    """The outputs of a notebook as (kind, data) with kinds such as "image/png"."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield from (
                output.data.items()
                if "data" in output
                else [(output.get("name", "error"), output.get("text"))]
            )


@pytest.mark.parametrize("name", NAMES)
def test_the_cells_are_those_of_the_script(name):
    path = EXAMPLES / f"{name}.ipynb"
    stored, wanted = nbformat.read(path, 4), from_script(name)
    cells = [
        [(cell.cell_type, cell.id, cell.source) for cell in notebook.cells]
        for notebook in (stored, wanted)
    ]
    assert cells[0] == cells[1], f"run python tests/test_notebooks.py {name}"
    assert path.stat().st_size < MOST_BYTES
    assert "image/png" in dict(shown(stored))
    assert not {"error", "stderr"} & set(dict(shown(stored)))


@pytest.mark.slow
def test_notebooks_run():
    for name, notebook in executed(*NAMES).items():
        stored = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
        assert (
            len({[kind for kind, _ in shown(one)].count("image/png") for one in (notebook, stored)})
            == 1
        ), name
        # One bar for each run, which was drawn again in its place and ends with all tasks.
        runs = "".join(cell.source for cell in notebook.cells if cell.cell_type == "code").count(
            "progress=True"
        )
        bars = [
            re.fullmatch(r".*: (\d+) of (\d+) tasks done", text)
            for kind, text in shown(notebook)
            if kind == "text/plain"
        ]
        ends = [found.groups() for found in bars if found]
        assert runs == len(ends) > 0, name
        assert all(done == total for done, total in ends), name


if __name__ == "__main__":
    for one in sys.argv[1:] or NAMES:
        write(one)
