"""The page, put together from the files of `assets/lab/`."""

from __future__ import annotations

import re
from pathlib import Path

from uturn.core.files import whole_file

_FOLDER = Path(__file__).parents[2] / "assets" / "lab"
MODULES = ("random", "grammar", "channels", "propagation", "theory")  # without the page; each imports from those before it
_PAGE = ("state", "story", "charts", "tree", "world", "curves", "views", "images", "app")


def script(modules: tuple[str, ...]) -> str:
    """The JavaScript of some modules as one: their text without imports, which name functions of the other modules."""
    texts = [(_FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in modules]
    return "\n".join(re.sub(r"^import [^;]*;\n|^export ", "", text, flags=re.M) for text in texts)


def laboratory() -> str:
    """The page as HTML. It needs no server and no network, and gives the numbers that this package gives for the same seeds."""
    page = (_FOLDER / "index.html").read_text(encoding="utf-8")
    for place, name in (("/*STYLE*/", "style.css"), ("/*IMAGES*/", "images.json")):
        page = page.replace(place, (_FOLDER / name).read_text(encoding="utf-8"))
    return page.replace("/*SCRIPT*/", script(MODULES + _PAGE))


def write_laboratory(out: str | Path) -> Path:
    """Write the page to a file; ValueError if that is a folder or does not end in .html."""
    path = Path(out)
    if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out = {str(out)!r}: expected a file that ends in .html")
    with whole_file(path) as file:
        file.write(laboratory().encode())
    return path
