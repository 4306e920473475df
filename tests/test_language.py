"""Language models as backwards: one form for all kinds, exact draws with exact conditionals,
batches that change nothing.
"""

import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import tiny_language
import uturn as ut
from small import one_line_error
from tiny_language import Table, TableDenoiser
from uturn.backward.language import LanguageDenoiser, TokenWork, run_token_queue
from uturn.core.caches import clear_caches
from uturn.core.protocols import Corruption, Noisy
from uturn.core.random import Streams, keys, uniforms
from uturn.corruption.unmasking import Decoder, unmask
from uturn.engine.trial import check
from uturn.networks import load_language_model
from uturn.networks.texts.language import LanguageModel
from uturn.networks.texts.tokenizers import Vocabulary, load_tokenizer
from uturn.sources.tokens import PAD, NoisyTokens

TABLE = "tiny_language:table"


@pytest.mark.parametrize(
    "decoder",
    [
        *(
            Decoder(),
            Decoder("entropy"),
            Decoder("probability"),
            Decoder("confidence", steps=2),
            Decoder("blocks", 3, 2),
        ),
        Decoder(temperature=0.7, top_k=2, top_p=0.8),
        *(
            Decoder("first_hitting"),
            Decoder("blocks", block=2, causal=True),
            Decoder("blocks", 1, 2, causal=True),
        ),
        *(
            Decoder("analytic", 5),
            Decoder("analytic", 5, remask="conf", eta=1.0),
            Decoder("random", 5, remask="cap", eta=0.5),
        ),
        Decoder("random", 5, remask="cap", eta=0.5, remask_given=True),
    ],
    ids=str,
)
def test_the_queue_draws_what_unmasking_draws(decoder):
    rng = np.random.default_rng(1)
    strings = Table().strings[rng.choice(81, 40, p=Table().law)]
    values = np.where(rng.random(strings.shape) < 0.7, -1, strings)
    noise, streams = np.full(40, 0.7), Streams(0, np.arange(40), 0.7)
    options = asdict(decoder)
    found = LanguageDenoiser(model=TABLE, batch_size=3, **options).reconstruct(
        NoisyTokens(values, noise, 3, ut.Masking()), streams
    )
    assert (
        found[:, 0] == unmask(TableDenoiser(), Noisy(values, noise, 3), streams.keys(9), decoder)
    ).all()


@pytest.mark.parametrize(
    ("model", "decoder"),
    [
        (TABLE, {}),
        (TABLE, {"order": "analytic", "steps": 6}),
        (TABLE, {"order": "random", "steps": 6, "remask": "rescale", "eta": 0.5}),
        (TABLE, {"order": "analytic", "steps": 6, "remask": "conf", "remask_given": True}),
        ("tiny_language:replaced", {"steps": 6}),
        ("tiny_language:replaced", {"order": "euler", "steps": 6}),
    ],
)
def test_blocks_of_a_stream_share_calls(monkeypatch, model, decoder):
    """Also those of samplers in time: as many calls for eight blocks as for one, and its draws."""
    made = []
    monkeypatch.setattr(
        LanguageModel, "beliefs", counting(LanguageModel.beliefs, made), raising=True
    )
    rng = np.random.default_rng(0)
    channel = ut.Masking() if model == TABLE else ut.UniformReplacement()
    blocks = []
    for key, noise in enumerate(np.linspace(0, 0.9, 8)):
        noisy = channel.corrupt(rng.integers(3, size=(4, 4)), noise, seed=key, vocab_size=3)
        tokens = NoisyTokens(noisy.values, noisy.noise, 3, channel)
        blocks.append((key, tokens, Streams(0, np.arange(4), float(noise))))
    backward = LanguageDenoiser(model=model, batch_size=16, **decoder)
    together = dict(backward.reconstruct_stream(iter(blocks)))
    num_shared = len(made)
    num_longest = 0
    for key, noisy, streams in blocks:
        before = len(made)
        np.testing.assert_array_equal(backward.reconstruct(noisy, streams), together[key])
        num_longest = max(num_longest, len(made) - before)
    assert num_shared <= 2 * num_longest  # 32 texts are two batches
    assert 3 * num_shared <= len(made) - num_shared


