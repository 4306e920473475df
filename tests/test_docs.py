"""The pages of docs/: what is made from the package is complete, and the commands of all pages
can be typed as written.
"""

import ast
import contextlib
import importlib.util
import inspect
import io
import itertools
import json
import re
import shlex
import signal
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import uturn as ut
from command_line import SPEC, uturn
from uturn import paper
from uturn.cli.stops import Stops
from uturn.core.registry import PARTS
from uturn.paper import fig7
from uturn.paper.registry import FIGURES, PAPER_FIGURES, load_figure
from uturn.store.run_file import VERSION

ROOT = Path(__file__).parents[1]
OF_EXAMPLES = {"changed-runs"}  # tests/test_tools.py installs examples/tool and runs it
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


TEXTS = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "examples").glob("*/README.md")),
]
PLACEHOLDER = re.compile(r"@[A-Z]{3,}\b|^[A-Z]{4,}$|\b(?:TODO|FIXME|TBD)\b", re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_a_placeholder(page):
    """A word in capitals that was to be replaced by a number, a table or a picture."""
    assert not PLACEHOLDER.findall(page.read_text(encoding="utf-8"))


def test_placeholders_are_seen():
    assert PLACEHOLDER.findall("60 originals. @TIME*\n\nINVERSION\n") == ["@TIME", "INVERSION"]


def script(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generated():
    """`docs/generated.py`, which makes the pages of options and members."""
    return script("generated")


@pytest.fixture(scope="module")
def claims():
    """`docs/claims.py`, which makes the table of the page of figures."""
    return script("claims")


def typed_commands(page):
    """Arguments of the commands `uturn ..` in the shell blocks of a page; lines that end in a
    backslash go on.
    """
    for block in re.findall(
        r"^```(?:bash|console|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL
    ):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                found = re.match(r"\s*(?:\$ )?(?:\w+=\S* )*(?:\S*/)?uturn (.*)", part)
                if found:
                    yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_has_options_that_exist(generated, page):
    """Words in capitals stand for values; files of users need not exist, those in examples/
    must.
    """
    for name, *arguments in typed_commands(page):
        missing = [
            one for one in arguments if one.startswith("examples/") and not (ROOT / one).exists()
        ]
        assert not missing, missing
        if name.startswith("-") or name in OF_EXAMPLES:
            continue
        try:
            generated.commands()[name].make_context(name, arguments)
        except Exception as error:
            pytest.fail(f"uturn {shlex.join([name, *arguments])}: {error!r}")


def test_the_test_sees_an_option_that_does_not_exist(generated, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\ncd out && OMP_NUM_THREADS=1 .venv/bin/uturn run spec.toml \\\n  --stare runs/x  #"
        " measures\n```\n"
    )
    assert list(typed_commands(page)) == [["run", "spec.toml", "--stare", "runs/x"]]
    with pytest.raises(pytest.fail.Exception, match="No such option"):
        test_every_command_of_a_page_has_options_that_exist(generated, page)


def test_every_command_and_option_is_on_the_page_of_options(generated):
    page = generated.options()
    assert len(generated.commands()) >= 17
    for name, command in generated.commands().items():
        section = page.split(f"{{ #{generated.anchor(name)} }}")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`.*`) \| (.*) \| (.+) \|$", section, re.MULTILINE)
        assert len(rows) == len(command.params)
        assert {option for names, _, _ in rows for option in re.findall(r"`(-[\w-]+)", names)} == {
            option
            for parameter in command.params
            for option in parameter.opts
            if option.startswith("-")
        }
    images = page.split("{ #uturn-images }")[1].split("\n## ")[0]
    assert re.search(r"^\| `--out FOLDER` \| `results/images` \| Folder of", images, re.MULTILINE)
    assert re.search(r"^\| `--steps \w+` \| `100` \| Number of reverse steps", images, re.MULTILINE)


def test_members_are_required_as_the_experiment_requires_them(generated):
    page = generated.members()
    assert re.search(
        r"\| \[`Channel`\]\(#channel\) \| .* \| `unit`, `max_noise`, `corrupt`, `log_evidence` \|",
        page,
    )
    for name, kind in generated.MEMBERS.items():
        assert f"::: {kind.__module__}.{kind.__qualname__}\n" in page, name
        for member, value in vars(kind).items():  # mkdocstrings leaves out what has no docstring
            if inspect.isfunction(value) and not member.startswith("_"):
                assert value.__doc__, f"{kind.__name__}.{member}"


def pairs_of_blocks(page, first, second):
    """Blocks of a page in one language, each with the block in another that follows it after at
    most one line of text.
    """
    text = page.read_text()
    blocks = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return [
        (one[2], other[2])
        for one, other in itertools.pairwise(blocks)
        if (one[1], other[1]) == (first, second)
        and text[one.end() : other.start()].strip().count("\n") == 0
    ]


def test_python_of_the_first_page_prints_what_stands_below_it():
    pairs = pairs_of_blocks(ROOT / "docs/index.md", "python", "text")
    assert len(pairs) == 2
    for code, expected in pairs:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "index.md", "exec"), {})
        assert printed.getvalue() == expected


