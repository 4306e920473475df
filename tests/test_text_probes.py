"""Probes of texts by a second model: hidden states, sentence encoders, likelihoods; against
transformers in plain loops.
"""

import json
import re

import numpy as np
import pytest
import torch

import tiny_texts
import uturn as ut
from uturn.core.errors import described
from uturn.core.protocols import UTurns
from uturn.networks.texts.language_files import TextModel
from uturn.probes import TextEncoder, TextLayers, TextLikelihood
from uturn.sources.tokens import PAD, Tokens

TEXTS = [
    "the cat sat on a mat",
    "the dog ran",
    "a big red cat ran to the mats",
    "cats sat",
    "dogs",
    "big mats",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models saved to disk and a text file."""
    place = tmp_path_factory.mktemp("models")
    tiny_texts.write_bert(place / "bert")
    tiny_texts.write_bert(place / "other_bert", seed=1)
    tiny_texts.write_albert(place / "albert")
    tiny_texts.write_gpt2(place / "gpt2")
    tiny_texts.write_gpt2(place / "gpt2_without_beginning", begins=False)
    tiny_texts.write_sentence_model(place / "sentences")
    (place / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return place


def experiment(folder, *probes, **options):
    return ut.Experiment.from_dict(
        {
            **{"items": 6, "trajectories": 2, "clones": 2, "chunk": 4, "seed": 3},
            "source": {"type": "tokens", "path": str(folder / "texts.txt")},
            "corruption": {"type": "masking", "noise": [0.0, 0.6, 1.0]},
            "backward": {"type": "language", "model": str(folder / "bert")},
            "probes": [*probes],
            **options,
        }
    )


@pytest.fixture(scope="module")
def run(folder):
    """Readings of all probes, and the tokens of reconstructions."""
    second = {"name": "gpt", "model": str(folder / "gpt2")}
    return ut.run(
        experiment(
            folder,
            {"type": "tokens"},
            {"type": "text_layers"},
            {"type": "text_layers", **second},
            {"type": "text_encoder", "model": str(folder / "sentences")},
            {"type": "text_likelihood", **second},
            {"type": "text_likelihood", "model": str(folder / "other_bert")},
        )
    )


def ids_of(run):
    """Ids of originals {item: ids} and of reconstructions {(noise, item, trajectory, clone):
    ids}, without padding.
    """
    tokens = run.token.values.astype(int)
    found = {
        place: [int(k) for k in tokens[place] if k != PAD] for place in np.ndindex(tokens.shape[:4])
    }
    # At noise 0 nothing is changed.
    return {item: found[0, item, 0, 0] for item in run.item.values}, found


def text_of(ids):
    """The text of pieces of words: pieces that begin with ## continue a word."""
    words = [tiny_texts.TOKENS[k] for k in ids]
    return "".join(
        word.removeprefix("##") if word.startswith("##") else f" {word}" for word in words
    ).strip()


def hidden_states(model, before, ids, after):
    with torch.no_grad():
        found = model(
            torch.tensor([[*before, *ids, *after]]), output_hidden_states=True
        ).hidden_states
    return [h[0, len(before) : len(before) + len(ids)].double().numpy() for h in found]


def standardised(states):
    """{key: [(tokens, channels) of each layer]} standardised over the originals, whose keys are
    integers.
    """
    found = {}
    for layer in range(len(states[0])):
        tokens = np.concatenate(
            [states[key][layer] for key in states if isinstance(key, int | np.integer)]
        )
        deviation = np.sqrt((tokens**2).mean(0) - tokens.mean(0) ** 2)
        for key, layers in states.items():
            found.setdefault(key, []).append((layers[layer] - tokens.mean(0)) / deviation)
    return found


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def between(run, f):
    """f(original, reconstruction) for all reconstructions, and f(reconstruction, other clone)."""
    shape = run.token.shape[:4]
    one = np.array([f(place[1], place) for place in np.ndindex(shape)])
    two = np.array([f((*place[:3], 1 - place[3]), place) for place in np.ndindex(shape)])
    return [values.reshape(*shape, *values.shape[1:]) for values in (one, two)]


def check_layers(run, states, name, token):
    z = standardised(states)
    layers = range(len(z[0]))
    pairs = {
        "text_similarity": lambda a, b: [cosine(z[a][k].mean(0), z[b][k].mean(0)) for k in layers]
    }
    if token:
        pairs["token_similarity"] = lambda a, b: [cosine(z[a][k], z[b][k]).mean() for k in layers]
    for variable, f in pairs.items():
        for found, expected in zip(
            (f"{name}{variable}", f"clone_{name}{variable}"), between(run, f), strict=True
        ):
            np.testing.assert_allclose(run[found], expected, rtol=0, atol=1e-5)
            assert np.ptp(run[found].values[1]) > 0.1


def test_hidden_states_of_the_model_of_the_backward(folder, run):
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(folder / "bert").eval()
    originals, reconstructions = ids_of(run)
    states = {
        key: hidden_states(model, [2], ids, [3])
        for key, ids in (originals | reconstructions).items()
    }
    check_layers(run, states, "", token=True)
    assert run.text_layer.values.tolist() == ["embeddings", "block 1", "block 2", "block 3"]


def test_hidden_states_of_a_model_with_other_tokens(folder, run):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = (
        kind.from_pretrained(folder / "gpt2") for kind in (AutoModel, AutoTokenizer)
    )
    originals, reconstructions = ids_of(run)
    assert [text_of(ids) for ids in originals.values()] == TEXTS
    states = {
        key: hidden_states(model.eval(), [], tokenizer(text_of(ids))["input_ids"], [])
        for key, ids in (originals | reconstructions).items()
    }
    check_layers(run, states, "gpt_", token=False)
    assert "gpt_token_similarity" not in run
    assert "the tokens of the models differ" in run.gpt_text_similarity.long_name


def test_equal_texts_have_the_similarity_1(run):
    names = [name for name in run.data_vars if name.endswith("similarity")]
    assert len(names) == 8
    for name in names:
        assert (run[name].values[0] == 1).all()
    for name in ("log_likelihood", "gpt_log_likelihood"):
        before = run[name.replace("log_like", "original_log_like")]
        assert (run[name][0] == before[0]).all()


def test_sentence_encoder(folder, run):
    from transformers import BertModel

    model = BertModel.from_pretrained(folder / "sentences").eval()
    originals, reconstructions = ids_of(run)

    def embed(ids):
        with torch.no_grad():
            return model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].mean(0).double().numpy()

    vectors = {key: embed(ids) for key, ids in (originals | reconstructions).items()}
    expected = between(run, lambda a, b: cosine(vectors[a], vectors[b]))
    for found, values in zip(
        ("sentence_similarity", "clone_sentence_similarity"), expected, strict=True
    ):
        np.testing.assert_allclose(run[found], values, rtol=0, atol=1e-5)
    chance = [
        np.mean([cosine(vectors[i], vectors[j]) for j in originals if j != i]) for i in originals
    ]
    np.testing.assert_allclose(run.sentence_chance, [chance] * 3, rtol=0, atol=1e-5)


