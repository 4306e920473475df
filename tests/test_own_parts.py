"""Classes of one's own, their blocks, and parts that installed packages register."""

import json
import linecache
import pickle
import sys
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import uturn as ut
from small import defaults_of, strings
from uturn.core import protocols
from uturn.core.caches import cached_while_unchanged
from uturn.core.contracts import checked_blocks
from uturn.core.own_parts import code_digest, is_own
from uturn.core.protocols import Noisy, Variable
from uturn.core.random import normals
from uturn.core.registry import PARTS, build
from uturn.core.tools import own_tools

SPEC = strings("masking", [0.0, 0.4], items=4, chunk=2)


# -- classes ---------------------------------------------------------------------------------------


class Reads(ut.Probe):
    """A probe; `gain` multiplies its readings, and 0 is a mistake."""

    def variables(self, source):
        return {"leaves": Variable(("noise", "item", "trajectory"), "unchanged leaves")}

    def read(self, u_turns, source):
        same = (u_turns.reconstructions[0] == u_turns.originals.data[:, None]).mean(axis=2)
        return {"leaves": same / self.gain * self.gain**2 if self.gain else 1 // self.gain}


class Plain(Reads):
    def __init__(self, gain=2):
        self.gain = gain


@dataclass
class Data(Reads):
    """Dataclasses that are equal have no hash."""

    gain: int = 2


@dataclass(frozen=True, slots=True)
class Frozen(Reads):
    gain: int = 2


class Model(BaseModel, Reads):
    gain: int = 2


class WithSpec(protocols.Spec, Reads):
    gain: int = 2


class Network(torch.nn.Module, Reads):
    def __init__(self, gain=2):
        super().__init__()
        self.gain = gain


MAKES = (Plain, Data, Frozen, Model, WithSpec, Network)


CALLS = []


@cached_while_unchanged()
def counted(part):
    CALLS.append(part)
    return part.gain


@pytest.mark.parametrize("cls", MAKES)
def test_a_class_of_any_make_is_a_part(cls):
    spec = {
        **SPEC,
        "probes": [{"type": f"{__name__}:{cls.__name__}", "gain": 3}, {"type": "tree_levels"}],
    }
    experiment = ut.Experiment.from_dict(spec)
    part, built_in = experiment.parts.probes
    assert isinstance(part, cls)
    assert (is_own(part), is_own(built_in), part.own_label) == (
        True,
        False,
        f"probes[0] ('{__name__}:{cls.__name__}')",
    )
    assert (part.gain, part.kinds, part.fingerprint(), part.least_trajectories) == (3, (), "", 1)
    counted.cache_clear()
    assert [counted(one) for one in (part, part, build("probes", spec["probes"][0], index=0))] == [
        3,
        3,
        3,
    ]
    assert len(CALLS) == 2, "kept for the same part"
    CALLS.clear()
    ds = ut.run(experiment)
    assert np.allclose(ds.leaves, 3 * ds.unchanged.isel(tree_level=0), rtol=1e-6)
    with pytest.raises(
        ZeroDivisionError,
        match=rf"in probes\[0\] \('{__name__}:{cls.__name__}'\)\.read \(test_own_parts.py",
    ):
        ut.run(ut.Experiment.from_dict({**spec, "probes": [{**spec["probes"][0], "gain": 0}]}))


BOUND = []


class Prepares(ut.Probe):
    """Reads a number that it prepares for the source, by a copy of itself."""

    def __init__(self, forgets=False):
        self.forgets = forgets

    def bind(self, source):
        BOUND.append(source)
        bound = copy(self)
        bound.depth = source.depth
        return None if self.forgets else bound

    def variables(self, source):
        return {"depth": Variable(("noise", "item"), f"depth of the source, {self.depth}")}

    def read(self, u_turns, source):
        return {"depth": np.full(len(u_turns.originals.items), self.depth)}


def test_a_probe_prepares_once_for_a_run():
    probe = {"type": f"{__name__}:Prepares"}
    BOUND.clear()
    ds = ut.run(ut.Experiment.from_dict({**SPEC, "probes": [probe]}))
    assert (ds.depth == SPEC["source"]["depth"]).all()
    assert len(BOUND) == 1
    forgets = ut.Experiment.from_dict({**SPEC, "probes": [{**probe, "forgets": True}]})
    with pytest.raises(
        ValueError,
        match=(
            rf"^probes\[0\] \('{__name__}:Prepares'\).bind returns None; expected the probe, or a"
            " copy of it with further attributes$"
        ),
    ):
        ut.run(forgets)


class Known(ut.Channel):
    unit, max_noise = "share", 1.0

    def corrupt(self, leaves, noise, keys):
        pass

    def log_evidence(self, noisy, dtype=None):
        pass


def test_a_channel_of_ones_own():
    part = build("corruption", {"type": f"{__name__}:Known"})
    assert (part.process, part.is_reversible, part.value_shape(3, 8)) == ("channel", False, (3,))


GRAMMAR = ut.RandomHierarchyModel(vocab_size=3, multiplicity=2, branching=2, depth=2, seed=0)


class Trees(ut.sources.StringSource):
    """Strings that say no more of themselves than docs/own-parts.md asks."""

    kind, vocab_size, branching, depth = "strings", 3, 2, 2

    def blocks(self, items, seed, num_items):
        yield ut.sources.Strings(
            items, GRAMMAR, GRAMMAR.sample(len(items), ut.random.keys(seed, items))
        )


class Unknown(ut.Corruption):
    """A corruption of strings without a likelihood."""

    unit, max_noise = "share", 1.0

    def corrupt(self, leaves, noise, keys):
        return ut.UniformReplacement().corrupt(leaves, noise, keys, vocab_size=3)


class Returns(ut.Backward):
    """Gives noisy strings back."""

    def reconstruct(self, noisy, streams, clones=1):
        return noisy.parsed(
            np.repeat(noisy.values, clones, axis=0), len(streams.items), streams.keys(999, clones)
        )


@pytest.mark.parametrize("corruption", ["masking", f"{__name__}:Unknown"])
def test_strings_of_all_makes(corruption):
    spec = {
        "items": 4,
        "trajectories": 2,
        "source": {"type": f"{__name__}:Trees"},
        "probes": [{"type": "changes"}],
    }
    backward = (
        {"type": "denoiser", "steps": 2}
        if corruption == "masking"
        else {"type": f"{__name__}:Returns"}
    )
    spec |= {"corruption": {"type": corruption, "noise": [0.5]}, "backward": backward}
    experiment = ut.Experiment.from_dict(spec)
    assert ut.run(experiment).change.shape == (1, 4)


# -- blocks of every make, and parts that get each other as they are -------------------------------


@dataclass(frozen=True, slots=True)
class FrozenSlotsBlock(ut.Originals):
    items: Any
    data: Any


@dataclass
class DataBlock(ut.Originals):
    items: Any
    data: Any


class PlainBlock(ut.Originals):
    def __init__(self, items, data):
        self.items, self.data = items, data


BLOCKS = (FrozenSlotsBlock, DataBlock, PlainBlock)


class Numbers(ut.Source):
    def __init__(self, block):
        self.block = globals()[block]

    def blocks(self, items, seed, num_items):
        yield self.block(items, np.ones((len(items), 3)))


class Adds(ut.Corruption):
    unit, max_noise, kinds = "standard deviation", 9.0, ()

    def corrupt(self, values, noise, keys):
        return Noisy(values + noise * normals(keys, 3, np.float64), np.full(len(values), noise))


class Same(ut.Backward):
    def reconstruct(self, noisy, streams, clones=1):
        return noisy.values.reshape(len(streams.items), -1, 3).repeat(clones, axis=1)


class Looks(ut.Probe):
    """Reads differences, and writes into what `writes` names; it looks at the class of blocks."""

    def __init__(self, writes=""):
        self.writes = writes

    def variables(self, source):
        return {"difference": Variable(("noise", "item", "trajectory"), "difference")}

    def read(self, u_turns, source):
        block = u_turns.originals
        assert isinstance(block, source.block)
        if self.writes:
            getattr(block, self.writes)[...] = 0
        return {
            "difference": (
                (block.data_of(u_turns.reconstructions) - block.data[:, None]).std(axis=-1)
            )
        }


def of_blocks(block, **options):
    return {
        "items": 4,
        "chunk": 2,
        "trajectories": 2,
        "source": {"type": f"{__name__}:Numbers", "block": block.__name__},
        "corruption": {"type": f"{__name__}:Adds", "noise": [0.0, 2.0]},
        "backward": {"type": f"{__name__}:Same"},
        "probes": [{"type": f"{__name__}:Looks", **options}],
    }


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_any_make_is_read_only(block):
    ds = ut.run(ut.Experiment.from_dict(of_blocks(block)))
    assert (ds.difference.sel(noise=0) == 0).all()
    assert (ds.difference.sel(noise=2) > 0.01).all()
    for name in ("items", "data"):
        with pytest.raises(ValueError, match="assignment destination is read-only"):
            ut.run(ut.Experiment.from_dict(of_blocks(block, writes=name)))
    mine = block(np.arange(2), np.ones((2, 3)))
    (seen,) = checked_blocks(Numbers(block.__name__), [mine], np.arange(2))
    assert np.shares_memory(seen.data, mine.data)
    assert (seen.data.flags.writeable, mine.data.flags.writeable) == (False, True)
    assert type(seen) is type(mine) is block


def test_a_block_that_does_not_inherit_is_refused():
    foreign = SimpleNamespace(items=np.arange(2), data=np.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"source.blocks = 'SimpleNamespace': .*inherits from uturn.Originals"
    ):
        checked_blocks(Numbers("PlainBlock"), [foreign], np.arange(2))


# -- digests of code -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "family"),
    [("strings", "StringSource"), ("tokens", "TextSource"), ("images", "ImageSource")],
)
def test_a_source_of_a_known_kind_inherits_its_members(kind, family, monkeypatch):
    monkeypatch.setattr(Numbers, "kind", kind)
    with pytest.raises(
        ValueError, match=f"a source of kind '{kind}' inherits from uturn.sources.{family}, since"
    ):
        build("source", {"type": f"{__name__}:Numbers", "block": "PlainBlock"})


