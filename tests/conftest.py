"""Tests are shared out among processes, about one a core, so each of them computes with one
thread.
"""

import gc
import os
import sys

import pytest
from PIL import Image

from strict_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401

# Ray would ask for a token, which it makes in the home folder; tests/test_cluster_addresses.py has
# one of its own.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A call of Ray without a connection is an error, and joins no cluster of another process, with
# which this one would end.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

# pytest imports readline, which tells its child processes the width of the terminal as if the user
# had asked for it.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)

# Objects of libraries fill the youngest generation of garbage many times a second: a tenth of all
# time went into collections.
gc.set_threshold(50_000, 20, 20)

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything that reads them is imported
    os.environ.update(
        dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    )


LONGEST = (
    *(
        "cluster",
        "tools",
        "inverse",
        "locate",
        "model_check",
        "inverse_figure",
        "chains_figure",
        "mutations",
        "notebooks",
    ),
    *(
        "experiment_pages",
        "object_storage",
        "report_page",
        "hostile_inputs",
        "masked_transformer",
        "images",
    ),
)
"""Files of tests that take longest, which are begun first, so that all processes end at about
the same time.
"""
TOGETHER = {
    "Ray": ("cluster", "cluster_addresses"),
    "Chromium": ("report_page", "lab_page"),
}
"""Files of tests that share something expensive of a session, which therefore belong into one
process.
"""
_SHARED = {f"test_{name}.py": together for together, names in TOGETHER.items() for name in names}


def pytest_xdist_auto_num_workers():
    """One process a core: each of them imports all libraries, which takes seconds."""
    from uturn.core.processes import cores

    return cores()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """As `--dist loadfile`, one file to one process, and the files of a line of `TOGETHER` to
    the same one.
    """
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            # The import of deepinv, which these alone need, takes seconds.
            return (
                "inverse"
                if "/tools/inverse/" in file
                else _SHARED.get(file.rpartition("/")[2], file)
            )

    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


class _WithExamples:
    """Modules of the package without a doctest need not be imported to look for one."""

    @staticmethod
    def pytest_ignore_collect(collection_path, config):
        is_module = collection_path.suffix == ".py" and collection_path.is_relative_to(
            config.rootpath / "src"
        )
        return (
            True
            if is_module and ">>> " not in collection_path.read_text(encoding="utf-8")
            else None
        )


def pytest_configure(config):
    # Hooks of this file alone see the tests beside it, and not src.
    config.pluginmanager.register(_WithExamples())


def pytest_make_parametrize_id(val):
    """The case of a lambda is named by the last names that it uses, as in `rhm.sample`."""
    if getattr(val, "__name__", "") == "<lambda>":
        return ".".join(val.__code__.co_names[-2:]) or "constant"
    return None


def pytest_collection_modifyitems(items):
    """The longest files first, each file's tests in their order."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """Garbage collection need not walk the modules, which stay until the end."""
    gc.freeze()


@pytest.fixture(autouse=True)
def figures_are_closed():
    """A figure that a test has drawn is closed behind it, since matplotlib warns of more than 20
    open ones.
    """
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture
def unsaved_figures(monkeypatch):
    """Figures are composed and saved as empty files, for tests of commands that look at none:
    drawing one takes a second.
    """
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture(scope="module")
def blank_figures():
    """The same for all tests of a module, with pictures of one pixel."""

    def blank(figure, *paths):
        sys.modules["matplotlib.pyplot"].close(figure)
        for path in paths:
            Image.new("RGB", (1, 1)).save(path) if path.suffix == ".png" else path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uturn.pages.results.save_figure", blank)
        yield


@pytest.fixture
def unchecked_models(monkeypatch):
    """Runs check no models: a check takes a second, and changes no numbers
    (test_model_check.py).
    """
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])


@pytest.fixture(scope="session")
def browser():
    """One headless Chromium for the tests of a process, which are skipped without it."""
    from javascript import CHROMIUM

    playwright = pytest.importorskip(
        "playwright.sync_api", reason="drives Chromium: playwright is not installed"
    )
    if not CHROMIUM:
        pytest.skip("looks at a page: Chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