def test_poolings(folder, tmp_path):
    from transformers import BertModel

    source = experiment(folder, {"type": "tokens"}).parts.source
    for k, mode in enumerate(("cls_token", "max_tokens", "lasttoken")):
        place = tiny_texts.write_sentence_model(tmp_path / mode, **{f"pooling_mode_{mode}": True})
        encoder = TextEncoder(model=str(place)).sentence_model.load()
        found = encoder.embed(source.ids(np.arange(6)), batch_size=4)
        model = BertModel.from_pretrained(place).eval()
        for row, ids in zip(found, source_rows(source), strict=True):
            with torch.no_grad():
                states = model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].double().numpy()
            expected = (states[0], states.max(0), states[-1])[k]
            np.testing.assert_allclose(row, expected / np.linalg.norm(expected), rtol=0, atol=1e-5)


def source_rows(source):
    return [[int(k) for k in row if k != PAD] for row in source.ids(np.arange(source.count()))]


def test_likelihood_under_a_causal_model(folder, run):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    originals, reconstructions = ids_of(run)
    tokenizer = AutoTokenizer.from_pretrained(folder / "gpt2")
    model = GPT2LMHeadModel.from_pretrained(folder / "gpt2").eval()

    def reading(ids):
        text, total = text_of(ids), 0.0
        given = [0, *tokenizer(text)["input_ids"]]  # after the token for the beginning
        for i in range(1, len(given)):
            with torch.no_grad():
                total += (
                    model(torch.tensor([given[:i]]))
                    .logits[0, -1]
                    .double()
                    .log_softmax(-1)[given[i]]
                    .item()
                )
        return total / len(text)

    expected = np.reshape([reading(ids) for ids in reconstructions.values()], run.token.shape[:4])
    np.testing.assert_allclose(run.gpt_log_likelihood, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        run.gpt_original_log_likelihood,
        [[reading(ids) for ids in originals.values()]] * 3,
        atol=1e-5,
    )


