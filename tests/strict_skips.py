"""Which tests may be skipped: with UTURN_ALL=1 all others fail, so that no file leaves the suite
in silence.
"""

import os
import re
from importlib.metadata import version

import pytest

ALLOWED = (
    "no GPU",
    "UTURN_SLURM=1 starts a Slurm",
    "not root",
    "root may read every file",
    "looks at /proc",
    "environments made by uv have no pip",
    "upstream: ",
)
"""Beginnings of the reasons for which a test is skipped although everything of the extra `dev`
is installed.
"""


def _reason(report):
    """Why a test or a file was skipped."""
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")


def _strict(report):
    """The report, as a failure if it is a skip for a reason that is not on the list, and
    UTURN_ALL=1.
    """
    is_skip = report.outcome == "skipped" and not hasattr(report, "wasxfail")
    if is_skip and os.environ.get("UTURN_ALL") == "1" and not _reason(report).startswith(ALLOWED):
        report.outcome = "failed"
        report.longrepr = (
            "UTURN_ALL=1: skipped, and the reason is not in ALLOWED of tests/strict_skips.py:"
            f" {_reason(report)}"
        )
    return report


def _numbers(text):
    """The numbers of a version."""
    return re.findall(r"\d+", text)


def _moved(item, call, report):
    """The report, as a skip if a test marked `upstream(library, version)` fails with another
    version of the library.

    The mark gives as many numbers of the version as matter: 1.0 stands for every 1.0.x."""
    mark = item.get_closest_marker("upstream")
    if mark is None or report.outcome != "failed":
        return report
    library, known = mark.args
    installed = version(library)
    if _numbers(installed)[: len(_numbers(known))] != _numbers(known):
        path, line, _ = item.location
        lines = str(call.excinfo.value).splitlines() or [call.excinfo.typename]
        report.outcome = "skipped"
        report.longrepr = (
            path,
            line,
            (
                f"Skipped: upstream: {library} {installed} is not {known}, of which this is:"
                f" {lines[0]}"
            ),
        )
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _strict(_moved(item, call, (yield)))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _strict((yield))
