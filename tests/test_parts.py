"""User-defined parts: what they give is checked, their mistakes are named, and nothing stored is executed."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import uturn as ut
from command_line import process, uturn
from uturn.backward import ExactPosterior
from uturn.cli import app
from uturn.core.checks import described
from uturn.engine.measuring import measure
from uturn.engine.trial import check
from uturn.probes import TreeLevels
from uturn.sources import RHMSource
from uturn.store.record import Store, Variable
from uturn.studies import records_of

OWN = Path(__file__).parents[1] / "examples" / "own"
SPEC = {
    "items": 6,
    "chunk": 3,
    "trajectories": 2,
    "source": {"type": "rhm", "vocab_size": 8, "multiplicity": 2, "branching": 2, "depth": 3, "grammars": 2},
    "corruption": {"type": "masking", "noise": [0.0, 0.4]},
    "backward": {"type": "exact"},
    "probes": [{"type": "tree_levels"}],
}


def with_part(idea, cls, **options):
    table = {"type": f"{__name__}:{cls}", **options}
    changed = [table] if idea == "probes" else {**table, "noise": [0.0, 0.4]} if idea == "corruption" else table
    return {**SPEC, idea: changed}


# -- parts with one mistake each --------------------------------------------------------------------------------------


class Speechless(Exception):
    """An error whose text cannot be made."""

    def __str__(self):
        raise RuntimeError


class Probe:
    """Measures the share of unchanged leaves; `mistake` says how it goes wrong."""

    def __init__(self, mistake=""):
        self.mistake = mistake
        if mistake == "init":
            raise RuntimeError("no licence")

    def variables(self, source):
        dims = {"dims": ("noise", "item", "trajectory", "colour"), "order": ("item", "noise", "trajectory")}
        found = {"leaves": Variable(dims.get(self.mistake, ("noise", "item", "trajectory")), "unchanged leaves")}
        wrong = {
            "bare": lambda: {"leaves": Variable(None, "no dims")},
            "no draws": lambda: {"leaves": Variable(("noise", "item"), "unchanged leaves", symmetric=True)},
        }
        return wrong.get(self.mistake, lambda: found)()

    def read(self, u_turns, source):
        same = (u_turns.reconstructions[0] == u_turns.originals.data[:, None]).mean(axis=2)
        if self.mistake == "raises":
            raise ZeroDivisionError
        if self.mistake == "speechless":
            raise Speechless
        if self.mistake == "asks":
            return {"leaves": source.colour}
        return {
            "one row": {"leaves": same[:1]},
            "keepdims": {"leaves": same[..., None]},
            "transposed": {"leaves": same.T},
            "complex": {"leaves": same.astype(complex)},
            "another name": {"leafs": same},
            "masked": {"leaves": np.ma.masked_array(same, same > 0)},
            "infinite": {"leaves": np.where(same < 2, 1e300, 0)},
        }.get(self.mistake, {"leaves": same})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("init", r"RuntimeError: no licence \(test_parts.py, line \d+\)"),
        ("dims", r"variables: dims of leaves = .*'colour'.*expected \('noise', 'item', \.\.\)"),
        ("order", "variables: dims of leaves = "),
        ("raises", r"read: ZeroDivisionError \(test_parts.py, line \d+\)"),
        ("speechless", r"read: Speechless \(test_parts.py, line \d+\)"),
        ("asks", "read: AttributeError: .*colour"),
        ("one row", r"read: shape of leaves = \(1, 2\): expected \(3, 2\), its dims \('item', 'trajectory'\)"),
        ("keepdims", r"shape of leaves = \(3, 2, 1\)"),
        ("transposed", r"shape of leaves = \(2, 3\)"),
        ("complex", "dtype of leaves = 'complex128': expected real numbers"),
        ("another name", r"read = \['leafs'\]: expected leaves"),
        ("masked", "read: leaves = 'a masked array': expected a plain array, with NaN"),
        ("infinite", "read: leaves = inf: expected numbers that are finite in float32"),
        ("bare", r"variables: .* = None: Input should be a valid tuple \(test_parts.py, line \d+\)"),
        ("no draws", r"variables: dims of leaves = .*: expected 'trajectory'"),
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


class Source:
    """Strings of a grammar, in the wrong way that `mistake` says."""

    def __init__(self, mistake=""):
        self.mistake = mistake
        self.inner = RHMSource(**{k: v for k, v in SPEC["source"].items() if k not in ("type", "grammars")})
        self.vocab_size, self.depth = 8, 3

    def blocks(self, items, seed, num_items):
        if self.mistake == "raises":
            raise KeyError("volume")
        return self._blocks(items, seed, num_items)

    def _blocks(self, items, seed, num_items):
        if self.mistake == "empty":
            return
        if self.mistake == "for ever":
            while True:
                yield from self.inner.blocks(items, seed, num_items)
        if self.mistake == "in place":
            yield from self.inner.blocks(items.copy(), seed, num_items)
            items[:] = 0
            return
        asked = {"reversed": items[::-1], "others": items + 1}
        yield from self.inner.blocks(asked.get(self.mistake, items), seed, num_items)

    def coordinates(self, seed, num_items):
        values = np.zeros(num_items - (self.mistake == "short"))
        return {"item" if self.mistake == "axis" else "label": values}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("raises", r"blocks: KeyError: 'volume' \(test_parts.py, line \d+\)"),
        ("empty", r"blocks: items = \[\]: expected \[0, 1, 2\], each once and in order"),
        ("reversed", r"blocks: items = \[2, 1, 0\]"),
        ("others", r"blocks: items = \[1, 2, 3\]"),
        ("for ever", r"blocks: items = \[0, 1, 2, 0, 1, 2\]"),
        ("in place", None),
        ("axis", r"coordinates: name = 'item'"),
        ("short", r"coordinates: shape of label = \(5,\): expected \(6,\)"),
    ],
)
def test_mistakes_of_a_source(mistake, message):
    spec = ut.Experiment.from_dict(with_part("source", "Source", mistake=mistake))
    if message is None:  # the array that a source is given is its own
        assert ut.run(spec).unchanged.equals(ut.run(ut.Experiment.from_dict(with_part("source", "Source"))).unchanged)
        return
    assert re.search(rf"^source \('test_parts:Source'\)\.{message}", told(with_part("source", "Source", mistake=mistake)))


def test_items_stay_in_their_order_across_grammars():
    experiment = ut.Experiment.from_dict(SPEC)
    mixed = np.array([5, 0, 4, 1])
    alone = [measure(experiment, 1, np.array([item]))["unchanged"] for item in mixed]
    assert np.array_equal(measure(experiment, 1, mixed)["unchanged"], np.concatenate(alone))


class Backward:
    """The exact posterior, in the wrong way that `mistake` says."""

    def __init__(self, mistake=""):
        self.mistake, self.inner = mistake, ExactPosterior()

    def reconstruct(self, noisy, streams, clones):
        if self.mistake in ("nothing", "empty"):
            return None if self.mistake == "nothing" else {}
        if self.mistake == "fewer":
            streams = streams.first()
        return self.inner.reconstruct(noisy, streams, clones)


class DrawsOnce(ut.Masking):
    """A corruption that makes one noisy datum of every original for any number of trajectories."""

    def observe(self, originals, noise, streams):
        return super().observe(originals, noise, streams.first())


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("fewer", r"reconstruct = \(3, 1, .*expected shape \(3, 2, \.\.\)"),
        ("nothing", "reconstruct = None"),
        ("empty", "reconstruct = None"),
    ],
)
def test_mistakes_of_a_backward(mistake, message):
    spec = with_part("backward", "Backward", mistake=mistake)
    if mistake == "fewer":
        spec = {**spec, "corruption": {"type": f"{__name__}:DrawsOnce", "noise": [0.0, 0.4]}}
    with pytest.raises(ValueError, match=rf"backward \('test_parts:Backward'\).*{message}"):
        ut.run(ut.Experiment.from_dict(spec))


class Axes(ut.Masking):
    """Masking with further axes, in the wrong way that `mistake` says."""

    def __init__(self, mistake):
        object.__setattr__(self, "mistake", mistake)

    def axes(self, noise, source):
        return {"short": {"depth": (noise[:-1], {})}, "noise": {"noise": (noise, {})}}[self.mistake]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("short", r"axes: shape of depth = \(1,\): expected \(2,\)"),
        ("noise", "axes: name = 'noise'"),
    ],
)
def test_mistakes_of_axes(mistake, message):
    with pytest.raises(ValueError, match=rf"corruption \('test_parts:Axes'\)\.{message}"):
        ut.run(ut.Experiment.from_dict(with_part("corruption", "Axes", mistake=mistake)))


class Swap:
    """A corruption that fails, or lacks what the exact backward asks for."""

    unit = "share"
    max_noise = 1.0

    def corrupt(self, leaves, noise, vocab_size, seed=0):
        return leaves[10**9]


class FailingMask(ut.Masking):
    def corrupt(self, leaves, noise, vocab_size, seed=0):
        return leaves[10**9]


class OneKind(Swap):
    kinds = "strings"  # of which "string" is a part


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        ("Swap", r"corruption \('test_parts:Swap'\): expected one with log_evidence, which the backward 'exact' asks for"),
        ("FailingMask", r"corruption \('test_parts:FailingMask'\).corrupt: IndexError: .*\(test_parts.py, line \d+\)"),
        ("OneKind", "kinds = 'strings': expected a tuple of strings"),
        ("Absent", "cannot be imported"),
    ],
)
def test_mistakes_of_a_corruption(cls, message):
    assert re.search(message, told(with_part("corruption", cls)))


class Relabelled(TreeLevels):
    """Gives another meaning to a dim that another probe has too, or writes into what it reads."""

    type: str = "relabelled"
    writes: bool = False

    def variables(self, source):
        return {f"again_{name}": variable for name, variable in super().variables(source).items()}

    def coordinates(self, source):
        return {"tree_level": np.arange(source.depth + 1)[:: 1 if self.writes else -1]}

    def read(self, u_turns, source):
        if self.writes:
            u_turns.reconstructions[0][:] = 0
        return {f"again_{name}": values for name, values in super().read(u_turns, source).items()}


def test_probes_that_disagree_or_write():
    two = [{"type": "tree_levels"}, {"type": f"{__name__}:Relabelled"}]
    with pytest.raises(ValueError, match=r"Relabelled'\): coordinate = 'tree_level': expected another name"):
        ut.run(ut.Experiment.from_dict({**SPEC, "probes": two}))
    with pytest.raises(ValueError, match=r"read-only\nin .*Relabelled'\)\.read \(test_parts.py, line \d+\)"):
        ut.run(ut.Experiment.from_dict({**SPEC, "probes": [{**two[1], "writes": True}, two[0]]}))


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
    "what", ["originals.data", "originals.items", "originals.draw.latents[1]", "noisy.values", "noisy.noise"]
)
def test_probes_cannot_write_into_what_others_read(what):
    spec = with_part("probes", "Writer", mistake=f"u_turns.{what}")
    with pytest.raises(ValueError, match=r"read-only\nin .*Writer'\)\.read "):
        ut.run(ut.Experiment.from_dict(spec))


def test_a_backward_cannot_write_into_noisy_data():
    with pytest.raises(ValueError, match=r"read-only\nin .*WritingBackward'\)\.reconstruct "):
        ut.run(ut.Experiment.from_dict(with_part("backward", "WritingBackward")))


class Pair(ut.Masking):
    """Gives a tuple in the place of noisy data."""

    def corrupt(self, images, noise, keys):
        return images, noise


class OwnBlock:
    """A block with its own `observed_by`."""

    def __init__(self, items):
        self.items, self.data = items, np.zeros((len(items), 3))

    def observed_by(self, corruption, noise, streams):
        return corruption.corrupt(self.data, noise, streams.keys(1)).values


class OwnBlocks:
    """A source of them."""

    def blocks(self, items, seed, num_items):
        yield OwnBlock(items)


class Leaves:
    """Any variable of any data."""

    def variables(self, source):
        return {"leaves": Variable(("noise", "item", "trajectory"), "nothing")}

    def read(self, u_turns, source):
        return {"leaves": np.full((len(u_turns.originals.items), 2), np.nan)}


def test_noisy_data_that_the_block_cannot_read():
    spec = {**with_part("corruption", "Pair"), "source": {"type": f"{__name__}:OwnBlocks"}}
    spec |= {"backward": {"type": f"{__name__}:Backward"}, "probes": [{"type": f"{__name__}:Leaves"}]}
    with pytest.raises((AttributeError, TypeError), match="tuple"):
        ut.run(ut.Experiment.from_dict(spec))


def test_readings_that_are_all_nan_are_named(tmp_path):
    spec = ut.Experiment.from_dict({**SPEC, "probes": [{"type": f"{__name__}:Leaves"}, {"type": "tree_levels"}]})
    assert "warning: all readings of leaves are NaN" in list(check(spec))
    for store in (None, tmp_path / "run"):
        with pytest.warns(UserWarning, match="^all readings of leaves are NaN$"):
            ds = ut.run(spec, store)
        assert json.loads(ds.attrs["warnings"]) == ["all readings of leaves are NaN"]
    assert json.loads(Store.open(store).attributes["warnings"]) == ["all readings of leaves are NaN"]
    assert "warnings" not in ut.run(ut.Experiment.from_dict(SPEC)).attrs


class Last(Backward):
    """Its clones are in the reverse order, so that clone 0 depends on their number."""

    def reconstruct(self, noisy, streams, clones):
        found = self.inner.reconstruct(noisy, streams, clones)
        if self.mistake == "none":
            return found
        return {
            level: nodes.reshape(len(nodes), -1, clones, nodes.shape[-1])[:, :, ::-1].reshape(nodes.shape)
            for level, nodes in found.items()
        }


def test_a_first_clone_that_depends_on_the_number_of_clones_is_noticed():
    table = {**with_part("backward", "Last"), "items": 6}
    message = r"backward \('test_parts:Last'\).reconstruct: clone 0 of \d is not the reconstruction with fewer clones"
    with pytest.raises(ValueError, match=message):
        list(check(ut.Experiment.from_dict(table)))
    right = {**table, "backward": {**table["backward"], "mistake": "none"}}
    assert any(line.startswith("noise 0.4") for line in check(ut.Experiment.from_dict(right)))


def test_errors_name_the_part_that_needs_a_missing_member(tmp_path, monkeypatch):
    """Errors distinguish parts of one module; declared kinds are compared first."""
    (tmp_path / "kindless.py").write_text(
        "import series\n"
        "class Series(series.Series):\n    kind = ''\n"
        "class Diffusing(series.Diffusing):\n    kinds, process = (), ''\n"
    )
    for folder in (OWN, tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    spec = {
        "items": 2,
        "source": {"type": "kindless:Series"},
        "corruption": {"type": "kindless:Diffusing", "noise": [0.1]},
        "backward": {"type": "series:Wiener"},
        "probes": [{"type": "series:Scales"}],
    }
    for idea, table, needs, message in [
        (
            "probes",
            [{"type": "tree_levels"}],
            r"probes\[0\]: type 'tree_levels'",
            r"^source \('kindless:Series'\): AttributeError: .*no attribute 'depth'$",
        ),
        (
            "backward",
            {"type": "diffusion", "steps": 10},
            "backward: type 'diffusion'",
            r"the backward undoes the forward process of its own scheduler; expected Diffusion\(\)",
        ),
        (
            "backward",
            {"type": "exact"},
            "backward: type 'exact'",
            r"\('kindless:Diffusing'\): expected one with log_evidence, which the backward 'exact' asks for",
        ),
    ]:
        assert re.search(message, told({**spec, idea: table}))
        with pytest.raises(ValueError, match=rf"{needs} does not go with series; (expected one of|no built-in one does)"):
            ut.Experiment.from_dict({**spec, "source": {"type": "series:Series"}, idea: table})
    spec |= {"corruption": {"type": "masking", "noise": [0.1]}, "backward": {"type": "exact"}}
    with pytest.raises((AttributeError, ValueError)):  # each needs more of the other
        ut.run(ut.Experiment.from_dict(spec))


def test_options_are_plain_data():
    spec = {**SPEC, "probes": [{"type": f"{__name__}:Probe", "mistake": np.int64(3)}]}
    assert ut.Experiment.from_dict(spec).to_dict()["probes"][0]["mistake"] == 3


@pytest.mark.parametrize("kind", ["os:system", "subprocess:Popen", ":b", "os\0:system", 3])
@pytest.mark.parametrize("idea", ["source", "corruption", "backward", "probes"])
def test_a_spec_must_name_a_class_with_the_methods(idea, kind, tmp_path):
    """It is checked before it is called."""
    trace = tmp_path / "trace"
    options = {"command": f"touch {trace}"} if kind == "os:system" else {"args": ["touch", str(trace)]}
    table = {"type": kind, **options, **({"noise": [0.5]} if idea == "corruption" else {})}
    with pytest.raises(ValueError, match=r"expected (a class with the methods|one of)") as error:
        ut.Experiment.from_dict({**SPEC, idea: [table] if idea == "probes" else table})
    assert "\n" not in str(error.value)
    assert not trace.exists()


# -- nothing stored is executed ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unsaved_figures", "unchecked_models")
def test_a_spec_in_a_store_runs_nothing(tmp_path, monkeypatch):
    """Its analysis makes the originals again, but only from built-in sources; nothing is imported."""
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
    stored = json.loads(Store.open(folder).attributes["spec"])
    for source in (
        {"type": "os:system", "command": f"touch {trace}"},
        {"type": "subprocess:Popen", "args": ["touch", str(trace)]},
        {"type": "evil:Source"},
    ):
        Store.open(folder).update(spec=json.dumps({**stored, "source": source}))
        done = CliRunner().invoke(app, ["images", "--run", str(folder), "--out", str(tmp_path / "out"), "--save-images"])
        assert done.exit_code == 0, done.output
        assert np.isnan(records_of(Store.open(folder).dataset()).original).all()
        assert not trace.exists()
        assert "evil" not in sys.modules
    Store.open(folder).update(spec=json.dumps([source]))
    with pytest.raises(ValueError, match="the run's attribute 'spec' is no JSON table"):
        ut.study(Store.open(folder).dataset())


def test_figures_build_parts_from_what_was_asked_for(tmp_path, monkeypatch):
    """A different spec in the store has no effect."""
    from uturn.paper import controls

    trace = tmp_path / "trace"
    (tmp_path / "evil_spec.py").write_text(f"open({str(trace)!r}, 'w')\nclass Source: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = ut.Experiment.from_dict(
        {
            "items": 4,
            "source": {"type": "gaussian_field", "size": 8},
            "corruption": {"type": "gaussian", "noise": [0.1, 1.0]},
            "backward": {"type": "exact"},
            "probes": [{"type": "scales"}],
        }
    )
    ut.run(spec, tmp_path / "run")
    stored = json.loads(Store.open(tmp_path / "run").attributes["spec"])
    Store.open(tmp_path / "run").update(spec=json.dumps({**stored, "source": {"type": "evil_spec:Source"}}))
    again = ut.run(spec, tmp_path / "run")
    assert json.loads(again.attrs["spec"]) == stored
    controls.levels(again)
    with pytest.raises(ValueError, match="a stored spec may not name"):
        controls.levels(Store.open(tmp_path / "run").dataset())
    assert not trace.exists()


# -- the code of a part -----------------------------------------------------------------------------------------------


MODULE = """
from uturn.store.record import Variable
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
    with pytest.raises(ValueError, match=r"the code of probes\[0\] has changed .*accept_changes=True \(--accept-changes\)"):
        ut.run(changed, store)
    ut.run(changed)  # in memory never refused
    again = ut.run(changed, store, accept_changes=True)
    assert json.loads(again.attrs["models"])["probes[0].code"] != code
    assert json.loads(again.attrs["accepted_changes"]) == [{"probes[0].code": code}]
    ut.run(changed, store)
    with pytest.raises(ValueError, match=r"the fingerprint of probes\[0\] has changed .*'1' in the store, '2' here"):
        ut.run(own_module(MODULE + "\n# changed\n", fingerprint="2"), store)


