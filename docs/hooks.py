"""Pages that the site makes from other files, and formulas: the hooks that `mkdocs.yml` names.

The gallery shows the figures in `results`; the laboratory is the page that `uturn explore` writes;
`generated.py` makes the pages of options and members; the reference has one page for each public
module. Files outside docs/ that a page links to become pages of the site, so that links work here
as they do in a clone. TeX formulas become MathML, which browsers draw without scripts.
"""

from __future__ import annotations

import html
import importlib
import inspect
import json
import pkgutil
import posixpath
import re
from pathlib import Path
from typing import Any

import claims
import generated
import latex2mathml.converter
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import uturn
from uturn.core.tools import own_tools
from uturn.pages.laboratory import laboratory
from uturn.paper import FIGURES, load_figure

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# Of Markdown, and of HTML in it.
LINK = re.compile(r"""(?:(?<=\]\()|(?<=src=")|(?<=href="))([^)\s#"]+)(?=[)#"])""")
HELP = (  # what a page says to type, and the page of the site that shows the same
    (r"`uturn ([a-z-]+) --help`", lambda found: linked_help(found)),
    (
        r"`help\(ut\.(Source|Corruption|Channel|Backward|Probe|Originals|Noisy|UTurns|Variable)\)`",
        lambda found: f"[{found[0]}](members.md#{found[1].lower()})",
    ),
    (r"`help\((ut\.\w+)\)`", r"[\g<0>](api/\1.md)"),
)
LABORATORY = "explore.html"
TIDY = (  # what latex2mathml writes, and what browsers set as TeX would
    # Infinity, arrows, star: no space around them.
    ("<mo>(&#x0(?:221E|2191|2193|002A);)</mo>", r"<mi>\1</mi>"),
    ("<mi>(&#x02032;)</mi>", r"<mo>\1</mo>"),  # a prime
    ("(<mi>log</mi>)(?=<m[is])", r'\1<mspace width="0.17em" />'),
)
LABORATORY_PAGE = f"""\
# Laboratory

<iframe class="laboratory" src="{LABORATORY}" title="Laboratory" loading="lazy"></iframe>

[Open it on a page of its own]({LABORATORY}){{ .md-button }} [What it shows](figures.md#the-laboratory)
"""
GALLERY = (
    "Each figure is made by a command, with verdicts that compare it with theory: [figures and"
    " verdicts](figures.md)."
)
REFERENCE = (
    "Names of `import uturn as ut`, with types in their signatures. For symbols, see"
    " [notation](../theory.md#notation)."
)
OF_TOOLS = {
    "atlas": ("file", "rows"),
    "audit": ("judge", "options", "orders"),
    "chains": ("chain", "energies", "measures", "parts"),
    "check_knob": ("check",),
    "check_sampler": ("check", "two_samplers"),
    "inverse": (
        "deepinv_samplers",
        "judge",
        "linear",
        "measurement",
        "operators",
        "options",
        "posteriors",
        "sampler",
    ),
}
# Modules that users import beside those in `uturn.__all__`, and those of the names there.
ALSO_PUBLIC = (
    *(
        "presets",
        "core.experiment",
        "core.tools",
        "core.u_turns",
        "engine.plan",
        "engine.run",
        "engine.sweep",
        "exact.hmm",
    ),
    *("measures.ranks", "pages", "pages.laboratory", "studies.locate", "studies.readings"),
    *(f"tools.{tool}.{name}" for tool in own_tools() for name in OF_TOOLS.get(tool, ())),
)


