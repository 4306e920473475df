"""`uturn text`: its options, its study against plain loops and an exact model, its pages, and
mistakes of users.
"""

import json
import re
import sys
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import tiny_language
import uturn as ut
from forging import instructed, passed
from uturn import cli
from uturn.cli import app
from uturn.measures.changes import correlations, present_pairs, susceptibility
from uturn.measures.scaling import correlation_length
from uturn.pages.html import token_page
from uturn.pages.results import RESULTS
from uturn.pages.tokens import blocks, readable
from uturn.presets import TextOptions
from uturn.studies import records_of
from uturn.studies.headline import headline_of
from uturn.studies.tables import remarks

CHAIN = '''
"""Texts of three letters, each of which is followed by itself with probability .8: the exact conditionals of masked letters."""
import numpy as np
import torch

from uturn.networks.texts.tokenizers import Vocabulary

STAY = 0.8
MOVES = np.full((3, 3), (1 - STAY) / 2) + np.eye(3) * (STAY - (1 - STAY) / 2)


class Chain:
    mask_id = 3
    tokenizer = Vocabulary(("a", "b", "c"), "characters", framed=False)

    def logits(self, ids, noise):
        ids = ids.numpy()
        evidence = (ids[..., None] == np.arange(3)) | (ids[..., None] == 3)
        left, right = evidence / 3, evidence.astype(float)
        for i in range(1, ids.shape[1]):
            left[:, i] = evidence[:, i] * (left[:, i - 1] @ MOVES)
        for i in range(ids.shape[1] - 2, -1, -1):
            right[:, i] = evidence[:, i] * (right[:, i + 1] @ MOVES)
        both = np.where(evidence, left * right, 0)
        return torch.from_numpy(np.log(both / both.sum(-1, keepdims=True) + 1e-300))


def chain():
    return Chain()
'''


def drawn(lengths, seed=0):
    """Texts of the chain."""
    rng = np.random.default_rng(seed)
    texts = []
    for length in lengths:
        text = [rng.integers(3)]
        while len(text) < length:
            text.append(text[-1] if rng.random() < 0.8 else (text[-1] + rng.integers(1, 3)) % 3)
        texts.append("".join("abc"[k] for k in text))
    return texts


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """A folder with the chain as a model and two files of texts, of one length and of several."""
    place = tmp_path_factory.mktemp("texts")
    (place / "letter_chain.py").write_text(CHAIN)
    (place / "equal.txt").write_text("\n".join(drawn([12] * 40)))
    (place / "several.txt").write_text(
        "\n".join(drawn(np.random.default_rng(1).integers(6, 17, 40)))
    )
    sys.path.insert(0, str(place))
    yield place
    sys.path.remove(str(place))


def options(folder, **more):
    chosen = {
        "model": "letter_chain:chain",
        "data": str(folder / "equal.txt"),
        "items": 12,
        "levels": 4,
        "keep": 3,
    }
    return TextOptions.from_dict(chosen | more)


@pytest.fixture(scope="module")
def measured(folder):
    """A run of texts of several lengths with clones, and its source."""
    experiment = options(
        folder, data=str(folder / "several.txt"), items=40, levels=5, trajectories=6, clones=2
    ).experiment()
    return ut.run(experiment), experiment.parts.source


# --- options --------------------------------------------------------------------------------------


def test_spec_of_a_text_experiment(folder):
    spec = (
        options(folder, order="entropy", segments="a", length=12, trust_remote_code=True)
        .experiment()
        .to_dict()
    )
    assert spec["corruption"] == {"type": "masking", "noise": [0.25, 0.5, 0.75, 1.0]}
    assert spec["backward"]["order"] == "entropy"
    assert [probe["type"] for probe in spec["probes"]] == ["kept_tokens", "changes", "tokens"]
    assert spec["probes"][-1]["first"] == 3
    assert (spec["source"]["segments"], spec["source"]["length"]) == (["a"], 12)
    one = options(folder, trajectories=1, keep=0, levels="0.3,0.9").experiment().to_dict()
    assert [probe["type"] for probe in one["probes"]] == ["kept_tokens"]
    assert one["corruption"]["noise"] == [0.3, 0.9]


# --- a poor model ---------------------------------------------------------------------------------

FREQUENCIES = """
import torch
from letter_chain import Chain


class Frequencies(Chain):
    \"\"\"Knows the letters alone: SHARP = 0 for their frequencies, larger for a model that is sure of a wrong letter.\"\"\"

    def __init__(self, sharp):
        self.sharp = sharp

    def logits(self, ids, noise):
        return self.sharp * torch.tensor([0.0, 1.0, 0.0]).expand(*ids.shape, 3)


def frequencies():
    return Frequencies(0.0)


def wrong():
    return Frequencies(4.0)
"""


