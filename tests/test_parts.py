"""User-defined parts: what they give is checked, their mistakes are named, and nothing stored is
executed.
"""

import json
import re
import runpy
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import uturn as ut
from command_line import process, uturn
from forging import forge
from small import one_line_error, strings
from uturn.backward import ExactPosterior
from uturn.cli import app
from uturn.core.errors import described
from uturn.core.protocols import Variable
from uturn.engine.trial import check
from uturn.probes import TreeLevels
from uturn.sources import RHMSource
from uturn.store.reading import dataset_of
from uturn.store.run_folder import RunFolder
from uturn.studies import records_of

OWN = Path(__file__).parents[1] / "examples" / "own"
SPEC = strings("masking", [0.0, 0.4], source={"grammars": 2}, items=6, chunk=3, trajectories=2)


def with_part(idea, cls, **options):
    table = {"type": f"{__name__}:{cls}", **options}
    changed = (
        [table]
        if idea == "probes"
        else {**table, "noise": [0.0, 0.4]}
        if idea == "corruption"
        else table
    )
    return {**SPEC, idea: changed}


# -- parts with one mistake each -------------------------------------------------------------------


class Probe(ut.Probe):
    """Measures the share of unchanged leaves; `mistake` says how it goes wrong."""

    def __init__(self, mistake=""):
        self.mistake = mistake

    def variables(self, source):
        dims = {
            "dims": ("noise", "item", "trajectory", "colour"),
            "order": ("item", "noise", "trajectory"),
        }
        return {
            "leaves": Variable(
                dims.get(self.mistake, ("noise", "item", "trajectory")), "unchanged leaves"
            )
        }

    def read(self, u_turns, source):
        same = (u_turns.reconstructions[0] == u_turns.originals.data[:, None]).mean(axis=2)
        if self.mistake == "raises":
            raise ZeroDivisionError
        return {
            "one row": {"leaves": same[:1]},
            "keepdims": {"leaves": same[..., None]},
            "transposed": {"leaves": same.T},
            "masked": {"leaves": np.ma.masked_array(same, same > 0)},
            "infinite": {"leaves": np.where(same < 2, 1e300, 0)},
        }.get(self.mistake, {"leaves": same})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("dims", r"variables: dims of leaves = .*'colour'.*expected \('noise', 'item', \.\.\)"),
        ("order", "variables: dims of leaves = "),
        ("raises", r"read: ZeroDivisionError \(test_parts.py, line \d+\)"),
        (
            "one row",
            (
                r"read: shape of leaves = \(1, 2\): expected \(3, 2\), its dims \('item',"
                r" 'trajectory'\)"
            ),
        ),
        ("transposed", r"shape of leaves = \(2, 3\)"),
        ("masked", "read: leaves = 'a masked array': expected a plain array, with NaN"),
        ("infinite", "read: leaves = inf: expected numbers that are finite in float32"),
    ],
)
def test_mistakes_of_a_probe(mistake, message):
    line = told(with_part("probes", "Probe", mistake=mistake))
    assert re.search(rf"^probes\[0\] \('test_parts:Probe'\).*{message}", line)
    assert "\n" not in line


def told(spec):
    """The line in which the program reports the error of a run."""
    try:
        ut.run(ut.Experiment.from_dict(spec))
    except Exception as error:
        return described(error)
    pytest.fail("no error")


def test_a_probe_without_mistakes_measures():
    own = ut.run(ut.Experiment.from_dict(with_part("probes", "Probe")))
    built_in = ut.run(ut.Experiment.from_dict(SPEC))
    assert np.array_equal(own.leaves, built_in.unchanged.isel(tree_level=0))


