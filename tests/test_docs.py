"""The pages of docs/: what is made from the package is complete, and the commands of all pages can be typed as written."""

import ast
import contextlib
import importlib.util
import inspect
import io
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from command_line import uturn

ROOT = Path(__file__).parents[1]
OF_EXAMPLES = {"changed-runs"}  # tests/test_tools.py installs examples/tool and runs it
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def generated():
    """`docs/generated.py`, which makes the pages of options and members."""
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/generated.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def typed_commands(page):
    """Arguments of the commands `uturn ..` in the shell blocks of a page; lines that end in a backslash go on."""
    for block in re.findall(r"^```(?:bash|console|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|;", line):
                found = re.match(r"\s*(?:\$ )?(?:\w+=\S* )*(?:\S*/)?uturn (.*)", part)
                if found:
                    yield shlex.split(found[1], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_has_options_that_exist(generated, page):
    """Words in capitals stand for values; the files need not exist."""
    for name, *arguments in typed_commands(page):
        if name.startswith("-") or name in OF_EXAMPLES:
            continue
        try:
            generated.commands()[name].make_context(name, arguments)
        except Exception as error:
            pytest.fail(f"uturn {shlex.join([name, *arguments])}: {error!r}")


def test_the_test_sees_an_option_that_does_not_exist(generated, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\ncd out && OMP_NUM_THREADS=1 .venv/bin/uturn run spec.toml \\\n  --stare runs/x  # measures\n```\n")
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
            option for parameter in command.params for option in parameter.opts if option.startswith("-")
        }
    images = page.split("{ #uturn-images }")[1].split("\n## ")[0]
    assert re.search(r"^\| `--out FOLDER` \| required \| Folder of", images, re.MULTILINE)
    assert re.search(r"^\| `--steps \w+` \| `100` \| Number of reverse steps", images, re.MULTILINE)


def test_members_are_required_as_the_experiment_requires_them(generated):
    page = generated.members()
    assert re.search(r"\| \[`Channel`\]\(#channel\) \| .* \| `unit`, `max_noise`, `corrupt`, `log_evidence` \|", page)
    for name, kind in generated.MEMBERS.items():
        assert f"::: {kind.__module__}.{kind.__qualname__}\n" in page, name
        for member, value in vars(kind).items():  # mkdocstrings leaves out what has no docstring
            if inspect.isfunction(value) and not member.startswith("_"):
                assert value.__doc__, f"{kind.__name__}.{member}"


def pairs_of_blocks(page, first, second):
    """Blocks of a page in one language, each with the block in another that follows it after at most one line of text."""
    text = page.read_text()
    blocks = list(re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    return [
        (one[2], other[2])
        for one, other in itertools.pairwise(blocks)
        if (one[1], other[1]) == (first, second) and text[one.end() : other.start()].strip().count("\n") == 0
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
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    stated = dict(re.findall(r"^(?!from|import)([^#=\n]*\S.*?)  # .*?((?:\(\d.*\)|[\d.]+, [\d.]+|\d\.\d+))", code, re.MULTILINE))
    values = {line: eval(line, names) for line in stated}
    assert len(stated) == 3
    for line, text in stated.items():
        value = values[line]
        assert np.allclose(value, ast.literal_eval(text.split(":")[0]), atol=0.005), line
