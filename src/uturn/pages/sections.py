"""Sections of a page as HTML. Every word from results passes through `escape`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from uturn.pages.collect import Collected
from uturn.pages.figures import tally
from uturn.pages.running import RunningStudy

_ORDER = (False, True, None)  # of the outcomes of verdicts in their table


def headlines(found: Collected, running: RunningStudy | None = None) -> str:
    """The first thing to read: verdicts in one line, and t* with its interval and the claim that it supports."""
    verdicts = [verdict for one in found.sections for verdict in one["verdicts"]]
    parts = [running.card()] if running else []
    if verdicts:
        count = tally(verdicts)
        figures = sum(bool(one["verdicts"]) for one in found.sections)
        words = f"{count.failed} failed" if count.failed else "all passed"
        more = f"; shown and not judged: {count.shown}" if count.shown else ""
        parts.append(
            f'<div class="card {"fail" if count.failed else "pass"}"><p class="label"><a href="#verdicts">Verdicts</a></p>'
            f'<p class="big">{count.judged - count.failed} of {count.judged}</p><p class="of">{words}</p>'
            f"<p>{count.judged} claims of {figures} figures were compared with theory, on {count.independent} independent "
            f"measurements{more}.</p></div>"
        )
    for one in found.sections:
        parts += [_headline(star, one) for star in one["headlines"]]
    for one in found.sections:
        if one.get("warnings"):
            label = f'Warning · <a href="#{escape(one["id"])}">{escape(one["short"])}</a>'
            parts.append(f'<div class="card wide warning"><p class="label">{label}</p>{_items(one["warnings"])}</div>')
    if found.problems:
        lines = "".join(f"<li><code>{escape(p['file'])}</code>{escape(p['words'])}</li>" for p in found.problems)
        parts.append(
            f'<div class="card wide note"><p class="label">Could not be read in full; all else is shown</p><ul>{lines}</ul></div>'
        )
    return "\n".join(parts)


def _headline(star: dict[str, Any], one: dict[str, Any]) -> str:
    value, low, high = star["place"]
    interval = ""
    if low is not None and high is not None:
        kind = "range" if star.get("range") else "95 % interval"
        interval = f'<p class="of">{kind} {low:.3g} to {high:.3g}</p>'
    link = f'<a href="#{escape(one["id"])}">{escape(one["short"])}</a>'
    supports = f"<p>Claim: {escape(_sentence(star['supports']))}</p>" if star.get("supports") else ""
    return (
        f'<div class="card"><p class="label">{escape(star["label"])} · {link}</p><p class="big">{value:.3g}</p>{interval}'
        f'<p class="unit">{escape(star["axis"])}</p><p>{escape(_sentence(star["claim"]))}</p>{supports}</div>'
    )


def _items(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def _sentence(words: str) -> str:
    """Words with a full stop, and a capital letter unless they begin with the name of a reading, which "," or ":" follows.

    >>> _sentence("nothing changes"), _sentence("kept: no curve")
    ('Nothing changes.', 'kept: no curve.')
    """
    first = words[:1].upper() if re.match("[a-z]+ ", words) else words[:1]
    return first + words[1:] + ("" if words.endswith(".") else ".")


def contents(sections: list[dict[str, Any]]) -> str:
    """Links to the sections, if there are several, and to the verdicts; sections with a failed verdict are marked."""
    if len(sections) == 1:
        return ""
    links = []
    for one in sections:
        failed = any(verdict["passed"] is False for verdict in one["verdicts"])
        mark = ' class="fail"' if failed else ""
        links.append(
            f'<a href="#{escape(one["id"])}" title="{escape(one["title"])}"{mark}>{escape(one["short"])}'
            f"{' (failed)' if failed else ''}</a>"
        )
    if any(one["verdicts"] for one in sections):
        links.append('<a href="#verdicts">verdicts</a>')
    return f'<nav aria-label="results">{" ".join(links)}</nav>'


def verdict_table(sections: list[dict[str, Any]]) -> str:
    """All verdicts with their filter: those that failed, that passed, that are shown and not judged; empty without any."""
    judged = [one for one in sections if one["verdicts"]]
    if not judged:
        return ""
    options = "".join(
        f'<option value="{escape(one["id"])}">{escape(one["short"])}: {escape(one["title"])}</option>' for one in judged
    )
    verdicts = sorted(
        ((verdict, one) for one in judged for verdict in one["verdicts"]), key=lambda pair: _ORDER.index(pair[0]["passed"])
    )
    rows, total = "".join(_verdict(*pair) for pair in verdicts), len(verdicts)
    return f"""<section id="verdicts" aria-labelledby="verdicts-title"><h2 id="verdicts-title">Verdicts</h2>
