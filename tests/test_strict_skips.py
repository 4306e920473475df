"""With UTURN_ALL=1, skips that are not on the list fail. Tests marked `upstream` that fail are
skipped if the library moved.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest
from importlib.metadata import version

def test_listed():
    pytest.skip("no GPU: it needs one")

def test_unlisted():
    pytest.importorskip("none_such")

@pytest.mark.skipif(True, reason="too hot")
def test_marked():
    pass

@pytest.mark.xfail
def test_known():
    assert False

@pytest.mark.upstream("pytest", version("pytest"))
def test_of_this_release():
    assert False

@pytest.mark.upstream("pytest", "0.1")
def test_of_another_release():
    assert [] == ["its list"]

@pytest.mark.upstream("pytest", "0.1")
def test_of_another_release_that_passes():
    pass
"""
SETTINGS = "[pytest]\nmarkers =\n    upstream(library, version): ..\n"


def outcomes(folder, **environment):
    """{test or file: outcome}, and the text, of pytest in a folder."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "strict_skips",
        "-p",
        "no:cacheprovider",
        "-n",
        "0",
        "-rA",
        "--tb=line",
    ]
    found = subprocess.run(
        [*words, "--continue-on-collection-errors", str(folder)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parent),
            "PYTEST_ADDOPTS": "",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    summary = [line.split() for line in found.partition("short test summary info")[2].splitlines()]
    return {
        words[1].rpartition("::")[2]: words[0]
        for words in summary
        if len(words) > 1 and ".py" in words[1]
    }, found


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pytest.ini").write_text(SETTINGS)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_whole.py").write_text(
        "import pytest\npytest.importorskip('none_such')\ndef test_in_it():\n    pass\n"
    )
    return tmp_path


def test_what_is_skipped_fails_unless_its_reason_is_listed(folder):
    found, text = outcomes(folder, UTURN_ALL="1")
    failed = {name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")}
    assert {name.rpartition("/")[2] for name in failed} == {
        "test_unlisted",
        "test_marked",
        "test_of_this_release",
        "test_whole.py",
    }
    assert text.count("the reason is not in ALLOWED") >= 3
    assert "no GPU: it needs one" in text
    assert "upstream: pytest" in text
    assert "its list" in text
    assert found["test_of_another_release_that_passes"] == "PASSED"


def test_without_the_word_nothing_fails_but_what_fails(folder):
    found, text = outcomes(folder, UTURN_ALL="")
    assert [name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")] == [
        "test_of_this_release"
    ]
    assert "5 skipped" in text