def counting(function, made):
    def counted(*arguments):
        made.append(arguments)
        return function(*arguments)

    return counted


def test_the_network_is_told_the_share_of_masked_tokens():
    heard = []

    class Listening(Table):
        def logits(self, ids, noise):
            heard.extend(
                zip((ids == self.mask_id).double().mean(1).tolist(), noise.tolist(), strict=True)
            )
            return super().logits(ids, noise)

    texts = [[-1, -1, -1, -1], [0, -1, 2, -1], [-1, -1, -1, PAD]]
    work = [
        TokenWork(np.array(text), (np.array(text) == -1).sum() / length, key, length)
        for text, key, length in zip(texts, keys(0, range(3)), (4, 4, 3), strict=True)
    ]
    done = dict(
        run_token_queue(LanguageModel(Listening(), 3, mask_id=3), Decoder().sampler, work, 2)
    )
    assert (done[3][:3] >= 0).all()
    assert done[3][3] == PAD
    assert len(heard) == 4 + 2 + 3
    np.testing.assert_allclose(*zip(*heard, strict=True), rtol=1e-6)


def test_what_a_result_depends_on_changes_the_fingerprint():
    model = LanguageModel(Table(), 3, mask_id=3)
    changes = [
        {"vocab_size": 4},
        {"mask_id": 2},
        {"shift": True},
        {"time": "sigma"},
        {"output": "ratios"},
    ]
    changes += [{"corruption": "uniform"}, {"forbidden": (1,)}, {"identity": "other weights"}]
    found = [replace(model, **change).fingerprint() for change in changes]
    assert len({model.fingerprint(), *found}) == 1 + len(changes)
    assert replace(model, description="another name").fingerprint() == model.fingerprint()


def test_uniform_replacement_reads_ratios_as_the_posterior():
    # p(x_0^i | x_t) from ratios equals the sum over all strings.
    model, table = load_language_model("tiny_language:replaced"), Table()
    strings = table.strings[[5, 40, 77]]
    alpha = 0.6
    found = model.beliefs(strings, np.full(3, 1 - alpha))
    for row, seen in enumerate(strings):
        law = table.law * np.where(
            table.strings == seen, alpha + (1 - alpha) / 3, (1 - alpha) / 3
        ).prod(1)
        wanted = np.tensordot(law / law.sum(), table.strings[..., None] == np.arange(3), 1)
        np.testing.assert_allclose(found.at(np.full(4, row), np.arange(4)), wanted, atol=1e-6)


def test_uniform_replacement_draws_from_the_posterior_with_many_steps():
    backward = LanguageDenoiser(model="tiny_language:replaced", steps=24)
    seen = np.array([0, 2, 1, 0])
    noisy = NoisyTokens(
        np.repeat(seen[None], 1500, 0), np.full(1500, 0.5), 3, ut.UniformReplacement()
    )
    strings = backward.reconstruct(noisy, Streams(0, np.arange(1500), 0.5))[:, 0]
    table = Table()
    law = table.law * np.where(table.strings == seen, 0.5 + 0.5 / 3, 0.5 / 3).prod(1)
    law /= law.sum()
    counts = np.array([(strings == string).all(1).sum() for string in table.strings])
    # Total variation; chance alone .03, one step .3.
    assert np.abs(counts / 1500 - law).sum() / 2 < 0.08
    once = LanguageDenoiser(model="tiny_language:replaced", steps=1).reconstruct(
        noisy, Streams(0, np.arange(1500), 0.5)
    )[:, 0]
    counts = np.array([(once == string).all(1).sum() for string in table.strings])
    assert np.abs(counts / 1500 - law).sum() / 2 > 0.15


# -- models from disk ------------------------------------------------------------------------------


