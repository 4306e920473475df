"""The figures of this folder, one line each here and one module each, and those that tools bring."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from uturn.core.tools import ToolFigure, named

if TYPE_CHECKING:
    import xarray as xr

    from uturn.paper.verdicts import Verdict
    from uturn.paper.workshop import Workshop

# Order of the page; numbers: approximate seconds at smoke scale on two cores.
FIGURES = {
    "fig2": 60,
    "fig3": 6,
    "fig4": 3,
    "fig5": 6,
    "fig6": 5,
    "fig7": 0,  # first, because figs. 12 to 14 use its runs
    "fig8": 16,
    "fig9": 1,
    "fig10": 2,
    "fig11": 3,
    "fig12": 3,
    "fig13": 4,
    "fig14": 4,
    "fig15": 4,
    "s9": 5,
    "controls": 30,  # shares the images of fig. 2
    "learning": 115,
    "schedulers": 18,
    "thresholds": 20,
    "chi": 17,
    "correlations": 15,  # shares runs of chi
    "calibration": 25,
    "text": 28,
}
_OF_TOOLS = {
    name: figure if isinstance(figure, ToolFigure) else ToolFigure(figure)
    for name, figure in named("figures").items()
    if name not in FIGURES  # none replaces one of these
}
for _name, _figure in _OF_TOOLS.items():
    _names = [*FIGURES]
    _place = _names.index(_figure.after) + 1 if _figure.after in _names else len(_names)
    _names.insert(_place, _name)
    FIGURES = {name: FIGURES.get(name, _figure.seconds) for name in _names}
ORDER = tuple(sorted(FIGURES, key=FIGURES.__getitem__))
"""The order in which all figures are made: the fastest first, those that train or denoise images last."""


def lacking(name: str) -> str:
    """What a figure needs and is not installed, with the way to install it, in one line; empty if nothing is missing."""
    needs = _OF_TOOLS[name].needs if name in _OF_TOOLS else None
    if needs is None or find_spec(needs[0]):
        return ""
    return f"figure {name!r} needs the library {needs[0]}; pip install 'uturn[{needs[1]}]'"


class Figure(Protocol):
    """What the module of a figure defines."""

    TITLE: str
    CLAIM: str  # what the figure shows, one sentence in plain words
    CAPTION: str

    def measure(self, workshop: Workshop) -> dict[str, xr.Dataset]:
        """The data of the figure by label: results of experiments or of other computations."""

    def analyse(self, runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
        """The labelled data of the plot, and the verdicts."""

    def draw(self, data: xr.Dataset) -> Any:
        """The matplotlib figure."""


def load_figure(name: str) -> Figure:
    module: Any = importlib.import_module(_OF_TOOLS[name].module if name in _OF_TOOLS else f"uturn.paper.{name}")
    return module