def test_pseudo_likelihood_under_a_masked_model(folder, run):
    from transformers import BertForMaskedLM

    model = BertForMaskedLM.from_pretrained(folder / "other_bert").eval()
    originals, reconstructions = ids_of(run)

    def reading(ids):
        total = 0.0
        for i in range(len(ids)):
            with torch.no_grad():
                logits = (
                    model(torch.tensor([[2, *ids[:i], 4, *ids[i + 1 :], 3]]))
                    .logits[0, 1 + i]
                    .double()
                )
            logits[[0, 2, 3, 4]] = -torch.inf  # [PAD], [CLS], [SEP] and [MASK] are no text
            total += logits.log_softmax(-1)[ids[i]].item()
        return total / len(text_of(ids))

    expected = np.reshape([reading(ids) for ids in reconstructions.values()], run.token.shape[:4])
    np.testing.assert_allclose(run.log_likelihood, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        run.original_log_likelihood, [[reading(ids) for ids in originals.values()]] * 3, atol=1e-5
    )


def test_without_a_token_for_the_beginning_the_first_token_is_not_counted(folder):
    from uturn.networks.texts.language import causal_log_likelihoods

    model = TextModel(str(folder / "gpt2_without_beginning"), "causal").load()
    rows = [model.tokenizer.encode(text) for text in TEXTS]
    expected = []
    for row in rows:
        with torch.no_grad():
            logs = model.network(torch.tensor([row])).logits[0].double().log_softmax(-1)
        expected.append(sum(logs[i - 1, row[i]].item() for i in range(1, len(row))))
    padded = np.array([row + [PAD] * (max(map(len, rows)) - len(row)) for row in rows])
    np.testing.assert_allclose(
        causal_log_likelihoods(model, padded, 4), expected, rtol=0, atol=1e-4
    )


# -- how texts are read ----------------------------------------------------------------------------


def u_turns(source, after, items=range(6)):
    items = np.array(items)
    return UTurns(Tokens(items, source.ids(items), source.vocab_size), None, after, clones=2)


@pytest.fixture(scope="module")
def drawn(folder):
    """A source, and reconstructions (items, draws, length) that differ from each other."""
    source = experiment(folder, {"type": "tokens"}).parts.source
    before, rng = source.ids(np.arange(6)), np.random.default_rng(0)
    after = np.where(
        rng.random((6, 4, before.shape[1])) < 0.5,
        rng.integers(5, 18, (6, 4, before.shape[1])),
        before[:, None],
    )
    return source, np.where(before[:, None] == PAD, PAD, after)