def test_the_digest_of_code_is_of_its_text():
    """Of a file, of a cell of a notebook, and none without a text."""
    part = build("probes", {"type": f"{__name__}:Plain"})
    assert (
        code_digest(part)
        == code_digest(Plain())
        == code_digest(test_the_digest_of_code_is_of_its_text)
    )
    digests = set()
    for number in (1, 2, 1):
        cell, text = f"<cell {number}>", f"class A:\n    def f(self):\n        return {number}\n"
        linecache.cache[cell] = (len(text), None, text.splitlines(True), cell)
        namespace = {"__name__": "a notebook"}
        exec(compile(text, cell, "exec"), namespace)
        digests |= {code_digest(namespace["A"]()), code_digest(namespace["A"].f)}
    assert len(digests) == 4  # of two classes and of two functions
    # A member whose name is that of an attribute of wrapped functions stands for no class.
    for number in (3, 4):
        cell, text = (
            f"<cell {number}>",
            (
                "class A:\n    def func(self):\n        pass\n    def f(self):\n        return"
                f" {number}\n"
            ),
        )
        linecache.cache[cell] = (len(text), None, text.splitlines(True), cell)
        exec(compile(text, cell, "exec"), namespace)
        digests.add(code_digest(namespace["A"]()))
    assert len(digests) == 6
    assert all(len(digest) == 64 for digest in digests)
    exec("class A:\n def f(self):\n  return 1\n", namespace)
    assert code_digest(namespace["A"]()) == code_digest(namespace["A"].f) == ""