def direct(folder, ids, **arguments):
    """Logits of a saved model of transformers, called by hand."""
    from transformers import AutoModelForMaskedLM

    with torch.inference_mode():
        return (
            AutoModelForMaskedLM.from_pretrained(folder)
            .eval()(input_ids=torch.tensor(ids), **arguments)
            .logits.double()
            .numpy()
        )


def law(logits, forbidden):
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights[..., list(forbidden)] = 0
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "esm"])
def test_masked_models_of_transformers(tmp_path, kind):
    folder = tiny_language.write(tmp_path / kind, kind)
    model = load_language_model(str(folder))
    assert (model.prefix, model.suffix, model.mask_id, model.forbidden) == (
        (2,),
        (3,),
        4,
        (0, 2, 3, 4),
    )
    assert model.most_tokens == {"esm": 13}.get(kind, 14)
    values = np.array([[6, -1, 8, 9], [5, -1, PAD, PAD]])
    found = model.beliefs(values, np.array([0.5, 0.5]))
    # The shorter one is padded in the batch.
    for row, ids in enumerate([[2, 6, 4, 8, 9, 3], [2, 5, 4, 3]]):
        wanted = law(direct(folder, [ids])[0, 2], model.forbidden)
        np.testing.assert_allclose(found.at(np.array([row]), np.array([1]))[0], wanted, atol=2e-5)


@pytest.mark.parametrize("kind", ["mdlm", "dream"])
def test_models_with_code_of_their_own(tmp_path, kind):
    folder = tiny_language.write_with_code(tmp_path / kind, kind)
    with pytest.raises(ValueError, match=r"its own code.*--trust-remote-code"):
        load_language_model(str(folder))
    model = load_language_model(str(folder), trust_remote_code=True)
    assert (model.shift, model.time) == (kind == "dream", "sigma" if kind == "mdlm" else "none")
    assert model.mask_id == (len(tiny_language.WORDS) - 1 if kind == "mdlm" else 4)
    found = model.beliefs(np.array([[6, -1, 8, -1]]), np.array([0.5]))
    ids = torch.tensor([[2, 6, model.mask_id, 8, model.mask_id, 3]])
    given = (
        (ids, torch.tensor([-np.log1p(-0.999 * 0.5)], dtype=torch.float32))
        if kind == "mdlm"
        else (ids,)
    )
    with torch.inference_mode():
        out = model.network(*given)
    out = (out if kind == "mdlm" else out.logits)[0].double().numpy()
    at = {"dream": [1, 3]}.get(kind, [2, 4])  # the positions before, for shifted logits
    np.testing.assert_allclose(
        found.at(np.zeros(2, int), np.array([1, 3])), law(out[at], model.forbidden), atol=1e-5
    )
    # Of different lengths.
    several = model.beliefs(np.array([[6, -1, 8, -1], [5, -1, PAD, PAD]]), np.array([0.5, 0.5]))
    where = np.zeros(2, int), np.array([1, 3])
    np.testing.assert_allclose(several.at(*where), found.at(*where), atol=1e-5)


def test_entropies_and_probabilities_are_those_of_the_law(tmp_path):
    model = load_language_model(str(tiny_language.write(tmp_path / "bert")))
    values = np.array([[6, -1, 8, -1], [-1, -1, PAD, PAD]])
    found = model.beliefs(values, np.array([0.5, 1.0]))
    rows, positions = np.nonzero(values == -1)
    law_there = found.at(rows, positions)
    entropy = -(law_there * np.log(np.maximum(law_there, 1e-300))).sum(-1)
    np.testing.assert_allclose(found.entropies()[rows, positions], entropy, atol=1e-5)
    np.testing.assert_allclose(found.largest()[rows, positions], law_there.max(-1), atol=1e-6)


# -- experiments -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny_language.write(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def texts(tmp_path):
    """Texts of 3 to 8 tokens, in a file with an empty line."""
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(list("abcdefghij"), length)) for length in (8, 3, 5, 8, 4, 6)]
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*lines[:2], "", *lines[2:]]) + "\n")
    return path