def probes_of(folder, **options):
    gpt2, bert = str(folder / "gpt2"), str(folder / "other_bert")
    return [
        TextLayers(**options),
        TextLayers(model=gpt2, **options),
        TextEncoder(model=str(folder / "sentences"), **options),
        TextLikelihood(model=gpt2, **options),
        TextLikelihood(model=bert, **options),
    ]


def test_readings_do_not_depend_on_the_batches(folder, drawn):
    source, after = drawn
    for small, large in zip(
        probes_of(folder, batch_size=1), probes_of(folder, batch_size=100), strict=True
    ):
        found, expected = (
            probe.bind(source).read(u_turns(source, after), source) for probe in (small, large)
        )
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=0, atol=1e-5)
        assert {"batch_size"} <= type(small).execution


def test_token_similarity_does_not_see_padding(folder, drawn):
    source, after = drawn
    whole = TextLayers().bind(source).read(u_turns(source, after), source)
    for item in range(6):
        length = int((source.ids([item])[0] != PAD).sum())
        ids, states = source.ids([item])[:, :length], TextLayers().bind(source)._states
        alone = states.read(ids, after[item : item + 1, :, :length], 2)
        np.testing.assert_allclose(
            alone.with_original["token_similarity"][0],
            whole["token_similarity"][item],
            rtol=0,
            atol=1e-5,
        )
        np.testing.assert_allclose(
            alone.with_clones["text_similarity"][0],
            whole["clone_text_similarity"][item],
            rtol=0,
            atol=1e-5,
        )
        equal = states.read(ids, ids[:, None]).with_original
        assert (equal["text_similarity"] == 1).all()  # in every bit
        assert (equal["token_similarity"] == 1).all()


def own_module():
    """The encoder of a BERT as a module of one's own, which takes ids alone."""
    from transformers import AutoModel

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = AutoModel.from_pretrained(own_module.folder)
            self.head = torch.nn.Linear(16, 2)

        def forward(self, ids):
            return self.head(self.inner(ids).last_hidden_state[:, 0])

    return Own()


def test_equal_texts_with_another_backward_are_read_by_its_model(folder):
    def states(name):
        backward = {"type": "language", "model": str(folder / name)}
        experiment_of = experiment(folder, {"type": "text_layers"}, backward=backward)
        (probe,) = experiment_of.parts.bound_probes
        return probe._states

    assert states("bert") is states("bert")
    assert states("bert") is not states("other_bert")


def test_named_layers_and_modules_of_ones_own(folder, drawn, monkeypatch):
    source, after = drawn
    monkeypatch.setattr(own_module, "folder", folder / "bert", raising=False)
    default = TextLayers().bind(source).read(u_turns(source, after), source)
    named = TextLayers(model=str(folder / "bert"), layers=("encoder.layer.*",))
    own = TextLayers(
        model="test_text_probes:own_module", layers=("inner.encoder.layer.*",), reference=256
    )
    assert named.bind(source).coordinates(source)["text_layer"].tolist() == [
        f"encoder.layer.{k}" for k in range(3)
    ]
    for probe in (named, own):
        found = probe.bind(source).read(u_turns(source, after), source)
        # Texts of a module of one's own have no [CLS] and [SEP] around them.
        assert (
            np.abs(found["token_similarity"] - default["token_similarity"][..., 1:]).max() < 1e-5
        ) == (probe is named)
    bare = TextModel("test_text_probes:own_module").load()
    assert (bare.tokenizer, bare.takes_padding) == (None, False)
    model = bare.network.inner
    states = {}
    for item, row in enumerate(source_rows(source)):
        states[item] = hidden_states(model, [], row, [])[1:]
        for draw in range(4):
            states[item, draw] = hidden_states(
                model, [], [int(k) for k in after[item, draw] if k != PAD], []
            )[1:]
    z = standardised(states)
    expected = [
        [[cosine(z[i][k], z[i, d][k]).mean() for k in range(3)] for d in range(4)] for i in range(6)
    ]
    np.testing.assert_allclose(
        own.bind(source).read(u_turns(source, after), source)["token_similarity"],
        expected,
        rtol=0,
        atol=1e-5,
    )