def on_config(config: Any) -> Any:
    """Add the reference to the navigation."""
    config.nav.append(
        {"Reference": ["api/index.md", *({title: f"api/{title}.md"} for title in public_modules())]}
    )
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from other files."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    add(LABORATORY, laboratory())
    add("laboratory.md", LABORATORY_PAGE)
    add("options.md", generated.options())
    add("members.md", generated.members())
    add("gallery.md", gallery(files, config))
    add("api/index.md", reference_index())
    for title, name in public_modules().items():
        add(f"api/{title}.md", reference(title, name))
    notebooks = sorted(
        path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").glob("*.ipynb")
    )
    written = (
        f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None
    )
    waiting = ["CONTRIBUTING.md", "CHANGELOG.md", *notebooks, *written]
    seen = {"README.md", *waiting}  # docs/index.md stands for the README
    for path in waiting:  # grows while it is read: a linked file may link to others
        text = (ROOT / path).read_text(encoding="utf-8")
        if not path.startswith("docs/"):
            add(uri_of(path), page_of(path, text))
        if path.endswith((".md", ".ipynb")):
            found = {
                target
                for link in LINK.findall(text)
                if (target := linked(link, path)) and not target.startswith("docs/")
            }
            waiting += sorted(found - seen)
            seen |= found
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Files and what is typed for help are linked to their pages; the laboratory has the whole
    width; claims are of here.
    """
    if page.file.src_uri == "laboratory.md":
        page.meta["hide"] = ["navigation", "toc"]
    if page.file.src_uri == claims.PAGE.name:
        markdown = claims.updated(markdown, ROOT / config.extra["results"])
    if page.file.generated_by:
        return markdown
    for typed, link in HELP:
        markdown = re.sub(typed, link, markdown)
    return relinked(markdown, f"docs/{page.file.src_uri}")


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:
    """TeX to MathML; types in words, such as "int, v" of a docstring, without the parentheses of
    a tuple.
    """
    content = re.sub(r"(<td>\s*<code>)\((.*?)\)(</code>)", r"\1\2\3", content)
    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>([,.;:)]*)',
        lambda tex: f'<span class="formula">{mathml(tex[1], "inline", page)}{tex[2]}</span>',
        content,
    )
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>',
        lambda tex: mathml(tex[1], "block", page),
        content,
        flags=re.DOTALL,
    )


def mathml(tex: str, display: str, page: Page) -> str:
    """A formula as MathML; an error if a part of it cannot be converted."""
    formula = latex2mathml.converter.convert(html.unescape(tex), display=display)
    if "\\" in formula or re.search(r"&(?![#\w]+;)", formula) or "mathvariant" in formula:
        raise PluginError(f"{page.file.src_uri}: cannot be shown as MathML in all browsers: {tex}")
    for pattern, better in TIDY:
        formula = re.sub(pattern, better, formula)
    return formula


def linked_help(found: re.Match[str]) -> str:
    """The help of a command, linked to its options; as it is if the tool of the command is not
    there.
    """
    if found[1] not in generated.commands():
        return found[0]
    return f"[{found[0]}](options.md#uturn-{found[1]})"


# -- links -----------------------------------------------------------------------------------------


def linked(link: str, origin: str) -> str | None:
    """Path in the repository of what `origin` links to, if it is a file there."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    return (
        target
        if ":" not in link and not target.startswith("..") and (ROOT / target).is_file()
        else None
    )


def uri_of(path: str) -> str:
    """Source of the page that shows a file of the repository."""
    return PAGES.get(path) or (
        path.removeprefix("docs/")
        if path.startswith("docs/")
        else f"files/{path.removesuffix('.md')}.md"
    )


def relinked(text: str, origin: str) -> str:
    """The text of a file of the repository with its links as they are on its page."""
    here = posixpath.dirname(uri_of(origin)) or "."

    def new(link: re.Match[str]) -> str:
        path = linked(link[0], origin)
        return posixpath.relpath(uri_of(path), here) if path else link[0]

    return LINK.sub(new, text)


def page_of(path: str, text: str) -> str:
    """A file from outside docs/ as a page."""
    if path.endswith(".md"):
        return relinked(text, path)
    if path.endswith(".ipynb"):
        return relinked("\n\n".join(map(cell_text, json.loads(text)["cells"])), path)
    language = {".py": "python", ".toml": "toml", ".cff": "yaml", ".sbatch": "bash"}.get(
        Path(path).suffix, "text"
    )
    return f"# `{path}`\n\n{fenced(text, language)}"


def cell_text(cell: dict[str, Any]) -> str:
    """A cell of a notebook as Markdown: text, or code with what it printed and drew."""
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        return source
    parts = [fenced(source, "python")]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f"![Output](data:image/png;base64,{''.join(data['image/png'].split())})")
        elif text := "".join(output.get("text", data.get("text/plain", ""))):
            parts.append(fenced(text, "text"))
    return "\n\n".join(parts)


