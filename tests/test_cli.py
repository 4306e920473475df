"""The command line: exit codes, one-line errors, files."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import typer
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from command_line import SPEC, handlers_kept, process, uturn
from uturn import paper
from uturn.cli import app
from uturn.cli.printing import show
from uturn.cli.stops import Stops
from uturn.pages.laboratory import laboratory
from uturn.paper import Result, Verdict

PRESETS = ("images", "text")
COMMANDS = typer.main.get_command(app).commands


def test_help_names_the_commands():
    done, bare = process("--help"), process()
    assert (done.returncode, bare.returncode) == (0, 2)
    assert all(command in done.stdout for command in COMMANDS)
    assert bare.stdout.strip() == done.stdout.strip()


def test_theory_prints_and_plots(tmp_path):
    done = uturn("theory", "-v", 32, "-m", 8, "-s", 2, "--plot", tmp_path / "map.png")
    assert done.returncode == 0
    for number in ("0.731183", "0.291667", "1.8928", "0.70629"):
        assert number in done.stdout
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    assert "always lost" in uturn("theory", "-v", 32, "-m", 20).stdout


def test_explore_writes_the_laboratory_and_opens_it(tmp_path, monkeypatch):
    visited = []
    monkeypatch.setattr(
        "webbrowser.open", lambda address: visited.append(address) or len(visited) < 2
    )
    done = uturn("explore", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "next: open uturn-laboratory.html\n",
        "",
    )
    page = tmp_path / "uturn-laboratory.html"
    assert page.read_text(encoding="utf-8") == laboratory()
    assert not visited
    assert uturn("explore", "--open", cwd=tmp_path).stderr == ""
    assert visited == [page.as_uri()]
    done = uturn("explore", "--open", "--out", "own page.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "uturn: no browser was found\n")
    assert visited[1] == (tmp_path / "own page.html").as_uri()
    done = uturn("explore", "--out", "page.txt", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "expected a file that ends in .html" in done.stderr


def test_output_that_cannot_hold_a_character():
    done = process("theory", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert r"critical noise \u03b5*" in done.stdout


def test_files_of_the_working_directory_replace_no_library(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "tomllib.py").write_text("raise SystemExit('not the library')")
    command = [
        sys.executable,
        "-P",
        "-c",
        "from uturn.cli import main; main()",
        "run",
        "spec.toml",
        "--store",
        "store",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_run_and_resume(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    for _ in range(2):
        done = uturn("run", "spec.toml", "--store", "store", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "unchanged (noise 2, item 4, trajectory 1, tree_level 4)" in done.stdout
    done = uturn("run", "spec.toml", "--store", "store", "--no-resume", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "exists already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "fig99"], "unknown figure 'fig99'; expected some of fig2, fig3"),
        (["run", "spec.toml"], "expected --store STORE, or --out FOLDER"),
        (["run", "broken.toml", "--store", "x"], "multiplicity"),
        (["theory", "--plot", "no/such/folder/map.png"], "no/such/folder/map.png"),
        (["reproduce", "fig7", "--out", "spec.toml"], "spec.toml"),
        *(
            ([preset, "--model", "none", "--out", "spec.toml/a"], "spec.toml is a file")
            for preset in PRESETS
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    (tmp_path / "spec.toml").write_text(SPEC)
    (tmp_path / "broken.toml").write_text(SPEC.replace("multiplicity = 2", "multiplicity = 20"))
    done = uturn(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def result(figure, passed):
    files = {"png": f"{figure}.png", "pdf": f"{figure}.pdf", "data": f"{figure}.zarr"}
    return Result(
        figure,
        "A title",
        "A caption <with> signs",
        "smoke",
        [Verdict("x", "1 < 2", "1", passed, "rule")],
        files,
    )


def test_a_failed_verdict_is_a_failed_command(tmp_path, monkeypatch):
    for passed, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(
            paper, "reproduce", lambda *args, passed=passed, **kwargs: [result("fig7", passed)]
        )
        assert (
            CliRunner().invoke(app, ["reproduce", "fig7", "--out", str(tmp_path)]).exit_code == code
        )


@pytest.fixture
def asked(monkeypatch):
    """The names of figures that `uturn reproduce` makes."""
    names = []
    monkeypatch.setattr(paper, "reproduce", lambda figures, *_, **__: names.extend(figures) or [])
    return names


def test_reproduce_makes_the_figures_of_the_paper(asked, tmp_path):
    done = CliRunner().invoke(app, ["reproduce", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert asked == list(paper.PAPER_FIGURES)


def test_reproduce_makes_all_figures_that_can_be_made(asked, tmp_path, monkeypatch):
    monkeypatch.setitem(
        paper.FIGURES, "chi", replace(paper.FIGURES["chi"], needs=("no_such_library", "extra"))
    )
    done = CliRunner().invoke(app, ["reproduce", "--all", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert {*asked, "chi"} >= {name for name, entry in paper.FIGURES.items() if not entry.needs}
    assert "chi" not in asked
    assert (
        "left out: figure 'chi' needs the library no_such_library; pip install 'uturn[extra]'"
        in done.output
    )


def test_reproduce_takes_names_or_all(asked):
    refused = CliRunner().invoke(app, ["reproduce", "fig7", "--all"])
    assert isinstance(refused.exception, ValueError)
    assert not asked


def test_the_list_of_figures_has_their_times_and_claims(asked):
    listed = (
        CliRunner().invoke(app, ["reproduce", "--list"], env={"COLUMNS": "400"}).output.splitlines()
    )
    rows = {line.split()[0]: line for line in listed if line.split()}
    assert set(paper.FIGURES) <= set(rows)
    fig7 = paper.load_figure("fig7")
    assert fig7.TITLE in rows["fig7"]
    assert fig7.CLAIM in rows["fig7"]
    assert re.search(rf" paper +{max(paper.FIGURES['fig7'].seconds, 1):.0f} ", rows["fig7"])
    assert " beyond " in rows["chi"]
    assert " deepinv " in rows["inverse"]
    assert not asked


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("uturn", ("torch", "numba", "diffusers", "xarray", "matplotlib")),
        ("uturn.networks.texts.language_files", ("diffusers", "transformers")),
        ("uturn.sources.strings", ("scipy.optimize", "xarray")),
    ],
)
def test_import_is_light(module, heavy):
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# --- help, completion, tables ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_at_80_columns_names_each_option_with_its_default(name):
    done = CliRunner().invoke(
        app, [*([name] if name else []), "--help"], prog_name="uturn", env={"COLUMNS": "80"}
    )
    assert max(map(len, done.output.split("\n"))) <= 80
    assert "…" not in done.output
    assert "Example:\n" in "\n".join(line.strip() for line in done.output.split("\n")) or not name
    for parameter in COMMANDS[name].params if name else ():
        if parameter.param_type_name == "option":
            assert parameter.opts[0] in done.output
            if isinstance(parameter.default, int | float | str) and not parameter.is_flag:
                assert f"[default: {parameter.default}]" in done.output


def completed(words):
    """What a shell offers for the last of some words, and the modules that were imported for it."""
    environment = {
        "_UTURN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    code = (
        "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); from"
        " uturn.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout.split(), done.stderr.split()


@pytest.mark.parametrize(("status", "code"), [(0, 1), (3, 3)])
def test_an_own_part_that_ends_the_program_is_an_error(status, code, tmp_path):
    text = f"""import uturn as ut

