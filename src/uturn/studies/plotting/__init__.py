"""Drawing: one look for all figures, trees, images, and the map of the theory.

Functions draw on matplotlib axes, or return a figure. The modules are attributes: `style` sets fonts and colours, `curves` draws
readings with intervals against noise, `levels` tree levels and layers, `theory` the map of the mean field, `trees` grammars and
their messages; `posteriors` and `schedules` are the figures of these names.
"""

from __future__ import annotations

from uturn.core.lazy import lazy

_MODULES = ("curves", "levels", "posteriors", "schedules", "style", "theory", "trees")
_HOMES = {name: f"studies.plotting.{name}." for name in _MODULES}

__getattr__, __dir__ = lazy(__name__, _HOMES)
