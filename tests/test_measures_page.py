"""The section on calibration of docs/measures.md works as written, and its statements hold."""

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "measures.md"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks of the section define; a block that begins with `# NAME.py` is a file."""
    section = re.search(r"^## Calibration.*?(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[0]
    names, folder = {"__name__": "measures"}, tmp_path_factory.mktemp("measures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        for found in re.finditer(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            file = re.match(r"# (\w+\.py)\n", found[1])
            if file:
                (folder / file[1]).write_text(found[1])
            else:
                exec(compile(found[1], str(PAGE), "exec"), names)
        yield names
        sys.modules.pop("blind", None)


def test_exact_draws_pass(page):
    assert page["exact"].attrs["passed"]
    assert (page["exact"].visible > 0).all()


def test_a_sampler_of_marginals_is_seen_by_joint_readings_alone(page):
    found = page["marginals"]
    assert (found.p_holm.sel(tree_level=0) > 1e-3).all()
    assert (found.p_holm.sel(tree_level=[1, 2, 3]).min("tree_level") <= 1e-3).all()


def test_a_sampler_that_ignores_the_noisy_datum_passes(page):
    assert page["blind"].attrs["passed"]
