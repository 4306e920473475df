"""The figures of arXiv:2402.16991 and further ones: measurement, analysis with verdicts, drawing.

Each figure is a module of this folder with the members of `registry.Figure`, and a line in `registry.FIGURES`. A module measures
with the tools of a `Workshop`, which stores results; it judges with the rules of `verdicts`; `reproduce` does the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy
from uturn.paper.registry import FIGURES, ORDER, load_figure

if TYPE_CHECKING:
    from uturn.pages.figures import Result, Verdict
    from uturn.paper.figures import reproduce
    from uturn.paper.workshop import Scale, Workshop

__all__ = [
    "FIGURES", "ORDER", "Result", "Scale", "Verdict", "Workshop",
    "load_figure", "reproduce",
]  # fmt: skip

__getattr__, __dir__, _HOMES = lazy(__name__)