@pytest.mark.parametrize("data", ["equal.txt", "several.txt"])
def test_a_model_no_better_than_frequencies_is_named_before_its_run(folder, data):
    """Letters that stay with probability .8: 1.10 nats by frequencies; the exact model saves
    more than a third of them.
    """
    (folder / "letter_frequencies.py").write_text(FREQUENCIES)

    def said(model, **more):
        experiment = options(
            folder, model=model, data=str(folder / data), items=40, **more
        ).experiment()
        return [str(finding) for finding in experiment.model_check()]

    assert not said("letter_chain:chain")
    assert not said("letter_chain:chain", keep_first=4)
    (words,) = said("letter_frequencies:frequencies")
    assert re.fullmatch(
        r"model check: the model 'letter_frequencies:frequencies' is poor on these texts: with half"
        r" of the tokens masked its "
        r"loss is 1\.1 nats a token, and that of the frequencies of the tokens 1\.[01]\d?;"
        r" results .*",
        words,
    )
    assert "is poor on these texts" in said("letter_frequencies:wrong")[0]


# --- correlated changes against plain loops -------------------------------------------------------


def changes_of(folder, run_options):
    """Run with the tokens of all items; changes {noise: list of arrays (trajectories, tokens)}."""
    experiment = options(folder, **run_options).experiment()
    run, source = ut.run(experiment), experiment.parts.source
    originals = source.ids(np.arange(run.sizes["item"]))
    lengths = run.length.values
    changed = {
        k: [
            (run.token[k, i].values[:, : lengths[i]] != originals[i, : lengths[i]])
            for i in range(len(lengths))
        ]
        for k in range(run.sizes["noise"])
    }
    return run, changed


def test_correlations_of_texts_of_several_lengths_against_a_loop(folder):
    run, changed = changes_of(
        folder,
        {
            "data": str(folder / "several.txt"),
            "items": 9,
            "keep": 9,
            "trajectories": 5,
            "levels": 2,
        },
    )
    present = present_pairs(run.change_covariance)
    found, chi = correlations(run, present=present), susceptibility(run)
    np.testing.assert_allclose(
        run.change, 1 - run.kept.sel(span=1).astype(float).mean("trajectory"), atol=1e-6
    )
    for k, texts in changed.items():
        sums, pairs = np.zeros(present.sizes["distance"]), np.zeros(present.sizes["distance"])
        for text in texts:
            covariance = np.cov(text.T, ddof=1)
            for i, j in product(range(text.shape[1]), repeat=2):
                sums[abs(i - j)] += covariance[i, j]
                pairs[abs(i - j)] += 1
        # Readings are float32.
        np.testing.assert_allclose(found.covariance[k], sums / pairs, atol=1e-7)
        np.testing.assert_allclose(
            found.correlation[k], sums / pairs / (sums[0] / pairs[0]), atol=1e-6
        )
        assert float(chi.chi[k]) == pytest.approx(sums.sum() / sums[0], rel=1e-5)
        wrong = correlations(run)  # without the correction far pairs are missed
        assert np.abs(wrong.covariance[k] - sums / pairs).max() > 1e-3


def test_the_study_gives_the_curves_of_the_measures(measured):
    """Corrected for texts of several lengths, at distances of which there are at least half as
    many pairs as of neighbours.
    """
    run, _ = measured
    found, present = ut.study(run), present_pairs(run.change_covariance)
    changes, distances = found.isel(changes=0), found.distance.values.astype(int)
    assert changes.unit_of_distance == "tokens"
    pairs = [
        sum(max(int(n) - r, 0) for n in run.length.values) for r in range(run.sizes["distance"])
    ]
    assert distances.tolist() == [
        r for r in range(len(pairs)) if r == 0 or pairs[r] >= pairs[1] / 2
    ]
    whole = correlations(run, present=present).correlation.isel(distance=distances)
    np.testing.assert_allclose(changes.correlation[1:, :, 0], whole)
    length = correlation_length(
        run.change_covariance.isel(distance=distances), present=present.isel(distance=distances)
    )
    np.testing.assert_allclose(changes.xi[1:, 0], length.length)
    assert set(found.sel(reading=[f"kept, span = {span}" for span in (1, 2, 4)]).family.values) == {
        "text"
    }


