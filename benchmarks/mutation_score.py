"""Share of random errors in the package that its tests notice.

    pip install pytest-cov
    python benchmarks/mutation_score.py --errors 300 --seed 0 --out score

One error at a time, drawn at random from all places of the source where a comparison, an operation,
a number or a condition can be changed, is written into a copy of the checkout. The tests that run
the changed line are run there until one fails. `score/errors.jsonl` gets a line for each error, and
a run that was stopped goes on from it. The tests that run a line are measured once, by coverage.py,
and kept in `score/coverage` (20 minutes on two cores). Lines that coverage.py cannot see, since
numba compiles them or another process runs them, are tested by the tests of their file, or of the
files that import it.

The tests of an error run in order of their time, for at most `--limit` seconds. An error that is
not noticed by then counts as not noticed. So do errors that change nothing, such as a higher limit
of a search that ends before it. The score is a lower bound. Functions that draw are left out: a
picture is judged by eye.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "src/uturn"
NAMES = {
    "min": "max",
    "max": "min",
    "any": "all",
    "all": "any",
    "argmin": "argmax",
    "argmax": "argmin",
    "floor": "ceil",
    "ceil": "floor",
}
"""Functions and methods that an error confuses."""
OPERATORS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
"""Operators with the sign that an error puts in their place. `&` and `|` are left out: they also
join types and sets of options."""


@dataclass(frozen=True)
class Edit:
    """A changed piece of a file of the package."""

    path: str
    line: int
    start: int
    """Number of the first character that is replaced."""
    end: int
    new: str

    def applied(self, source: str) -> str:
        """The text of the file with the error."""
        return source[: self.start] + self.new + source[self.end :]

    def shown(self, source: str) -> str:
        """The changed line before and after."""
        number = self.line - 1
        before = source.splitlines()[number].strip()
        after = self.applied(source).splitlines()[number].strip()
        return f"{self.path}:{self.line}\n  - {before}\n  + {after}"


class Places(ast.NodeVisitor):
    """All edits of one file. Annotations, docstrings and sentences are left as they are."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.source = source
        self.edits: list[Edit] = []
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._lines = source.splitlines()

    def _position(self, line: int, column: int) -> int:
        """Number of a character, of its line and of the column in bytes that ast gives."""
        encoded = self._lines[line - 1].encode()
        return self._starts[line - 1] + len(encoded[:column].decode())

    def _span(self, node: ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._position(node.lineno, node.col_offset)
        return start, self._position(node.end_lineno, node.end_col_offset)

    def _add(self, start: int, end: int, new: str) -> None:
        line = self.source.count("\n", 0, start) + 1
        self.edits.append(Edit(self.path, line, start, end, new))

    def _sign(self, left: ast.expr, right: ast.expr, operator: ast.AST) -> None:
        """The sign between two operands."""
        if type(operator) not in OPERATORS:
            return
        old, new = OPERATORS[type(operator)]
        begin = self._span(left)[1]
        between = self.source[begin : self._span(right)[0]]
        if between.count(old) == 1:
            start = begin + between.index(old)
            self._add(start, start + len(old), new)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, right, operator in zip(operands, operands[1:], node.ops, strict=False):
            self._sign(left, right, operator)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        is_text = any(
            isinstance(side, ast.JoinedStr)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        )
        if not is_text:
            self._sign(node.left, node.right, node.op)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._sign(left, right, node.op)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        start, _ = self._span(node)
        operand, _ = self._span(node.operand)
        if isinstance(node.op, ast.Not | ast.USub):
            self._add(start, operand, "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            new = str(not node.value)
        elif isinstance(node.value, int):
            new = str(node.value + 1)
        elif isinstance(node.value, float):
            new = repr(2 * node.value if node.value else 1.0)
        else:
            return
        self._add(*self._span(node), new)

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
            is_typing = ast.unparse(node.test) == "TYPE_CHECKING"
            if is_typing:
                return
            start, end = self._span(node.test)
            self._add(start, end, f"not {self.source[start:end]}")
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if node.id in NAMES and isinstance(node.ctx, ast.Load):
            self._add(*self._span(node), NAMES[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr in NAMES and isinstance(node.ctx, ast.Load):
            _, end = self._span(node)
            self._add(end - len(node.attr), end, NAMES[node.attr])
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in [*node.defaults, *node.kw_defaults]:
            if default is not None:
                self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """The body of a function and the defaults of its arguments, unless it draws."""
        if node.name.lstrip("_").startswith("draw"):
            return
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The body of a class."""
        for statement in node.body:
            self.visit(statement)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Nothing: positions inside of an f-string are not known before Python 3.12."""

    def visit_Assert(self, node: ast.Assert) -> None:
        """Nothing: an assertion tells type checkers what is known."""


def all_edits(root: Path) -> list[Edit]:
    """Every edit of the package."""
    edits = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if path.name == "figure.py" or path.parent.name == "plotting":
            continue
        source = path.read_text()
        places = Places(path.relative_to(root).as_posix(), source)
        places.visit(ast.parse(source))
        for edit in places.edits:
            try:
                ast.parse(edit.applied(source))
            except SyntaxError:
                continue
            edits.append(edit)
    return edits


# --- the tests of a line --------------------------------------------------------------------------


def measure_coverage(folder: Path) -> None:
    """Run all tests that are not slow once, and keep which lines each of them runs."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "coveragerc"
    settings.write_text(f"[run]\nsource = {ROOT / PACKAGE}\ndata_file = {folder / 'data'}\n")
    command = [sys.executable, "-m", "pytest", "--cov", f"--cov-config={settings}"]
    command += ["--cov-context=test", "--cov-report=", f"--junitxml={folder / 'times.xml'}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if done.returncode not in (0, 1):
        sys.exit(f"the tests did not run: exit code {done.returncode}")


class TestsOfLines:
    """Which tests run a line of the package, the quickest first."""

    def __init__(self, folder: Path) -> None:
        self._seconds = _seconds_of_tests(folder / "times.xml")
        self._lines: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._files: dict[str, set[str]] = defaultdict(set)
        for path, test, lines in _contexts(folder / "data"):
            for line in lines:
                self._lines[path, line].add(test)
            self._files[path].add(test)
        self._importers = _importers(ROOT)

    def of(self, path: str, statement: range, limit: float) -> list[str]:
        """Tests of the lines of a statement, of its file, or of the files that import it, for at
        most `limit` seconds together.
        """
        tests = set().union(*(self._lines[path, line] for line in statement))
        tests = tests or self._files[path]
        if not tests:
            tests = set().union(*(self._files[user] for user in self._importers[path]))
        chosen, total = [], 0.0
        for test in sorted(tests, key=lambda test: self._seconds.get(test, 1.0)):
            total += self._seconds.get(test, 1.0)
            if total > limit and chosen:
                break
            chosen.append(test)
        return chosen


def _contexts(data: Path) -> Iterator[tuple[str, str, list[int]]]:
    """File, test and lines that the test runs."""
    from coverage.numbits import numbits_to_nums

    with sqlite3.connect(data) as database:
        rows = database.execute(
            "select file.path, context.context, line_bits.numbits from line_bits"
            " join file on file.id = line_bits.file_id"
            " join context on context.id = line_bits.context_id where context.context != ''"
        )
        for path, context, bits in rows:
            inside = Path(path).relative_to(ROOT).as_posix()
            yield inside, context.partition("|")[0], numbits_to_nums(bits)


def _seconds_of_tests(times: Path) -> dict[str, float]:
    """{test: seconds}; a class or module of junit is written as pytest names it."""
    seconds = {}
    for case in ElementTree.parse(times).iter("testcase"):
        module = case.get("classname", "").replace(".", "/")
        seconds[f"{module}.py::{case.get('name')}"] = float(case.get("time", 0))
    return seconds


def _importers(root: Path) -> dict[str, set[str]]:
    """{file: files of the package that import a name of it}"""
    importers = defaultdict(set)
    for path in (root / PACKAGE).rglob("*.py"):
        user = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                folder = f"src/{node.module.replace('.', '/')}"
                importers[f"{folder}.py"].add(user)
                for name in node.names:
                    importers[f"{folder}/{name.name}.py"].add(user)
    return importers


def statement_of(source: str, line: int) -> range:
    """Lines of the smallest statement that contains a line; for one with a body, its head."""
    best = range(line, line + 1)
    size = float("inf")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.stmt) or node.end_lineno is None:
            continue
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if body else node.end_lineno
        last = max(end, node.lineno)
        if node.lineno <= line <= last and last - node.lineno < size:
            best = range(node.lineno, last + 1)
            size = last - node.lineno
    return best


# --- one error ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What the tests say of one error."""

    edit: Edit
    change: str
    noticed_by: str
    """The test that failed; "" if none did."""
    tests: int
    """Number of tests that were to be run."""
    seconds: float

    @property
    def room(self) -> str:
        """Folder of the package that has the error."""
        inside = self.edit.path.removeprefix(f"{PACKAGE}/")
        folder, _, below = inside.partition("/")
        return f"tools/{below.partition('/')[0]}" if folder == "tools" else folder


class Copies:
    """Copies of the checkout, one for each process."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._free: SimpleQueue[Path] = SimpleQueue()
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
        for number in range(workers):
            copy = folder / f"copy-{number}"
            shutil.rmtree(copy, ignore_errors=True)
            for name in listed.stdout.splitlines():
                if (ROOT / name).is_file():
                    (copy / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, copy / name)
            self._free.put(copy)

    def tried(self, edit: Edit, tests: list[str], limit: float) -> Outcome:
        """The outcome of the tests with one error."""
        copy = self._free.get()
        file = copy / edit.path
        source = file.read_text()
        begun = time.monotonic()
        try:
            file.write_text(edit.applied(source))
            test = _failing(copy, tests, limit, "njit" in source)
        finally:
            file.write_text(source)
            self._free.put(copy)
        seconds = round(time.monotonic() - begun, 1)
        return Outcome(edit, edit.shown(source), test, len(tests), seconds)


def _failing(copy: Path, tests: list[str], limit: float, is_compiled: bool) -> str:
    """The first test that fails in a copy of the checkout, or "" if none does."""
    names = copy / ".tests"
    names.write_text("\n".join(tests))
    cache = copy / ".numba"
    if is_compiled:  # numba does not compile callers of a changed function again
        shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "-m", "", "--no-header"]
    command += ["-p", "no:cacheprovider", "--tb=no", "-rfE", f"@{names.name}"]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src"), "NUMBA_CACHE_DIR": str(cache)}
    environment["PYTEST_XDIST_WORKER"] = "gw0"  # one thread, as in a run of all tests
    process = subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=10 * limit + 600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "(time is over)"
    finally:
        if is_compiled:
            shutil.rmtree(cache, ignore_errors=True)
    if process.returncode == 0:
        return ""
    failed = [line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else printed.strip().splitlines()[-1]


# --- the score ------------------------------------------------------------------------------------


def read_outcomes(path: Path) -> list[Outcome]:
    outcomes = []
    if path.exists():
        for line in path.read_text().splitlines():
            record = json.loads(line)
            outcomes.append(Outcome(**{**record, "edit": Edit(**record["edit"])}))
    return outcomes


def score_table(outcomes: list[Outcome]) -> Table:
    """Share of noticed errors, by room and of all, with Wilson's interval."""
    table = Table("room", "errors", "noticed", "share", title="Random errors that the tests notice")
    errors = Counter(outcome.room for outcome in outcomes)
    noticed = Counter(outcome.room for outcome in outcomes if outcome.noticed_by)
    for room in sorted(errors):
        table.add_row(room, *_share(noticed[room], errors[room]))
    table.add_section()
    table.add_row("all", *_share(noticed.total(), errors.total()))
    return table


def _share(noticed: int, errors: int) -> tuple[str, str, str]:
    interval = binomtest(noticed, errors).proportion_ci(method="wilson")
    share = f"{noticed / errors:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    return str(errors), str(noticed), share


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--errors", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120, help="seconds of tests of one error")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="errors of paths that contain this text")
    parser.add_argument("--out", type=Path, default=Path("score"))
    options = parser.parse_args()

    folder = options.out.resolve()
    coverage = folder / "coverage"
    if not (coverage / "times.xml").exists():
        measure_coverage(coverage)
    tests_of_lines = TestsOfLines(coverage)
    edits = [edit for edit in all_edits(ROOT) if options.only in edit.path]
    drawn = random.Random(options.seed).sample(edits, min(options.errors, len(edits)))
    results = folder / "errors.jsonl"
    done = {outcome.edit: outcome for outcome in read_outcomes(results)}
    copies = Copies(folder, options.workers)
    console = Console()
    console.print(f"{len(edits):,} places; {len(drawn)} drawn, {len(done)} tried before")

    def try_one(edit: Edit) -> None:
        statement = statement_of((ROOT / edit.path).read_text(), edit.line)
        tests = tests_of_lines.of(edit.path, statement, options.limit)
        if tests:
            outcome = copies.tried(edit, tests, options.limit)
        else:
            shown = edit.shown((ROOT / edit.path).read_text())
            outcome = Outcome(edit, shown, noticed_by="", tests=0, seconds=0)
        with results.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")
        done[edit] = outcome
        words = outcome.noticed_by or f"not noticed by {outcome.tests} tests"
        console.print(
            f"{outcome.change}\n  {words} ({outcome.seconds:g} s)",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    with ThreadPoolExecutor(options.workers) as threads:
        list(threads.map(try_one, [edit for edit in drawn if edit not in done]))

    outcomes = [done[edit] for edit in drawn]
    console.rule("not noticed")
    for outcome in outcomes:
        if not outcome.noticed_by:
            console.print(
                f"{outcome.change}\n  {outcome.tests} tests",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    console.print(score_table(outcomes))


if __name__ == "__main__":
    main()