class Source(ut.Source):
    """Strings of a grammar, in the wrong way that `mistake` says."""

    def __init__(self, mistake=""):
        self.mistake = mistake
        self.inner = RHMSource(
            **{k: v for k, v in SPEC["source"].items() if k not in ("type", "grammars")}
        )
        self.vocab_size, self.depth = 8, 3

    def blocks(self, items, seed, num_items):
        if self.mistake == "raises":
            raise KeyError("volume")
        return self._blocks(items, seed, num_items)

    def _blocks(self, items, seed, num_items):
        if self.mistake == "in place":
            yield from self.inner.blocks(items.copy(), seed, num_items)
            items[:] = 0
            return
        asked = {"reversed": items[::-1], "others": items + 1}
        yield from self.inner.blocks(asked.get(self.mistake, items), seed, num_items)

    def coordinates(self, seed, num_items):
        values = np.zeros(num_items - (self.mistake == "short"))
        return {"label": values}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("raises", r"blocks: KeyError: 'volume' \(test_parts.py, line \d+\)"),
        ("reversed", r"blocks: items = \[2, 1, 0\]"),
        ("others", r"blocks: items = \[1, 2, 3\]"),
        ("in place", None),
        ("short", r"coordinates: shape of label = \(5,\): expected \(6,\)"),
    ],
)
def test_mistakes_of_a_source(mistake, message):
    spec = ut.Experiment.from_dict(with_part("source", "Source", mistake=mistake))
    if message is None:  # the array that a source is given is its own
        assert ut.run(spec).unchanged.equals(
            ut.run(ut.Experiment.from_dict(with_part("source", "Source"))).unchanged
        )
        return
    assert re.search(
        rf"^source \('test_parts:Source'\)\.{message}",
        told(with_part("source", "Source", mistake=mistake)),
    )


class Backward(ut.Backward):
    """The exact posterior, in the wrong way that `mistake` says."""

    def __init__(self, mistake=""):
        self.mistake, self.inner = mistake, ExactPosterior()

    def reconstruct(self, noisy, streams, clones):
        if self.mistake == "nothing":
            return None
        trees = self.inner.reconstruct(noisy, streams, clones)
        if self.mistake == "fewer":
            return {level: nodes[:, :1] for level, nodes in trees.items()}
        return trees


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("fewer", r"reconstruct = \(3, 1, .*expected shape \(3, 2, \.\.\)"),
        ("nothing", "reconstruct = None"),
    ],
)
def test_mistakes_of_a_backward(mistake, message):
    spec = with_part("backward", "Backward", mistake=mistake)
    with pytest.raises(ValueError, match=rf"backward \('test_parts:Backward'\).*{message}"):
        ut.run(ut.Experiment.from_dict(spec))


class Swap(ut.Corruption):
    """A corruption that fails, or lacks what the exact backward asks for."""

    unit = "share"
    max_noise = 1.0

    def corrupt(self, leaves, noise, keys):
        return leaves[10**9]


class DrawsOnce(ut.Masking):
    """A corruption that makes one noisy datum of every original for any number of trajectories."""

    def observe(self, originals, noise, streams):
        return super().observe(originals, noise, streams.first())


class FailingMask(ut.Masking):
    def corrupt(self, leaves, noise, keys):
        return leaves[10**9]


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            "Swap",
            (
                r"corruption = 'test_parts:Swap': expected one with log_evidence, which the"
                r" backward 'exact' asks for"
            ),
        ),
        (
            "DrawsOnce",
            (
                r"corruption \('test_parts:DrawsOnce'\).corrupt: shape of values = \(3, 8\):"
                r" expected a numpy array \(6, ..\)"
            ),
        ),
        (
            "FailingMask",
            (
                r"corruption \('test_parts:FailingMask'\).corrupt: IndexError: .*\(test_parts.py,"
                r" line \d+\)"
            ),
        ),
    ],
)
def test_mistakes_of_a_corruption(cls, message):
    assert re.search(message, told(with_part("corruption", cls)))


class Writer(Probe):
    """Writes zeros into what `mistake` names."""

    def read(self, u_turns, source):
        eval(self.mistake, {"u_turns": u_turns})[...] = 0
        return super().read(u_turns, source)


class WritingBackward(Backward):
    """Writes zeros into what it reconstructs from."""

    def reconstruct(self, noisy, streams, clones):
        noisy.values[...] = 0
        return super().reconstruct(noisy, streams, clones)


