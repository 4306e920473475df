"""The figures of arXiv:2402.16991 and further ones: measurement, analysis with verdicts, drawing.

Each figure is a module of this folder with the members of `registry.Figure`, and a line in `registry.FIGURES`. A module measures
with the tools of a `Workshop`, which stores results; it judges with the rules of `verdicts`; `reproduce` does the rest.
"""

from __future__ import annotations

from uturn.core.lazy import lazy
from uturn.paper.registry import FIGURES as FIGURES
from uturn.paper.registry import ORDER as ORDER
from uturn.paper.registry import load_figure as load_figure

_HOMES = {"Result": "pages.figures", "Verdict": "pages.figures", "Workshop": "paper.workshop", "reproduce": "paper.figures"}

__getattr__, __dir__ = lazy(__name__, _HOMES)