def fenced(text: str, language: str) -> str:
    """A code block, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# -- gallery ---------------------------------------------------------------------------------------


def gallery(files: Files, config: Any) -> str:
    """Figures that `uturn reproduce` has left in the folder of results, or those in docs/images,
    and the notebooks.
    """
    lines = ["# Gallery", "", GALLERY]
    results = ROOT / config.extra["results"]
    for name in FIGURES:
        picture = f"images/{name}.png"
        if (results / f"{name}.png").is_file():
            picture = f"gallery/{name}.png"
            files.append(File.generated(config, picture, abs_src_path=str(results / f"{name}.png")))
        elif not files.get_file_from_path(picture):
            continue
        figure = load_figure(name)
        lines += [
            "",
            f"## {figure.TITLE} {{ #{name} }}",
            "",
            f"[![{figure.TITLE}]({picture}){{ loading=lazy }}]({picture})",
        ]
        lines += ["", f"**{figure.CLAIM}**", "", figure.CAPTION, "", f"`uturn reproduce {name}`"]
    if notebooks := sorted((ROOT / "examples").glob("*.ipynb")):
        lines += ["", "## Notebooks", ""]
        lines += [f"- [{title_of(path)}]({uri_of(f'examples/{path.name}')})" for path in notebooks]
    return "\n".join(lines)


def title_of(notebook: Path) -> str:
    """The first heading of a notebook."""
    text = page_of(notebook.name, notebook.read_text(encoding="utf-8"))
    heading = re.search("^# (.+)$", text, re.MULTILINE)
    return heading[1] if heading else notebook.name


# -- reference -------------------------------------------------------------------------------------


def public_modules() -> dict[str, str]:
    """Modules of the reference, {title: module}; those in `uturn.__all__` have the title
    `ut.NAME`.
    """
    named = {
        f"ut.{name}": value.__name__
        for name in uturn.__all__
        if inspect.ismodule(value := getattr(uturn, name))
    }
    return dict(sorted(named.items())) | {f"uturn.{name}": f"uturn.{name}" for name in ALSO_PUBLIC}


def reference_index() -> str:
    """Names of `uturn` itself, each with the first sentence of its docstring, and the public
    modules.
    """
    lines = ["# Reference", "", REFERENCE, "", "| name | meaning |", "|---|---|"]
    for name in uturn.__all__:
        value = getattr(uturn, name)
        if not inspect.ismodule(value):
            lines.append(
                f"| [`{name}`][{value.__module__}.{value.__qualname__}] | {first_sentence(value)} |"
            )
    lines += ["", "| module | content |", "|---|---|"]
    for title, name in public_modules().items():
        lines.append(
            f"| [`{title}`]({title}.md) | {first_sentence(importlib.import_module(name))} |"
        )
    return "\n".join(lines)


def reference(title: str, name: str) -> str:
    """The page of a module. Of a package it has the modules of public names, and those that it,
    the README or a page names.
    """
    package = importlib.import_module(name)
    lines = [f"# {title}", "", f"::: {name}", *generated.RENDERED]
    if hasattr(package, "__path__") and not hasattr(package, "__all__"):
        texts = [
            Path(str(package.__file__)),
            ROOT / "README.md",
            *sorted((ROOT / "docs").glob("*.md")),
        ]
        named = "\n".join(path.read_text(encoding="utf-8") for path in texts)
        named += "".join(
            f"\nuturn.{home}"
            for homes in (uturn, package)
            for home in getattr(homes, "_HOMES", {}).values()
        )
        pages = set(public_modules().values())
        for info in pkgutil.walk_packages(package.__path__, f"{name}."):
            if {info.name, info.name.rpartition(".")[0]} & (pages - {name}):
                continue  # it has a page of its own, or is on that of its package
            if not info.ispkg and re.search(rf"{re.escape(info.name)}\b", named):
                lines += ["", f"## {info.name}", "", f"::: {info.name}", *generated.RENDERED]
    return "\n".join(lines)


def first_sentence(value: Any) -> str:
    """The first sentence of a docstring, for a row of a table."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z`])", text)[0].replace("|", "\\|").replace("{", "&#123;")