# -- parts that installed packages register --------------------------------------------------------

MODULE = """
import numpy as np
import uturn as ut


class Quarter(ut.Probe):
    def __init__(self, wrong=False):
        self.wrong = wrong

    def variables(self, source):
        return {"quarter": ut.Variable(("noise", "item", "trajectory"), "a quarter")}

    def read(self, u_turns, source):
        return {"quarter": np.full((len(u_turns.originals.items), 1), 1 / 4 if not self.wrong else {}["quarter"])}
"""
QUARTER = {**SPEC, "probes": [{"type": "quarter"}]}


def by_hand(site, package, name):
    """What an installation leaves in a folder of packages."""
    about = site / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[uturn.parts]\n{name} = {package}:Quarter\n")
    (site / f"{package}.py").write_text(MODULE)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "site"
    for name in ("quarters", "others"):
        sys.modules.pop(name, None)


def test_a_registered_part_is_user_defined(site):
    by_hand(site, "quarters", "quarter")
    experiment = ut.Experiment.from_dict(QUARTER)
    assert is_own(experiment.parts.probes[0])
    assert experiment.models()["probes[0].code"] == code_digest(experiment.parts.probes[0]) != ""
    assert (ut.run(experiment).quarter == 0.25).all()
    with pytest.raises(
        KeyError, match=r"in probes\[0\] \('quarter'\)\.read \(quarters.py, line \d+\)"
    ):
        ut.run(ut.Experiment.from_dict({**QUARTER, "probes": [{"type": "quarter", "wrong": True}]}))
    with pytest.raises(ValueError, match="code of others, which a stored spec may not name"):
        build("probes", {"type": "quarter"}, trusted=False)
    with pytest.raises(
        ValueError,
        match=(
            r"source \('quarter'\): the class does not inherit from uturn.Source; write `class"
            r" Quarter\(ut.Source\)`"
        ),
    ):
        build("source", {"type": "quarter"})


# --- pickling, and defaults that stored specs leave out -------------------------------------------


@pytest.mark.parametrize("cls", [cls for cls in MAKES if cls is not Frozen])
def test_parts_can_be_pickled(cls):
    """Users send their parts to processes of their own. (Frozen dataclasses with slots lose what
    is no field.)
    """
    part = build("probes", {"type": f"{__name__}:{cls.__name__}", "gain": 5}, index=0)
    again = pickle.loads(pickle.dumps(part))
    assert (again.gain, again.own_label, again.own_table) == (5, part.own_label, part.own_table)


def test_the_defaults_of_built_in_parts_stay():
    """Stored specs leave out options that equal the default, so another default would change
    what they say.
    """
    of_tools = {
        (idea, kind)
        for tool in own_tools().values()
        for idea, kinds in tool.parts.items()
        for kind in kinds
    }
    own = {
        idea: [kind for kind in kinds if (idea, kind) not in of_tools]
        for idea, kinds in PARTS.items()
    }
    assert defaults_of(own) == json.loads(
        (Path(__file__).parent / "golden" / "defaults.json").read_text()
    )
