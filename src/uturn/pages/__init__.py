"""The page of results: one self-contained HTML file for the outputs of `reproduce`, `images`, `text`, `atlas` and `run`.

`collect` reads the results in a folder into sections of plain data, and `write_page` makes a page of them. The page needs no
network.
"""

from uturn.pages.collect import Collected, collect
from uturn.pages.page import fetch, report, write_page
from uturn.pages.results import write_study

__all__ = ["Collected", "collect", "fetch", "report", "write_page", "write_study"]