def test_an_exact_model_is_calibrated_and_a_cold_one_is_not(measured, folder):
    run, _ = measured
    found = ut.study(run)
    assert passed(found) == {"text": True}
    kept = found.curve.sel(reading="kept, span = 1", estimate="value").values
    assert (np.diff(kept) < 0).all()
    # 40 texts of 11 letters, 12 draws of each: 4 s.d. are .03.
    assert kept[-1] == pytest.approx(1 / 3, abs=0.04)
    # Neighbours change together.
    assert found.correlation.sel(distance=1, estimate="low").isel(changes=0)[2:].min() > 0
    cold = options(
        folder,
        data=str(folder / "several.txt"),
        items=40,
        levels="0.5,0.8",
        clones=2,
        temperature=0.3,
    ).experiment()
    assert "not a draw from the posterior" in cold.parts.backward.describe()
    assert passed(ut.study(ut.run(cold))) == {"text": False}


# --- places on curves -----------------------------------------------------------------------------


PROBES = [{"type": "kept_tokens"}, {"type": "changes"}]


def forged(chi, noise, items=60, scatter=0.1, seed=0, probes=(), **more):
    """A run whose susceptibility is chi(noise) at unit variance, with independent scatter of the
    items.
    """
    rng = np.random.default_rng(seed)
    noise = np.asarray(noise, float)
    spread = scatter * rng.standard_normal((len(noise), items))
    kept = np.clip(
        1 - noise[:, None, None, None] ** np.array([1.0, 0.5]) + 0 * rng.random((1, items, 2, 1)),
        0,
        1,
    )
    kept = (
        kept
        + 0.02 * rng.standard_normal((1, items, 1, 1)) * (noise * (1 - noise))[:, None, None, None]
    )
    dims = ("noise", "item", "trajectory")
    covariance = np.tile(np.array([1.0, 0.5, 0.25, 0.125, 0.06]), (len(noise), items, 1))
    run = xr.Dataset(
        {
            "kept": ((*dims, "span"), kept),
            "change_covariance": (("noise", "item", "distance"), covariance),
            "change_covariance_sum": (
                ("noise", "item"),
                np.asarray([chi(x) for x in noise])[:, None] + spread,
            ),
            **{name: (dims[: np.ndim(values)], values) for name, values in more.items()},
        },
        coords={
            "noise": noise,
            "span": [1, 2],
            "distance": np.arange(5.0),
            "length": ("item", np.full(items, 5)),
        },
        attrs={"spec": json.dumps({"source": {"type": "tokens"}, "probes": [*PROBES, *probes]})},
    )
    return instructed(run)


def said(found):
    """All remarks of a study."""
    return "; ".join(remarks(found))


def t_star(found):
    """The noise of the peak of chi, with its interval."""
    return found.peak_at.sel(axis="noise").isel(changes=0)


def test_the_peak_of_the_susceptibility_is_written_with_its_levels():
    found = ut.study(forged(lambda x: 4 - 6 * (x - 0.47) ** 2, np.linspace(0.1, 1, 10)))
    assert "susceptibility" not in said(found)
    assert found.peak[0, 0] == pytest.approx(4, abs=0.1)
    assert found.peak_cross_fitted.item() == pytest.approx(4, abs=0.1)
    place = t_star(found)
    assert place[1] < 0.47 < place[2]
    assert place[2] - place[1] <= 0.2
    assert headline_of(found).place[0] == pytest.approx(place.values)
    assert headline_of(found).label == "peak of chi"  # t* is for a class
    numbers = found.isel(changes=0)
    assert 0.5 in np.round(found.noise.values[numbers.of_peak.values == 1], 9)
    assert not numbers.plateau
    np.testing.assert_array_equal(numbers.n_eff, [np.nan, *[60] * 10])


@pytest.mark.parametrize(
    ("chi", "words"),
    [
        (lambda x: 1 + x, "largest at the largest noise, 0.9: no peak; measure larger levels"),
        (lambda x: 3 - x, "largest at the smallest noise, 0.1: no peak; measure smaller levels"),
    ],
)
def test_without_a_peak_inside_there_is_no_transition(chi, words):
    found = ut.study(forged(chi, np.linspace(0.1, 0.9, 9)))
    assert np.isnan(found.peak_at).all()
    assert words in said(found)
    assert np.isnan(found.peak_cross_fitted).all()