@pytest.mark.parametrize(
    ("idea", "cls", "what"),
    [
        ("probes", "Writer", "originals.data"),
        ("probes", "Writer", "noisy.values"),
        ("backward", "WritingBackward", ""),
    ],
)
def test_parts_cannot_write_into_what_others_read(idea, cls, what):
    spec = with_part(idea, cls, mistake=what and f"u_turns.{what}")
    with pytest.raises(ValueError, match=rf"read-only\nin .*{cls}'\)\.(read|reconstruct) "):
        ut.run(ut.Experiment.from_dict(spec))


class Alone(Probe):
    """Declares a symmetric variable, and does not compare clones."""

    def variables(self, source):
        dims = ("noise", "item", "trajectory")
        return {"leaves": Variable(dims, "unchanged leaves", symmetric=True)}


def test_a_symmetric_variable_without_its_twin_is_named():
    spec = {**with_part("probes", "Alone"), "clones": 2}
    with pytest.raises(
        ValueError,
        match=(
            r"^probes\[0\] \('test_parts:Alone'\): 'leaves' is declared symmetric, so with several"
            r" clones 'clone_leaves' is needed too; let the class inherit from"
            r" uturn.probes.Comparison, which computes both$"
        ),
    ):
        ut.run(ut.Experiment.from_dict(spec))


class Leaves(ut.Probe):
    """Any variable of any data."""

    def variables(self, source):
        return {"leaves": Variable(("noise", "item", "trajectory"), "nothing")}

    def read(self, u_turns, source):
        return {"leaves": np.full((len(u_turns.originals.items), 2), np.nan)}


def test_readings_that_are_all_nan_are_named(tmp_path):
    spec = ut.Experiment.from_dict(
        {**SPEC, "probes": [{"type": f"{__name__}:Leaves"}, {"type": "tree_levels"}]}
    )
    assert "warning: all readings of leaves are NaN" in map(str, check(spec))
    for store in (None, tmp_path / "run"):
        with pytest.warns(UserWarning, match="^all readings of leaves are NaN$"):
            ds = ut.run(spec, store)
        assert json.loads(ds.attrs["warnings"]) == ["all readings of leaves are NaN"]
    assert RunFolder.open(store).attributes["warnings"] == ["all readings of leaves are NaN"]
    assert "warnings" not in ut.run(ut.Experiment.from_dict(SPEC)).attrs


class Last(Backward):
    """Its clones are in the reverse order, so that clone 0 depends on their number."""

    def reconstruct(self, noisy, streams, clones):
        found = self.inner.reconstruct(noisy, streams, clones)
        if self.mistake == "none":
            return found
        return {
            level: (
                nodes.reshape(len(nodes), -1, clones, nodes.shape[-1])[:, :, ::-1].reshape(
                    nodes.shape
                )
            )
            for level, nodes in found.items()
        }


def test_a_first_clone_that_depends_on_the_number_of_clones_is_noticed():
    table = {**with_part("backward", "Last"), "items": 6}
    message = (
        r"backward \('test_parts:Last'\).reconstruct: clone 0 of \d is not the reconstruction with"
        r" fewer clones"
    )
    with pytest.raises(ValueError, match=message):
        list(check(ut.Experiment.from_dict(table)))
    right = {**table, "backward": {**table["backward"], "mistake": "none"}}
    assert any(str(line).startswith("noise 0.4") for line in check(ut.Experiment.from_dict(right)))


