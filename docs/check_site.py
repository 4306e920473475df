"""Check the built site: everything that a page loads is part of the site, and every link within it
leads somewhere.

`python docs/check_site.py [site]` prints what is wrong, and ends with the code 1 if anything is.
`mkdocs build --strict` looks at links in Markdown; this looks at the HTML that browsers get.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes whose address a browser fetches; so is `href` of a <link>.
LOADED = {"src", "srcset", "poster", "data"}
PROSE = re.compile(r"^\s*[-*] \S", re.MULTILINE)


class Page(HTMLParser):
    """Anchors, links and loaded addresses of a page, and paragraphs that were meant to be lists."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.lists: list[str] = []
        self.tag = self.paragraph = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tag = tag
        if tag == "p":
            self.paragraph = ""
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name == "href" and tag == "a" and value:
                self.links.append(value)
            elif value and (name in LOADED or (name == "href" and tag != "a")):
                self.loads += (
                    [part.split()[0] for part in value.split(",")] if name == "srcset" else [value]
                )
            elif name == "style" and value:
                self.loads += addresses(value)

    def handle_data(self, data: str) -> None:
        if self.tag == "style":
            self.loads += addresses(data)
        elif self.tag != "code":
            self.paragraph += data

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""
        if tag == "p" and PROSE.search(self.paragraph):
            self.lists.append(self.paragraph.strip()[:60])


def addresses(css: str) -> list[str]:
    """What a style sheet loads."""
    return re.findall(r"url\(\s*['\"]?([^'\")]+)", css) + re.findall(
        r"@import\s+['\"]([^'\"]+)", css
    )


def problems(site: Path) -> list[str]:
    """One line for each address that a page loads from elsewhere or that leads nowhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        where = path.relative_to(site)
        found += [f"{where}: a list without an empty line before it: {text}" for text in page.lists]
        for address in page.loads + page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loads and parts.scheme != "data":
                    found.append(f"{where}: loads {address}")
                continue
            target = (
                site / parts.path.lstrip("/")
                if parts.path.startswith("/")
                else path.parent / unquote(parts.path)
            ).resolve()
            target = (
                path if not parts.path else target / "index.html" if target.is_dir() else target
            )
            if not target.is_file():
                found.append(f"{where}: {address} leads nowhere")
            elif (
                parts.fragment
                and target in pages
                and unquote(parts.fragment) not in pages[target].anchors
            ):
                found.append(f"{where}: {address} names no part of its page")
    for path in sorted(site.rglob("*.css")):
        outside = [
            address
            for address in addresses(path.read_text(encoding="utf-8"))
            if re.match(r"(https?:)?//", address)
        ]
        found += [f"{path.relative_to(site)}: loads {address}" for address in outside]
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    if not (folder / "index.html").is_file():
        sys.exit(f"{folder}: no site; run `mkdocs build --strict` first")
    lines = problems(folder)
    print(
        "\n".join(lines) or f"{folder}: all links lead somewhere, nothing is loaded from elsewhere"
    )
    sys.exit(bool(lines))