def experiment(model, path, **changes):
    backward = {"type": "language", "model": str(model), **changes.pop("backward", {})}
    source = {"type": "tokens", "path": str(path), **changes.pop("source", {})}
    table = {
        "items": 6,
        "trajectories": 2,
        "chunk": 2,
        "corruption": {"type": "masking", "noise": [0.0, 0.5, 1.0]},
    }
    probes = [{"type": "kept_tokens"}, {"type": "tokens"}, {"type": "changes"}]
    return ut.Experiment.from_dict(
        {**table, "source": source, "backward": backward, "probes": probes, **changes}
    )


def test_an_experiment_with_texts_of_different_lengths(bert, texts):
    ds = ut.run(experiment(bert, texts, clones=2))
    assert ds.length.values.tolist() == [8, 3, 5, 8, 4, 6]
    assert ds.span.values.tolist() == [1, 2]
    assert (ds.kept.sel(noise=0) == 1).all()
    assert (ds.kept.sel(noise=1.0, span=1).mean("trajectory") < 1).any()
    token, noisy = ds.token.values, ds.noisy_token.values
    beyond = np.arange(8) >= ds.length.values[:, None]
    assert (token[..., :] == PAD)[:, beyond[:, None, None] & np.ones((1, 2, 2, 1), bool)].all()
    assert not (np.isin(token, [0, 2, 3, 4])).any()  # no special token is drawn
    seen = noisy >= 0
    assert (token[seen] == noisy[seen]).all()
    originals = token[0][None]
    same = ((token == originals) & (originals >= 0)).sum(-1) / ds.length.values[:, None, None]
    np.testing.assert_allclose(ds.kept.sel(span=1).values, same, atol=1e-6)
    pairs = ((token == originals) & (originals >= 0)).astype(bool)
    both = (pairs[..., 1:] & pairs[..., :-1]).sum(-1) / (ds.length.values[:, None, None] - 1)
    np.testing.assert_allclose(ds.kept.sel(span=2).values, both, atol=1e-6)


def test_batches_lengths_and_interruptions_change_nothing(bert, texts, tmp_path):
    whole = ut.run(experiment(bert, texts))
    small = ut.run(experiment(bert, texts, chunk=5, backward={"batch_size": 1}))
    assert (whole.token.values == small.token.values).all()
    probes = [{"type": "tokens"}]
    alone = ut.run(
        experiment(bert, texts, items=4, trajectories=1, probes=probes), tmp_path / "run"
    ).load()
    grown = ut.run(experiment(bert, texts, probes=probes), tmp_path / "run")
    assert (alone.token.values == whole.token.values[:, :4, :1]).all()
    assert (grown.token.values == whole.token.values).all()


@pytest.mark.parametrize(
    "decoder",
    [
        {"order": "analytic", "steps": 5},
        {"order": "analytic", "steps": 5, "remask": "conf", "eta": 1.0},
        {"order": "random", "steps": 5, "remask": "cap", "eta": 0.5},
        {"corruption": "uniform", "steps": 5},
    ],
)
def test_padding_changes_no_draw(bert, decoder):
    """Also in time: a text draws the same in an array of its own length."""
    backward = LanguageDenoiser(model=str(bert), **decoder)
    channel = backward.language().channel
    rng = np.random.default_rng(0)
    lengths = np.array([8, 3, 5, 1, 7])
    noisy = channel.corrupt(rng.integers(5, 15, (5, 8)), 0.8, seed=1, vocab_size=17)
    values = np.where(np.arange(8) < lengths[:, None], noisy.values, PAD)
    padded = NoisyTokens(values, noisy.noise, 17, channel)
    together = backward.reconstruct(padded, Streams(0, np.arange(5), 0.8))[:, 0]
    for item, length in enumerate(lengths):
        own = NoisyTokens(values[[item], :length], noisy.noise[[item]], 17, channel)
        alone = backward.reconstruct(own, Streams(0, np.array([item]), 0.8))
        np.testing.assert_array_equal(alone[0, 0], together[item, :length])
    assert (together[:, 1:][values[:, 1:] == PAD] == PAD).all()


