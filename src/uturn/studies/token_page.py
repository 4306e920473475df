"""The page of a run of texts: originals and reconstructions token by token, as self-contained HTML."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from uturn.studies.plotting.tokens import EDGES, ShownText, Token, blocks

if TYPE_CHECKING:
    import xarray as xr

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --quiet: #5c5c5c; --line: #d8d8d8; --noised: #e6e6e6;
  --changed: #f7cfcb; --mark: #9c1c14; --focus: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #15171a; --quiet: #a3a7ad; --line: #363a40;
  --noised: #33373d; --changed: #5a2320; --mark: #ffb4aa; --focus: #7cc4f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2.5rem) 3rem; max-width: 76rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1rem; margin: 0 0 .5rem; }
p { margin: .4rem 0; max-width: 60rem; }
.quiet { color: var(--quiet); font-size: .9rem; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--line); padding: 1rem 0; }
.row { display: grid; grid-template-columns: 10rem minmax(0, 1fr); gap: 0 .75rem; margin: .15rem 0; align-items: baseline; }
.row > span { color: var(--quiet); font-size: .85rem; font-variant-numeric: tabular-nums; }
.text { font: .9rem/1.6 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap; margin: 0;
  overflow-wrap: anywhere; max-width: none; }
.characters .text { white-space: break-spaces; word-break: break-all; }
.original .text { font-weight: 600; }
.noisy { display: none; }
body:has(#noisy:checked) .noisy { display: grid; }
.noisy .text { color: var(--quiet); }
i { font-style: normal; background: var(--noised);}
mark { background: var(--changed); color: var(--mark); font-weight: 700; text-decoration: underline; text-underline-offset: 2px; }
b { border: 1px solid var(--quiet); border-radius: 2px; }
u { text-decoration: none; border-bottom: 3px var(--edge, solid) var(--quiet); }
label { cursor: pointer; } input { accent-color: var(--focus); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
nav a { color: inherit; margin-right: .6rem; display: inline-block; padding: .15rem 0; }
@media (max-width: 40rem) { .row { grid-template-columns: 1fr; margin: .6rem 0; } }
@media print { body { max-width: none; padding: 0; --paper: #fff; --ink: #000; --quiet: #444; --noised: #e6e6e6;
  --changed: #f7cfcb; --mark: #7d0f08; } .control, nav { display: none; } article { break-inside: avoid; }
  i, mark { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
"""


def token_page(data: xr.Dataset) -> str:
    """The texts that an analysis shows, as a page of HTML without scripts and without other files."""
    title = "Texts and their reconstructions"
    shown = list(blocks(data))
    single = all(len(token.text) == 1 for _, rows in shown for row in rows for token in row.tokens)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>{title}</title><style>{_STYLE}</style></head>",
        f"<body{' class=characters' if single else ''}><header><h1>{title}</h1>",
        f'<p class="quiet">{escape(data.attrs.get("description", ""))}</p>',
        "<p><i>shaded</i>: the token was masked or replaced, and is the same again. <mark>marked</mark>: it is another token. "
        "The number before each text is the noise, the share of tokens that are masked or replaced.</p>",
        _key(data),
        '<p class="control"><input type="checkbox" id="noisy"> <label for="noisy">show the noisy texts between them (· is a '
        "masked character)</label></p>",
        '<nav aria-label="texts">' + " ".join(f'<a href="#text{item}">text {item}</a>' for item, _ in shown) + "</nav>",
        "</header><main>",
    ]
    for item, rows in shown:
        parts.append(f'<article id="text{item}"><h2>text {item}</h2>')
        parts += [_row(row) for row in rows]
        parts.append("</article>")
    return "\n".join([*parts, "</main></body></html>", ""])


def _key(data: xr.Dataset) -> str:
    """What the marks in originals mean."""
    marks = [
        f'<u style="--edge: {EDGES[k % len(EDGES)][0]}">region {escape(str(name))}</u>'
        for k, name in enumerate(data.region_name.values if "region_name" in data.coords else ())
    ]
    if "shown_separator" in data:
        marks.append("<b>&nbsp;</b> separates segments")
    return f"<p>In the original: {', '.join(marks)}.</p>" if marks else ""


def _row(row: ShownText) -> str:
    if row.noise is None:
        return f'<div class="row original"><span>original, {len(row.tokens)} tokens</span>{_text(row.tokens)}</div>'
    changed = sum(token.changed for token in row.tokens)
    noisy = _text([token._replace(changed=False) for token in row.noisy])
    return (
        f'<div class="row noisy"><span>{row.noise:.3g}, noisy</span>{noisy}</div>'
        f'<div class="row"><span>{row.noise:.3g}, {changed} changed</span>{_text(row.tokens)}</div>'
    )


def _text(tokens: list[Token]) -> str:
    """Tokens as a paragraph; those of a region are joined, so that the line below them has no gaps."""
    text = ""
    for region, group in groupby(tokens, key=lambda token: token.region):
        joined = "".join(map(_tagged, group))
        text += joined if region < 0 else f'<u style="--edge: {EDGES[region % len(EDGES)][0]}">{joined}</u>'
    return f'<p class="text">{text.removeprefix(" ") if len(tokens[0].text) > 1 else text}</p>'


def _tagged(token: Token) -> str:
    """A token with its mark; the blank before a word stays outside of it."""
    blank = " " if len(token.text) > 1 and token.text.startswith(" ") else ""
    tag = "mark" if token.changed else "i" if token.noised else "b" if token.separates else ""
    text = escape(token.text[len(blank) :])
    return f"{blank}<{tag}>{text}</{tag}>" if tag else blank + text