def test_blocks_that_are_one_module_are_read_each_time(folder, drawn):
    source, after = drawn
    probe = TextLayers(model=str(folder / "albert"), split="characters")
    assert probe.bind(source).coordinates(source)["text_layer"].tolist() == [
        "embeddings",
        "block 1",
        "block 2",
        "block 3",
    ]
    assert probe.bind(source).read(u_turns(source, after), source)["text_similarity"].shape == (
        6,
        4,
        4,
    )
    shared = TextLayers(
        model=str(folder / "albert"), split="characters", layers=("**.albert_layers.0",)
    )
    with pytest.raises(ValueError, match="runs more than once"):
        shared.bind(source)


def test_a_network_of_this_package(folder, tmp_path):
    from uturn.networks import save_network
    from uturn.networks.texts.masked_transformer import MaskedTransformer

    letters = f"{tiny_texts.LETTERS} "
    network = MaskedTransformer(
        vocab_size=27, length=40, width=16, layers=2, heads=2, characters=letters
    ).eval()
    path = str(tmp_path / "letters.safetensors")
    save_network(network, path)
    probes = [{"type": "text_layers"}, {"type": "text_layers", "name": "second", "model": path}]
    probes += [{"type": "text_likelihood", "model": path}]
    backward = {"type": "language", "model": path, "steps": 2}
    found = ut.run(
        experiment(
            folder,
            {"type": "tokens"},
            *probes,
            backward=backward,
            corruption={"type": "masking", "noise": [0.0, 1.0]},
        )
    )
    assert found.text_layer.values.tolist() == ["blocks.0", "blocks.1"]
    # The same tokens.
    np.testing.assert_array_equal(found.token_similarity, found.second_token_similarity)
    text = TEXTS[1]
    ids = torch.tensor([letters.index(letter) for letter in text])
    masked = ids.repeat(len(ids), 1).fill_diagonal_(27)
    with torch.no_grad():
        logs = network(masked).double().log_softmax(-1)[range(len(ids)), range(len(ids)), ids]
    np.testing.assert_allclose(
        found.original_log_likelihood[0, 1], logs.sum() / len(text), rtol=0, atol=1e-5
    )


def test_unreadable_reconstructions_are_nan(folder, drawn, tmp_path):
    source, after = drawn
    tokens = [*tiny_texts.LETTERS, *(f"##{letter}" for letter in tiny_texts.LETTERS)]
    letters = tiny_texts.write_bert(
        tmp_path / "letters2", tokens=[*tiny_texts.SPECIAL, *tokens], longest=25
    )
    sentences = after.copy()
    sentences[0, 0, :6] = 9  # "mat mat mat mat mat mat": 18 letters
    sentences[2, 0, :9] = 9  # 27 letters, more than the 23 that fit between [CLS] and [SEP]
    (tmp_path / "letters2" / "modules.json").write_text(
        json.dumps([{"path": "", "type": "a.Transformer"}])
    )
    second = {"model": str(letters)}
    for probe in (TextLayers(**second), TextEncoder(**second), TextLikelihood(**second)):
        found = probe.bind(source).read(u_turns(source, sentences), source)
        for name, values in found.items():
            assert np.isfinite(values[0]).all()
            if "original" in name or "chance" in name:
                assert np.isfinite(values).all()
            elif name.startswith("clone"):
                assert np.isnan(values[2, :2]).all()  # both clones are compared with it
                assert np.isfinite(values[2, 2:]).all()
            else:
                assert np.isnan(values[2, 0]).all()
                assert np.isfinite(values[2, 1:]).all()


