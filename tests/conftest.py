"""Tests are shared out among processes, about one a core, so each of them computes with one thread."""

import gc
import os

import pytest
from PIL import Image

# Ray would ask for a token, which it makes in the home folder; tests/test_cluster_addresses.py has one of its own.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
# A call of Ray without a connection is an error, and joins no cluster of another process, with which this one would end.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"

# pytest imports readline, which tells its child processes the width of the terminal as if the user had asked for it.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)
    os.unsetenv(name)

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything that reads them is imported
    os.environ.update(dict.fromkeys(("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"))


LONGEST = (
    *("cluster", "mutations", "tools", "inverse", "locate", "model_check", "notebooks", "inverse_figure", "chains_figure"),
    *("experiment_pages", "object_storage", "cluster_addresses", "report_page", "hostile_inputs", "masked_transformer", "images"),
)
"""Files of tests that take longest, which are begun first, so that all processes end at about the same time."""


def pytest_xdist_auto_num_workers():
    """Two processes more than there are cores: tests of clusters, browsers and stopped runs wait more than they compute."""
    from uturn.core.processes import cores

    return cores() + 2


def pytest_collection_modifyitems(items):
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """Garbage collection need not walk the modules, which stay until the end."""
    gc.freeze()


@pytest.fixture
def unsaved_figures(monkeypatch):
    """Figures are composed and saved as empty files, for tests of commands that look at none: drawing one takes a second."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)


@pytest.fixture(scope="module")
def blank_figures():
    """The same for all tests of a module, with pictures of one pixel."""

    def blank(figure, *paths):
        for path in paths:
            Image.new("RGB", (1, 1)).save(path) if path.suffix == ".png" else path.touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uturn.pages.results.save_figure", blank)
        yield


@pytest.fixture
def unchecked_models(monkeypatch):
    """Runs check no models: a check takes a second, and changes no numbers (test_model_check.py)."""
    monkeypatch.setattr("uturn.core.experiment.Experiment.model_check", lambda self: [])


@pytest.fixture(scope="module")
def browser():
    """One headless Chromium for the tests of a module, which are skipped without it."""
    from javascript import CHROMIUM

    playwright = pytest.importorskip("playwright.sync_api", reason="drives Chromium: playwright is not installed")
    if not CHROMIUM:
        pytest.skip("looks at a page: Chromium is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
