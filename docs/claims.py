"""The table of docs/figures.md: claims of the papers, and what `uturn reproduce` has measured of
each.

`python docs/claims.py RESULTS` writes it into the page, from the verdicts in a folder of results; a
site that is built beside a folder `results` shows those. Claims are in words here; all numbers are
those of the verdicts.

The same command writes the time that each figure took into `src/uturn/paper/seconds.json`, by which
`uturn reproduce` orders the figures. The folder has to be a new one, made by one call of `uturn
reproduce --all`: a figure that finds its runs takes no time.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

PAGE = Path(__file__).parent / "figures.md"
SECONDS = Path(__file__).parents[1] / "src" / "uturn" / "paper" / "seconds.json"
MARKS = re.compile(r"(?<=<!-- claims: begin -->\n).*?(?=<!-- claims: end -->)", re.DOTALL)
HEAD = (
    "| claim | figure | value in the paper, or by its theory | measured | verdict"
    " |\n|---|---|---|---|---|\n"
)


class Claim(NamedTuple):
    """A claim in words, and the verdict that measures it: its figure, the first words of its
    quantity, the part to quote.
    """

    words: str
    figure: str
    quantity: str
    part: str = ".*"


CLAIMS = {
    "arXiv:2402.16991": (
        Claim(
            "Images: the class is lost inside the chain. Half-life of the kind of garment, t/T",
            "fig2",
            "t*/T: half of the fall of the kind of garment",
        ),
        Claim(
            "It is lost abruptly, low-level features smoothly. Widths of kind, logits, first"
            " block, t/T",
            "fig2",
            "width of the fall (a quarter to three quarters) of kind, logits",
            r".*?\. ",
        ),
        Claim(
            "Deep and shallow layers swap their order there: at t/T",
            "fig2",
            "t/T at which logits and first block swap order",
        ),
        Claim(
            "Grammar, Gaussian noise: the class is lost at one time. Half-life, t",
            "fig5",
            "t*: half of the class is lost, L = ",
        ),
        Claim(
            "The deeper the tree, the more abruptly. Half-life over width, L = 4, 7, 10",
            "fig5",
            "sharpness t*/width of the class curve",
        ),
        Claim(
            "Beyond it, low-level features outlive the class. Crossing of class and leaves, t",
            "fig5",
            "t at which class and leaves swap order",
        ),
        Claim(
            "Phase diagram: ε\\*(m). Crossing p_L = p_0, the worst of 7 m",
            "fig6",
            "crossing p_L = p_0 against ε*, worst of ",
        ),
        Claim("With s f > 1 the class is always lost. Largest p_L - p_0", "fig6", "m = 22"),
        Claim(
            "Theory gives the curve of every level. Shift in ε, BP against mean field",
            "fig7",
            "shift in ε, BP against mean field",
            r"largest.*",
        ),
        Claim(
            "Class and leaves cross below ε\\*: at ε",
            "fig7",
            "ε at which class and leaves swap order",
        ),
        Claim(
            "A trained network shows the same crossing: at ε",
            "fig8",
            "ε at which the predicted class and",
        ),
        Claim(
            "Its last layer changes abruptly, its first smoothly. Widths of logits, first block, ε",
            "fig8",
            "width of the fall (a quarter to three",
        ),
        Claim(
            "Rules with one wrong symbol are as many as Eq. 31 says",
            "fig10",
            "rules with one wrong symbol, mean over true pairs",
        ),
        Claim(
            "Upward messages: p_L = p_0 at ε\\*: found at ε",
            "fig12",
            "ε where class and leaves carry the same message, p_L = p_0",
        ),
        Claim(
            "The higher the level, the more abrupt. Widths of levels 1, 5, 10, ε",
            "fig12",
            "width in ε of the fall (3/4 to 1/4), levels ",
        ),
        Claim(
            "Downward messages follow the rules along the path. Shift in ε",
            "fig13",
            "shift in ε of the downward messages",
            r"largest.*",
        ),
        Claim(
            "Effective ε gives the shape of the class curve. Distance to it without and with a"
            " shift",
            "fig15",
            "class curve, root mean square distance",
        ),
        Claim(
            "It does not give the threshold. Displacement",
            "fig15",
            "displacement of the class curve from the ε-process",
        ),
        Claim(
            "Without a hierarchy there is a transition too. Half-life, t",
            "s9",
            "t*: half of the class is lost",
        ),
        Claim(
            "but class and details do not swap. Hierarchy index of class, of logits",
            "s9",
            "hierarchy index, class and logits",
        ),
    ),
    "arXiv:2410.13770": (
        Claim(
            "χ peaks at the transition, below ε\\* at finite depth. Its noise, L = 5, 7, 10",
            "chi",
            "ε at which chi peaks, ",
            r".*?(?=; curves|$)",
        ),
        Claim(
            "The peak grows with depth (Gaussian noise). L = 5, 9",
            "chi",
            "peak of chi, Gaussian (32, 8, 2)",
            r"height.*",
        ),
        Claim(
            "Trees of all sizes follow one curve: its ν",
            "correlations",
            "ν by collapse of C(N)/C(0), ε-process",
        ),
    ),
    "arXiv:2402.18491": (
        Claim(
            "Two clones share a class with probability φ(t). Points off the formula",
            "clones",
            "probability that two clones have the same class",
        ),
        Claim(
            "φ falls half-way at a fixed distance from t_S. Its half-life, three mixtures",
            "clones",
            "time at which phi has fallen halfway",
        ),
    ),
}


def figures() -> list[str]:
    """The figures of the claims."""
    return list(dict.fromkeys(claim.figure for claims in CLAIMS.values() for claim in claims))


def table(results: Path) -> str:
    """The table of claims, from the verdicts of `uturn reproduce` in a folder; KeyError if a
    verdict is missing.
    """
    verdicts = {
        name: json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["verdicts"]
        for name in figures()
    }
    lines = [HEAD]
    for paper, claims in CLAIMS.items():
        lines.append(
            f"| **[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})** | | | | |\n"
        )
        lines += [row(claim, verdicts[claim.figure]) for claim in claims]
    return "".join(lines)


def row(claim: Claim, verdicts: list[dict[str, Any]]) -> str:
    """The row of a claim, from the verdicts of its figure; KeyError if none of them measures it."""
    found = [verdict for verdict in verdicts if verdict["quantity"].startswith(claim.quantity)]
    if not found:
        raise KeyError(f"{claim.figure}: no verdict on {claim.quantity!r}")
    measured = re.search(claim.part, found[0]["measured"])
    outcome = {True: "pass", False: "**FAIL**", None: "shown"}[found[0]["passed"]]
    cells = [text(found[0]["expected"]), text(measured[0] if measured else found[0]["measured"])]
    return f"| {claim.words} | {claim.figure} | {cells[0]} | {cells[1]} | {outcome} |\n"


def text(words: str) -> str:
    """A text of a verdict as a cell of a table."""
    return re.sub(r"([*_|])", r"\\\1", words.strip().rstrip("."))


def updated(page: str, results: Path) -> str:
    """The page with the table of these results; unchanged where a figure of the table has not
    been made.
    """
    if not all((results / f"{name}.json").is_file() for name in figures()):
        return page
    whole = table(results)
    return MARKS.sub(lambda _: whole, page)


def measured_seconds(results: Path) -> dict[str, float]:
    """The seconds that each figure in a folder of results took; ValueError if one was not made
    at scale smoke.
    """
    seconds = {}
    for path in sorted(results.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if "verdicts" not in content:
            continue
        if content["scale"] != "smoke":
            raise ValueError(f"{path}: made at scale {content['scale']}, not at scale smoke")
        seconds[content["figure"]] = round(content["seconds"], 1)
    return seconds


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8")
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results")
    missing = [name for name in figures() if not (folder / f"{name}.json").is_file()]
    if missing:
        sys.exit(
            f"{folder}: no verdicts of {', '.join(missing)}; run `uturn reproduce"
            f" {' '.join(missing)} --out {folder}`"
        )
    PAGE.write_text(updated(before, folder), encoding="utf-8")
    known = json.loads(SECONDS.read_text(encoding="utf-8"))
    known.update(measured_seconds(folder))
    SECONDS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
