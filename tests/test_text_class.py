"""The probe `text_class`: classes of texts, against transformers in plain loops and against
exact laws.
"""

import json
from itertools import product

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

import tiny_texts
import uturn as ut
from command_line import uturn
from forging import Trap
from small import one_line_error
from tiny_language import Table
from uturn.core.protocols import UTurns
from uturn.networks.texts.language import class_logits
from uturn.networks.texts.language_files import TextModel
from uturn.probes import TextClass
from uturn.sources.tokens import PAD, Tokens

TEXTS = [
    "the cat sat on a mat",
    "the dog ran",
    "a big red cat ran to the mats",
    "cats sat",
    "dogs",
    "big mats",
    "red",
    "a cat",
]
LETTERS = [
    *tiny_texts.SPECIAL,
    *tiny_texts.LETTERS,
    *(f"##{letter}" for letter in tiny_texts.LETTERS),
]
CLASSES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A masked model, a classifier of its tokens, a classifier of letters, texts and labels."""
    place = tmp_path_factory.mktemp("models")
    tiny_texts.write_bert(place / "bert")
    head = {"head": "ForSequenceClassification", "classes": CLASSES}
    tiny_texts.write_bert(place / "classes", seed=1, **head)
    tiny_texts.write_bert(place / "letters", seed=2, tokens=LETTERS, longest=60, **head)
    (place / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    write_labels(place / "texts.csv", (0, 3, -1, 2, 1, 0, 3, 2))
    return place


def write_labels(path, labels):
    path.write_text(
        "\n".join(
            ["text,label", *(f"{text},{label}" for text, label in zip(TEXTS, labels, strict=True))]
        )
    )


def experiment(folder, *probes, labels=True, **options):
    return ut.Experiment.from_dict(
        {
            **{"items": 8, "trajectories": 2, "clones": 3, "chunk": 3, "seed": 3},
            "source": {
                "type": "tokens",
                "path": str(folder / ("texts.csv" if labels else "texts.txt")),
            },
            "corruption": {"type": "masking", "noise": [0.0, 0.4, 1.0]},
            "backward": {"type": "language", "model": str(folder / "bert")},
            "probes": [*probes],
            **options,
        }
    )


@pytest.fixture(scope="module")
def run(folder):
    classifier = {"type": "text_class", "model": str(folder / "classes")}
    letters = {
        "type": "text_class",
        "model": str(folder / "letters"),
        "name": "letters",
        "batch_size": 3,
    }
    return ut.run(experiment(folder, {"type": "tokens"}, classifier, letters))


def classes_by_hand(folder, name, token_rows):
    """The class that transformers predicts for each row of ids of the masked model, one text a
    call.
    """
    from transformers import BertForSequenceClassification, BertTokenizer

    model = BertForSequenceClassification.from_pretrained(folder / name).eval()
    tokenizer = BertTokenizer.from_pretrained(folder / name)
    classes = []
    for row in token_rows:
        words = [tiny_texts.TOKENS[k] for k in row if k != PAD]
        text = "".join(
            word.removeprefix("##") if word.startswith("##") else f" {word}" for word in words
        )
        ids = (
            [2, *(k for k in row if k != PAD), 3]
            if name == "classes"
            else tokenizer(text)["input_ids"]
        )
        with torch.no_grad():
            classes.append(model(torch.tensor([ids])).logits[0].argmax().item())
    return classes


@pytest.mark.parametrize(("name", "prefix"), [("classes", ""), ("letters", "letters_")])
def test_classes_are_those_of_transformers(folder, run, name, prefix):
    tokens = run.token.values.astype(int)
    after = np.reshape(
        classes_by_hand(folder, name, tokens.reshape(-1, tokens.shape[-1])), tokens.shape[:4]
    )
    before = after[0, :, 0, 0]  # at noise 0 nothing is changed
    assert len(set(before)) > 1
    np.testing.assert_array_equal(run[f"{prefix}predicted_class"], after)
    np.testing.assert_array_equal(run[f"{prefix}original_class"], [before] * 3)
    same = run[f"{prefix}same_class"].values
    np.testing.assert_array_equal(same, after == before[:, None, None])
    assert (same[0] == 1).all()
    assert 0 < same[2].mean() < 1
    others = [[after[..., k] == after[..., j] for j in range(3) if j != k] for k in range(3)]
    np.testing.assert_allclose(
        run[f"clone_{prefix}same_class"], np.moveaxis(np.mean(others, axis=1), 0, -1)
    )
    labels = np.array([0, 3, np.nan, 2, 1, 0, 3, 2])[:, None, None]
    expected = np.where(np.isnan(labels), np.nan, after == labels)
    np.testing.assert_array_equal(run[f"{prefix}label_top1"], expected)


def test_chance_is_the_probability_that_two_originals_share_a_class(folder, run):
    study = ut.study(run).set_index(reading="reading")
    before = run.original_class.values[0]
    shares = [float(np.mean(before == label)) for label in range(CLASSES)]
    of_class = study.sel(reading="same_class")
    assert float(of_class.chance) == pytest.approx(sum(share**2 for share in shares), abs=1e-12)
    assert (float(of_class.start), str(of_class.group.item())) == (1, "class")
    labels = np.array([0, 3, -1, 2, 1, 0, 3, 2])
    right = float(np.mean(before[labels >= 0] == labels[labels >= 0]))
    assert float(study.sel(reading="label_top1").start) == pytest.approx(right, abs=1e-12)
    assert run.label.values.tolist() == labels.tolist()


def test_labels_can_be_left_out(folder):
    probe = {"type": "text_class", "model": str(folder / "classes")}
    assert "label_top1" not in experiment(folder, {**probe, "labels": False}).variables()
    assert "label_top1" not in experiment(folder, probe, labels=False).variables()


def source_of(folder, **options):
    return experiment(folder, {"type": "tokens"}, **options).parts.source


def test_readings_do_not_depend_on_batches_or_order(folder):
    source, rng = source_of(folder), np.random.default_rng(0)
    before = source.ids(np.arange(8))
    after = np.where(
        rng.random((8, 4, before.shape[1])) < 0.5,
        rng.integers(5, 18, (8, 4, before.shape[1])),
        before[:, None],
    )
    after = np.where(before[:, None] == PAD, PAD, after)

    def read(order, **options):
        items = np.asarray(order)
        block = Tokens(items, before[items], source.vocab_size, labels=source.labels_of(items))
        probe = TextClass(model=str(folder / "letters"), **options)
        return probe.bind(source).read(UTurns(block, None, after[items], clones=2), source)

    whole, order = read(range(8)), [3, 0, 7, 5, 1, 4, 6, 2]
    for name, values in whole.items():
        np.testing.assert_array_equal(read(range(8), batch_size=1)[name], values)
        np.testing.assert_array_equal(read(order)[name], values[order])


def test_texts_that_the_classifier_cannot_read_have_no_reading(folder, tmp_path):
    short = tiny_texts.write_bert(
        tmp_path, "ForSequenceClassification", tokens=LETTERS, longest=26, classes=CLASSES
    )
    source = source_of(folder, labels=False)
    before = source.ids(np.arange(8))
    after = np.repeat(before[:, None], 4, axis=1)
    after[2, 0, :10] = tiny_texts.TOKENS.index("the")  # 30 letters, more than 24
    readings = (
        TextClass(model=str(short))
        .bind(source)
        .read(UTurns(Tokens(np.arange(8), before, 0), None, after, clones=2), source)
    )
    missing = {name: np.argwhere(np.isnan(values)).tolist() for name, values in readings.items()}
    assert missing == {
        "same_class": [[2, 0]],
        "predicted_class": [[2, 0]],
        "original_class": [],
        "clone_same_class": [[2, 0], [2, 1]],
    }


# -- a law whose classes are known -----------------------------------------------------------------


class FirstSymbols(torch.nn.Module):
    """The class of a string of `Table`: its first symbol, and whether the others sum up to an
    even number.
    """

    def forward(self, ids):
        classes = 2 * ids[:, 0] + ids[:, 1:].sum(1) % 2
        return torch.nn.functional.one_hot(classes, 2 * Table.V).float()


def exact_same_class(noise):
    """P(the class of a posterior draw is that of the original), by enumeration of strings and
    masks.
    """
    table, total = Table(), 0.0
    classes = 2 * table.strings[:, 0] + table.strings[:, 1:].sum(1) % 2
    for mask in product([False, True], repeat=table.D):
        probability = np.prod(np.where(mask, noise, 1 - noise))
        for string, weight in zip(table.strings, table.law, strict=True):
            if probability * weight:
                posterior = table.given(np.where(mask, -1, string))
                same = posterior[classes == classes[(table.strings == string).all(1)]].sum()
                total += probability * weight * same
    return total


def of_table(tmp_path, temperature=1.0):
    table, rng = Table(), np.random.default_rng(5)
    np.save(tmp_path / "ids.npy", table.strings[rng.choice(len(table.law), size=300, p=table.law)])
    return ut.run(
        ut.Experiment.from_dict(
            {
                **{"items": 300, "clones": 2, "chunk": 100},
                "source": {"type": "tokens", "path": str(tmp_path / "ids.npy")},
                "corruption": {"type": "masking", "noise": [0.3, 0.6, 1.0]},
                "backward": {
                    "type": "language",
                    "model": "tiny_language:table",
                    "temperature": temperature,
                },
                "probes": [{"type": "text_class", "model": "test_text_class:FirstSymbols"}],
            }
        )
    )


def test_an_exact_model_keeps_the_class_as_often_as_it_must_and_is_calibrated(tmp_path):
    """False-alarm rate of the comparison: 2e-4 (three levels at 4 standard errors); of the
    calibration: 1e-3.
    """
    run = of_table(tmp_path)
    same = run.same_class.values[:, :, 0]
    errors = same.mean(-1).std(1, ddof=1) / np.sqrt(same.shape[1])
    expected = [exact_same_class(noise) for noise in run.noise.values]
    assert expected[0] - expected[-1] > 10 * errors.max()
    assert (np.abs(same.mean((1, 2)) - expected) < 4 * errors).all()
    found = ut.calibration(run, "same_class")
    assert found.attrs["passed"]
    study = ut.study(run)
    assert study.reading.values.tolist() == ["same_class"]
    assert np.isfinite(study.gap_p.values).any()


def test_a_cold_decoder_is_not_calibrated(tmp_path):
    found = ut.calibration(of_table(tmp_path, temperature=0.3), "same_class")
    assert not found.attrs["passed"]
    assert float(found.gap.min()) < 0


# -- the command -----------------------------------------------------------------------------------


def without_line(folder, place):
    """A copy of a folder whose config.json lacks the line `model_type`."""
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    config = json.loads((place / "config.json").read_text())
    del config["model_type"]
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.mark.usefixtures("unsaved_figures")
def test_the_command_takes_a_classifier_and_files_without_model_type(folder, tmp_path):
    masked, letters = (
        without_line(folder / "bert", tmp_path / "masked"),
        without_line(folder / "letters", tmp_path / "letters"),
    )
    text = ("text", "--model", masked, "--data", folder / "texts.csv", "--layers", letters)
    classes = ("--classifier", letters, "--classifier-tokenizer", folder / "letters")
    sizes = (
        "--items",
        3,
        "--levels",
        "0.5,1.0",
        "--trajectories",
        1,
        "--clones",
        2,
        "--keep",
        0,
        "--workers",
        1,
    )
    refused = uturn(*text, *classes, *sizes, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert 'lacks the line "model_type", such as "model_type": "bert"' in refused.stderr
    done = uturn(*text, *classes, "--model-type", "bert", *sizes, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    study = xr.open_zarr(tmp_path / "out" / "study.zarr")
    groups = dict(zip(study.variable.values, study.group.values, strict=True))
    assert (groups["same_class"], groups["label_top1"], groups["text_similarity"]) == (
        "class",
        "class",
        "layers",
    )
    spec = json.loads(xr.open_dataset(tmp_path / "out" / "run", engine="uturn").attrs["spec"])
    tokenizers = {probe["type"]: probe.get("tokenizer") for probe in spec["probes"]}
    assert tokenizers["text_class"] == tokenizers["text_layers"] == str(folder / "letters")
    with_line, without = (
        TextClass(model=str(folder / "letters")),
        TextClass(model=str(letters), model_type="bert"),
    )
    assert with_line.text_model.load().identity == without.text_model.load().identity


# -- bad input -------------------------------------------------------------------------------------


def hostile(folder):
    def model(name):
        return {"model": str(folder / name)}

    return {
        "no such folder": ({"model": "no/such/folder"}, "no such folder"),
        "masked model without a head of classes": (
            model("bert"),
            "missing weights = .*: expected all weights of a trained",
        ),
        "another tokenizer": (
            model("classes") | {"tokenizer": str(folder / "letters")},
            "tokens of its tokenizer = 57: expected 43",
        ),
        "no logits of classes": (
            {"model": "test_text_class:Wrong"},
            r"for 2 texts = \(2, 6, 3\): expected logits",
        ),
    }


class Wrong(torch.nn.Module):
    def forward(self, ids):
        return torch.zeros(*ids.shape, 3)


@pytest.mark.parametrize("case", hostile(__import__("pathlib").Path("x")))
def test_mistakes_are_one_line_with_the_way_out(folder, case):
    options, words = hostile(folder)[case]
    with one_line_error(words) as error:
        ut.run(experiment(folder, {"type": "text_class", **options}))
    assert "model = " not in str(error.value)  # that is the option of the masked model


def test_pickled_weights_do_not_run_code(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tiny_texts.write_bert(tmp_path / "model", "ForSequenceClassification")
    weights = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    torch.save(weights, place / "pytorch_model.bin")
    TextModel(str(place), "classifier").load()  # plain tensors are read
    torch.save({**weights, "extra": Trap("it_ran")}, place / "pytorch_model.bin")
    with one_line_error("cannot be read as a classifier model of texts"):
        TextModel(str(place), "classifier", device="cpu").load()
    assert not (tmp_path / "it_ran").exists()


def test_a_classifier_that_looks_for_its_padding_finds_it(tmp_path):
    """GPT-2 reads the last token that is not `pad_token_id` of its config.json; the tokenizer
    has another one, or none.
    """
    import transformers

    tiny_texts.write_gpt2(tmp_path)
    # Of the letter '.
    config = transformers.GPT2Config.from_pretrained(tmp_path, num_labels=3, pad_token_id=28)
    torch.manual_seed(1)
    transformers.GPT2ForSequenceClassification(config).eval().save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path)
    model = TextModel(str(tmp_path), "classifier").load()
    assert model.tokenizer.pad_id == 0
    rows = [np.array(model.tokenizer.encode(text)) for text in ("cat", "a", "horse")]
    padded = np.stack([np.pad(row, (0, 5 - len(row)), constant_values=PAD) for row in rows])
    alone = np.concatenate([class_logits(model, row[None], 1) for row in rows])
    np.testing.assert_allclose(class_logits(model, padded, 3), alone, atol=1e-5)
    assert np.ptp(alone[:, 0]) > 0.01