<form class="filter" id="filter" role="search" aria-label="filter of the verdicts">
<label>Outcome <select id="show"><option value="all">all</option><option value="failed">failed</option>
<option value="passed">passed</option><option value="shown">shown, not judged</option></select></label>
<label>Figure and its claim <select id="figure"><option value="">all</option>{options}</select></label>
<label>Search <input type="search" id="search" placeholder="words of a claim" autocomplete="off"></label>
<p role="status" id="count">{total} of {total} shown</p></form>
<div class="scroll" tabindex="0" role="region" aria-label="table of the verdicts">
<table class="verdicts"><thead><tr><th scope="col">figure</th><th scope="col">claim</th><th scope="col">measured</th>
<th scope="col">expected</th><th scope="col">verdict</th></tr></thead><tbody>{rows}</tbody></table></div></section>"""


def _verdict(verdict: dict[str, Any], one: dict[str, Any]) -> str:
    outcome, look, word = {True: ("passed", "pass", "pass"), False: ("failed", "fail", "FAIL"), None: ("shown", "", "shown")}[
        verdict["passed"]
    ]
    rule = f"<br><small>{escape(verdict['rule'])}</small>" if verdict["rule"] else ""
    return (
        f'<tr data-outcome="{outcome}" data-figure="{escape(one["id"])}">'
        f'<td data-label="figure"><a href="#{escape(one["id"])}">{escape(one["short"])}</a></td>'
        f'<td data-label="claim">{escape(verdict["quantity"])}</td><td data-label="measured">{escape(verdict["measured"])}</td>'
        f'<td data-label="expected">{escape(verdict["expected"])}{rule}</td>'
        f'<td data-label="verdict"><span class="{look}">{word}</span></td></tr>'
    )


def section(one: dict[str, Any], docs: str) -> str:
    """A section: claim, caption, views that the script fills, pictures, numbers, and all other charts, files and spec folded.

    The picture of a figure, or of several runs, comes before its views; that of a study after them.
    """
    name = escape(one["id"])
    pictures = "".join(
        f'<button type="button" class="picture"{" data-wide" if picture["width"] > 1.5 * picture["height"] else ""}>'
        f'<img src="{picture["url"]}" loading="lazy" width="{picture["width"]}" height="{picture["height"]}" '
        f'alt="{escape(one["title"])}: {escape(picture["words"])}"></button>'
        for picture in one["pictures"]
    )
    page = f"{escape(one['docs'])}.md"
    read = f'<a href="{escape(docs)}/{escape(one["docs"])}">{page}</a>' if docs else f"docs/{page}"
    files = "".join(f'<a href="{escape(link["href"])}">{escape(link["name"])}</a> ' for link in one.get("links", []))
    drawn = f'<div class="pictures"><h3>As drawn</h3><div>{pictures}</div></div>' if pictures else ""
    views, others = (f'<div class="views" data-section="{name}" data-part="{part}"></div>' for part in ("shown", "folded"))
    folded = sum(not of.get("shown") for of in one["charts"])
    count = f"{folded} {'more ' if folded < len(one['charts']) else ''}chart{'s' if folded > 1 else ''}"
    rest = f'<details class="readings"><summary>All readings ({count})</summary>{others}</details>'
    return f"""<section class="result" id="{name}" aria-labelledby="{name}-title">
<h2 id="{name}-title">{escape(one["title"])}</h2>
{f'<p class="words">{escape(one["words"])}</p>' if one["words"] else ""}
{f'<div class="warning">{_items(one["warnings"])}</div>' if one.get("warnings") else ""}
<p class="caption">{escape(one["caption"])}</p>
{f'<p class="quiet">{escape(one["facts"])}</p>' if one.get("facts") else ""}
{f'<div class="notes">{_items(list(map(_sentence, one["notes"])))}</div>' if one.get("notes") else ""}
{drawn + views if one["kind"] in ("figure", "overlay") else views + drawn}
{_rows(one.get("rows"))}
{_tables(one.get("tables", []), one.get("remarks", []))}
{rest if folded else ""}
<p class="files">{f"Files: {files} " if files else ""}<span>Described in {read}.</span></p>
{_details(one["details"])}</section>"""


def _tables(tables: list[dict[str, Any]], remarks: list[str]) -> str:
    """The numbers of a study, a table for each kind, and the remarks on them; folded."""
    parts = []
    for table in tables:
        heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table["heads"])
        lines = "".join(
            "<tr>"
            + "".join(
                f'<td data-label="{escape(head)}">{escape(cell)}</td>' for head, cell in zip(table["heads"], row, strict=True)
            )
            + "</tr>"
            for row in table["rows"]
        )
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table["title"])}">'
            '<table class="verdicts numbers">'
            f"<caption>{escape(table['title'])}</caption><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
        )
    if remarks:
        parts.append(f'<div class="notes"><h3>Remarks</h3>{_items(list(map(_sentence, remarks)))}</div>')
    return f'<details class="numbers"><summary>Numbers with intervals</summary>{"".join(parts)}</details>' if parts else ""


def _rows(rows: list[dict[str, Any]] | None) -> str:
    """The table of an atlas."""
    if not rows:
        return ""
    lines = "".join(
        f'<tr><td data-label="model">{escape(row["name"])}</td><td data-label="t*">{_interval(row["place"])}</td>'
        f'<td data-label="width">{_interval(row["width"])}</td>'
        f'<td data-label="remark"><small>{escape(row["remark"])}</small></td></tr>'
        for row in rows
    )
    return (
        '<table class="verdicts atlas"><thead><tr><th scope="col">model</th><th scope="col">t*, log-SNR (nats)</th>'
        f'<th scope="col">width (nats)</th><th scope="col">remark</th></tr></thead><tbody>{lines}</tbody></table>'
    )


def _interval(values: list[float | None]) -> str:
    value, low, high = values
    if value is None:
        return "none"
    return f"{value:.3g}" + (f" [{low:.3g}, {high:.3g}]" if low is not None and high is not None else "")


def _details(details: list[dict[str, Any]]) -> str:
    """Specs, versions and fingerprints, folded."""
    if not details:
        return ""
    parts = []
    for one in details:
        facts = [("spec hash", one["hash"]), *one["versions"].items()]
        facts += [(f"fingerprint of {part}", value) for part, value in one["fingerprints"].items()]
        terms = "".join(f"<dt>{escape(key)}</dt><dd><code>{escape(value)}</code></dd>" for key, value in facts if value)
        spec = escape(one["spec"])
        parts.append(f'<h3>{escape(one["name"])}</h3><dl>{terms}</dl><pre tabindex="0" aria-label="spec">{spec}</pre>')
    return f"<details><summary>Spec, versions and fingerprints</summary>{''.join(parts)}</details>"