def test_shares_of_a_run_print_what_stands_below_them(tmp_path):
    ((commands, expected),) = pairs_of_blocks(ROOT / "docs/index.md", "bash", "text")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for command, line in zip(commands.splitlines(), expected.splitlines(), strict=True):
        done = uturn(*shlex.split(command)[1:], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == line


def test_numbers_of_the_readme():
    """The comments of its Python block say what the lines give."""
    code = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )[1]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    written = dict(
        re.findall(
            r"^(?!from|import)([^#=\n]*\S.*?)  # .*?((?:\(\d.*\)|[\d.]+, [\d.]+|\d\.\d+))",
            code,
            re.MULTILINE,
        )
    )
    values = {line: eval(line, names) for line in written}
    assert len(written) == 3
    for line, text in written.items():
        value = values[line]
        assert np.allclose(value, ast.literal_eval(text.split(":")[0]), atol=0.005), line


def stated(quantity, sources):
    """Whether a text of the source begins with the words, or the words with its first four or
    more letters before a `{`.
    """
    for text in re.findall(r'"([^"\n]+)"', sources):
        fixed, brace, _ = text.partition("{")
        if text.startswith(quantity) or (brace and len(fixed) >= 4 and quantity.startswith(fixed)):
            return True
    return False


def test_every_claim_names_a_verdict_of_its_figure(claims):
    for claim in itertools.chain(*claims.CLAIMS.values()):
        module = Path(inspect.getfile(load_figure(claim.figure)))
        used = {
            module.stem,
            *re.findall(
                r"\w+", " ".join(re.findall(r"uturn\.paper(?:\.| import )(.*)", module.read_text()))
            ),
        }
        sources = "".join(
            module.with_stem(name).read_text()
            for name in sorted(used)
            if module.with_stem(name).exists()
        )
        assert stated(claim.quantity, sources), claim
        assert not stated(f"?{claim.quantity}", sources)


def results_in(folder, claims):
    """Forged verdicts of all claims: 1.5 against 2, passed."""
    numbers = {"measured": "1.5. largest height", "expected": "2 | a*b", "passed": True}
    for name in claims.figures():
        wanted = [
            claim.quantity
            for claim in itertools.chain(*claims.CLAIMS.values())
            if claim.figure == name
        ]
        verdicts = [{"quantity": f"{quantity} more", **numbers} for quantity in wanted]
        (folder / f"{name}.json").write_text(json.dumps({"verdicts": verdicts}))