def test_strings_of_a_grammar_and_tokens_are_the_same_data(bert, tmp_path):
    # Symbols of a grammar are ids, so that a model can be compared with exact inference on the same
    # strings.
    grammar = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3}
    table = {
        "items": 5,
        "corruption": {"type": "masking", "noise": [0.6]},
        "probes": [{"type": "parsed_levels"}],
    }
    model = {"type": "language", "model": "test_language:symbols"}
    strings = ut.Experiment.from_dict({**table, "source": grammar, "backward": model})
    leaves = np.concatenate(
        [block.data for block in strings.parts.source.blocks(np.arange(5), 0, 5)]
    )
    np.save(tmp_path / "ids.npy", leaves)
    tokens = {"type": "tokens", "path": str(tmp_path / "ids.npy")}
    probes = [{"type": "kept_tokens", "spans": [1]}]
    found = ut.run(
        ut.Experiment.from_dict({**table, "source": tokens, "backward": model, "probes": probes})
    )
    parsed = ut.run(strings)
    assert parsed.parsed.dims[-1] == "tree_level"
    np.testing.assert_allclose(
        found.kept.values[..., 0], parsed.parsed.sel(tree_level=0).values, atol=1e-6
    )


class Symbols(torch.nn.Module):
    """Four symbols, of which each masked one is that before it, mostly; id 4 is the mask."""

    mask_id = 4

    def logits(self, ids, noise):
        return 2.0 * torch.nn.functional.one_hot(ids.roll(1, 1), 5)[..., :4].double()


def symbols():
    return Symbols()


def test_segments_and_regions(tmp_path, bert):
    path = tmp_path / "texts.csv"
    path.write_text("regions,text\nFFF122,a b j c d e\nFFF11122,f g h j i j a b\n")
    made = experiment(bert, path, items=2, source={"segments": ["j"]})
    ds = ut.run(made)
    source = made.parts.source
    assert source.segments_of([0, 1]).tolist() == [
        [0, 0, -1, 1, 1, 1, -1, -1],
        [0, 0, 0, -1, 1, -1, 2, 2],
    ]
    assert ds.region.values.tolist() == ["1", "2", "F"]
    same = ds.token.values == ds.token.values[:1]
    for item, line in enumerate(["FFF122", "FFF11122"]):
        for number, region in enumerate("12F"):
            inside = [k for k, one in enumerate(line) if one == region]
            np.testing.assert_allclose(
                ds.kept_region.values[:, item, :, number],
                same[:, item][..., inside].mean(-1),
                atol=1e-6,
            )
    whole = same[:, 0, :, :2].all(-1) * 0.5 + same[:, 0, :, 3:6].all(-1) * 0.5
    np.testing.assert_allclose(ds.kept_segments.values[:, 0], whole, atol=1e-6)


# -- bad input -------------------------------------------------------------------------------------


def refused(words, model, path, **changes):
    with one_line_error(words):
        ut.run(experiment(model, path, **changes))


