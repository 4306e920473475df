"""The laboratory: one HTML page that computes U-turns of strings in the browser, and shows U-turns of images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from uturn.core.files import whole_file
from uturn.pages.html import asset, rendered

__all__ = ["MODULES", "laboratory", "script", "write_laboratory"]

MODULES = ("random", "grammar", "channels", "propagation", "theory")  # without the page; each imports from those before it
_PAGE = ("state", "story", "charts", "tree", "world", "curves", "views", "images", "app")


def script(modules: Sequence[str]) -> str:
    """The JavaScript of some modules as one: their text without imports, which name functions of the other modules."""
    return "\n".join(re.sub(r"^import [^;]*;\n|^export ", "", asset(f"lab/{name}.js"), flags=re.M) for name in modules)


def laboratory() -> str:
    """The page as HTML. It needs no server and no network, and gives the numbers that this package gives for the same seeds."""
    style, images = asset("lab/style.css"), asset("lab/images.json")
    return rendered("lab/index.html", style=style, images=images, script=script(MODULES + _PAGE))


def write_laboratory(out: str | Path) -> Path:
    """Write the page to a file; ValueError if that is a folder or does not end in .html."""
    path = Path(out)
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out = {str(out)!r}: expected a file that ends in .html")
    with whole_file(path) as file:
        file.write(laboratory().encode())
    return path
