"""Drawing: one look for all figures, trees, images, and the map of the theory.

Functions draw on matplotlib axes, or return a figure. The modules are attributes: `style` sets
fonts and colours, `curves` draws readings with intervals against noise, `levels` tree levels and
layers, `theory` the map of the mean field, `trees` grammars and their messages, `schedules` noise
schedules.

>>> import matplotlib
>>> matplotlib.use("Agg")
>>> import uturn as ut
>>> run = ut.readings({"kept": [[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]]}, noise=[0.01, 0.1, 1, 10], start=1, chance=0)
>>> kept = ut.study(run).sel(reading="kept")
>>> with ut.plotting.style.style() as plt:
...     figure, axis = plt.subplots()
...     x, band, look = ut.plotting.curves.along(kept.noise.values, kept.curve.values)
...     ut.plotting.curves.draw_curve(axis, x, band, ut.plotting.style.ACCENT, alpha=0.2, **look)
...     ut.plotting.curves.draw_noise_axis(axis, kept.noise.values)
>>> axis.get_xscale()  # geometric levels
'symlog'
>>> plt.close(figure)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.studies.plotting import curves as curves
    from uturn.studies.plotting import levels as levels
    from uturn.studies.plotting import schedules as schedules
    from uturn.studies.plotting import style as style
    from uturn.studies.plotting import theory as theory
    from uturn.studies.plotting import trees as trees

_NAMES = {
    "uturn.studies.plotting": ["curves", "levels", "schedules", "style", "theory", "trees"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