def test_texts_that_do_not_fit(bert, texts, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("a b\n" + "a " * 20 + "\n")
    refused(
        "line 2: tokens = 20: expected at most 14 by the model; leave longer texts out.*windows",
        bert,
        long,
        items=1,
    )
    refused("texts in it = 0", bert, texts, source={"length": 2})
    strange = tmp_path / "strange.txt"
    strange.write_text("x y z\n")
    refused("unknown tokens = '3 of 3'.*split: smiles", bert, strange, items=1)

    # The mark of UTF-8 that some editors write.
    (tmp_path / "marked.txt").write_text("\ufeffa b\n", encoding="utf-8")
    assert experiment(bert, tmp_path / "marked.txt", items=1).parts.source.ids([0]).tolist() == [
        [5, 6]
    ]
    (tmp_path / "digits.txt").write_text("abc\n\nab1\n")
    refused(
        "line 3: characters of the text 'ab1' = '1': expected the 64 tokens of the model;"
        " replace it",
        "embedded",
        tmp_path / "digits.txt",
    )
    np.save(tmp_path / "ids.npy", np.array([[5, 17]]))
    refused(r"row 0 = .*: expected a text, or ids 0 .. 16", bert, tmp_path / "ids.npy", items=1)


def test_lines_that_are_left_out_are_recorded(bert, texts, tmp_path):
    ds = ut.run(experiment(bert, texts, items=4, source={"length": 6}), tmp_path / "run")
    assert ds.length.values.tolist() == [3, 5, 4, 6]
    assert "'line 3': 'empty'" in str(ds.attrs).replace('"', "'")
    assert "8 tokens, more than length = 6" in str(ds.attrs)


def test_windows(bert, texts):
    ds = ut.run(experiment(bert, texts, items=4, source={"windows": True, "length": 8}))
    assert ds.length.values.tolist() == [8] * 4
    refused("items = 6: expected at most 2", bert, texts, source={"windows": True})


def test_models_that_do_not_fit(bert, texts, tmp_path):
    gpt2 = tiny_language.write(tmp_path / "gpt2", "gpt2")
    refused("GPT2LMHeadModel.*a causal model", gpt2, texts)
    small = tiny_language.write(tmp_path / "small")
    tiny_language.vocabulary(small, tiny_language.WORDS[:9])
    refused("tokens of its tokenizer = 9: expected 17.*--tokenizer", small, texts)
    no_mask = tiny_language.write(tmp_path / "no_mask")
    tiny_language.vocabulary(no_mask, [word.replace("[MASK]", "k") for word in tiny_language.WORDS])
    refused("no mask token.*--mask-id", no_mask, texts, backward={"split": "characters"})
    refused(
        "corruption = UniformReplacement.*expected Masking",
        bert,
        texts,
        corruption={"type": "uniform", "noise": [0.5]},
    )


class EverySecond(Corruption):
    """Masks every second token, from a random one on; it says what it does, and inherits nothing
    from `Masking`.
    """

    kinds = ("tokens",)
    process = "channel"
    masks = True
    unit = "half of the tokens at noise 1"
    max_noise = 1.0

    def corrupt(self, tokens, noise, keys):
        begin = (uniforms(keys, 1) * 2).astype(int)
        is_masked = (np.arange(tokens.shape[1]) % 2 == begin) & (noise > 0)
        return Noisy(np.where(is_masked, -1, tokens), np.full(len(tokens), noise / 2))


class Silent(EverySecond):
    """The same without a word about masks."""

    masks = False


def test_a_corruption_of_ones_own_that_masks_is_undone(bert, texts):
    own = {"type": f"{__name__}:EverySecond", "noise": [0.0, 1.0]}
    ds = ut.run(experiment(bert, texts, corruption=own))
    assert (ds.kept.sel(noise=0.0) == 1).all()
    token, noisy, lengths = ds.token.values, ds.noisy_token.values, ds.length.values
    masked = noisy[1] == -1
    for item, length in enumerate(lengths):
        for trajectory in range(2):
            (places,) = np.nonzero(masked[item, trajectory])
            assert places.tolist() in ([*range(0, length, 2)], [*range(1, length, 2)])
    assert (token[1][~masked] == token[0][~masked]).all()
    assert (token[1][masked] != token[0][masked]).any()
    refused(
        "corruption = .*Silent.*expected Masking.. or a corruption with masks = True, which the"
        " model",
        bert,
        texts,
        corruption={**own, "type": f"{__name__}:Silent"},
    )
    refused(
        "corruption = .*EverySecond.*expected UniformReplacement",
        bert,
        texts,
        corruption=own,
        backward={"corruption": "uniform", "steps": 4},
    )


class Pairs(Corruption):
    """Masks some pairs of neighbours; its noise level is their number, no share."""

    kinds = ("tokens",)
    process = "channel"
    masks = True
    unit = "masked pairs"
    max_noise = 3.0

    def corrupt(self, tokens, noise, keys):
        length = tokens.shape[1]
        order = uniforms(keys, length // 2).argsort(axis=1)
        is_masked = np.repeat(order < noise, 2, axis=1)
        is_masked = np.pad(is_masked, ((0, 0), (0, length % 2)))
        return Noisy(np.where(is_masked, -1, tokens), np.full(len(tokens), float(noise)))


class Listening(Table):
    """A network that keeps the shares of masked tokens that it sees, and the noise it is told."""

    heard: ClassVar[list] = []

    def logits(self, ids, noise):
        share = (ids == self.mask_id).double().mean(1)
        self.heard.extend(zip(share.tolist(), noise.tolist(), strict=True))
        return super().logits(ids, noise)


@pytest.mark.parametrize(
    "decoder",
    [
        {},
        {"order": "entropy", "steps": 2},
        {"order": "analytic", "steps": 4},
        {"order": "random", "steps": 4, "remask": "cap", "eta": 0.8},
        {"order": "random", "steps": 8, "remask": "rescale", "remask_given": True},
    ],
)
def test_a_corruption_of_ones_own_may_have_a_unit_of_its_own(tmp_path, decoder):
    """A network is told the share of masked tokens, also by samplers in time."""
    np.save(tmp_path / "ids.npy", Table().strings[:30:5])
    clear_caches()
    corruption = {"type": f"{__name__}:Pairs", "noise": [0.0, 1.0, 2.0]}
    made = experiment(
        f"{__name__}:Listening",
        tmp_path / "ids.npy",
        corruption=corruption,
        backward=decoder,
        clones=2,
    )
    ds = ut.run(made)
    token, noisy = ds.token.values, ds.noisy_token.values
    assert ((noisy == -1).sum(-1) == np.array([0, 2, 4])[:, None, None, None]).all()
    assert (ds.kept.sel(noise=0.0) == 1).all()
    assert (token >= 0).all()
    is_kept = (noisy == -1) | (token == noisy)
    assert is_kept.all() or decoder.get("remask_given")
    assert (token[2] != token[0]).any()
    source, channel, backward, _ = made.parts
    (block,) = source.blocks(np.arange(6), 0, 6)
    Listening.heard.clear()
    ut.u_turn(block, channel, backward, 2.0)
    share, noise = np.array(Listening.heard).T
    if decoder.get("order") == "analytic":  # it tells the noise level of each step
        assert set(noise.tolist()) <= {0.25, 0.5, 0.75, 1.0}
    else:
        np.testing.assert_array_equal(share, noise)


class Lines(ut.sources.TextSource):
    """Texts that are given; they say no more than a source of texts must."""

    def __init__(self, lines):
        self.lines = lines

    def texts(self):
        return self.lines


class Labelled(Lines):
    """Texts with a class, and segments."""

    def separators(self):
        return ["a"]

    def labels(self):
        return [len(line) % 2 for line in self.lines]


def test_a_source_of_texts_of_ones_own(bert, texts):
    """It gives what the same texts in a file give."""
    lines = [line for line in texts.read_text().splitlines() if line]
    of_file = ut.run(experiment(bert, texts))
    own = experiment(bert, texts).to_dict() | {
        "source": {"type": f"{__name__}:Lines", "lines": lines}
    }
    ds = ut.run(ut.Experiment.from_dict(own))
    for name in of_file.data_vars:
        assert ds[name].equals(of_file[name]), name
    assert ds.length.equals(of_file.length)
    own["source"] = {"type": f"{__name__}:Labelled", "lines": lines}
    labelled = ut.run(ut.Experiment.from_dict(own))
    assert labelled.label.values.tolist() == [len(line) % 2 for line in lines]
    assert labelled.kept_segments.notnull().any()
    own["source"]["lines"] = [*lines, "a ?"]
    own["items"] = len(lines) + 2
    with pytest.raises(
        ValueError, match=r"at most 7, the texts or windows of source \('test_language:Lab"
    ):
        ut.run(ut.Experiment.from_dict(own))


def test_the_corruption_on_the_page_of_own_parts(bert, texts, tmp_path, monkeypatch):
    """It masks one run, for a language model and for the exact posterior."""
    page = (Path(__file__).parents[1] / "docs" / "own-parts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(# spans.py\n.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "spans.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"type": "spans:Spans", "noise": [0.25, 0.5, 1.0]}
    made = experiment(bert, texts, corruption=own, source={"windows": True, "length": 8}, items=2)
    assert not [line for line in map(str, check(made)) if line.startswith("warning")]
    masked = ut.run(made).noisy_token.values == -1
    assert masked.sum(-1).tolist() == [[[count] * 2] * 2 for count in (2, 4, 8)]
    assert (np.diff(masked.astype(int), axis=-1) == 1).sum(-1).max() == 1  # it begins once
    grammar = {"type": "rhm", "vocab_size": 4, "multiplicity": 2, "branching": 2, "depth": 3}
    levels = {
        "items": 64,
        "source": grammar,
        "corruption": own,
        "backward": {"type": "exact"},
        "probes": [{"type": "tree_levels"}],
    }
    kept = ut.run(ut.Experiment.from_dict(levels)).unchanged.sel(tree_level=0).mean("item")
    assert (kept.values.ravel() > [0.75, 0.5, 0.25]).all()
    sys.modules.pop("spans")


def of_long_texts(change):
    """Logits that are changed where a text has more than the two tokens with which a network is
    tried.
    """
    return lambda self, ids, noise: (
        Table.logits(self, ids, noise)
        if ids.shape[1] == 2
        else change(Table.logits(self, ids, noise))
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda logits: logits * torch.nan,
            "tiny_language:odd: probabilities that are NaN = .*: expected none; a logit is NaN",
        ),
        (
            lambda logits: 1 / 0,
            r"in .*tiny_language:odd, ids \(5, 4\) \(test_language.py, line \d+\)",
        ),
    ],
)
def test_networks_of_ones_own_that_fail_in_a_run(monkeypatch, change, words):
    made = type("Odd", (Table,), {"logits": of_long_texts(change), "__module__": __name__})
    monkeypatch.setattr(tiny_language, "odd", made, raising=False)
    clear_caches()  # of the models of other cases, which have the same name
    backward = LanguageDenoiser(model="tiny_language:odd", batch_size=5)
    noisy = NoisyTokens(np.full((5, 4), -1), np.ones(5), Table.V, ut.Masking())
    with pytest.raises((ValueError, ZeroDivisionError), match=words):
        backward.reconstruct(noisy, Streams(0, np.arange(5), 1.0))


