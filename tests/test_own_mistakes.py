"""What a user is told of a mistake in a part of one's own: one sentence that names the part, its
member, what it gives and what is expected.

The parts are written into a module beside these tests, as a user would write them.
"""

import textwrap
from dataclasses import replace

import numpy as np
import pytest

import uturn as ut
from uturn.core.errors import described
from uturn.core.random import keys
from uturn.corruption.denoising import ExactDenoiser, drawn
from uturn.corruption.orders import Order, RandomOrder
from uturn.corruption.sampling import Sampler, SymbolLaw
from uturn.corruption.unmasking import InOrder
from uturn.engine.trial import check

PARTS = """
import copy
from dataclasses import dataclass

import numpy as np
import torch
import uturn as ut
from uturn.core.prior import Prior
from uturn.core.protocols import FromFiles
from uturn.core.random import Purpose, keys, normals, uniforms
from uturn.probes import Comparison


@dataclass
class Block(ut.Originals):
    items: np.ndarray
    data: np.ndarray


class Graphs(ut.Source):
    kind = "graphs"

    def blocks(self, items, seed, num_items):
        u = uniforms(keys(seed, 100, items), 25).reshape(-1, 5, 5)
        yield Block(items, u < 0.3)


class Flip(ut.Corruption):
    kinds = ("graphs",)
    process = "flip"
    unit = "share of flipped edges"
    max_noise = 0.5

    def corrupt(self, data, noise, keys):
        u = uniforms(keys, 25).reshape(-1, 5, 5)
        return ut.Noisy(data ^ (u < noise), np.full(len(data), noise))


class Guess(ut.Backward):
    kinds = ("graphs",)
    undoes = ("flip",)

    def reconstruct(self, noisy, streams, clones=1):
        u = uniforms(streams.keys(Purpose.RECONSTRUCTION, clones), 25).reshape(-1, 5, 5)
        edges = np.where(u < 2 * streams.noise, u < 0.3, np.repeat(noisy.values, clones, axis=0))
        return edges.reshape(len(streams.items), -1, 5, 5)


class Edges(Comparison):
    kinds = ("graphs",)

    def variables(self, source):
        dims = ("noise", "item", "trajectory")
        return {"same": ut.Variable(dims, "share of equal edges", symmetric=True)}

    def compare(self, first, second):
        return {"same": (first["data"] == second["data"]).mean((-1, -2))}


class Degrees(ut.Probe):
    kinds = ("graphs",)

    def variables(self, source):
        return {"degree": ut.Variable(("noise", "item", "trajectory", "node"), "degree")}

    def coordinates(self, source):
        return {"node": np.arange(5)}

    def read(self, u_turns, source):
        return {"degree": u_turns.reconstructions.sum(-1)}


class Squares(ut.sources.ImageSource):
    def count(self):
        return 8

    def images_at(self, indices):
        values = normals(keys(3, 101, indices), 16, np.float64).clip(-1, 1)
        return values.reshape(-1, 1, 4, 4).astype(np.float32), np.full(len(indices), -1)


class Add(ut.Corruption):
    kinds = ("images",)
    process = "add"
    unit = "standard deviation"
    max_noise = 9.0

    def corrupt(self, data, noise, keys):
        noise_of_pixels = normals(keys, 16, np.float32).reshape(data.shape)
        return ut.Noisy(data + np.float32(noise) * noise_of_pixels, np.full(len(data), noise))


class Law(Prior):
    fingerprint = __name__
    shape = (1, 4, 4)
    num_labels = None
    batch_size = 4

    def draw(self, keys, items):
        return normals(keys, 16, np.float32).reshape(-1, 1, 4, 4)


class Same(ut.Backward):
    kinds = ("images",)
    undoes = ("add",)

    def prior(self, steps=None):
        return Law()

    def reconstruct(self, noisy, streams, clones=1):
        return np.repeat(noisy.values, clones, 0).reshape(len(streams.items), -1, 1, 4, 4)


class Grey(ut.Probe):
    kinds = ("images",)

    def variables(self, source):
        return {"grey": ut.Variable(("noise", "item", "trajectory"), "mean grey value")}

    def read(self, u_turns, source):
        return {"grey": u_turns.reconstructions.mean((-3, -2, -1))}


class Rules(ut.sources.StringSource):
    vocab_size, branching, depth = 4, 2, 2

    def grammar(self, number, seed):
        return ut.RandomHierarchyModel(4, 2, 2, 2, seed=seed)


class Texts(ut.sources.TextSource):
    def texts(self):
        return ["the cat", "the dog", "the sun"]


class Network:
    mask_id = 5

    def logits(self, ids, noise):
        return torch.zeros(*ids.shape, 8)
"""

