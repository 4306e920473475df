"""The figures of arXiv:2402.16991 and further ones: measurement, analysis with verdicts, drawing.

Each figure is a module of this folder with the members of `registry.FigureModule`, and a line in
`registry.FIGURES`. A module measures with the tools of a `Workshop`, which stores results; it
judges with the rules of `verdicts`; `reproduce` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy
from uturn.paper.registry import FIGURES as FIGURES
from uturn.paper.registry import ORDER as ORDER
from uturn.paper.registry import PAPER_FIGURES as PAPER_FIGURES
from uturn.paper.registry import load_figure as load_figure

if TYPE_CHECKING:
    from uturn.pages.verdicts import Result as Result
    from uturn.pages.verdicts import Verdict as Verdict
    from uturn.paper.figures import reproduce as reproduce
    from uturn.paper.workshop import Workshop as Workshop

_NAMES = {
    "uturn.pages.verdicts": ["Result", "Verdict"],
    "uturn.paper.figures": ["reproduce"],
    "uturn.paper.workshop": ["Workshop"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
