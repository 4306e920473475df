"""The tutorial works as written: its blocks run in order, and the numbers of the page are those
that they compute.

`python tests/test_tutorial.py` runs the page and puts its figures into docs/images.
"""

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from command_line import uturn

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
pytestmark = pytest.mark.slow

FIGURES = ("trees", "levels", "hidden-bits")


def blocks():
    """(language, code, line of the page) of every block of code."""
    text = PAGE.read_text()
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2], text[: found.start(2)].count("\n")


def prose():
    """The page with its lines joined."""
    return " ".join(PAGE.read_text().split())


def run_page(folder):
    """Run all blocks in a folder, which must be the working folder and on the import path: the
    names that they define.

    A block that begins with `# NAME.py` or `# NAME.toml` is a file.
    """
    names = {"__name__": "tutorial"}
    for language, code, line in blocks():
        file = re.match(r"# (\w+\.(py|toml))\n", code)
        if file:
            (folder / file[1]).write_text(code)
        elif language == "python":
            exec(compile("\n" * line + code, str(PAGE), "exec"), names)
        elif language == "bash":
            for command in code.splitlines():
                program, *arguments = shlex.split(command)
                assert program == "uturn"
                done = uturn(*arguments)
                assert done.returncode == 0, f"{command}: {done.stderr}"
    return names


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names that the blocks define."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.setenv("MPLBACKEND", "Agg")
        # No processes, each of which would import torch.
        patch.setattr("uturn.engine.run.cores", lambda: 1)
        names = run_page(folder)
    sys.modules.pop("hidden_bits", None)
    return {**names, "folder": folder}


N = r"(\d+\.\d+)"


def gap(name):
    return lambda page: float(abs(page["tests"][name].gap).max())


def interval(words, of, tolerance):
    """A number and its interval, as `words value [low, high]` on the page; `of(page)` computes
    them.
    """
    parts = {
        "value": rf"{words} {N} \[",
        "low": rf"{words} [\d.]+ \[{N},",
        "high": rf"{words} [\d.]+ \[[\d.]+, {N}\]",
    }
    return {
        pattern: (lambda page, part=part: getattr(of(page), part), tolerance)
        for part, pattern in parts.items()
    }


# The numbers of the page: how to find each, its value as the blocks compute it, and how far it may
# be off on another machine.
STATED = {
    rf"farther from its line than {N}": (
        lambda page: abs(page["measured"] - page["predicted"]).max().item(),
        0.005,
    ),
    rf"Beyond\s+ε = {N}, where": (lambda page: page["theory"].class_crossing(depth=7), 0.001),
    rf"theory gives {N} at this depth": (lambda page: page["in_theory"], 0.001),
    rf"ε\* = {N} in the limit": (lambda page: page["theory"].critical_noise, 0.001),
    rf"\| masking, exact posterior \| {N} \| passed": (gap("masking, exact posterior"), 0.004),
    rf"\| masking, one step of denoising \| {N} \| failed": (
        gap("masking, one step of denoising"),
        0.010,
    ),
    rf"\| epsilon, exact inference \| {N} \| failed": (gap("epsilon, exact inference"), 0.010),
    rf"keeps its class falls from {N} at": (lambda page: float(page["kept"].sel(noise=0.2)), 0.07),
    rf"to {N} at 0.8, the chance level": (lambda page: float(page["kept"].sel(noise=0.8)), 0.07),
    rf"logits falls from {N}": (
        lambda page: float(page["layers"].sel(noise=0.2, network_layer="logits")),
        0.03,
    ),
    rf"{N}, and that of the first block": (
        lambda page: float(page["layers"].sel(noise=0.8, network_layer="logits")),
        0.05,
    ),
    rf"first block only from {N}": (
        lambda page: float(page["layers"].sel(noise=0.2, network_layer="block1")),
        0.03,
    ),
    rf"to {N}: the order of high and low": (
        lambda page: float(page["layers"].sel(noise=0.8, network_layer="block1")),
        0.05,
    ),
    **interval("class is lost at ε =", lambda page: page["epsilon"], 0.003),
    **interval("a share of", lambda page: page["class_lost"](page["masked"]), 0.005),
    **interval("half of the class is lost at", lambda page: page["whole"], 0.03),
    **interval("single bits hidden at", lambda page: page["digits"], 0.03),
    **interval("The difference is", lambda page: page["difference"], 0.03),
}


@pytest.mark.parametrize("pattern", STATED)
def test_the_numbers_of_the_page(page, pattern):
    found = re.findall(pattern, prose())
    assert len(found) == 1, f"{pattern}: {len(found)} times on the page"
    value, tolerance = STATED[pattern]
    assert abs(value(page) - float(found[0])) <= tolerance


def test_every_interval_is_compared():
    assert 3 * len(re.findall(rf"{N} \[{N}, {N}\]", prose())) == sum(
        "\\[" in pattern for pattern in STATED
    )


def test_the_claims_of_the_page(page):
    assert page["counts"][0].tolist() == [11, 4, 0, 0, 0]
    assert page["counts"][2].tolist() == [11, 6, 3, 2, 1]
    assert [test.attrs["passed"] for test in page["tests"].values()] == [True, False, False, True]
    assert page["difference"].low > 0
    for name in FIGURES:
        assert (page["folder"] / f"{name}.png").stat().st_size > 10_000
        assert (PAGE.parent / "images" / f"tutorial-{name}.png").exists()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        sys.path.insert(0, temporary)
        run_page(Path(temporary))
        for name in FIGURES:
            shutil.copy(f"{name}.png", PAGE.parent / "images" / f"tutorial-{name}.png")