GRAPHS = {"source": "Graphs", "corruption": "Flip", "backward": "Guess", "probes": "Edges"}
IMAGES = {"source": "Squares", "corruption": "Add", "backward": "Same", "probes": "Grey"}
PRIOR = {**IMAGES, "source": {"type": "generated"}}
STRINGS = {
    "source": "Rules",
    "corruption": {"type": "masking"},
    "backward": {"type": "exact"},
    "probes": {"type": "tree_levels"},
}
TEXTS = {
    "source": "Texts",
    "corruption": {"type": "masking"},
    "backward": {"type": "language"},
    "probes": {"type": "kept_tokens"},
}
PARENTS = {
    "source": {"graphs": "Graphs", "images": "Squares", "strings": "Rules", "texts": "Texts"},
    "corruption": {
        "graphs": "Flip",
        "images": "Add",
        "strings": "ut.Masking",
        "texts": "ut.Masking",
    },
    "backward": {"graphs": "Guess", "images": "Same", "prior": "Same", "strings": "ut.Backward"},
    "probes": {"graphs": "Degrees"},
}
WORLDS = {"graphs": GRAPHS, "images": IMAGES, "prior": PRIOR, "strings": STRINGS, "texts": TEXTS}
NOISE = [0.0, 0.4]


class Workshop:
    """A folder with modules of a user."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def experiment(self, world, role, body, parent=None, **changed):
        """An experiment whose part of one role is a class `Mine` with this body."""
        self.count += 1
        module = f"{self.folder.name}_{self.count}".replace("-", "_")
        parent = parent or PARENTS[role][world]
        text = (
            f"{PARTS}\n\nclass Mine({parent}):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
        )
        (self.folder / f"{module}.py").write_text(text)
        tables = {}
        for name, part in {**WORLDS[world], role: "Mine"}.items():
            tables[name] = {"type": f"{module}:{part}"} if isinstance(part, str) else part
        tables["corruption"] = {**tables["corruption"], "noise": NOISE}
        tables["probes"] = [tables["probes"]]
        spec = {"items": 3, "trajectories": 2, "chunk": 2, **tables, **changed}
        return ut.Experiment.from_dict(spec), module

    def told(self, world, role, body, parent=None, **changed):
        """What the user is told, with the name of the module as "mine"."""
        error: Exception | None = None
        try:
            experiment, _ = self.experiment(world, role, body, parent, **changed)
            ut.run(experiment)
        except Exception as raised:
            error = raised
        assert error is not None
        return described(error, 400).replace(f"{self.folder.name}_{self.count}", "mine")


@pytest.fixture
def workshop(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("mistakes")
    monkeypatch.syspath_prepend(str(folder))
    return Workshop(folder)


SOURCES = (
    (
        "graphs",
        "def blocks(self, items): yield",
        "the method is blocks(items), but it is called as blocks(items, seed, num_items); see help(ut.Source)",
    ),
    ("graphs", "blocks = 3", ".blocks = 3: expected a method blocks(items, seed, num_items)"),
    ("graphs", "kind = ('graphs',)", ".kind = ('graphs',): expected a text"),
    ("graphs", "names_items = 'file'", ".names_items = 'file': expected True or False"),
    (
        "graphs",
        "def blocks(self, items, seed, num_items): pass",
        ".blocks = None: expected an iterator over blocks; write `yield block`",
    ),
    (
        "graphs",
        "def blocks(self, items, seed, num_items): yield np.ones((2, 5))",
        ".blocks = 'ndarray': expected blocks of a class that inherits from uturn.Originals",
    ),
    (
        "graphs",
        "def blocks(self, items, seed, num_items):\n  while True: yield Block(items[:0], np.ones((0, 5)))",
        ".blocks: shape of `items` = (0,): expected (batch,), with at least one item",
    ),
    (
        "graphs",
        "def blocks(self, items, seed, num_items): yield Block(items, torch.ones(len(items), 5, 5))",
        ".blocks: type of `data` = 'Tensor': expected a numpy array",
    ),
    (
        "graphs",
        "def blocks(self, items, seed, num_items):\n  class B(ut.Originals): pass\n  yield B()",
        ".blocks: members that the block lacks = ['items', 'data']: expected `items` and `data`",
    ),
    (
        "graphs",
        "def coordinates(self, seed, num_items): pass",
        ".coordinates = None: expected {name: values}",
    ),
    (
        "images",
        "def images_at(self, indices): return super().images_at(indices)[0]",
        ": expected (images, labels)",
    ),
    (
        "images",
        (
            "def images_at(self, indices):\n"
            "  images, labels = super().images_at(indices)\n"
            "  return (255 * images).astype(np.uint8), labels"
        ),
        (
            ".images_at: dtype, shape of images = (dtype('uint8'), (2, 1, 4, 4)): expected float32"
            " (2, channels, height, width) in [-1, 1]"
        ),
    ),
    (
        "images",
        "def images_at(self, indices): return super().images_at(indices)[0], None",
        ".images_at: dtype, shape of labels = (<class 'NoneType'>, ()): expected integers (2,), -1 where unknown",
    ),
    (
        "images",
        "def count(self): return 2",
        ": items = 3: expected at most 2, its number of images",
    ),
    (
        "strings",
        "def grammar(self, number, seed): return None",
        ".grammar = None: expected a RandomHierarchyModel, or a HiddenMarkovModel",
    ),
    (
        "strings",
        "def grammar(self, number, seed): return ut.RandomHierarchyModel(4, 2, 2, 3, seed=seed)",
        ".grammar: symbols, leaves = (4, 8): expected (4, 4), those of the source",
    ),
    (
        "strings",
        "def blocks(self, items, seed, num_items): yield Block(items, np.zeros((len(items), 4), int))",
        ".blocks = 'Block': expected blocks of a class that inherits from uturn.sources.Strings",
    ),
    ("strings", "vocab_size = '4'", ".vocab_size = '4': expected an integer >= 2"),
    (
        "texts",
        "def texts(self): return None",
        ".texts = None: expected a list of texts, or of their ids",
    ),
    (
        "texts",
        "def texts(self): return 'the cat'",
        ".texts = 'the cat': expected a list of texts, or of their ids",
    ),
    (
        "texts",
        "def labels(self): return [1]",
        ".labels: length = 1: expected 3, a class for each text",
    ),
)


def test_a_source_lacks_values(workshop):
    message = workshop.told("strings", "source", "pass", "ut.sources.StringSource")
    assert message == (
        "source ('mine:Mine'): the class lacks vocab_size; see"
        " help(uturn.sources.strings.StringSource)"
    )
    message = workshop.told("texts", "source", "pass", "ut.sources.TextSource")
    assert message.endswith("the class lacks texts; see help(uturn.sources.tokens.TextSource)")
    message = workshop.told(
        "strings", "source", "vocab_size, branching, depth = 4, 2, 2", "ut.sources.StringSource"
    )
    assert (
        message == "source ('mine:Mine') has no grammars; define its method `grammar(number, seed)`"
    )


CORRUPTIONS = (
    (
        "graphs",
        "max_noise = 'one'",
        ".max_noise = 'one': expected the largest noise level, a number above 0",
    ),
    (
        "graphs",
        "max_noise = float('nan')",
        ".max_noise = nan: expected the largest noise level, a number above 0",
    ),
    ("graphs", "is_random = 'no'", ".is_random = 'no': expected True or False"),
    ("graphs", "purpose = 'noise'", ".purpose = 'noise': expected an integer >= 0"),
    (
        "graphs",
        "def corrupt(self, data, noise, keys): return data",
        ": expected uturn.Noisy(values, noise)",
    ),
    (
        "graphs",
        "def corrupt(self, data, noise, keys): return ut.Noisy(data, noise)",
        ".corrupt: shape of noise = (): expected (4,), a noise level for each row of values",
    ),
    (
        "graphs",
        "def corrupt(self, data, noise, keys): return ut.Noisy(data[:1], np.full(1, noise))",
        ".corrupt: shape of values = (1, 5, 5): expected a numpy array (4, ..), a row for each of the data",
    ),
    (
        "graphs",
        "def corrupt(self, data, noise, keys): return ut.Noisy(torch.tensor(data), np.full(4, noise))",
        ".corrupt: type of values = 'Tensor': expected a numpy array (4, ..), a row for each of the data",
    ),
    (
        "graphs",
        "def corrupt(self, data, noise, keys): return next(iter(()))",
        ".corrupt: RuntimeError: generator raised StopIteration (mine.py, line",
    ),
    (
        "graphs",
        "def axes(self, noise, source): pass",
        ".axes = None: expected {name: (values, attributes)}",
    ),
    (
        "graphs",
        "def axes(self, noise, source): return {'half': noise / 2}",
        ": expected (values, attributes), attributes a dict",
    ),
    (
        "strings",
        "def log_evidence(self, noisy): pass",
        (
            ": the method is log_evidence(noisy), but it is called as log_evidence(noisy, dtype);"
            " see help(uturn.core.protocols.Channel)"
        ),
    ),
    (
        "texts",
        (
            "def corrupt(self, leaves, noise, keys): return ut.Noisy(np.full(leaves.shape, -5),"
            " np.full(len(leaves), noise))"
        ),
        ": expected the symbol of the original, or -1 where it is masked (masks = True)",
    ),
    (
        "texts",
        "def corrupt(self, leaves, noise, keys): return ut.Noisy(leaves * 1.0, np.full(len(leaves), noise))",
        ": expected integers (4, 7)",
    ),
)


CODES = """
def corrupt(self, leaves, noise, keys, *, vocab_size):
    return ut.Noisy(leaves + 9, np.full(len(leaves), noise), vocab_size)