def test_the_table_of_claims_has_the_verdicts_of_the_results(claims, tmp_path):
    page = "before\n<!-- claims: begin -->\nold\n<!-- claims: end -->\nafter\n"
    assert claims.updated(page, tmp_path) == page  # nothing has been made
    results_in(tmp_path, claims)
    new = claims.updated(page, tmp_path)
    rows = [line for line in new.splitlines() if line.endswith("| pass |")]
    assert len(rows) == sum(map(len, claims.CLAIMS.values()))
    assert "| fig6 | 2 \\| a\\*b | 1.5. largest height | pass |" in new
    assert claims.updated(new, tmp_path) == new
    fig7 = json.loads((tmp_path / "fig7.json").read_text())
    fig7["verdicts"][0]["passed"] = False
    (tmp_path / "fig7.json").write_text(json.dumps(fig7))
    assert claims.updated(page, tmp_path).count("**FAIL**") == 1
    (tmp_path / "fig7.json").write_text(json.dumps({"verdicts": []}))
    with pytest.raises(KeyError, match="fig7: no verdict on 'shift in ε"):
        claims.updated(page, tmp_path)


def test_the_page_has_a_row_for_every_claim(claims):
    rows = claims.MARKS.search(claims.PAGE.read_text())[0].splitlines()
    for claim in itertools.chain(*claims.CLAIMS.values()):
        assert sum(row.startswith(f"| {claim.words} | {claim.figure} |") for row in rows) == 1, (
            claim
        )


# A second each, after their kernels are compiled.
CHEAP = ("fig6", "fig7", "fig10", "fig12", "fig13", "fig5")


@pytest.mark.parametrize(
    "figure",
    [pytest.param(name, marks=() if name == "fig10" else pytest.mark.slow) for name in CHEAP],
)
def test_rows_of_the_page_are_the_verdicts_of_today(claims, figure, tmp_path):
    (result,) = paper.reproduce([figure], tmp_path, "smoke")
    verdicts = [asdict(verdict) for verdict in result.verdicts]
    page = claims.PAGE.read_text(encoding="utf-8")
    rows = [
        claims.row(claim, verdicts)
        for claim in itertools.chain(*claims.CLAIMS.values())
        if claim.figure == figure
    ]
    assert rows
    for row in rows:
        assert row in page, row


