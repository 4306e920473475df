"""The laboratory: one HTML page that computes U-turns of strings in the browser, and shows
U-turns of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uturn.core.files import whole_file
from uturn.pages.html import asset, page_file, rendered, script_of

# Without the page; each imports only from earlier ones.
MODULES = ("random", "grammar", "channels", "propagation", "theory")
_PAGE = ("state", "story", "charts", "tree", "world", "curves", "views", "images", "app")


def script(modules: Sequence[str]) -> str:
    """The JavaScript of several modules of the laboratory as one script."""
    return script_of("lab", modules)


def laboratory() -> str:
    """The page as HTML. It needs no server and no network. For the same seed, it computes the
    same numbers as this package.
    """
    return rendered(
        "lab/index.html",
        style=asset("lab/style.css"),
        images=asset("lab/images.json"),
        script=script(MODULES + _PAGE),
    )


def write_laboratory(out: str | Path) -> Path:
    """Write the page to a file; ValueError if that is a folder or does not end in .html."""
    path = page_file(out)
    with whole_file(path) as file:
        file.write(laboratory().encode())
    return path