@pytest.mark.parametrize(
    ("end", "advice"), [(0.1, "measure smaller levels"), (1.0, "there is no larger noise")]
)
def test_a_peak_that_is_as_high_as_one_of_the_ends_is_unsure(end, advice):
    found = ut.study(
        forged(
            lambda x: {0.5: 4.1, end: 4.0}.get(round(x, 1), 2.0),
            np.linspace(0.1, 1, 10),
            scatter=0.5,
        )
    )
    assert f"noise, {end:g}, is not below its largest: the peak may lie there; {advice}" in said(
        found
    )
    assert end in t_star(found).values[1:]


# --- the page -------------------------------------------------------------------------------------


def hostile(texts, changed=None):
    """A study that shows these texts, a list of tokens each, and their copies."""
    count, length = len(texts), max(map(len, texts))
    padded = np.array([[*text, *[""] * (length - len(text))] for text in texts])
    base = ut.study(forged(lambda x: 4 - 6 * (x - 0.5) ** 2, [0.25, 0.5, 0.75], items=4))
    dims = ("shown_noise", "shown_item", "position")
    marks = np.zeros((1, count, length), bool)
    marks[0, :, 0] = True
    return base.assign(changed=(dims, marks), noised=(dims, marks)).assign_coords(
        original_piece=(dims[1:], padded),
        piece=(dims, padded[None]),
        noisy_piece=(dims, np.where(marks, "", padded[None])),
        shown_noise=[0.5],
        shown_item=np.arange(count),
    )


class Reader(HTMLParser):
    """Tags and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.words = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


EVIL = [
    *("<script>alert(1)</script>", " <img src=x onerror=alert(1)>", " </p>"),
    *("&amp;", "\"'", "\u202e", "\n", "$x$", "日本", "e\u0301"),
]


def test_texts_with_markup_stay_texts():
    data = hostile([EVIL]).assign_attrs(description="<b>model</b>", remark="")
    page = token_page(data)
    reader = Reader()
    reader.feed(page)
    assert {tag for tag, _ in reader.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "header",
            "h1",
            "h2",
            "p",
            "i",
            "mark",
            "input",
            "label",
            "nav",
            "a",
        ),
        *("main", "article", "div", "span", "br"),
    }
    assert not any(
        name.startswith("on") or name == "src"
        for _, attributes in reader.tags
        for name in attributes
    )
    words = "".join(reader.words)
    for text in EVIL:
        assert readable(text).strip() in words
    assert "\u202e" not in page
    assert "<b>model</b>" in words


def test_page_marks_what_was_noised_and_what_changed(measured):
    run, source = measured
    data = records_of(run, source)
    page = token_page(data)
    originals = source.ids(np.arange(3))
    first = run.isel(item=slice(3), trajectory=0, clone=0).token.values
    changed = int(((first != originals) & (originals >= 0)).sum())
    body = page[page.index("<main>") :]
    assert len(re.findall("<mark>", body)) == changed > 0
    still = (first == originals) & (
        run.isel(item=slice(3), trajectory=0, clone=0).noisy_token.values == -1
    )
    rows = [
        row for row in body.split('<div class="row') if not row.startswith((" noisy", " original"))
    ]
    assert sum(row.count("<i>") for row in rows) == int(still.sum()) > 0
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded
    for text, (_, block) in zip(
        Path(source.path).read_text().split("\n"), blocks(data), strict=False
    ):
        assert "".join(token.text for token in block[0].tokens) == text


def test_regions_and_segments_are_marked(folder, tmp_path):
    texts = (folder / "equal.txt").read_text().split("\n")
    (tmp_path / "texts.csv").write_text(
        "\n".join(["text,regions", *(f'"{text}",{"<" * 6 + "&" * 6}' for text in texts)])
    )
    experiment = options(
        folder, data=str(tmp_path / "texts.csv"), segments=["b"], items=4, levels=2
    ).experiment()
    run = ut.run(experiment)
    found = ut.study(run)
    assert {"kept_region, region = <", "kept_region, region = &", "kept_segments"} <= set(
        found.reading.values
    )
    page = token_page(records_of(run, experiment.parts.source))
    assert "region &lt;" in page
    assert "region &amp;" in page
    wanted = sum(text.count("b") for text in texts[:3])
    assert len(re.findall("<b>[^&]", page)) == wanted
    np.testing.assert_allclose(
        found.sel(reading="kept_region, region = <").curve[1:, 0],
        run.kept_region.sel(region="<").mean(["item", "trajectory"]),
    )
    # And has a character of none.
    with pytest.raises(ValueError, match="segments = 'x': expected the texts of single tokens"):
        ut.run(options(folder, segments=["x"], items=4, levels=2).experiment())


# --- the command ----------------------------------------------------------------------------------


def command(*arguments):
    return CliRunner().invoke(app, ["text", *map(str, arguments)], catch_exceptions=True)


def small(folder, **more):
    chosen = {
        "model": "letter_chain:chain",
        "data": folder / "equal.txt",
        "items": 10,
        "levels": 3,
        "chunk": 5,
        "keep": 2,
        "workers": 1,
    }
    return [
        part
        for name, value in (chosen | more).items()
        for part in (f"--{name.replace('_', '-')}", value)
    ]


@pytest.fixture(scope="module")
def results(folder, tmp_path_factory, blank_figures):
    out = tmp_path_factory.mktemp("out") / "out"
    done = command("--out", out, *small(folder))
    assert done.exit_code == 0, (done.output, done.exception)
    return out, done.output


def numbers_in(out):
    return xr.open_zarr(out / "study.zarr").load()


def test_command_writes_everything(results):
    out, output = results
    expected = {name for name in RESULTS if not name.startswith(("grid", "difference", "located"))}
    assert {path.name for path in out.iterdir()} == {*expected, "study.zarr", "run"}
    assert "changes: chi is largest" in output
    assert "kept, span = 2" in output
    assert "letter_chain:chain, order random, one token a call · 10 texts of equal.txt" in output
    run = xr.open_dataset(out / "run", engine="uturn").load()
    kept = xr.open_zarr(out / "study.zarr").load()
    np.testing.assert_array_equal(kept.curve, ut.study(run).curve)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of tiny models of transformers: a masked one and a causal one."""
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("models")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "sat",
        "on",
        "mat",
        ".",
        "##s",
        "a",
        "dog",
    ]
    tiny_language.write(place / "bert", "bert", vocab_size=len(tokens), max_position_embeddings=10)
    tiny_language.write(place / "causal", "gpt2")
    for name in ("bert", "causal"):
        tiny_language.vocabulary(place / name, tokens)
    return place


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    lines = ["the cat sat on the mat .", "a dog sat .", "", "the dogs sat on a cat ."] * 2
    (place / "good.txt").write_text("\n".join(lines))
    (place / "long.txt").write_text(
        "\n".join([*lines, "the cat sat on the mat . the cat sat on the mat ."])
    )

    (place / "latin.txt").write_bytes("caf\u00e9 the cat".encode("latin-1"))
    np.save(place / "big.npy", np.full((4, 5), 14))

    return place


