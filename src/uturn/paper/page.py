"""One page for all reproduced figures: pictures, captions and verdicts; plain HTML that opens without a network."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

from uturn.files import whole_file
from uturn.paper.results import Result, load_results

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>uturn: reproduced figures</title>
<style>
body {{ font: 16px/1.55 system-ui, sans-serif; color: #1b1b1b; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; }}
h1 {{ font-size: 1.7rem; margin-bottom: .2rem; }} h2 {{ margin: 3rem 0 .4rem; font-size: 1.25rem; }}
img {{ width: 100%; height: auto; margin: .6rem 0; }}
table {{ border-collapse: collapse; width: 100%; font-size: .92rem; }}
th, td {{ text-align: left; padding: .42rem .7rem .42rem 0; border-bottom: 1px solid #ddd; vertical-align: top; }}
th {{ font-weight: 600; color: #555; }} small, .muted {{ color: #666; }}
.pass {{ color: #00695c; font-weight: 600; }} .fail {{ color: #b3261e; font-weight: 700; }}
a {{ color: #0060a8; }}
</style></head><body>
<h1>A phase transition in diffusion models, reproduced</h1>
<p class="muted">Figures of <a href="https://arxiv.org/abs/2402.16991">arXiv:2402.16991</a> by <code>uturn reproduce</code>.
{summary}</p>
<p>{contents}</p>
{body}
</body></html>
"""


def write_report(out: str | Path) -> Path:
    """Write `index.html` for the figures found in an output folder; ValueError if there are none."""
    out = Path(out)
    results = load_results(out)
    if not results:
        raise ValueError(f"no reproduced figures in {out}; run `uturn reproduce --out {out}` first")
    failed = sum(not verdict.passed for result in results for verdict in result.verdicts)
    total = sum(len(result.verdicts) for result in results)
    summary = f"{total} verdicts, " + (f'<span class="fail">{failed} failed</span>.' if failed else "all passed.")
    path = out / "index.html"
    contents = " · ".join(
        f'<a href="#{escape(r.figure)}" title="{escape(r.title)}"{"" if r.passed else " class=fail"}>{escape(r.figure)}</a>'
        for r in results
    )
    page = _PAGE.format(summary=summary, contents=contents, body="\n".join(map(_section, results)))
    with whole_file(path) as file:
        file.write(page.encode())
    return path


def _section(result: Result) -> str:
    rows = "\n".join(
        f"<tr><td>{escape(v.quantity)}</td><td>{escape(v.measured)}</td><td>{escape(v.expected)}<br><small>{escape(v.rule)}</small></td>"
        f'<td class="{"pass" if v.passed else "fail"}">{"pass" if v.passed else "FAIL"}</td></tr>'
        for v in result.verdicts
    )
    number = re.fullmatch(r"(?:fig)?(S?\d+)", result.figure, re.IGNORECASE)
    heading = f"Figure {number[1].upper()}. {result.title}" if number else result.title
    return f"""<h2 id="{escape(result.figure)}">{escape(heading)}</h2>
<img src="{escape(result.files["png"])}" alt="{escape(result.title)}">
<p>{escape(result.caption)}</p>
<table><tr><th>quantity</th><th>measured</th><th>expected</th><th>verdict</th></tr>
{rows}</table>
<p class="muted">Scale: {escape(result.scale)}; {result.seconds:.0f} s.
<a href="{escape(result.files["pdf"])}">PDF</a>, <a href="{escape(result.files["data"])}/zarr.json">data</a>
(<code>xarray.open_zarr("{escape(result.files["data"])}")</code>).</p>"""