class Ends(ut.Backward):
    kinds = ('strings',)
    def reconstruct(self, *_):
        raise SystemExit({status})
"""
    (tmp_path / f"ends{code}.py").write_text(text)
    (tmp_path / "spec.toml").write_text(SPEC.replace('"exact"', f'"ends{code}:Ends"'))
    done = uturn("run", "spec.toml", "--store", "x", cwd=tmp_path)
    assert done.returncode == code
    assert re.search(
        rf"uturn: error: backward \('ends{code}:Ends'\)\.reconstruct: SystemExit.*ends{code}.py,"
        r" line 6",
        done.stderr,
    )


def test_ctrl_c_while_modules_load():
    """At the import of a library, before `main` begins."""
    for name in ("typer", "uturn.cli.pages"):
        code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may inherit that it is ignored
class Interrupting:
    def find_spec(name, *_):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting)
from uturn.cli import program
program()
"""
        done = subprocess.run(
            [sys.executable, "-c", code, "--help"],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.fixture
def stops(monkeypatch):
    """The handler of signals of a command, in this process."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    with handlers_kept():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stops = Stops()
        stops.watch()
        yield stops


def test_the_first_signal_ends_a_command_and_further_ones_are_ignored(stops, monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    assert stops.exit_code == 143
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    stops.time -= 2 * stops.PATIENCE
    signal.raise_signal(signal.SIGTERM)
    assert left == []
    signal.raise_signal(signal.SIGINT)
    assert left == [130]
    stops.end()
    assert {signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} == {
        signal.SIG_IGN
    }


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_python_drops_is_raised_again(stops, capsys, number, code):
    class Deleted:
        def __del__(self):
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the exception comes a moment after the deletion
        Deleted()
        for _ in range(1000):
            time.sleep(0.01)
    assert stops.exit_code == code
    assert capsys.readouterr().err == ""


STOPS = {signal.SIGINT: 130, signal.SIGTERM: 143}
WORDS = (
    "RuntimeError('release unlocked lock')",
    "KeyError('a')",
    "SystemExit(1)",
    "TasksFailed('b')",
)
STOPPED = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import tomllib, uturn, uturn.cli.running
from uturn.cli import program
from uturn.core.errors import TasksFailed
uturn.Experiment.from_dict(tomllib.load(open("spec.toml", "rb"))).variables()
uturn.random.keys(0, range(2))  # compiled code is loaded
sys.argv = ["uturn", "run", "spec.toml", "--store", "x"]
cases = [(stop, word) for stop in {[*map(int, STOPS)]} for word in {WORDS}]
for place, (stop, word) in enumerate(cases):
    child = os.fork()
    if child == 0:
        def run(*_, **__):
            try:
                os.kill(os.getpid(), stop)
            finally:
                raise eval(word)
        uturn.run = run
        os.dup2(os.open(f"{{place}}.txt", os.O_WRONLY | os.O_CREAT), 2)
        program()  # ends the process
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
"""Commands in which an error follows a stop, each in a process of its own that another one
forks, which has imported all.
"""


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Exit codes and errors of these commands, by signal and error."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "spec.toml").write_text(SPEC)
    words = [sys.executable, "-c", STOPPED]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    cases = [(stop, word) for stop in STOPS for word in WORDS]
    texts = [(folder / f"{place}.txt").read_text() for place in range(len(cases))]
    return dict(zip(cases, zip(map(int, done.stdout.split()), texts, strict=True), strict=True))


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("word", WORDS)
def test_an_error_that_a_stop_causes_is_a_stop(stop, word, ended):
    """As `threading` does, whose lock is not held where a signal comes while it waits."""
    code, told = ended[stop, word]
    assert code == STOPS[stop]
    assert told.strip() == "stopped; what is done is in x; run the same command again to resume"


def test_completion_of_names_without_heavy_modules():
    for words, expected in (
        ("uturn re", ["reproduce", "report"]),
        ("uturn reproduce fig1", ["fig10", "fig11", "fig12", "fig13", "fig14", "fig15"]),
        ("uturn images --scheduler dd", ["ddpm", "ddim"]),
        ("uturn text --order en", ["entropy"]),
    ):
        found, modules = completed(words)
        assert found == expected
        assert {"torch", "numba", "diffusers", "xarray", "matplotlib", "zarr"}.isdisjoint(modules)


def table():
    made = Table(
        "quantity",
        "measured",
        "expected",
        "",
        title="A title that is longer than a narrow terminal",
    )
    made.add_row(
        "share of reconstructions of the same class",
        "0.512 [0.49, 0.53]",
        "0.5123456789",
        Text("pass", "green"),
    )
    made.add_row("slope of [red]the map", "1.8928", "", Text("FAIL", "bold red"))
    return made


@pytest.mark.parametrize("columns", [60, 80, 120, None])
def test_tables_lose_nothing(monkeypatch, capsys, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    show(table())
    lines = capsys.readouterr().out.split("\n")
    # What a cell says is in its column, one part below the other.
    starts = [
        next(line for line in lines if "measured" in line).index(head)
        for head in ("measured", "expected")
    ]
    cells = [
        "".join("".join(line[begin:end].split()) for line in lines)
        for begin, end in ((0, starts[0]), starts, (starts[1], None))
    ]
    for cell, told in (
        ("reconstructions", 0),
        ("[red]themap", 0),
        ("0.512", 1),
        ("1.8928", 1),
        ("0.5123456789", 2),
        ("FAIL", 2),
    ):
        assert cell in cells[told]
    if columns is None:  # no terminal: a row is a line
        assert [
            line
            for line in lines
            if "same class" in line and "0.512 [0.49, 0.53]" in line and "pass" in line
        ]
    else:
        assert max(map(len, lines)) <= columns


@pytest.mark.usefixtures("unsaved_figures")
def test_a_run_with_a_folder_of_results_ends_with_its_study(tmp_path, monkeypatch):
    (tmp_path / "spec.toml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "spec.toml", "--out", "a"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert "half of the way from start to chance" in done.output
    assert done.output.rstrip("\n").split("\n")[-1] == "next: open a/index.html"
    again = CliRunner().invoke(app, ["study", "a/run", "--out", "b"])
    assert again.exit_code == 0, (again.output, again.exception)
    files = {path.name for path in (tmp_path / "b").iterdir()}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {*files, "run"}
    for name in ("curves.csv", "numbers.csv"):
        assert (tmp_path / "a" / name).read_text() == (tmp_path / "b" / name).read_text()
    whole = CliRunner().invoke(app, ["run", "spec.toml", "--store", "store", "--out", "c"])
    assert whole.exit_code == 0
    assert not (tmp_path / "c" / "run").exists()
    assert (tmp_path / "c" / "curves.csv").read_text() == (
        tmp_path / "a" / "curves.csv"
    ).read_text()
    share = CliRunner().invoke(app, ["run", "spec.toml", "--out", "d", "--shard", "1/2"])
    assert share.exit_code == 0
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["run"]
    refused = CliRunner().invoke(app, ["run", "spec.toml", "--out", "store", "--store", "other"])
    assert "is a store itself" in str(refused.exception)
    assert not (tmp_path / "other").exists()  # before the run
