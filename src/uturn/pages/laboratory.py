"""The laboratory: one HTML page that computes U-turns of strings in the browser, and shows
U-turns of images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from uturn.core.checks import expect
from uturn.core.files import whole_file
from uturn.pages.html import asset, rendered

# Without the page; each imports only from earlier ones.
MODULES = ("random", "grammar", "channels", "propagation", "theory")
_PAGE = ("state", "story", "charts", "tree", "world", "curves", "views", "images", "app")


def script(modules: Sequence[str]) -> str:
    """The JavaScript of several modules as one script, without their imports of each other."""
    return "\n".join(
        re.sub(r"^import [^;]*;\n|^export ", "", asset(f"lab/{name}.js"), flags=re.M)
        for name in modules
    )


def laboratory() -> str:
    """The page as HTML. It needs no server and no network; for equal seeds, its numbers are
    those of this package.
    """
    style, images = asset("lab/style.css"), asset("lab/images.json")
    return rendered("lab/index.html", style=style, images=images, script=script(MODULES + _PAGE))


def write_laboratory(out: str | Path) -> Path:
    """Write the page to a file; ValueError if that is a folder or does not end in .html."""
    path = Path(out)
    expect(
        path.suffix.lower() in (".html", ".htm") and not path.is_dir(),
        "out",
        str(out),
        "a file that ends in .html",
    )
    with whole_file(path) as file:
        file.write(laboratory().encode())
    return path
