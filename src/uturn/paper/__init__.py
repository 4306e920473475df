"""The figures of arXiv:2402.16991 and what goes beyond them: measurement, analysis with verdicts, drawing.

Each figure is a module of this folder with the members of `registry.Figure`, and a line in `registry.FIGURES`. A module measures
with the tools of a `Workshop`, which keeps what is finished; it judges with the rules of `verdicts`; `reproduce` does the rest.
A module whose figure rests on a Bayesian channel names it in `channels`: the law of its noise and the calibration of its
posterior draws are verdicts of the figure too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from uturn.paper.registry import FIGURES, ORDER, load_figure

if TYPE_CHECKING:
    from uturn.paper.figures import channel_verdicts, reproduce
    from uturn.paper.results import Result, load_results
    from uturn.paper.verdicts import Verdict
    from uturn.paper.workshop import Scale, Workshop

__all__ = [
    "FIGURES", "ORDER", "Result", "Scale", "Verdict", "Workshop",
    "channel_verdicts", "load_figure", "load_results", "reproduce",
]  # fmt: skip

# Public name -> module. Modules are imported on first use, so that commands start fast.
_HOME = {
    **dict.fromkeys(("channel_verdicts", "reproduce"), "figures"),
    **dict.fromkeys(("Result", "load_results"), "results"),
    **dict.fromkeys(("Scale", "Workshop"), "workshop"),
    "Verdict": "verdicts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'uturn.paper' has no attribute {name!r}")
    return getattr(importlib.import_module(f"uturn.paper.{_HOME[name]}"), name)