def test_fingerprints(folder):
    bert, other = (
        TextLayers(model=str(folder / name)).fingerprint() for name in ("bert", "other_bert")
    )
    assert len({bert, other, TextLayers().fingerprint(), ""}) == 3
    split = TextLayers(model=str(folder / "albert"), split="characters").fingerprint()
    assert split != TextLayers(model=str(folder / "albert"), split=r"\w").fingerprint()
    cls = folder.parent / "cls"
    tiny_texts.write_sentence_model(cls, pooling_mode_cls_token=True)
    assert (
        TextEncoder(model=str(cls)).fingerprint()
        != TextEncoder(model=str(folder / "sentences")).fingerprint()
    )


# -- bad input -------------------------------------------------------------------------------------


def hostile(folder):
    bert, albert = (str(folder / name) for name in ("bert", "albert"))
    return {
        "no weights of a head": (
            {"type": "text_likelihood", "model": str(folder / "sentences")},
            "config.json = 'BertModel'",
        ),
        "masked, not causal": (
            {"type": "text_likelihood", "model": bert, "likelihood": "causal"},
            "= 'causal': expected 'masked'",
        ),
        "no such layer": (
            {"type": "text_layers", "model": bert, "layers": ["encoder.lyer.0"]},
            "close names: encoder.layer",
        ),
        "layer without tokens": (
            {"type": "text_layers", "model": bert, "layers": ["pooler"]},
            r"expected \(batch, tokens",
        ),
        "unknown tokens": (
            {"type": "text_layers", "model": albert, "split": "\\w+"},
            "expected fewer with the tokenizer of the model; name the right one",
        ),
        "no module": (
            {"type": "text_layers", "model": "test_text_probes:source_rows"},
            "TypeError: source_rows",
        ),
    }


@pytest.mark.parametrize("case", hostile(__import__("pathlib").Path("x")))
def test_bad_input_is_one_line_with_the_way_out(folder, case):
    probe, words = hostile(folder)[case]
    # A TypeError of a function of the user passes, with a note.
    with pytest.raises((ValueError, TypeError)) as error:
        ut.run(experiment(folder, probe))
    assert re.search(words, described(error.value, 400))


def test_texts_longer_than_the_model(folder, tmp_path):
    short = tiny_texts.write_bert(tmp_path / "short", longest=8)
    for probe in ({"type": "text_layers"}, {"type": "text_encoder"}, {"type": "text_likelihood"}):
        with pytest.raises(
            ValueError, match="tokens of a text = 9: expected at most 6; cut the texts"
        ):
            ut.run(experiment(folder, probe | {"model": str(short)}))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", "[]"),
        ("sentence_bert_config.json", '{"max_seq_length": -3}'),
        ("1_Pooling/config.json", None),
        *(
            ("modules.json", (k, path))
            for k in (0, 1)
            for path in ("..", "../outside", "/outside", "a/b")
        ),
        ("modules.json", (0, "nowhere")),
    ],
)
def test_damaged_files_of_a_sentence_model(tmp_path, name, content, monkeypatch):
    place = tiny_texts.write_sentence_model(tmp_path / "damaged")
    if isinstance(content, tuple):  # the path of a part, which leads elsewhere
        modules = json.loads((place / name).read_text())
        modules[content[0]]["path"] = content[1]
        content = json.dumps(modules)
    (place / name).unlink() if content is None else (place / name).write_text(content)
    monkeypatch.setattr(
        "uturn.networks.texts.language_files.check_hub", lambda *_: pytest.fail("the hub was asked")
    )
    with pytest.raises(ValueError, match=r"cannot be read .*; download the model again"):
        TextEncoder(model=str(place)).sentence_model.load()


def test_code_that_comes_with_a_model_does_not_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}})
    )
    (tmp_path / "mine.py").write_text("raise SystemExit('it ran')")
    for probe in (TextLayers(model=str(tmp_path)), TextLikelihood(model=str(tmp_path))):
        with pytest.raises(
            ValueError,
            match=r"its own code; trust_remote_code \(--trust-remote-code\) runs this code",
        ):
            probe.text_model.load()