@pytest.mark.usefixtures("unsaved_figures")
def test_a_masked_model_of_transformers(models, sentences, tmp_path):
    done = command("--model", models / "bert", "--data", sentences / "good.txt", "--items", 6, "--levels", 2, "--out", tmp_path,
                   "--workers", 1, "--segment", "on")  # fmt: skip
    assert done.exit_code == 0, done.exception
    words = re.sub("<[^>]*>", "", (tmp_path / "tokens.html").read_text())
    assert "the cat sat on the mat ." in words
    assert "the dogs sat on a cat ." in words  # a continuation of a word has no blank before it
    assert numbers_in(tmp_path).curve.sel(reading="kept_segments", estimate="value")[0] == 1


@pytest.mark.parametrize(
    ("model", "data", "arguments", "message"),
    [
        ("bert", "long.txt", [], "line 9: tokens = 14: expected at most 8 by the model; leave longer texts out (length"),

        ("bert", "latin.txt", [], "expected text in UTF-8"),
        ("bert", "big.npy", [], "ids 0 .. 13, as the model has"),
        ("bert", "good.txt", ["--segment", "cat mat"], "segments = 'cat mat': expected the texts of single tokens"),

        ("causal", "good.txt", [], "a causal model predicts the next token only"),
        ("bert", "good.txt", ["--mask-id", 99], "99 is the mask (--mask-id), cannot be read (IndexError: index out"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    models, sentences, tmp_path, monkeypatch, capsys, model, data, arguments, message
):
    monkeypatch.chdir(tmp_path)
    given = [
        "--model",
        models / model,
        "--data",
        sentences / data,
        "--items",
        4,
        "--workers",
        1,
        "--levels",
        2,
        *arguments,
    ]
    words = [
        str(one).format(data=sentences)
        for one in ["uturn", "text", "--out", tmp_path / "out", *given]
    ]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    told = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert any(part in told for part in message.split("|")), told
    assert len([line for line in told.split("\n") if line.startswith("uturn: error")]) == 1
    assert "Traceback" not in told
