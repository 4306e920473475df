"""The page of results: one HTML file for the outputs of commands, which needs no network.

`collect` reads the results in a folder into sections of plain data, and `write_page` makes a page
of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uturn.core.lazy import lazy

if TYPE_CHECKING:
    from uturn.pages.page import collect as collect
    from uturn.pages.page import fetch as fetch
    from uturn.pages.page import report as report
    from uturn.pages.page import write_page as write_page
    from uturn.pages.results import write_study as write_study

_NAMES = {
    "uturn.pages.page": ["collect", "fetch", "report", "write_page"],
    "uturn.pages.results": ["write_study"],
}
"""{module: its public names}, imported on first use. Type checkers read the same above."""
__getattr__, __dir__, _HOMES = lazy(__name__, _NAMES)