# -- trying a spec before its run -------------------------------------------------------------------------------------


class OneGenerator(TreeLevels):
    """Adds noise from one generator for all items, so that readings depend on the batch and on what came before."""

    type: str = "one generator"

    def read(self, u_turns, source):
        return {name: values + GENERATOR.random(values.shape) for name, values in super().read(u_turns, source).items()}


GENERATOR = np.random.default_rng(0)


def test_check_finds_readings_that_depend_on_the_batch():
    with pytest.raises(ValueError, match=r"unchanged of item 0 at noise 0 is .* in a batch of 2, .*uturn.random.keys"):
        list(check(ut.Experiment.from_dict(with_part("probes", "OneGenerator"))))
    lines = list(check(ut.Experiment.from_dict(SPEC)))
    assert any(line.startswith("noise 0: means over items [0, 1]: unchanged 1") for line in lines)


def test_check_from_the_command_line(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "spec.json")])
    assert done.exit_code == 0
    assert "nothing wrong was found" in done.output
    (tmp_path / "spec.json").write_text(json.dumps(with_part("probes", "Probe", mistake="keepdims")))
    done = CliRunner().invoke(app, ["check", str(tmp_path / "spec.json")])
    assert "shape of leaves = (2, 2, 1)" in str(done.exception)


# -- the page "Your own data and model" -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_folder(tmp_path_factory):
    """A copy of examples/own, with the statistics of its network."""
    folder = tmp_path_factory.mktemp("own")
    for name in ("series.py", "series.toml", "network.py", "rules.json", "rules.toml"):
        (folder / name).write_text((OWN / name).read_text())
    done = subprocess.run([sys.executable, "network.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    yield folder
    for name in ("series", "network"):  # imported by the program in this process
        sys.modules.pop(name, None)


def test_the_page_shows_the_files_that_are_tested():
    page = (OWN.parents[1] / "docs" / "own-parts.md").read_text()
    for name in ("series.py", "series.toml", "network.py", "rules.json", "rules.toml"):
        text = (OWN / name).read_text()
        for piece in text.split("\n\n\n"):
            assert textwrap.dedent(piece).strip() in page, f"{name}: {piece[:60]}"


def test_own_series_run(own_folder):
    assert uturn("check", "series.toml", cwd=own_folder).returncode == 0
    done = process("run", "series.toml", "--store", "run", "--workers", "2", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = Store.open(own_folder / "run").dataset()
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
    ds = Store.open(own_folder / "results" / "run.zarr").dataset()
    numbers = json.loads((own_folder / "results" / "study.json").read_text())
    readings = {one["reading"]: one for one in numbers["readings"]}
    assert list(readings) == [*(f"similarity, window = {window}" for window in (1, 4, 16)), "same_sign"]
    curves = {
        **{f"similarity, window = {window}": ds.similarity.sel(window=window) for window in (1, 4, 16)},
        "same_sign": ds.same_sign.astype(float),
    }
    for name, values in curves.items():
        curve, chance = values.mean(("item", "trajectory")).values, 0.5 if name == "same_sign" else 0.0
        k = next(k for k in range(len(curve) - 1) if curve[k] > (1 + chance) / 2 >= curve[k + 1])
        step = (curve[k] - (1 + chance) / 2) / (curve[k] - curve[k + 1])
        half = readings[name]["half_life"]["noise"]
        assert half["value"] == pytest.approx(ds.noise.values[k] + step * np.diff(ds.noise.values)[k])
        assert half["low"] < half["value"] < half["high"]
        assert readings[name]["curve"][-1]["value"] == pytest.approx(curve[-1])
    lives = [one["half_life"]["noise"]["value"] for one in numbers["readings"][:3]]
    assert lives == sorted(lives)  # slow scales live longer
    assert [one["series"] for one in numbers["series"]] == ["similarity"]
    page = (own_folder / "results" / "index.html").read_text()
    (section,) = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])["sections"]
    titles = {chart["title"]: len(chart["lines"]) for chart in section["charts"]}
    assert titles == {"Sign of the mean is kept": 1, "Cosine of block averages": 3}
    assert section["headlines"][0]["label"] == "t*"
    assert section["headlines"][0]["place"][0] == pytest.approx(readings["same_sign"]["half_life"]["noise"]["value"], rel=1e-5)


def test_own_rules_run(own_folder):
    """The beliefs are those of the inference of the grammar alone, and its strings parse."""
    done = uturn("run", "rules.toml", "--store", "rules", "--workers", "1", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = Store.open(own_folder / "rules").dataset()
    assert np.allclose(ds.belief.sel(noise=0), 1)
    assert np.allclose(ds.unchanged.sel(noise=0), 1)
    grammar = ut.RandomHierarchyModel.from_rules(**json.loads((own_folder / "rules.json").read_text()))
    nothing = ut.infer(grammar, np.zeros((1, 8, 3), np.float32)).marginals
    (block,) = ut.sources.GrammarSource(file=str(own_folder / "rules.json")).blocks(np.arange(100), 0, 100)
    for level in range(4):
        expected = nothing[level][0][np.arange(8 // 2**level), block.draw.latents[level]].mean(1)
        np.testing.assert_allclose(ds.belief.sel(noise=1, tree_level=level), expected, rtol=1e-4)


def test_own_series_in_the_layers_of_a_network(own_folder):
    text = (own_folder / "series.toml").read_text()
    head = text[: text.index("[[probes]]")].replace("items = 200", "items = 8")
    probe = '[[probes]]\ntype = "network_layers"\nclassifier = "network:network"\n'
    (own_folder / "layers.toml").write_text(head + probe + 'statistics = "statistics.safetensors"\n')
    done = uturn("run", "layers.toml", "--store", "layers", "--workers", "1", cwd=own_folder)
    assert done.returncode == 0, done.stderr
    ds = Store.open(own_folder / "layers").dataset()
    assert np.allclose(ds.similarity.sel(noise=0), 1, atol=1e-5)
    assert "probes[0].code" in json.loads(ds.attrs["models"])
    (own_folder / "layers.toml").write_text(head + probe)
    done = uturn("check", "layers.toml", cwd=own_folder)
    assert done.returncode == 2
    assert "statistics: missing" in done.stderr
    assert done.stderr.count("\n") == 1