@pytest.mark.parametrize(
    ("idea", "base"),
    [
        ("source", "Source"),
        ("corruption", "Corruption"),
        ("backward", "Backward"),
        ("probes", "Probe"),
    ],
)
def test_a_spec_must_name_a_class_that_inherits(idea, base, tmp_path):
    """It is checked before it is called, in one sentence that says from what to inherit."""
    trace = tmp_path / "trace"
    for kind, message in (
        (
            "os:system",
            f"is a builtin_function_or_method; expected a class that inherits from uturn.{base}",
        ),
        (
            f"{__name__}:Stranger",
            f"the class does not inherit from uturn.{base}; write `class Stranger\\(ut.{base}\\)`",
        ),
        (f"{__name__}:Empty{base}", "the class lacks "),
    ):
        table = {
            "type": kind,
            "command": f"touch {trace}",
            **({"noise": [0.5]} if idea == "corruption" else {}),
        }
        with one_line_error(message):
            ut.Experiment.from_dict({**SPEC, idea: [table] if idea == "probes" else table})
    assert not trace.exists()


class Stranger:
    """It has all methods, and inherits from nothing."""

    def __init__(self, command):
        raise AssertionError

    blocks = corrupt = reconstruct = variables = read = __init__


class EmptySource(ut.Source):
    pass


class EmptyCorruption(ut.Corruption):
    pass


class EmptyBackward(ut.Backward):
    pass


class EmptyProbe(ut.Probe):
    pass


class NoUnit(ut.Corruption):
    max_noise = 1.0

    def corrupt(self, data, noise, keys):
        return data


def test_a_corruption_needs_a_unit():
    with pytest.raises(
        ValueError, match=r"^corruption \('test_parts:NoUnit'\): the class lacks unit"
    ):
        ut.Experiment.from_dict(with_part("corruption", "NoUnit"))


