"""Looks at pages in a browser; axe-core finds what keeps people from using them."""

from importlib.resources import files

import pytest


def next_frame(page):
    page.evaluate(
        "() => new Promise((next) => requestAnimationFrame(() => requestAnimationFrame(next)))"
    )


def violations(page):
    """What axe-core objects to in a page: (rule, impact, the first elements)."""
    pytest.importorskip(
        "axe_playwright_python",
        reason="checks accessibility: needs axe-playwright-python, of the extra dev",
    )
    if not page.evaluate("'axe' in window"):
        page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        (rule["id"], rule["impact"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in found
    ]