def prose(page):
    """The text of a page without its code, its links and the numbers of papers."""
    text = re.sub(
        r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    return re.sub(r"`[^`]*`|\]\([^)]*\)|arXiv:[\d.]+", "", text)


SHIFT = "Theory gives the curve of every level. Shift in ε, BP against mean field"
# On the first pages: the verdict on `SHIFT`, the version of Python, and an example.
DECIMALS = {".0014", "3.11", "0.6"}


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_decimal_numbers_of_the_first_pages_are_known(name):
    """A number that is measured needs a verdict, and a test that compares both."""
    numbers = set(re.findall(r"(?<![\w.])\d*\.\d+", prose(ROOT / name)))
    assert ".0014" in numbers
    assert numbers <= DECIMALS
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_shift_on_the_pages_is_that_of_its_verdict(claims):
    """The verdict is in the table of the page of figures, whose rows are compared with `uturn
    reproduce`.
    """
    (row,) = [
        line
        for line in claims.PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| {SHIFT} |")
    ]
    (measured,) = re.findall(r"largest (0\.\d+)", row)
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    shifts = re.findall(r"place the loss of every level within (\.\d+)", "".join(texts))
    assert len(shifts) == 3
    assert {f"0{shift}" for shift in shifts} == {measured}
    depths = re.findall(
        r"depth (\d+), exact\s+inference and\s+theory place the loss", "".join(texts)
    )
    assert {int(depth) for depth in depths} == {fig7.PARAMETERS["depth"]}


def test_times_of_the_first_pages_are_those_of_the_figures():
    """The figures of the paper take about two minutes with the compilation of their kernels,
    fig7 a minute.
    """
    seconds = sum(FIGURES[name].seconds for name in PAPER_FIGURES)
    assert "This takes about two minutes on two cores" in (ROOT / "README.md").read_text(
        encoding="utf-8"
    )
    assert 60 < seconds < 120
    assert re.search(
        r"uturn reproduce fig7 .*: a minute$",
        (ROOT / "docs/index.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert FIGURES["fig7"].seconds < 60


def test_the_version_is_the_same_everywhere():
    """Of the package, of its citation, of the first entry in the change log, and of stores there."""
    assert (
        re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
        == ut.__version__
    )
    _, *entries = re.split(
        r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    latest, *earlier = entries
    assert latest.split()[0].rstrip(",") == ut.__version__
    assert sorted((entry.split()[0] for entry in earlier), key=version_numbers, reverse=True) == [
        entry.split()[0] for entry in earlier
    ]
    versions = re.findall(r"[Ss]tores have format version (\d+)", "".join(entries))
    assert versions[0] == str(VERSION)


def version_numbers(text):
    return tuple(int(number) for number in text.split("."))


@pytest.mark.parametrize("idea", ["source", "corruption", "backward", "probes"])
def test_help_of_a_package_of_parts_lists_them(idea):
    """`help(ut.sources)` and its like have a line for each type of a spec, with the class that
    is documented.
    """
    package = getattr(ut, "sources" if idea == "source" else idea)
    listed = dict(re.findall(r"^    (\w+) +(\w+) +\S", inspect.getdoc(package), re.MULTILINE))
    homes = {name: path.partition(":") for name, path in PARTS[idea].items()}
    assert listed == {
        name: kind
        for name, (module, _, kind) in homes.items()
        if not module.startswith("uturn.tools.")
    }
    for kind in listed.values():
        assert inspect.isclass(getattr(package, kind))
    ((example, kind),) = re.findall(r"`help\(ut\.(\w+)\.(\w+)\)`", inspect.getdoc(package))
    assert getattr(getattr(ut, example), kind).__doc__


def test_a_finished_run_is_not_given_clones(tmp_path):
    """As the page of samplers says."""
    assert "A run without clones cannot be given them" in (ROOT / "docs/sampler.md").read_text(
        encoding="utf-8"
    )
    (tmp_path / "spec.toml").write_text(SPEC)
    assert uturn("run", "spec.toml", "--store", "run", cwd=tmp_path).returncode == 0
    (tmp_path / "spec.toml").write_text(f"clones = 2\n{SPEC}")
    refused = uturn("run", "spec.toml", "--store", "run", cwd=tmp_path)
    assert refused.returncode == 2
    assert "choose another folder" in refused.stderr
    assert uturn("run", "spec.toml", "--store", "other", cwd=tmp_path).returncode == 0


def test_exit_codes_on_the_page_of_clusters():
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    table = page.split("| exit code of `uturn` |")[1].split("\n\n")[0]
    codes = [
        int(code)
        for row in table.splitlines()[2:]
        for code in re.findall(r"\d+", row.split("|")[1])
    ]
    of_signals = []
    for number in (signal.SIGINT, signal.SIGTERM):
        stops = Stops()
        stops.number = number
        of_signals.append(stops.exit_code)
    assert codes == [0, 1, 2, *of_signals]


def run_python(page, change=lambda code: code):
    """The names that the Python blocks of a page define, one after the other."""
    names = {}
    for code in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(change(code), page.name, "exec"), names)
    return names


def test_python_and_command_of_the_page_of_theory():
    page = ROOT / "docs/theory.md"
    names = run_python(page)
    assert names["beliefs"].marginals[7].shape == (4, 1, 32)
    assert names["beliefs"].log_evidence.shape == (4,)
    ((command, expected),) = pairs_of_blocks(page, "bash", "text")
    done = uturn(*shlex.split(command)[1:-2])  # without the picture
    assert done.returncode == 0, done.stderr
    printed = " ".join(done.stdout.split())
    assert all(" ".join(line.split()) in printed for line in expected.splitlines())


@pytest.mark.slow
def test_python_of_the_page_of_figures():
    """With 3 of 20 images."""
    names = run_python(ROOT / "docs/figures.md", lambda code: re.sub(r"\b20\b", "3", code))
    assert names["probe"].similarity(names["images"][:3], names["rebuilt"]).shape == (3, 7)
    assert (names["labels"] == np.arange(1000) % 10).all()
