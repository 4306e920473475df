"""The figures of `uturn reproduce`: those of arXiv:2402.16991, those beyond it, and those that
tools bring.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from uturn.core.imports import import_object
from uturn.core.tools import ToolFigure, named

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from uturn.paper.verdicts import Verdict
    from uturn.paper.workshop import Workshop


@dataclass(frozen=True)
class Entry:
    """What is known of a figure before its module is imported."""

    name: str
    path: str
    """Import path of a module, or "module:name" of an object, with the members of `FigureModule`."""
    is_of_paper: bool
    needs: tuple[str, str] | None = None
    """A library, and the extra of this package that installs it."""
    uses: str = ""
    """The figure whose runs this one uses too. That figure is made before it, and its time
    includes these runs.
    """
    expected_seconds: float = 120.0
    """Used where no time was measured, as for figures of installed packages."""

    @property
    def seconds(self) -> float:
        """Time on two quiet cores at scale smoke, as measured (`docs/claims.py`)."""
        return measured_seconds().get(self.name, self.expected_seconds)

    @property
    def lacks(self) -> str:
        """What the figure needs and is not installed, with the way to install it, in one line.
        Empty if nothing is missing.
        """
        if self.needs is None or find_spec(self.needs[0]):
            return ""
        library, extra = self.needs
        return f"figure {self.name!r} needs the library {library}; pip install 'uturn[{extra}]'"


_OF_PAPER = {f"fig{number}": f"uturn.paper.fig{number}" for number in range(2, 16)}
_OF_PAPER |= {f"fig{number}": f"uturn.paper.pictures:FIG{number}" for number in (3, 4, 9)}
_OF_PAPER |= {"s9": "uturn.paper.s9"}
_BEYOND = ("schedulers", "thresholds", "chi", "correlations", "calibration", "clones")
_USES = {"fig12": "fig7", "fig13": "fig7", "fig14": "fig7", "correlations": "chi"}


def _entries() -> Iterator[Entry]:
    """All figures in the order of the page."""
    for name, path in _OF_PAPER.items():
        yield Entry(name, path, True, uses=_USES.get(name, ""))
    of_tools = {}
    for name, figure in named("figures").items():
        if name not in (*_OF_PAPER, *_BEYOND):  # tools add figures, and replace none
            of_tools[name] = figure if isinstance(figure, ToolFigure) else ToolFigure(figure)

    def of_tool(name: str) -> Entry:
        figure = of_tools.pop(name)
        return Entry(name, figure.module, False, figure.needs, expected_seconds=figure.seconds)

    for name in _BEYOND:
        yield Entry(name, f"uturn.paper.{name}", False, uses=_USES.get(name, ""))
        for other in [other for other, figure in of_tools.items() if figure.after == name]:
            yield of_tool(other)
    for name in list(of_tools):
        yield of_tool(name)


@cache
def measured_seconds() -> dict[str, float]:
    seconds: dict[str, float] = json.loads(
        (Path(__file__).parent / "seconds.json").read_text(encoding="utf-8")
    )
    return seconds


FIGURES = {entry.name: entry for entry in _entries()}
"""All figures by name, in the order of the page."""


def _place(entry: Entry) -> tuple[float, bool]:
    """Short figures come first, and a figure comes after the one whose runs it uses."""
    maker = FIGURES.get(entry.uses)
    if maker is None:
        return entry.seconds, False
    return max(entry.seconds, maker.seconds), True


ORDER = tuple(entry.name for entry in sorted(FIGURES.values(), key=_place))
"""The order in which figures are made."""
PAPER_FIGURES = tuple(name for name in ORDER if FIGURES[name].is_of_paper)
"""The figures of arXiv:2402.16991, in the order in which they are made: what `uturn reproduce`
makes by default.
"""


class FigureModule(Protocol):
    """What the module of a figure defines."""

    TITLE: str
    CLAIM: str
    """What the figure shows, in one sentence in plain words."""
    CAPTION: str

    def measure(self, workshop: Workshop) -> dict[str, xr.Dataset]:
        """The data of the figure by label: results of experiments or of other computations."""

    def analyse(self, runs: dict[str, xr.Dataset]) -> tuple[xr.Dataset, list[Verdict]]:
        """The labelled data of the plot, and the verdicts."""

    def draw(self, data: xr.Dataset) -> Figure:
        """The matplotlib figure."""


def load_figure(name: str) -> FigureModule:
    path = FIGURES[name].path
    figure: FigureModule = (
        import_object(path, f"figure {name!r}", "'module:name'")
        if ":" in path
        else importlib.import_module(path)
    )
    return figure