# --- texts of words -------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[MASK]", "rain", "falls", "a", "aa", "on", "hills", ",", "7"]


def word_level(folder):
    """A tokenizer of transformers whose tokens are words between blanks and punctuation."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize("kind", ["transformers", "vocabulary"])
def test_words_are_shown_with_blanks_and_read_by_other_tokenizers(tmp_path, kind):
    tokenizer = (
        word_level(tmp_path) if kind == "transformers" else Vocabulary(WORDS, r"(\w+)|[^\w\s]")
    )
    ids = tokenizer.encode("rain falls, on 7 hills")
    assert "".join(tokenizer.pieces(ids)) == " rain falls , on 7 hills"
    assert tokenizer.text(ids) == "rain falls , on 7 hills"
    assert tokenizer.encode(tokenizer.text(ids)) == ids


@pytest.mark.parametrize(
    "tokenizer",
    [
        Vocabulary(["A", "C", "G", "T", "N"], "characters"),
        Vocabulary(["C", "Cl", "N", "(", ")", "1"], "smiles"),
        Vocabulary(["rain", "falls", " "], r"\w+|\s"),  # the blank is a token
        Vocabulary(["AAA", "AAC", "ACA", "CAA"], r"[ACGT]{3}"),
    ],
    ids=lambda tokenizer: tokenizer.split,
)
def test_tokens_that_need_no_blank_have_none(tokenizer):
    assert tokenizer.pieces(range(2)) == list(tokenizer.tokens[:2])