"""
EVIDENCE = """
def log_evidence(self, noisy, dtype=None):
    return np.zeros((*noisy.values.shape, noisy.vocab_size), dtype or float)
"""


def test_only_a_corruption_that_reads_its_noisy_data_itself_may_change_the_symbols(workshop):
    parent = "ut.UniformReplacement"
    message = workshop.told("strings", "corruption", CODES, parent)
    assert message.startswith("corruption ('mine:Mine').corrupt: noisy.values = [")
    assert ": expected symbols 0 .. 3, or -1 where one is masked" in message
    experiment, _ = workshop.experiment("strings", "corruption", CODES + EVIDENCE, parent)
    assert np.isfinite(ut.run(experiment).unchanged).all()
    body = f"{CODES}{EVIDENCE}shows_symbols = True"
    message = workshop.told("strings", "corruption", body, parent)
    assert ": expected symbols 0 .. 3, or -1 where one is masked" in message


BACKWARDS = (
    (
        "graphs",
        "def reconstruct(self, noisy, streams): pass",
        (
            ": the method is reconstruct(noisy, streams), but it is called as reconstruct(noisy,"
            " streams, clones); see help(ut.Backward)"
        ),
    ),
    (
        "graphs",
        "def forward_process(self, source): pass",
        (
            ": the method is forward_process(source), but it is called as forward_process(source,"
            " corruption); see help(ut.Backward)"
        ),
    ),
    (
        "graphs",
        "def forward_process(self, source, corruption=None): return 3",
        ".forward_process = 3: expected a uturn.Corruption, or None",
    ),
    (
        "graphs",
        (
            "def reconstruct(self, noisy, streams, clones=1): return"
            " torch.tensor(super().reconstruct(noisy, streams, clones))"
        ),
        ".reconstruct: type = torch.bool: expected a numpy array of numbers",
    ),
    (
        "graphs",
        (
            "def reconstruct(self, noisy, streams, clones=1): return super().reconstruct(noisy,"
            " streams, clones).astype(object)"
        ),
        ".reconstruct: type = dtype('O'): expected a numpy array of numbers",
    ),
    (
        "graphs",
        (
            "def reconstruct(self, noisy, streams, clones=1): return super().reconstruct(noisy,"
            " streams, clones)[..., :3]"
        ),
        ".reconstruct = (2, 2, 5, 3): expected (2, 2, 5, 5): items, draws, and the shape of an original",
    ),
    ("graphs", "keeps_identity = 1", ".keeps_identity = 1: expected True or False"),
    (
        "graphs",
        "def doubts(self, experiment): pass",
        ".doubts = None: expected a list of sentences",
    ),
    (
        "graphs",
        "def missing(self, experiment): return ['a']",
        ".missing = ['a']: expected {name: reason}, both texts",
    ),
    (
        "images",
        (
            "def reconstruct(self, noisy, streams, clones=1): return super().reconstruct(noisy,"
            " streams, clones).astype(np.uint8)"
        ),
        ".reconstruct: dtype = 'uint8': expected floating point numbers, as those of the originals (float32)",
    ),
    (
        "prior",
        "def prior(self): pass",
        ": the method is prior(), but it is called as prior(steps); see help(ut.Backward)",
    ),
    (
        "prior",
        "def prior(self, steps=None): return 3",
        ".prior = 3: expected a uturn.core.prior.Prior, or None",
    ),
    (
        "prior",
        (
            "def prior(self, steps=None):\n"
            "  class Small(Law):\n"
            "    def draw(self, keys, items): return super().draw(keys, items)[..., :2]\n"
            "  return Small()"
        ),
        ".prior.draw: dtype, shape = (dtype('float32'), (3, 1, 4, 2)): expected float32 (3, 1, 4, 4)",
    ),
    (
        "prior",
        (
            "def prior(self, steps=None):\n"
            "  class Lost(Law):\n"
            "    def draw(self, keys, items): return super().draw(keys, items) * np.float32(np.nan)\n"
            "  return Lost()"
        ),
        ": expected finite numbers",
    ),
    (
        "strings",
        "def reconstruct(self, noisy, streams, clones=1): return np.zeros((2, 2, 4), int)",
        ": expected {tree_level: array (items, draws, nodes)} with the levels 0, 1, 2;",
    ),
    (
        "strings",
        "def reconstruct(self, noisy, streams, clones=1): return {0: np.zeros((2, 2, 4), int)}",
        ".reconstruct: tree levels = [0]: expected {tree_level: array",
    ),
)


MISTAKES = (
    *(("source", *mistake) for mistake in SOURCES),
    *(("corruption", *mistake) for mistake in CORRUPTIONS),
    *(("backward", *mistake) for mistake in BACKWARDS),
)


@pytest.mark.parametrize(("role", "world", "body", "told"), MISTAKES)
def test_mistakes_of_a_part(role, world, body, told, workshop):
    message = workshop.told(world, role, body)
    assert message.startswith(f"{role} ('mine:Mine')")
    assert told in message


DIMS = "('noise', 'item', 'trajectory')"
PROBES = (
    (
        "Degrees",
        "def variables(self, source): return ['degree']",
        ".variables = ['degree']: expected {name: uturn.Variable(..)}",
    ),
    (
        "Degrees",
        "def variables(self, source): return {'degree': 'degree'}",
        ".variables: degree = 'degree': expected a uturn.Variable",
    ),
    (
        "Degrees",
        f"def variables(self, source): return {{'degree': ut.Variable({DIMS}, 'x', symetric=True)}}",
        ".variables: symetric = True: Unexpected keyword argument (mine.py, line",
    ),
    (
        "Degrees",
        "def read(self, u_turns): pass",
        ": the method is read(u_turns), but it is called as read(u_turns, source); see help(ut.Probe)",
    ),
    (
        "Degrees",
        "def bind(self): pass",
        ": the method is bind(), but it is called as bind(source); see help(ut.Probe)",
    ),
    (
        "Degrees",
        "def bind(self, source): return Edges()",
        ".bind returns Edges(); expected the probe",
    ),
    (
        "Degrees",
        "def bind(self, source): return type(self)()\ndef read(self, u_turns, source): return 1 / 0",
        ".read: ZeroDivisionError: division by zero (mine.py, line",
    ),
    (
        "Degrees",
        "def read(self, u_turns, source): pass",
        ".read = None: expected {name: array}, as `variables` declares",
    ),
    (
        "Degrees",
        "def read(self, u_turns, source): return {'degree': [[1, 2], [3]]}",
        ".read: degree: expected a numpy array (",
    ),
    (
        "Degrees",
        "def read(self, u_turns, source): return {'degree': torch.ones(2, 2, 5, requires_grad=True)}",
        ".read: degree: expected a numpy array (Can't call numpy()",
    ),
    ("Degrees", "keeps = None", ".keeps = None: expected a text"),
    ("Degrees", "probe_name = None", ".probe_name = None: expected a text"),
    (
        "Degrees",
        "least_trajectories = 'two'",
        ".least_trajectories = 'two': expected an integer >= 1",
    ),
    (
        "Edges",
        "def compare(self, first): pass",
        (
            ": the method is compare(first), but it is called as compare(first, second); see"
            " help(uturn.probes.comparison.Comparison)"
        ),
    ),
    (
        "Edges",
        "def compare(self, first, second): pass",
        ".compare = None: expected {name: array (items, draws, ..)}",
    ),
    (
        "Edges",
        "def compare(self, first, second): return {'some': 1}",
        ".compare = ['some']: expected 'same', which is declared symmetric",
    ),
    (
        "Edges",
        "def compare(self, first, second): return {'same': 1.0}",
        ".compare: shape of same = (): expected (items, draws, ..), a value for each pair of data",
    ),
    (
        "Edges",
        "def features(self, u_turns, source): return {'data': u_turns.originals.data}",
        ": expected two tables, {name: array (items, ..)} and {name: array (items, draws, ..)}",
    ),
    (
        "Edges",
        "def features(self, u_turns, source): return {'data': 3}, {'data': 4}",
        ".features: 'data' = 3: expected an array (items, ..)",
    ),
    (
        "Edges",
        (
            "def features(self, u_turns, source): return {'data': u_turns.originals.data}, {'data':"
            " u_turns.reconstructions.reshape(-1, 5, 5)}"
        ),
        ".features: shape of 'data' = (8, 5, 5): expected (2, ..): items, ..",
    ),
)


@pytest.mark.parametrize(("parent", "body", "told"), PROBES)
def test_mistakes_of_a_probe(parent, body, told, workshop):
    message = workshop.told("graphs", "probes", body, parent, clones=2)
    assert message.startswith("probes[0] ('mine:Mine')")
    assert told in message


def test_a_coordinate_may_be_nan(workshop):
    body = "def coordinates(self, source): return {'node': [0, 1, 2, 3, np.nan]}"
    experiment, _ = workshop.experiment("graphs", "probes", body)
    assert np.isnan(ut.run(experiment).node[-1])


def test_parts_without_mistakes_have_a_name(workshop):
    """No error names an address in memory."""
    for world, role in (("graphs", "source"), ("graphs", "probes"), ("images", "backward")):
        experiment, _ = workshop.experiment(world, role, "pass")
        assert repr(experiment.slots()[next(s for s in experiment.slots() if s.role == role)]) == (
            "Mine()"
        )
        assert len(list(check(experiment))) > 4


CHECKED = (
    (
        "corruption",
        (
            "def corrupt(self, data, noise, keys):\n"
            "  global count\n"
            "  count = globals().get('count', 0) + 1\n"
            "  return ut.Noisy(data ^ bool(count % 2), np.full(len(data), noise))"
        ),
        (
            "corruption ('mine:Mine').corrupt: two calls with the same data, noise 0 and keys give"
            " different noisy data; draw random numbers from `keys`"
        ),
    ),
    (
        "backward",
        (
            "def reconstruct_stream(self, blocks, clones=1):\n"
            "  read = list(blocks)\n"
            "  for (key, _, _), (_, noisy, streams) in zip(read, read[::-1]):\n"
            "    yield key, self.reconstruct(noisy, streams, clones)"
        ),
        (
            "backward ('mine:Mine').reconstruct_stream: same at noise 0 depends on the other blocks"
            " of the stream; give each reconstruction the key of its own block"
        ),
    ),
)


@pytest.mark.parametrize(("role", "body", "told"), CHECKED)
def test_mistakes_that_only_a_check_sees(role, body, told, workshop):
    experiment, module = workshop.experiment("graphs", role, body)
    with pytest.raises(ValueError, match="Mine") as caught:
        list(check(experiment))
    assert told in str(caught.value).replace(module, "mine")


MODELS = (
    ("mask_id, shift = 5, 'yes'", ": shift = 'yes': expected True or False"),
    (
        "tokenizer = 'bert'",
        ": tokenizer = 'bert': expected a Vocabulary or a PretrainedTokenizer of uturn.networks, or None",
    ),
    (
        "def logits(self, ids, noise): return 1 / 0",
        "(ZeroDivisionError: division by zero (mine.py, line",
    ),
)


@pytest.mark.parametrize(("body", "told"), MODELS)
def test_mistakes_of_a_language_model(body, told, workshop):
    text = f"{PARTS}\n\nclass Mine(Network):\n{textwrap.indent(body, '    ')}\n"
    (workshop.folder / "mine.py").write_text(f"{text}\n\ndef model():\n    return Mine()\n")
    spec = {
        **{name: part for name, part in TEXTS.items() if name != "source"},
        "source": {"type": "mine:Texts"},
        "backward": {"type": "language", "model": "mine:model"},
        "probes": [TEXTS["probes"]],
        "noise": NOISE,
        "items": 2,
    }
    with pytest.raises(ValueError, match=r"^model = 'mine:model'") as caught:
        ut.Experiment.from_dict(spec)
    assert told in described(caught.value, 400)
    __import__("sys").modules.pop("mine")


# -- decoders --------------------------------------------------------------------------------------

RHM = ut.RandomHierarchyModel(vocab_size=4, multiplicity=2, branching=2, depth=3, seed=0)


def fill(sampler):
    """Strings that a sampler draws from masked ones."""
    leaves = RHM.sample(6, seed=0).leaves
    noisy = replace(ut.Masking().corrupt(leaves, 0.6, keys(0, range(6))), vocab_size=4)
    return drawn(sampler, ExactDenoiser(RHM, ut.Masking()), noisy, keys(1, range(6)))


class FromTheRight(Order):
    name = "right"

    def ranks(self, masked, beliefs):
        return np.broadcast_to(-np.arange(masked.shape[1]), masked.shape).astype(float)


ORDERS = (
    ("ranks", lambda self, masked, beliefs: None, "ranks = None: expected an array (6, 8)"),
    (
        "ranks",
        lambda self, masked, beliefs: np.zeros((6, 3)),
        "ranks: shape = (6, 3): expected (6, 8)",
    ),
    (
        "ranks",
        lambda self, masked, beliefs: masked * np.nan,
        "ranks = 'NaN': expected a number for each position",
    ),
    (
        "candidates",
        lambda self, masked, *_: ~masked,
        "positions that it reveals = [0, 0, 0, 0, 0, 0]: expected [1, 1, 1, 1, 1, 1]",
    ),
    (
        "revealed",
        lambda self, candidates, *_: candidates & False,
        "positions that it reveals = [0, 0, 0, 0, 0, 0]: expected [1, 1, 1, 1, 1, 1]",
    ),
)


@pytest.mark.parametrize(("member", "method", "told"), ORDERS)
def test_mistakes_of_an_order(member, method, told):
    assert fill(InOrder(FromTheRight())).min() >= 0
    mine = type("Mine", (FromTheRight,), {member: method})
    with pytest.raises(ValueError, match=r"^Mine") as caught:
        fill(InOrder(mine()))
    assert told in str(caught.value)


LAWS = (
    (lambda self, belief: -belief, "finite and above 0, of numbers >= 0"),
    (lambda self, belief: belief * np.nan, "finite and above 0, of numbers >= 0"),
    (
        lambda self, belief: belief[..., :2],
        "Mine.weights: shape = (6, 2): expected (6, 4), that of beliefs",
    ),
)


@pytest.mark.parametrize(("method", "told"), LAWS)
def test_mistakes_of_a_law_of_symbols(method, told):
    mine = type("Mine", (SymbolLaw,), {"weights": method})
    with pytest.raises(ValueError, match=r"^Mine\.weights") as caught:
        fill(InOrder(RandomOrder(), mine()))
    assert told in str(caught.value)


SAMPLERS = (
    (
        "is_waiting",
        lambda self, state: True,
        "Mine.is_waiting: dtype, shape = (dtype('bool'), ()): expected bool (6,)",
    ),
    (
        "is_waiting",
        lambda self, state: np.ones(len(state.values), bool),
        "`is_waiting` must become False for each string",
    ),
    (
        "answered",
        lambda self, state, beliefs: None,
        "Mine.answered = None: expected a uturn.corruption.sampling.State",
    ),
    (
        "answered",
        lambda self, state, beliefs: replace(state, values=state.values * 1.0),
        "Mine.answered: dtype, rows of values = (dtype('float64'), (6,)): expected integers (6, positions)",
    ),
    (
        "answered",
        lambda self, state, beliefs: replace(
            state, values=state.values * 0 + 9, step=state.step + 1
        ),
        "Mine: drawn symbols = [9, 9,",
    ),
    ("question", lambda self, state: state.values, "expected uturn.Noisy(values, noise)"),
)


@pytest.mark.parametrize(("member", "method", "told"), SAMPLERS)
def test_mistakes_of_a_sampler(member, method, told):
    mine = type("Mine", (InOrder,), {member: method})
    with pytest.raises(ValueError, match=r"^Mine") as caught:
        fill(mine())
    assert told in str(caught.value)


def test_what_is_no_sampler():
    with pytest.raises(ValueError, match=r"^sampler = .*: expected an object of a Sampler"):
        fill(Sampler)
    with pytest.raises(ValueError, match=r"^order = 'random': expected an object of an Order"):
        InOrder("random")
    with pytest.raises(ValueError, match=r"^steps = 0: expected an integer >= 1"):
        InOrder(steps=0)