# -- nothing stored is executed --------------------------------------------------------------------


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_a_spec_in_a_store_runs_nothing(tmp_path, monkeypatch):
    """Its analysis makes the originals again, but only from built-in sources; nothing is
    imported.
    """
    spec = {
        **SPEC,
        "items": 3,
        "trajectories": 1,
        "source": {"type": "fashion_mnist"},
        "corruption": {"type": "diffusion", "noise": [0.5, 1.0]},
        "backward": {"type": "diffusion", "steps": 2},
        "probes": [{"type": "network_layers", "reference": 20}, {"type": "images"}],
    }
    folder, trace = tmp_path / "run", tmp_path / "trace"
    ut.run(ut.Experiment.from_dict(spec), folder)
    (tmp_path / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Source: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    stored = RunFolder.open(folder).attributes["spec"]
    for source in (
        {"type": "os:system", "command": f"touch {trace}"},
        {"type": "subprocess:Popen", "args": ["touch", str(trace)]},
        {"type": "evil:Source"},
    ):
        RunFolder.open(folder).update(spec={**stored, "source": source})
        assert np.isnan(records_of(dataset_of(RunFolder.open(folder))).original).all()
    done = CliRunner().invoke(
        app, ["study", str(folder), "--out", str(tmp_path / "out"), "--save-images"]
    )
    assert done.exit_code == 0, done.output
    assert not trace.exists()
    assert "evil" not in sys.modules
    forge(folder, lambda run: run["attributes"].update(spec=[source]))
    with pytest.raises(ValueError, match="is not a readable store: its attribute spec = "):
        RunFolder.open(folder)


# -- the code of a part ----------------------------------------------------------------------------


MODULE = """
from uturn.core.protocols import Variable
from uturn.probes import TreeLevels

class Mine(TreeLevels):
    type: str = "mine"

    def fingerprint(self):
        return {fingerprint!r}
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Writes a module with a probe of one's own, and forgets it, as a new process would."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text=MODULE, fingerprint="1"):
        (tmp_path / "mine_changes.py").write_text(text.format(fingerprint=fingerprint))
        sys.modules.pop("mine_changes", None)
        return ut.Experiment.from_dict({**SPEC, "probes": [{"type": "mine_changes:Mine"}]})

    yield write
    sys.modules.pop("mine_changes", None)


def test_resuming_with_changed_code_is_refused(own_module, tmp_path):
    store = tmp_path / "run"
    first = ut.run(own_module(), store).load()
    code = json.loads(first.attrs["models"])["probes[0].code"]
    assert code not in json.dumps(first.attrs["identity"])
    ut.run(own_module(), store)  # the same
    changed = own_module(MODULE + "\n# changed\n")
    assert changed.hash == first.attrs["spec_hash"]
    with pytest.raises(
        ValueError,
        match=r"the code of probes\[0\] has changed .*accept_changes=True \(--accept-changes\)",
    ):
        ut.run(changed, store)
    ut.run(changed)  # in memory never refused
    again = ut.run(changed, store, accept_changes=True)
    assert json.loads(again.attrs["models"])["probes[0].code"] != code
    assert json.loads(again.attrs["accepted_changes"]) == [{"probes[0].code": code}]
    ut.run(changed, store)
    with pytest.raises(
        ValueError, match=r"the fingerprint of probes\[0\] has changed .*'1' in the store, '2' here"
    ):
        ut.run(own_module(MODULE + "\n# changed\n", fingerprint="2"), store)


# -- trying a spec before its run ------------------------------------------------------------------


class OneGenerator(TreeLevels):
    """Adds noise from one generator for all items, so that readings depend on the batch and on
    what came before.
    """

    type: str = "one generator"

    def read(self, u_turns, source):
        return {
            name: values + GENERATOR.random(values.shape)
            for name, values in super().read(u_turns, source).items()
        }


GENERATOR = np.random.default_rng(0)


def test_check_finds_readings_that_depend_on_the_batch():
    with pytest.raises(
        ValueError,
        match=r"unchanged of item 0 at noise 0 is .* in a batch of 2, .*uturn.random.keys",
    ):
        list(check(ut.Experiment.from_dict(with_part("probes", "OneGenerator"))))
    lines = list(map(str, check(ut.Experiment.from_dict(SPEC))))
    assert any(line.startswith("noise 0: means over items [0, 1]: unchanged 1") for line in lines)


def test_check_from_the_command_line(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "spec.json")])
    assert done.exit_code == 0
    assert "nothing wrong was found" in done.output
    (tmp_path / "spec.json").write_text(
        json.dumps(with_part("probes", "Probe", mistake="keepdims"))
    )
    done = CliRunner().invoke(app, ["check", str(tmp_path / "spec.json")])
    assert "shape of leaves = (2, 2, 1)" in str(done.exception)


# -- the page "Your own data and model" ------------------------------------------------------------


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A copy of examples/own, with the statistics of its network."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("series.py", "series.toml", "network.py", "rules.json", "rules.toml"):
        (folder / name).write_text((OWN / name).read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        runpy.run_path("network.py", run_name="__main__")
    yield folder
    for name in ("series", "network"):  # imported by the program in this process
        sys.modules.pop(name, None)


def test_the_page_shows_the_files_that_are_tested():
    page = (OWN.parents[1] / "docs" / "own-parts.md").read_text()
    for name in ("series.py", "series.toml", "network.py", "rules.json", "rules.toml"):
        text = (OWN / name).read_text()
        for piece in text.split("\n\n\n"):
            assert textwrap.dedent(piece).strip() in page, f"{name}: {piece[:60]}"


def code_blocks(page):
    """The blocks of a page, as (language, text)."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


SHOWN_ELSEWHERE = {
    "# brightness.py": "test_model_pages",
    "# spans.py": "test_language",
    "    def bind(self, source):": "test_the_short_blocks_of_the_page_run",
    "class Reactions(ut.sources.TextSource):": "test_the_short_blocks_of_the_page_run",
    "# ends.py": "test_the_decoder_of_the_page",
    "[[probes]]": "test_own_network",
    '[project.entry-points."uturn.parts"]': "test_own_parts",
}
"""The first lines of blocks, and the tests that run them."""


def test_every_block_of_the_page_is_run():
    page = (OWN.parents[1] / "docs" / "own-parts.md").read_text()
    folders = (OWN, OWN.parents[0] / "tool")
    files = [path for folder in folders for path in folder.rglob("*.*") if path.is_file()]
    texts = [path.read_text() for path in files if path.suffix in (".py", ".toml", ".json")]
    for language, code in code_blocks(page):
        first = code.splitlines()[0]
        is_of_file = any(textwrap.dedent(code).strip() in text for text in texts)
        assert language == "bash" or is_of_file or first in SHOWN_ELSEWHERE, first
    firsts = {code.splitlines()[0] for _, code in code_blocks(page)}
    assert set(SHOWN_ELSEWHERE) <= firsts
    modules = {path.stem for path in Path(__file__).parent.glob("test_*.py")}
    assert set(SHOWN_ELSEWHERE.values()) <= modules | set(globals())


def block(first):
    """The block of the page with this first line."""
    page = (OWN.parents[1] / "docs" / "own-parts.md").read_text()
    return next(code for _, code in code_blocks(page) if code.splitlines()[0] == first)


@pytest.fixture
def module_of(tmp_path, monkeypatch):
    """Writes a module of a user and gives its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(name, text):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test may have its own
        written.append(name)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


def test_the_short_blocks_of_the_page_run(module_of):
    Path("reactions.smi").write_text("the cat\nthe dog\n")
    texts = module_of(
        "reactions", f"import uturn as ut\n\n{block('class Reactions(ut.sources.TextSource):')}"
    )
    probe = f"""
import copy
import numpy as np
import uturn as ut


def load(path):
    return len(path)


class Bound(ut.Probe):
    path = "weights"

{block("    def bind(self, source):")}
    def variables(self, source):
        return {{"size": ut.Variable(("noise", "item"), "size")}}

    def read(self, u_turns, source):
        return {{"size": np.full(len(u_turns.originals.items), self.network)}}
"""
    spec = {
        "items": 2,
        "source": {"type": f"{texts}:Reactions"},
        "corruption": {"type": "masking", "noise": [0.5]},
        "backward": {"type": "language"},
        "probes": [{"type": "kept_tokens"}, {"type": f"{module_of('bound', probe)}:Bound"}],
    }
    ds = ut.run(ut.Experiment.from_dict(spec))
    assert (ds["size"] == 7).all()
    assert ds.length.values.tolist() == [7, 7]


def test_the_decoder_of_the_page(module_of):
    """One symbol at a time, chosen before it is drawn, draws from the posterior."""
    ends = module_of("ends", block("# ends.py"))
    spec = {
        "items": 200,
        "clones": 2,
        "source": {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 2},
        "corruption": {"type": "masking", "noise": [0.0, 0.6]},
        "backward": {"type": f"{ends}:FromTheEnds"},
        "probes": [{"type": "tree_levels"}],
    }
    experiment = ut.Experiment.from_dict(spec)
    assert len(list(check(experiment))) > 4
    ds = ut.run(experiment)
    assert (ds.unchanged.sel(noise=0) == 1).all()
    gap = (ds.unchanged - ds.clone_unchanged).sel(noise=0.6, tree_level=0).mean("clone")
    error = float(gap.std("item").max()) / 200**0.5
    assert abs(float(gap.mean())) < 4 * error


def test_own_series_run(own_folder):
    assert uturn("check", "series.toml", cwd=own_folder).returncode == 0
    done = process("run", "series.toml", "--store", "run", "--workers", "2", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = dataset_of(RunFolder.open(own_folder / "run"))
    assert np.allclose(ds.similarity.sel(noise=0), 1)
    mean = ds.similarity.mean(("item", "trajectory"))
    assert (np.diff(mean, axis=0) < 0.02).all()  # falls with noise
    assert (mean.sel(noise=0.3).diff("window") > 0.03).all()  # slow scales live longer
    # 400 signs of independent series: a share of 1/2 +- .1 is four standard deviations.
    assert abs(ds.same_sign.sel(noise=3).mean() - 0.5) < 0.1


@pytest.mark.usefixtures("unsaved_figures")
def test_own_series_end_in_a_page(own_folder):
    """Curves and half-lives of one's own readings without a line of analysis code."""
    text = (own_folder / "series.toml").read_text().replace("items = 200", "items = 60")
    (own_folder / "few.toml").write_text(text)
    done = uturn("run", "few.toml", "--out", "results", "--workers", "1", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = dataset_of(RunFolder.open(own_folder / "results" / "run"))
    numbers = xr.open_zarr(own_folder / "results" / "study.zarr").sel(axis="noise")
    assert numbers.reading.values.tolist() == [
        *(f"similarity, window = {window}" for window in (1, 4, 16)),
        "same_sign",
    ]
    curves = {
        **{
            f"similarity, window = {window}": ds.similarity.sel(window=window)
            for window in (1, 4, 16)
        },
        "same_sign": ds.same_sign.astype(float),
    }
    for name, values in curves.items():
        curve, chance = (
            values.mean(("item", "trajectory")).values,
            (0.5 if name == "same_sign" else 0.0),
        )
        k = next(k for k in range(len(curve) - 1) if curve[k] > (1 + chance) / 2 >= curve[k + 1])
        step = (curve[k] - (1 + chance) / 2) / (curve[k] - curve[k + 1])
        half, low, high = numbers.half_life.sel(reading=name).values
        assert half == pytest.approx(ds.noise.values[k] + step * np.diff(ds.noise.values)[k])
        assert low < half < high
        assert float(numbers.curve.sel(reading=name)[-1, 0]) == pytest.approx(curve[-1])
    lives = numbers.half_life[:3, 0].values.tolist()
    assert lives == sorted(lives)  # slow scales live longer
    assert numbers.series.values.tolist() == ["similarity"]
    page = (own_folder / "results" / "index.html").read_text()
    (section,) = json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    )["sections"]
    titles = {chart["title"]: len(chart["lines"]) for chart in section["charts"]}
    assert titles == {"Sign of the mean is kept": 1, "Cosine of block averages": 3}
    assert section["cards"][0]["label"] == "t*"
    assert section["cards"][0]["place"][0] == pytest.approx(
        float(numbers.half_life.sel(reading="same_sign")[0]), rel=1e-5
    )


def test_own_rules_run(own_folder):
    """The beliefs are those of the inference of the grammar alone, and its strings parse."""
    done = uturn("run", "rules.toml", "--store", "rules", "--workers", "1", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = dataset_of(RunFolder.open(own_folder / "rules"))
    assert np.allclose(ds.belief.sel(noise=0), 1)
    assert np.allclose(ds.unchanged.sel(noise=0), 1)
    grammar = ut.RandomHierarchyModel.from_rules(
        **json.loads((own_folder / "rules.json").read_text())
    )
    nothing = ut.infer(grammar, np.zeros((1, 8, 3), np.float32)).marginals
    (block,) = ut.sources.GrammarSource(file=str(own_folder / "rules.json")).blocks(
        np.arange(100), 0, 100
    )
    for level in range(4):
        expected = nothing[level][0][np.arange(8 // 2**level), block.draw.latents[level]].mean(1)
        np.testing.assert_allclose(ds.belief.sel(noise=1, tree_level=level), expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["Changes", "KeptTokens", "NetworkLayers", "TextLayers"])
def test_a_probe_that_is_not_bound_to_a_source_says_so(name):
    probe = getattr(ut.probes, name)()
    with pytest.raises(ValueError, match=rf"'{probe.type}' .* bind the probe to its source first"):
        probe.coordinates(None)
    with pytest.raises(AttributeError, match="misspelt"):
        probe.misspelt  # noqa: B018 - an attribute that it does not have


def test_own_network(own_folder, monkeypatch):
    """The probe of the page, beside those of the example."""
    monkeypatch.chdir(own_folder)
    monkeypatch.syspath_prepend(own_folder)
    spec = tomllib.loads((own_folder / "series.toml").read_text() + block("[[probes]]"))
    ds = ut.run(ut.Experiment.from_dict({**spec, "items": 4}))
    changed = ds.network_similarity.mean(("item", "trajectory"))
    assert np.allclose(changed.sel(noise=0), 1, atol=1e-5)
    assert (changed.sel(noise=3) < 0.9).all()
